import errno
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs import images
from cdiff_rt.inputs.region_maps import read_region
from tests.bad_files import png_chunk, zeros_png
from tests.command_line import check_refused, run

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
        np.testing.assert_array_equal(read_region(tmp_path / name), keep)


def soft(path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path, "PNG")


@pytest.mark.parametrize(
    ("read", "write", "words"),
    [
        (lambda path: images.read_photo(path, 8), lambda path: None, "photo .*no such file"),
        (lambda path: images.read_photo(path, 8), lambda path: path.mkdir(), "not a file"),
        (lambda path: images.read_photo(path, 8), lambda path: Image.fromarray(PICTURE).save(path, "GIF"), "GIF"),
        (lambda path: images.read_photo(path, 8), lambda path: path.write_text("<html>"), "cannot be read"),
        (read_region, lambda path: None, "region .*no such file"),
        (read_region, soft, "grey levels 1, 2, 3, 4, 5 besides black and white"),
        (read_region, lambda path: Image.fromarray(PICTURE).save(path, "JPEG"), "JPEG"),
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
    for read in (lambda: images.read_photo(bomb_file, 8), lambda: read_region(bomb_file)):
        with pytest.raises(BadInput, match="169|13000x13000"):
            read()


# --- memory and time -------------------------------------------------------------------------------------------------

MEASURE = """
import json, sys, time
from pathlib import Path
from PIL import ImageCms, JpegImagePlugin, PngImagePlugin
from cdiff_rt.errors import BadInput
from cdiff_rt.inputs import images
from cdiff_rt.inputs.region_maps import read_region
from cdiff_rt.inputs.label_maps import read_labels
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
how = {"mask": lambda p: read_labels(p, 19), "photo": lambda p: images.read_photo(p, 128), "region": read_region}
before, said, began = peak(), "read", time.process_time()
try:
    how[sys.argv[1]](Path(sys.argv[2]))
except BadInput as error:
    said = str(error)
print(json.dumps([said, (peak() - before) // 1024, time.process_time() - began]))
"""


def measured(kind, path, root):
    """What was said, MiB that were taken and seconds, in a process of its own."""
    command = [sys.executable, "-c", MEASURE, kind, str(path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=100)
    return json.loads(done.stdout)


def large_photo(path):
    tile = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    photo = Image.fromarray(np.kron(tile, np.ones((100, 100, 1), np.uint8)))
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    how = {"progressive": True, "subsampling": 0} if path.suffix == ".jpg" else {"compress_level": 1}
    (photo.convert("RGBA") if path.stem == "half" else photo).save(path, exif=exif, **how)


def scans(path):
    file = io.BytesIO()
    Image.new("L", (5000, 5000), 128).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    path.write_bytes(whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * 2000 + whole[-2:])


def forged(path):
    """A header of 25 megapixels before data for 100 rows of 100."""
    zeros_png(path, 100)
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 5000, 5000, 8, 0, 0, 0, 0)) + whole[33:])


def one_row(path):
    """25 megapixels of 64 bits in one row, of which decoders would keep two or three."""
    forged(path)
    whole = path.read_bytes()
    path.write_bytes(
        whole[:8] + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 25_000_000, 1, 16, 6, 0, 0, 0)) + whole[33:]
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
@pytest.mark.parametrize(
    ("kind", "name", "write", "most"),
    [
        pytest.param("photo", "a.jpg", large_photo, 256, marks=pytest.mark.slow),
        pytest.param("photo", "a.png", large_photo, 256, marks=pytest.mark.slow),
        pytest.param("photo", "half.png", large_photo, 256, marks=pytest.mark.slow),
        ("photo", "scans.jpg", scans, 8),
        ("region", "white.png", lambda path: zeros_png(path, 5000), 256),
        ("mask", "black.png", lambda path: zeros_png(path, 5000), 256),
        ("mask", "forged.png", forged, 8),
        ("photo", "forged.png", forged, 8),
        ("photo", "row.png", one_row, 8),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_memory_and_time_are_bounded(kind, name, write, most, tmp_path, root):
    write(tmp_path / name)
    said, taken, seconds = measured(kind, tmp_path / name, root)
    assert taken < most and seconds < 10, f"{taken} MiB, {seconds} s"
    words = {"scans.jpg": "scans", "forged.png": "bytes of its pixels are missing", "row.png": "25000000x1 pixels"}
    assert words.get(name, "read") in said


def test_a_large_jpeg_that_is_decoded_at_half_is_the_same_picture(monkeypatch):
    tile = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    photo, file = Image.fromarray(tile).resize((800, 600), Image.Resampling.BICUBIC), io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    whole = images.read_photo(file.getvalue(), 64)
    monkeypatch.setattr(images, "LARGEST_DECODED", 1000)
    half = images.read_photo(file.getvalue(), 64)
    assert 0 < np.abs(whole.astype(int) - half).max() <= 4


# --- arrays ----------------------------------------------------------------------------------------------------------

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def npy(descr="<f4", shape=(3, 4), fortran=False, version=(1, 0), data=None, header=None):
    text = header or f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}"
    length = struct.pack("<H" if version < (2, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode("latin1") + (VALUES.tobytes() if data is None else data)


def archive():
    file = io.BytesIO()
    np.savez(file, VALUES)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        npy(),
        npy(version=(2, 0)),
        npy(version=(3, 0)),
        npy(fortran=True, data=VALUES.tobytes("F")),
        npy(">f8", data=VALUES.astype(">f8").tobytes()),
        npy("<i2", data=VALUES.astype("<i2").tobytes()),
    ],
    ids=["1.0", "2.0", "3.0", "columns first", "big endian", "whole numbers"],
)
def test_every_way_to_store_numbers_is_read(data, tmp_path):
    (tmp_path / "a.npy").write_bytes(data)
    for value in (data, tmp_path / "a.npy", str(tmp_path / "a.npy")):
        read = images.read_array(value, "sketch")
        np.testing.assert_array_equal(read, VALUES)
        assert read.dtype.isnative


BAD_ARRAYS = {
    "huge": (npy(shape=(10**12,)), "promises 1000000000000 elements"),
    "huger": (npy(shape=(10**19, 10**19)), "promises 1000000000"),
    "negative": (npy(shape=(-3, -4)), r"shape \(-3, -4\)"),
    "cut": (npy()[:-1], "47 bytes follow"),
    "longer": (npy() + b"\0", "49 bytes follow"),
    "objects": (npy("|O"), "type object"),
    "a record": (npy([("a", "<f4"), ("b", "<f4")], (6,)), "give real numbers"),
    "arrays": (npy(("<f4", (2,)), (6,)), "give real numbers"),
    "words": (npy("<U1", (12,)), "type <U1"),
    "complex": (npy("<c8", (6,)), "complex64"),
    "flags": (npy("|b1", (48,)), "type bool"),
    "dates": (npy("<M8[s]", (6,)), "datetime64"),
    "nothing": (npy("|V0", (5,)), "V0"),
    "NaN": (npy(data=np.full(12, np.nan, "<f4").tobytes()), "not finite"),
    "infinite": (npy(data=np.full(12, -np.inf, "<f4").tobytes()), "not finite"),
    "too large": (npy("<f8", data=np.full(12, 1e39).tobytes()), "too large for float32"),
    "version 9": (npy(version=(9, 9)), "version 9.9"),
    "archive": (archive(), "archive, as numpy.savez writes"),
    "brackets": (npy(header="(" * 3000), "cannot be read as an array"),
    "minuses": (npy(header="-" * 5000 + "1"), "cannot be read as an array"),
    "unclosed": (npy(header="{'descr': "), "cannot be read as an array"),
    "no shape": (npy(header="{'descr': '<f4'}"), "cannot be read as an array"),
    "shape of words": (npy(shape="abc"), "cannot be read as an array"),
    "long header": (b"\x93NUMPY\2\0\xff\xff\xff\x7f{", "cannot be read as an array"),
    "code": (npy(header="__import__('os').system('true')"), "cannot be read as an array"),
    "pickle": (b"\x80\4K\1.", "cannot be read as an array"),
    "start": (b"\x93NUM", "cannot be read as an array"),
    "empty": (b"", "0 bytes"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_a_bad_array_is_refused_in_words(name, tmp_path):
    data, words = BAD_ARRAYS[name]
    (tmp_path / "a.npy").write_bytes(data)
    for value in (data, tmp_path / "a.npy"):
        with pytest.raises(BadInput, match=words) as caught:
            images.read_array(value, "sketch")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "value", [VALUES * np.nan, VALUES * np.float64(1e39), VALUES * 1j], ids=["NaN", "large", "complex"]
)
def test_an_array_that_is_given_is_held_to_the_same(value):
    with pytest.raises(BadInput, match="not finite|complex64"):
        images.read_array(value, "sketch")


# --- files -----------------------------------------------------------------------------------------------------------


def looped(path):
    path.symlink_to(path.name)


UNREADABLE = {
    "missing": (lambda path: None, "there is no such file"),
    "folder": (lambda path: path.mkdir(), "not a file, but a folder"),
    "pipe": (os.mkfifo, "not a file, but a pipe or a device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a file, but a pipe or a device"),
    "loop": (looped, os.strerror(errno.ELOOP)),
    "to nowhere": (lambda path: path.symlink_to("nowhere"), "there is no such file"),
    "empty": (lambda path: path.touch(), "0 bytes"),
    "too large": (lambda path: (path.touch(), os.truncate(path, 2**26 + 1)), "67108865 bytes"),
}
OPTIONS = {
    "mask": ["generate", "--mask"],
    "photo": ["generate", "--text", "A man.", "--keep", "examples/1.png", "--inpaint"],
    "region": ["generate", "--text", "A man.", "--inpaint", "examples/1.png", "--keep"],
    "jobs": ["generate", "--jobs"],
}


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_read_says_why(kind, name, tmp_path, monkeypatch, root):
    make, words = UNREADABLE[name]
    if (kind, name) == ("jobs", "too large"):
        pytest.skip("a file of jobs may have a gigabyte")
    make(tmp_path / "a.png")
    monkeypatch.chdir(root)
    check_refused(run(*OPTIONS[kind], tmp_path / "a.png", "--out", tmp_path / "out"), 3, words)


@pytest.mark.parametrize("kind", OPTIONS)
def test_so_does_a_name_that_is_too_long(kind, tmp_path, monkeypatch, root):
    monkeypatch.chdir(root)
    path, words = tmp_path / ("a" * 300), os.strerror(errno.ENAMETOOLONG)
    check_refused(run(*OPTIONS[kind], path, "--out", tmp_path / "out"), 3, words)


@pytest.mark.parametrize("read", [read_region, lambda path: images.read_array(path, "sketch")])
def test_so_does_a_name_with_a_nul(read):
    with pytest.raises(BadInput, match=r"there is no such file \(embedded null byte\)"):
        read("a\0b.png")


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_so_does_one_that_may_not_be_opened(kind, error, tmp_path, monkeypatch, root, mask):
    Image.fromarray(mask).save(tmp_path / "a.png")
    usual = os.open

    def refusing(path, *how, **more):
        if str(path).endswith("a.png"):
            raise OSError(error, os.strerror(error))
        return usual(path, *how, **more)

    monkeypatch.setattr("cdiff_rt.inputs.images.os.open", refusing)
    monkeypatch.chdir(root)
    words = f"it cannot be read ({os.strerror(error)})"
    check_refused(run(*OPTIONS[kind], tmp_path / "a.png", "--out", tmp_path / "out"), 3, words)


@pytest.mark.parametrize("read", [lambda image: images.read_photo(image, 8), read_region])
def test_an_empty_picture_is_refused(read):
    with pytest.raises(BadInput, match="0x5 pixels"):
        read(Image.new("RGB", (0, 5)))


def test_a_device_is_not_even_opened(monkeypatch):
    monkeypatch.setattr("cdiff_rt.inputs.images.os.open", None)
    with pytest.raises(BadInput, match="a pipe or a device"):
        read_region("/dev/zero")


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_an_alpha_channel_that_hides_nothing_is_none(mode, tmp_path, caplog):
    white = Image.fromarray((PICTURE[:8, :8, 0] > 128).astype(np.uint8) * 255)
    white.convert(mode).save(tmp_path / "region.png")
    np.testing.assert_array_equal(read_region(tmp_path / "region.png"), np.asarray(white) == 255)
    Image.fromarray(PICTURE).convert("RGBA").save(tmp_path / "photo.png")
    np.testing.assert_array_equal(images.read_photo(tmp_path / "photo.png", 64), PICTURE)
    assert caplog.messages == []
    half = white.convert(mode)
    half.putalpha(128)
    half.save(tmp_path / "half.png")
    with pytest.raises(BadInput, match="partly transparent"):
        read_region(tmp_path / "half.png")
