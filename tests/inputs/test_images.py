import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs import images
from cdiff_rt.inputs.palette import CLASSES, PALETTE

RNG = np.random.default_rng(0)
EVERY_LABEL = RNG.permutation(np.arange(1024) % 19).reshape(32, 32).astype(np.uint8)
PICTURE = RNG.integers(0, 256, (64, 64, 3), np.uint8)


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
        images.read_labels(bad_mask.path, 19)
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
    labels, told = images.read_labels(path, 19)
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
            labels, _ = images.read_labels(path, 19)
        except BadInput:
            continue
        assert labels.max() < 19


MEASURE = """
import resource, sys
from pathlib import Path
from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.images import read_labels
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
        images.check_labels(labels, 19)


def test_a_wrong_label_is_named_with_its_first_place_and_count():
    labels = np.zeros((8, 8), int)
    labels[6, 2] = labels[7, 1] = 23
    with pytest.raises(BadInput, match=r"label 23 at x 2, y 6 \(2 such pixels\); the model knows 0-18"):
        images.check_labels(labels, 19)


@pytest.mark.parametrize("side", [1, 2, 31, 32, 33, 64, 100, 127, 512, 1001])
@pytest.mark.parametrize("size", [1, 8, 32])
def test_nearest_is_pillows(side, size):
    labels = RNG.integers(0, 19, (side, side), np.uint8)
    expected = np.asarray(Image.fromarray(labels).resize((size, size), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(images.nearest(labels, size), expected)


@pytest.mark.parametrize(("shape", "top", "left"), [((4, 4), 0, 0), ((4, 8), 0, 2), ((9, 4), 2, 0), ((2, 7), 0, 2)])
def test_centre_square_is_the_middle(shape, top, left):
    pixels = np.arange(shape[0] * shape[1]).reshape(shape)
    side = min(shape)
    np.testing.assert_array_equal(images.centre_square(pixels), pixels[top : top + side, left : left + side])


def test_a_palette_that_an_editor_sorted_anew_is_read_by_its_colours(tmp_path):
    labels = np.tile(np.array([0, 1, 13, 17], np.uint8), (4, 1))
    colours = np.array(PALETTE, np.uint8)[labels]
    quantised = Image.fromarray(colours).quantize(4)
    assert not np.array_equal(np.asarray(quantised), labels)
    quantised.save(tmp_path / "sorted.png")
    read, how = images.read_labels(tmp_path / "sorted.png", 19)
    assert np.array_equal(read, labels) and "colours" in how


def test_a_palette_of_other_colours_leaves_pixel_values_as_labels(tmp_path):
    labels = np.tile(np.array([0, 1, 13, 17], np.uint8), (4, 1))
    picture = Image.fromarray(labels).convert("P")
    picture.putdata(labels.ravel().tolist())
    picture.putpalette([value for label in range(19) for value in (label, label, label)])
    picture.save(tmp_path / "grey.png")
    assert np.array_equal(images.read_labels(tmp_path / "grey.png", 19)[0], labels)


def test_the_palette_has_one_colour_for_each_class():
    assert len(CLASSES) == len(PALETTE) == len(set(PALETTE)) == 19
    assert (CLASSES[1], PALETTE[1], CLASSES[18], PALETTE[18]) == ("skin", (204, 0, 0), "cloth", (0, 204, 0))


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_a_photo_of_the_right_size_keeps_its_pixels(name, tmp_path):
    photo = PICTURE[:20, :20]
    Image.fromarray(photo).save(tmp_path / name, lossless=True)
    np.testing.assert_array_equal(images.read_photo(tmp_path / name, 20), photo)


def test_a_photo_is_turned_as_its_exif_says_cut_to_its_centre_and_scaled(tmp_path):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:20, 30:70] = 255  # the upper half of the centre square
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(wide).save(tmp_path / "a.jpg", exif=exif, quality=95)
    read = images.read_photo(tmp_path / "a.jpg", 10)
    assert read.shape == (10, 10, 3) and read[:4].max() < 20 and read[6:].min() > 235


@pytest.mark.parametrize("size", [8, 21])
def test_a_region_is_one_where_it_is_white(size, tmp_path):
    keep = np.random.default_rng(0).integers(0, 2, (size, size), np.uint8)
    Image.fromarray(keep * 255).save(tmp_path / "grey.png")
    Image.fromarray(keep.astype(bool)).save(tmp_path / "one-bit.png")
    for name in ("grey.png", "one-bit.png"):
        np.testing.assert_array_equal(images.read_region(tmp_path / name), keep)


def soft(path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path, "PNG")


@pytest.mark.parametrize(
    ("read", "write", "words"),
    [
        (lambda path: images.read_photo(path, 8), lambda path: None, "photo .*no such file"),
        (lambda path: images.read_photo(path, 8), lambda path: path.mkdir(), "not a file"),
        (lambda path: images.read_photo(path, 8), lambda path: Image.fromarray(PICTURE).save(path, "GIF"), "GIF"),
        (lambda path: images.read_photo(path, 8), lambda path: path.write_text("<html>"), "cannot be read"),
        (images.read_region, lambda path: None, "region .*no such file"),
        (images.read_region, soft, "grey levels 1, 2, 3, 4, 5 besides black and white"),
        (images.read_region, lambda path: Image.fromarray(PICTURE).save(path, "JPEG"), "JPEG"),
        (lambda path: images.read_array(path, "sketch"), lambda path: None, "sketch .*no such file"),
        (lambda path: images.read_array(path, "sketch"), lambda path: path.write_text("1,2"), "cannot be read"),
        (
            lambda path: images.read_array(path, "sketch"),
            lambda path: np.save(path.open("wb"), np.array([print], object), allow_pickle=True),
            "cannot be read as an array",
        ),
    ],
)  # fmt: skip
def test_bad_photos_regions_and_arrays_are_refused_in_words(read, write, words, tmp_path):
    path = tmp_path / "file"
    write(path)
    with pytest.raises(BadInput, match=words):
        read(path)


def test_a_bomb_is_no_photo_and_no_region(bomb_file):
    for read in (lambda: images.read_photo(bomb_file, 8), lambda: images.read_region(bomb_file)):
        with pytest.raises(BadInput, match="169|13000x13000"):
            read()
