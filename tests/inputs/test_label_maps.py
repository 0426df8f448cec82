import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.label_maps import check_labels, read_labels
from cdiff_rt.inputs.palette import CLASSES, PALETTE

RNG = np.random.default_rng(0)
EVERY_LABEL = RNG.permutation(np.arange(1024) % 19).reshape(32, 32).astype(np.uint8)


def palette_image(labels):
    image = Image.fromarray(labels, "L").convert("P")
    image.putdata(labels.ravel().tolist())
    image.putpalette([value for colour in PALETTE for value in colour])
    return image


def colours(labels):
    return np.array(PALETTE, np.uint8)[labels]


def opaque(pixels):
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def test_bad_masks_are_refused_in_words(bad_mask):
    with pytest.raises(BadInput) as raised:
        read_labels(bad_mask.path, 19)
    message = str(raised.value)
    assert [word for word in bad_mask.words if word not in message] == []
    assert message.startswith("mask ") and "bad.png" in message and "\n" not in message


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (lambda labels: palette_image(labels), "palette"),
        (lambda labels: Image.fromarray(labels), "grey"),
        (lambda labels: Image.fromarray(colours(labels)), "RGB"),
        (lambda labels: Image.fromarray(opaque(colours(labels))), "RGB"),
        (lambda labels: Image.fromarray(opaque(labels), "LA"), "grey"),
    ],
    ids=["palette", "grey", "RGB", "RGBA opaque", "LA opaque"],
)
def test_every_form_of_a_mask_gives_the_same_labels(make, how, tmp_path):
    path = tmp_path / "mask.png"
    make(EVERY_LABEL).save(path)
    labels, told = read_labels(path, 19)
    np.testing.assert_array_equal(labels, EVERY_LABEL)
    assert labels.dtype == np.uint8 and told.startswith(how)


def test_a_damaged_png_is_refused_or_reads_as_labels(tmp_path):
    path = tmp_path / "mask.png"
    palette_image(EVERY_LABEL[:8, :8]).save(path)
    whole = path.read_bytes()
    cut = [whole[:length] for length in range(len(whole))]
    flipped = [whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1 :] for i in range(len(whole)) for bit in (1, 0x80)]
    for damaged in cut + flipped:
        path.write_bytes(damaged)
        try:
            labels, _ = read_labels(path, 19)
        except BadInput:
            continue
        assert labels.max() < 19


MEASURE = """
import resource, sys
from pathlib import Path
from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.label_maps import read_labels
from PIL import PngImagePlugin
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_labels(Path(sys.argv[1]), 19)
except BadInput as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_decompression_bomb_is_refused_before_decoding(bomb_file, root):
    assert bomb_file.stat().st_size < 2**20
    command = [sys.executable, "-c", MEASURE, str(bomb_file)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=60)
    message, growth = done.stdout.splitlines()
    assert "13000x13000 pixels" in message
    assert int(growth) < 64 * 1024  # kB; decoding takes 165 MB


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4), np.uint8),
        np.full((4, 4), -1),
        np.full((4, 4), 19, np.uint8),
        np.full((4, 4), 2**40),
    ],
    ids=lambda labels: f"{labels.dtype} {labels.shape}",
)
def test_arrays_that_are_no_label_maps_are_refused(labels):
    with pytest.raises(BadInput, match="^mask array: "):
        check_labels(labels, range(19))


def test_a_wrong_label_is_named_with_its_first_place_and_count():
    labels = np.zeros((8, 8), int)
    labels[6, 2] = labels[7, 1] = 23
    with pytest.raises(BadInput, match=r"label 23 at x 2, y 6 \(2 such pixels\); the model knows 0-18"):
        check_labels(labels, range(19))


def test_a_palette_that_an_editor_sorted_anew_is_read_by_its_colours(tmp_path):
    labels = np.tile(np.array([0, 1, 13, 17], np.uint8), (4, 1))
    colours = np.array(PALETTE, np.uint8)[labels]
    quantised = Image.fromarray(colours).quantize(4)
    assert not np.array_equal(np.asarray(quantised), labels)
    quantised.save(tmp_path / "sorted.png")
    read, how = read_labels(tmp_path / "sorted.png", 19)
    assert np.array_equal(read, labels) and "colours" in how


def test_a_palette_of_other_colours_leaves_pixel_values_as_labels(tmp_path):
    labels = np.tile(np.array([0, 1, 13, 17], np.uint8), (4, 1))
    picture = Image.fromarray(labels).convert("P")
    picture.putdata(labels.ravel().tolist())
    picture.putpalette([value for label in range(19) for value in (label, label, label)])
    picture.save(tmp_path / "grey.png")
    assert np.array_equal(read_labels(tmp_path / "grey.png", 19)[0], labels)


def test_the_palette_has_one_colour_for_each_class():
    assert len(CLASSES) == len(PALETTE) == len(set(PALETTE)) == 19
    assert (CLASSES[1], PALETTE[1], CLASSES[18], PALETTE[18]) == ("skin", (204, 0, 0), "cloth", (0, 204, 0))


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_labels_of_more_bits_are_the_same_labels_and_larger_numbers_are_told(kind):
    labels = np.arange(19, dtype=np.uint8).repeat(19).reshape(19, 19)
    picture = Image.fromarray(labels.astype(kind))
    for snap in (False, True):
        np.testing.assert_array_equal(read_labels(picture, 19, snap=snap)[0], labels)
    bits = 8 * np.dtype(kind).itemsize
    with pytest.raises(BadInput, match=f"{bits}-bit grey with values from 0 to 4626, .*save it as 8-bit grey or with"):
        read_labels(Image.fromarray(labels.astype(kind) * kind(257)), 19)
