import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs import containers
from cdiff_rt.inputs.images import ORIENTATION, read_photo
from cdiff_rt.inputs.label_maps import read_labels
from cdiff_rt.inputs.region_maps import read_region
from tests.bad_files import png_chunk

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 19, (24, 24), np.uint8)
PHOTO = RNG.integers(0, 256, (24, 24, 3), np.uint8)
REGION = Image.fromarray((LABELS > 9).astype(np.uint8) * 255)


def saved(image, kind="PNG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def png(width, height, colour_type, data, bits=8, interlaced=0):
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


READERS = {
    "mask": (lambda data: read_labels(data, 19)[0], saved(Image.fromarray(LABELS))),
    "region": (read_region, saved(REGION)),
    "photo": (lambda data: read_photo(data, 24), saved(Image.fromarray(PHOTO))),
}


@pytest.mark.parametrize("name", READERS)
def test_every_flipped_bit_and_every_cut_of_a_png_is_refused(name):
    read, whole = READERS[name]
    read(whole)
    places = range(len(whole)) if len(whole) < 900 else RNG.integers(0, len(whole), 600)
    flipped = [whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :] for i in places for bit in (0, 5)]
    for damaged in flipped + [whole[:length] for length in range(0, len(whole), 5)] + [whole[:-1], whole[:-12]]:
        with pytest.raises(BadInput):
            read(damaged)


@pytest.mark.parametrize(
    ("kind", "how"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True})]
)
def test_every_cut_of_a_photo_is_refused(kind, how):
    whole = saved(Image.fromarray(PHOTO), kind, **how)
    read_photo(whole, 24)
    for length in range(len(whole)):
        with pytest.raises(BadInput):
            read_photo(whole[:length], 24)


def test_a_webp_that_is_cut_says_how_short_it_is():
    whole = saved(Image.fromarray(PHOTO), "WEBP")
    with pytest.raises(BadInput, match=f"cut short: {len(whole) - 1} of {len(whole)} bytes"):
        read_photo(whole[:-1], 24)


@pytest.mark.parametrize("length", range(10))
def test_a_webp_whose_head_is_too_short_is_refused(length):
    exif = b"EXIF" + (14).to_bytes(4, "little") + b"II*\0\x08\0\0\0\0\0\0\0\0\0"
    head = b"VP8X" + length.to_bytes(4, "little") + bytes(length + length % 2)
    body = b"WEBP" + head + exif
    with pytest.raises(BadInput, match=f"VP8X has {length} of 10 bytes"):
        read_photo(b"RIFF" + len(body).to_bytes(4, "little") + body, 24)


# left, top and the steps from there, as the standard lists them
INTERLACED = list(
    zip((0, 4, 0, 2, 0, 1, 0), (0, 0, 4, 0, 2, 0, 1), (8, 8, 4, 4, 2, 2, 1), (8, 8, 8, 4, 4, 2, 2), strict=True)
)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(
    ("bits", "colour_type", "samples"), [(1, 0, 1), (8, 0, 1), (8, 2, 3), (8, 4, 2), (8, 6, 4), (16, 2, 3)]
)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 5), (9, 8), (12, 13), (16, 17)])
def test_pixels_that_are_missing_are_counted(width, height, bits, colour_type, samples, interlaced):
    passes = INTERLACED if interlaced else ((0, 0, 1, 1),)
    grid = np.zeros((height, width))
    parts = [grid[top::down, left::right].shape for left, top, right, down in passes]
    length = sum(high * (1 + -(-wide * bits * samples // 8)) for high, wide in parts if high and wide)
    whole = containers.read(png(width, height, colour_type, zlib.compress(bytes(length)), bits, interlaced))
    whole.check_pixels()
    assert Image.open(io.BytesIO(whole.data)).convert("RGB").size == (width, height)
    short = containers.read(png(width, height, colour_type, zlib.compress(bytes(length - 1)), bits, interlaced))
    with pytest.raises(ValueError, match="1 bytes of its pixels are missing"):
        short.check_pixels()


def test_pixels_with_a_wrong_checksum_of_their_own_are_refused():
    packed = zlib.compress(bytes(25 * 24))
    with pytest.raises(BadInput, match="its pixels are damaged"):
        read_labels(png(24, 24, 0, packed[:-1] + bytes([packed[-1] ^ 1])), 19)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (READERS["mask"][1][:8] + READERS["mask"][1][33:], "its chunk 1 is b'IDAT'"),
        (READERS["mask"][1][:33] * 2, "checksum|its chunk"),
        (READERS["mask"][1][:33] + READERS["mask"][1][8:], "its chunk 2 is b'IHDR'"),
        (png(8, 8, 3, zlib.compress(bytes(72))), "of a palette, and it has none"),
        (READERS["mask"][1][:33] + png_chunk(b"tEXt", b"") * 100_001, "more than 100000 chunks"),
        (b"\xff\xd8" + b"\xff\xe1\0\2" * 100_001 + b"\xff\xd9", "more than 100000 segments"),
        (b"RIFF" + struct.pack("<I", 4 + 8 * 100_002) + b"WEBP" + b"ABCD\0\0\0\0" * 100_002, "more than 100000 chunks"),
        (b"RIFF\4\0\0\0WAVE", "it is no PNG, JPEG or WebP"),
        (b"\xff\xd8\xff\xe0\0\1", "cut short or damaged"),
        (b"\xff\xd8\xff\xe0\0\2junk", "there is no marker"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:24],
)  # fmt: skip
def test_what_is_no_picture_of_its_kind_is_refused_in_words(data, words):
    with pytest.raises(ValueError, match=words):
        containers.read(data)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"GIF89a", "GIF"), (b"II*\0", "TIFF"), (b"%PDF-1.7", "PDF"), (b"8BPS\0\1", "PSD"), (b"gimp xcf v011", "XCF"),
        (b"\0\0\0\x18ftypheic", "HEIC"), (b"\0\0\0\x1cftypavif", "AVIF"), (b"\xff\x0a\xfa", "JPEG XL"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)  # fmt: skip
def test_other_formats_are_named_and_reach_no_decoder(head, name, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    for read, _ in READERS.values():
        with pytest.raises(BadInput, match=f"format {name}"):
            read(head + bytes(100))


@pytest.mark.parametrize("length", [1_000_000, 5_000_000])
@pytest.mark.parametrize("packed", [False, True])
def test_megabytes_of_text_are_left_out(length, packed):
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "x" * length, zip=packed)
    text.add_itxt("workflow", "y" * length, zip=packed)
    whole = saved(Image.fromarray(LABELS), pnginfo=text)
    np.testing.assert_array_equal(read_labels(whole, 19)[0], LABELS)
    assert len(containers.read(whole).data) < 1000


def test_texts_that_unpack_without_end_are_refused():
    bomb = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9_000_000)))
    whole = saved(Image.fromarray(LABELS))
    read_labels(whole[:33] + bomb + whole[33:], 19)
    with pytest.raises(BadInput, match="texts unpack to more than 16777216 bytes"):
        read_labels(whole[:33] + bomb * 2 + whole[33:], 19)


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded():
    whole = saved(Image.fromarray(PHOTO), "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    scans = whole.count(b"\xff\xda")
    read_photo(whole[:-2] + scan * (64 - scans) + whole[-2:], 24)
    with pytest.raises(BadInput, match="it has 65 scans, of which at most 64 are read"):
        read_photo(whole[:-2] + scan * (65 - scans) + whole[-2:], 24)


# --- orientation -----------------------------------------------------------------------------------------------------


def exif_of(*tags, order=b"MM"):
    """Tags of one number, whatever their kind says."""
    mark = {b"MM": ">", b"II": "<"}[order]
    body = b"".join(struct.pack(f"{mark}HHIHH", tag, kind, 1, value, 0) for tag, kind, value in tags)
    return order + struct.pack(f"{mark}HIH", 42, 8, len(tags)) + body


BROKEN_TAGS = [(0x010F, 2, 65535), (0x9999, 77, 1), (0x8769, 3, 9999), (0x0110, 7, 3)]
TURNED = np.rot90(PHOTO, -1)  # as 6 says


@pytest.mark.parametrize("order", [b"MM", b"II"])
@pytest.mark.parametrize(
    ("kind", "before"), [("JPEG", b"Exif\0\0"), ("PNG", b""), ("WEBP", b""), ("WEBP", b"Exif\0\0")]
)
def test_broken_tags_beside_an_orientation_do_no_harm(kind, before, order):
    exif = before + exif_of(*BROKEN_TAGS[:2], (ORIENTATION, 3, 6), *BROKEN_TAGS[2:], order=order)
    whole = saved(Image.fromarray(PHOTO), kind, lossless=True, quality=100, subsampling=0, exif=exif)
    assert exif[-30:] in whole
    assert np.abs(read_photo(whole, 24).astype(int) - TURNED).max() <= (20 if kind == "JPEG" else 0)


def test_an_orientation_before_tags_that_are_cut_off_is_read():
    exif = (
        exif_of((ORIENTATION, 3, 6))[:-12].replace(b"\0\x08\0\1", b"\0\x08\0\x09") + exif_of((ORIENTATION, 3, 6))[-12:]
    )
    np.testing.assert_array_equal(read_photo(saved(Image.fromarray(PHOTO), exif=exif), 24), TURNED)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_in_xmp_or_old_text_is_read_too(kind):
    xmp, turned = b'<x tiff:Orientation="6"/>', TURNED
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
        old = PngImagePlugin.PngInfo()
        hexed = (b"Exif\0\0" + exif_of((ORIENTATION, 3, 6))).hex()
        old.add_text("Raw profile type exif", f"\nexif\n{len(hexed) // 2:8}\n{hexed}\n", zip=True)
        made = [saved(Image.fromarray(PHOTO), pnginfo=text), saved(Image.fromarray(PHOTO), pnginfo=old)]
    else:
        made = [saved(Image.fromarray(PHOTO), kind, lossless=True, quality=100, subsampling=0, xmp=xmp)]
    for whole in made:
        assert np.abs(read_photo(whole, 24).astype(int) - turned).max() <= (20 if kind == "JPEG" else 0)


@pytest.mark.parametrize("value", [0, 1, 9, 65535])
def test_other_orientations_are_none(value):
    read = read_photo(saved(Image.fromarray(PHOTO), exif=exif_of((ORIENTATION, 3, value))), 24)
    np.testing.assert_array_equal(read, PHOTO)


@pytest.mark.parametrize(
    "exif", [b"MM\0*\0", b"rubbish and more", b"MM\0*" + bytes(2)], ids=["cut", "rubbish", "start"]
)
def test_exif_that_cannot_be_read_is_told_and_the_photo_taken_as_upright(exif, caplog):
    whole = saved(Image.fromarray(PHOTO))
    data = whole[:33] + png_chunk(b"eXIf", exif) + whole[33:]
    np.testing.assert_array_equal(read_photo(data, 24), PHOTO)
    assert "its EXIF data cannot be read" in caplog.text


def test_exif_takes_no_memory_however_many_tags_share_its_bytes():
    """5,000 tags of 60 kB each, all the same bytes."""
    tags = b"".join(struct.pack(">HHII", 0x9000 + i, 7, 60_000, 8) for i in range(5000))
    exif = b"MM\0*\0\0\0\x08" + struct.pack(">H", 5000) + tags
    whole = saved(Image.fromarray(PHOTO), "JPEG")
    data = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif + whole[2:]
    assert len(containers.read(data).data) == len(containers.read(whole).data)
    read_photo(data, 24)


def test_the_first_picture_of_a_phones_several_is_read():
    first, second = Image.fromarray(PHOTO), Image.new("RGB", (12, 12))
    whole = saved(first, "MPO", save_all=True, append_images=[second], quality=90)
    assert Image.open(io.BytesIO(whole)).format == "MPO"
    np.testing.assert_array_equal(read_photo(whole, 24), read_photo(saved(first, "JPEG", quality=90), 24))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_what_is_left_out_changes_no_pixel(kind):
    image = Image.fromarray(PHOTO)
    whole = saved(image, kind, exif=exif_of((ORIENTATION, 3, 1)), xmp=b"<x/>", comment=b"words" * 100) + b"trailer"
    content = containers.read(whole)
    assert len(content.data) < len(whole) and content.size == (24, 24) and content.format == kind
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (whole, content.data)]
    np.testing.assert_array_equal(*pixels)
