import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.inputs.images import nearest
from cdiff_rt.inputs.label_doubts import doubts
from cdiff_rt.inputs.label_maps import read_labels
from cdiff_rt.inputs.palette import CLASSES, PALETTE
from cdiff_rt.inputs.palette_files import FILES
from tests.label_pictures import ROOT


def test_the_template_is_a_face_that_reads_without_a_doubt(caplog):
    labels, how = read_labels(FILES["template.png"](), 19)
    assert list(doubts(labels, nearest(labels, 32), 19)) == caplog.messages == []
    assert how.startswith("palette") and {0, 1, 2, 4, 5, 11, 12, 13, 17, 18} <= set(np.unique(labels))


def test_the_palettes_of_paint_programs_have_every_colour_and_its_name():
    lines = FILES["faces.gpl"]().decode().splitlines()
    assert lines[0] == "GIMP Palette"
    read = [re.fullmatch(r" *(\d+) +(\d+) +(\d+)\t\d+ (\w+)", line) for line in lines[4:]]
    assert [each and each.group(4) for each in read] == list(CLASSES)
    assert [tuple(int(each.group(i)) for i in (1, 2, 3)) for each in read if each] == list(PALETTE)


def test_photoshops_has_two_versions_of_them():
    content = io.BytesIO(FILES["faces.aco"]())
    for version in (1, 2):
        assert struct.unpack(">2H", content.read(4)) == (version, 19)
        for label, colour in enumerate(PALETTE):
            space, *channels, rest = struct.unpack(">5H", content.read(10))
            assert (space, [channel >> 8 for channel in channels], rest) == (0, list(colour), 0)
            if version == 2:
                name = content.read(2 * struct.unpack(">I", content.read(4))[0]).decode("utf-16-be")
                assert name == f"{label} {CLASSES[label]}\0"
    assert not content.read()


@pytest.mark.parametrize(("page", "name"), [("masks-colours.png", "faces.png"), ("masks-template.png", "template.png")])
def test_the_pictures_of_the_page_are_these(page, name):
    shown, made = (
        np.asarray(Image.open(of).convert("RGB")) for of in (ROOT / "docs" / page, io.BytesIO(FILES[name]()))
    )
    np.testing.assert_array_equal(shown, made)


def test_the_swatch_has_every_colour():
    pixels = np.asarray(Image.open(io.BytesIO(FILES["faces.png"]())))
    assert {*PALETTE} <= {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}


def test_the_script_names_the_palette_and_closes_every_bracket():
    script = re.sub(r";.*|\"[^\"]*\"", "", FILES["gimp-mask.scm"]().decode())
    assert script.count("(") == script.count(")")
    assert FILES["gimp-mask.scm"]().decode().count(FILES["faces.gpl"]().decode().splitlines()[1][6:]) == 3
