import numpy as np
import pytest
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs import images

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (64, 64, 3), np.uint8)


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
            "elements of type object",
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
