import logging
import struct

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.inputs.images import read_photo
from tests.bad_files import png_chunk
from tests.inputs.profiles import grey_profile, ink_profile, profile, to_srgb

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (16, 16, 3), np.uint8)
GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.fixture(autouse=True)
def notes(caplog):
    caplog.set_level(logging.INFO, "cdiff_rt")
    return caplog


def written(tmp_path, image, name="a.png", **how):
    image.save(tmp_path / name, **how)
    return tmp_path / name


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
@pytest.mark.parametrize("colours", ["Display P3", "Adobe RGB"])
def test_a_wide_gamut_becomes_srgb_by_its_profile(name, colours, tmp_path, notes):
    path = written(tmp_path, Image.fromarray(COLOURS), name, lossless=True, icc_profile=profile(colours))
    read, truth = read_photo(path, 16), to_srgb(COLOURS, colours)
    assert np.abs(read - truth).max() <= 2 and np.abs(COLOURS - truth).max() > 16
    assert notes.messages == [f"photo {name}: its colours are converted from {colours} to sRGB"]


def test_so_does_that_of_a_jpeg(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 60, 40))
    path = written(tmp_path, flat, "a.jpg", quality=100, subsampling=0, icc_profile=profile("Adobe RGB"))
    assert np.abs(read_photo(path, 16)[8, 8] - to_srgb(np.array([200, 60, 40]), "Adobe RGB")).max() <= 3


@pytest.mark.parametrize("size", [(40, 16), (16, 40)])
def test_every_strip_of_the_centre_is_converted(size, tmp_path, monkeypatch):
    monkeypatch.setattr("cdiff_rt.inputs.images.STRIP", 48)  # three rows
    pixels = RNG.integers(0, 256, (size[1], size[0], 3), np.uint8)
    path = written(tmp_path, Image.fromarray(pixels), icc_profile=profile("Adobe RGB"))
    top, left = (size[1] - 16) // 2, (size[0] - 16) // 2
    truth = to_srgb(pixels[top : top + 16, left : left + 16], "Adobe RGB")
    assert np.abs(read_photo(path, 16) - truth).max() <= 2


def test_a_profile_of_srgb_leaves_pixels_as_they_are(tmp_path, notes):
    from PIL import ImageCms

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = written(tmp_path, Image.fromarray(COLOURS), icc_profile=srgb)
    np.testing.assert_array_equal(read_photo(path, 16), COLOURS)
    assert notes.messages == []


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_greys_are_converted_by_a_profile_of_greys(mode, tmp_path):
    path = written(tmp_path, Image.fromarray(GREYS).convert(mode), icc_profile=grey_profile(1.8))
    read = read_photo(path, 16)
    linear = (GREYS / 255) ** 1.8
    truth = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(read - truth[..., None]).max() <= 2


def test_inks_are_converted_by_their_profile_and_guessed_without(tmp_path, notes):
    inks = Image.new("CMYK", (16, 16), (0, 0, 0, 128))
    read = read_photo(written(tmp_path, inks, "a.jpg", icc_profile=ink_profile()), 16)
    assert np.abs(read - 119.0).max() <= 4  # L* 50, which is no 128
    read_photo(written(tmp_path, inks, "b.jpg"), 16)
    assert "photo b.jpg: it is CMYK without a profile; its colours are a guess" in notes.messages


def test_a_transparent_photo_is_converted_and_lies_on_white(tmp_path):
    alpha = np.zeros((16, 16, 1), np.uint8)
    alpha[:, :8] = 255
    path = written(tmp_path, Image.fromarray(np.dstack([COLOURS, alpha])), icc_profile=profile("Display P3"))
    read = read_photo(path, 16)
    assert np.abs(read[:, :8] - to_srgb(COLOURS, "Display P3")[:, :8]).max() <= 2 and read[:, 8:].min() == 255


WHOLE = profile("Display P3")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (b"no profile", "cannot be used"),
        (WHOLE[:200], "cannot be used"),
        (WHOLE[:132] + bytes(len(WHOLE) - 132), "cannot be used"),
        (WHOLE.replace(b"RGB ", b"Lab "), "cannot be used"),
        (grey_profile(1.8), "is for L, its pixels are RGB"),
        (ink_profile(), "is for CMYK, its pixels are RGB"),
    ],
    ids=["words", "cut", "zeros", "of Lab", "of greys", "of inks"],
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_profile_that_cannot_be_used_is_told_and_the_photo_read(name, broken, words, tmp_path, notes):
    image = Image.fromarray(COLOURS)
    with_profile = written(tmp_path, image, name, lossless=True, icc_profile=broken)
    read = read_photo(with_profile, 16)
    (message,) = notes.messages
    assert (
        words in message
        and message.startswith(f"photo {name}: its colour profile ")
        and message.endswith("taken as those of sRGB")
    )
    np.testing.assert_array_equal(read, read_photo(written(tmp_path, image, f"b{name}", lossless=True), 16))


def test_a_profile_that_cannot_be_unpacked_is_told(tmp_path, notes):
    whole = written(tmp_path, Image.fromarray(COLOURS)).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:33] + png_chunk(b"iCCP", b"P3\0\0rubbish") + whole[33:])
    read_photo(tmp_path / "a.png", 16)
    assert "its colour profile cannot be used" in notes.text


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (png_chunk(b"gAMA", struct.pack(">I", 100_000)), "its gamma is 1"),
        (png_chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)), "primary"),
        (png_chunk(b"cICP", bytes((12, 13, 0, 1))), "cICP says its colours are of kind 12-13-0-1"),
        (png_chunk(b"cICP", bytes((1, 13, 0, 1))), ""),
        (png_chunk(b"gAMA", struct.pack(">I", 45455)) + png_chunk(b"sRGB", b"\0"), ""),
    ],
    ids=["gamma", "primaries", "cICP", "cICP of sRGB", "sRGB"],
)
def test_colours_that_are_stated_without_a_profile_are_told(chunk, words, tmp_path, notes):
    whole = written(tmp_path, Image.fromarray(COLOURS)).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png", 16), COLOURS)
    assert (words in notes.text) if words else notes.messages == []


@pytest.mark.parametrize(("value", "told"), [(1, False), (0xFFFF, True), (2, True)])
def test_so_are_a_cameras_without_one(value, told, tmp_path, notes):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = value
    read_photo(written(tmp_path, Image.fromarray(COLOURS), "a.jpg", exif=exif), 16)
    assert ("EXIF says its colours are not those of sRGB" in notes.text) == told
