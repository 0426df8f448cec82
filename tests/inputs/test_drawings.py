import logging

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.drawings import read_drawing
from cdiff_rt.inputs.modalities import KINDS, asked
from cdiff_rt.manifest import Modality

SKETCH = Modality("sketch", "picture", decays=False, anchor=False, size=16, tokens=4)


@pytest.fixture(autouse=True)
def notices(caplog):
    caplog.set_level(logging.INFO, "cdiff_rt")
    return caplog


@pytest.fixture
def lines():
    """[16, 16] uint8: a black cross on white paper."""
    drawn = np.full((16, 16), 255, np.uint8)
    drawn[4:12, 8] = drawn[8, 3:13] = 0
    return drawn


FORMS = (
    *("grey array", "colour array", "array with alpha", "real numbers", "bool", "grey with alpha"),
    *("path", "text", "bytes", "Pillow's", "black and white", "transparent paper"),
)


def as_forms(lines, folder):
    colour = np.repeat(lines[..., None], 3, axis=2)
    ink = np.concatenate([np.zeros_like(colour), 255 - lines[..., None]], axis=2)  # black of which paper is transparent
    path = folder / "lines.png"
    Image.fromarray(lines).save(path)
    Image.fromarray(ink).save(folder / "ink.png")
    return {
        "grey array": lines,
        "colour array": colour,
        "array with alpha": ink,
        "real numbers": lines / 255,
        "bool": lines > 0,
        "grey with alpha": np.stack([np.zeros_like(lines), 255 - lines], axis=2),
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "Pillow's": Image.fromarray(lines),
        "black and white": Image.fromarray(lines).convert("1"),
        "transparent paper": folder / "ink.png",
    }


@pytest.mark.parametrize("form", FORMS)
def test_whatever_its_form_it_is_read_as_the_same(form, lines, tmp_path, bundle):
    read = KINDS["picture"].read(as_forms(lines, tmp_path)[form], SKETCH, bundle)
    assert (read.shape, read.dtype) == ((1, 1, 16, 16), np.float32)
    np.testing.assert_allclose(read[0, 0], lines / 255, atol=1e-6)


def test_of_a_wide_one_the_centre_is_used_and_that_is_told(lines, notices):
    wide = np.pad(lines, ((0, 0), (6, 8)), constant_values=255)
    np.testing.assert_allclose(read_drawing(wide, 16, "sketch"), wide[:, 7:23] / 255, atol=1e-6)
    assert "sketch array 16x30: 30x16 is not square, its centre is used" in notices.messages


def test_thin_lines_of_a_large_one_stay_dark():
    large = Image.new("L", (1024, 1024), "white")
    ImageDraw.Draw(large).line((100, 100, 900, 900), fill=0, width=4)
    assert read_drawing(large, 64, "sketch").min() < 0.1


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        pytest.param(np.full((16, 16), 255, np.uint8), "there is no line in it", id="white"),
        pytest.param(np.zeros((16, 16), np.uint8), "there is no line in it", id="black"),
        pytest.param("inverted", "most of it is dark", id="inverted"),
    ],
)
def test_what_is_no_drawing_is_warned_of(picture, told, lines, notices):
    read_drawing(255 - lines if isinstance(picture, str) else picture, 16, "sketch")
    (record,) = notices.records
    assert record.levelname == "WARNING" and told in record.getMessage()


def test_a_drawing_is_read_without_a_word(lines, notices):
    read_drawing(lines, 16, "sketch")
    assert notices.messages == []


@pytest.mark.parametrize(
    ("picture", "seen"),
    [
        pytest.param(np.zeros((4, 4, 5), np.uint8), r"uint8 of shape \(4, 4, 5\)", id="five channels"),
        pytest.param(np.zeros((0, 4), np.uint8), r"uint8 of shape \(0, 4\)", id="empty"),
        pytest.param(np.zeros(4), "float64 of shape", id="a row"),
        pytest.param(np.full((4, 4), 2.0), "not all between 0 and 1", id="too large"),
        pytest.param(np.full((4, 4), np.nan), "not all between 0 and 1", id="nan"),
        pytest.param(np.zeros((4, 4), np.int64), "elements of type int64", id="whole numbers"),
        pytest.param(b"no picture", "no picture|format|image", id="no picture"),
        pytest.param(Image.new("F", (4, 4)), "floating-point grey", id="real pixels"),
        pytest.param(3.5, "a float", id="a number"),
    ],
)
def test_what_cannot_be_one_is_refused(picture, seen):
    with pytest.raises(BadInput, match=seen) as refused:
        read_drawing(picture, 16, "sketch")
    assert "\n" not in str(refused.value)


def test_what_is_told_of_it_finds_and_draws_it_again(lines, tmp_path, bundle):
    kind, path = KINDS["picture"], tmp_path / "lines.png"
    Image.fromarray(np.kron(lines, np.ones((3, 3), np.uint8))).save(path)
    manifest = type("Manifest", (), {"modalities": [SKETCH]})
    given = asked({"sketch": path}, manifest)["sketch"]
    path.unlink()  # what was read is what is told
    assert kind.trace(given)["file"] == kind.show(given) == "lines.png"
    whole = kind.whole(given, SKETCH)
    np.testing.assert_array_equal(kind.read(whole, SKETCH, bundle), kind.read(given, SKETCH, bundle))
    assert kind.draw(given, SKETCH).shape == (16, 16, 3)
