"""What a file of a picture consists of: whether it is whole, and the parts that a decoder needs.

Of PNG, JPEG and WebP files, texts, thumbnails, further pictures and all of EXIF but the orientation are left out, so
nothing in them can keep a picture from being read, or take memory. Whatever is wrong is a ValueError.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

ORIENTATION, _EXIF_PART, _COLOURS = 0x0112, 0x8769, 0xA001  # EXIF tags
MOST_PARTS = 100_000  # chunks or segments; 64 MiB in libpng's usual chunks are 8,192
MOST_SCANS = 64  # of a JPEG; usual scripts have 10, and each takes as long as the picture is large
LARGEST_TEXT = 16 * 2**20  # bytes, unpacked, of all texts of a PNG

_PNG, _JPEG, _BROKEN_EXIF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"MM\0*\0"
_KEPT = set(b"tRNS iCCP gAMA cHRM sRGB acTL fcTL fdAT".split())  # beside chunks that decoders must know
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ICC = b"ICC_PROFILE\0"
_NEXT_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_NUMBERS = {1: "B", 3: "H", 4: "I"}  # of EXIF's kinds
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by a PNG's colour type

# what other files begin with, from a byte on
_STRANGERS = (
    (0, b"BM", "BMP"), (0, b"GIF8", "GIF"), (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (0, b"%PDF", "PDF"),
    (0, b"8BPS", "PSD"), (4, b"ftypavif", "AVIF"), (4, b"ftyp", "HEIC"), (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"), (4, b"jP  ", "JPEG 2000"), (0, b"gimp xcf", "XCF"), (0, b"<svg", "SVG"),
)  # fmt: skip


@dataclass(frozen=True)
class Content:
    format: str
    size: tuple[int, int] = (0, 0)  # width, height; where the format is none of ours, nothing more is known of it
    data: bytes = b""  # the file, with no more than pixels need
    remarks: tuple[str, ...] = ()  # on its colours, where it has no profile

    def check_pixels(self) -> None:
        """That a PNG has data for each pixel, before memory is taken for them. Of other formats, decoders tell."""
        if self.format == "PNG":
            _check_pixels(self.data)


def read(data: bytes) -> Content:
    """Raises ValueError for a damaged file, and for one that is no picture."""
    readers: dict[bytes, Callable[[bytes], Content]] = {_PNG: _read_png, _JPEG: _read_jpeg, b"RIFF": _read_webp}
    for start, reader in readers.items():
        if data.startswith(start):
            content = reader(data)
            if not all(content.size):
                raise ValueError("it says nothing of its size, or that it is empty")
            return content
    name = next((name for place, start, name in _STRANGERS if data.startswith(start, place)), None)
    if name is None:
        raise ValueError("it is no PNG, JPEG or WebP")
    return _read_bmp(data) if name == "BMP" else Content(name)


def texts_of(data: bytes) -> dict[str, str]:
    """What the texts of a PNG say, by keyword. Raises ValueError for a damaged file, and for one that is no PNG."""
    found, room = dict[str, str](), LARGEST_TEXT
    if not data.startswith(_PNG):
        raise ValueError("it is no PNG")
    for kind, content in ((kind, content) for kind, content, _ in _chunks(data) if kind in _TEXTS):
        keyword, text = _text(kind, bytes(content), room)
        room -= len(text)
        found.setdefault(keyword.decode("latin-1"), text.decode("utf-8" if kind == b"iTXt" else "latin-1", "replace"))
    return found


# --- PNG -------------------------------------------------------------------------------------------------------------


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Each chunk's kind, content and all of it, if its checksum is right."""
    view, place = memoryview(data), len(_PNG)
    for _ in range(MOST_PARTS):
        if len(data) < place + 12:
            raise ValueError("it is cut short")
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            raise ValueError(f"it is cut short or damaged in its chunk {kind.decode('latin-1')}")
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise ValueError(f"it is damaged: the checksum of its chunk {kind!r} is another")
        yield kind, view[place + 8 : end - 4], view[place:end]
        if kind == b"IEND":
            return
        place = end
    raise ValueError(f"it has more than {MOST_PARTS} chunks")


def _read_png(data: bytes) -> Content:
    kept: list[bytes | memoryview] = []
    remarks, room, exif, xmp = [], LARGEST_TEXT, b"", b""
    size = (0, 0)
    for number, (kind, content, whole) in enumerate(_chunks(data)):
        if (kind == b"IHDR") != (number == 0) or (kind == b"IHDR" and len(content) != 13):
            raise ValueError(f"its chunk {number + 1} is {kind!r} of {len(content)} bytes")
        if kind == b"IHDR":
            size = struct.unpack_from(">II", content)
        if kind == b"eXIf":
            exif = bytes(content)
        elif kind == b"cICP" and bytes(content[:2]) != b"\1\x0d":
            remarks.append(f"cICP says its colours are of kind {'-'.join(map(str, content[:4]))}")
        elif kind in _TEXTS:
            keyword, text = _text(kind, bytes(content), room)
            room -= len(text)
            exif = exif or (_hex(text) if keyword == b"Raw profile type exif" else b"")
            xmp = xmp or (text if keyword == b"XML:com.adobe.xmp" else b"")
        elif kind[:1].isupper() or kind in _KEPT:
            kept.append(whole)
    if kept[0][17] == 3 and not any(part[4:8] == b"PLTE" for part in kept):
        raise ValueError("its pixels are of a palette, and it has none")
    turn, more = _turn(exif, xmp)
    if turn:
        kept.insert(1, _chunk(b"eXIf", turn))
    return Content("PNG", size, b"".join([_PNG, *kept]), (*remarks, *more))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _text(kind: bytes, content: bytes, room: int) -> tuple[bytes, bytes]:
    """Its keyword, and what it says."""
    keyword, _, text = content.partition(b"\0")
    packed = kind == b"zTXt" or text[:1] == b"\1"
    if kind != b"tEXt":
        text = text[1:] if kind == b"zTXt" else text[2:].split(b"\0", 2)[-1]
        with suppress(zlib.error):
            text = zlib.decompressobj().decompress(text, room + 1) if packed else text
    if len(text) > room:
        raise ValueError(f"its texts unpack to more than {LARGEST_TEXT} bytes")
    return keyword, text


def _hex(text: bytes) -> bytes:
    with suppress(ValueError):
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    return _BROKEN_EXIF


def _check_pixels(png: bytes) -> None:
    width, height, bits, colours, _, _, interlaced = struct.unpack_from(">IIBBBBB", png, len(_PNG) + 8)
    bits *= _SAMPLES.get(colours, 0)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((-((left - width) // right), -((top - height) // down)) for left, top, right, down in passes)
    missing = sum(high * (1 + (wide * bits + 7) // 8) for wide, high in sizes if wide > 0 and high > 0)
    unpacker = zlib.decompressobj()
    for piece in (content for kind, content, _ in _chunks(png) if kind == b"IDAT"):
        packed: bytes | memoryview = piece
        while packed and missing >= 0:  # it may unpack to any number of bytes
            try:
                missing -= len(unpacker.decompress(packed, 2**20))
            except zlib.error as error:
                raise ValueError(f"its pixels are damaged ({error})") from None
            packed = unpacker.unconsumed_tail
    if missing > 0:
        raise ValueError(f"it is cut short: {missing} bytes of its pixels are missing")


# --- JPEG, WebP, BMP -------------------------------------------------------------------------------------------------


def _segments(data: bytes) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Each segment's marker, content and all of it; after a scan's header comes its data."""
    view, place = memoryview(data), 2
    for _ in range(MOST_PARTS):
        while data[place : place + 2] == b"\xff\xff":  # padding
            place += 1
        if len(data) < place + 2:
            raise ValueError("it is cut short: its end marker is missing")
        if data[place] != 0xFF:
            raise ValueError(f"it is damaged: at byte {place} there is no marker")
        marker = data[place + 1]
        bare = marker in (0x01, 0xD9) or 0xD0 <= marker <= 0xD7
        end = place + 2 + (0 if bare else int.from_bytes(data[place + 2 : place + 4]))
        content = view[place + 4 : end]
        if marker == 0xDA:
            following = _NEXT_MARKER.search(data, end)
            end = following.start() if following else len(data)
        if end > len(data) or (not bare and end < place + 4):
            raise ValueError("it is cut short or damaged")
        yield marker, content, view[place:end]
        if marker == 0xD9:
            return
        place = end
    raise ValueError(f"it has more than {MOST_PARTS} segments")


def _read_jpeg(data: bytes) -> Content:
    kept: list[bytes | memoryview] = []
    exif, xmp, scans, size = b"", b"", 0, (0, 0)
    for marker, content, whole in _segments(data):
        start = bytes(content[:32])
        if marker in (0xC0, 0xC1, 0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)):
            size = (int.from_bytes(content[3:5]), int.from_bytes(content[1:3]))
        scans += marker == 0xDA
        if marker == 0xE1 and start.startswith(b"Exif\0"):
            exif = exif or bytes(content)
        elif marker == 0xE1 and start.startswith(b"http://ns.adobe.com/xap/"):
            xmp = xmp or bytes(content)
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in (0xE0, 0xEE) or start.startswith(_ICC):
            kept.append(whole)
    if scans > MOST_SCANS:
        raise ValueError(f"it has {scans} scans, of which at most {MOST_SCANS} are read")
    turn, remarks = _turn(exif, xmp)
    app1 = b"\xff\xe1" + struct.pack(">H", 8 + len(turn)) + b"Exif\0\0" + turn if turn else b""
    return Content("JPEG", size, b"".join([_JPEG[:2], app1, *kept]), remarks)


VP8X_BYTES = 10  # flags and the size of the canvas


def _read_webp(data: bytes) -> Content:
    kept: list[bytes | memoryview] = []
    exif, xmp, size = b"", b"", (0, 0)
    end, place, view = 8 + int.from_bytes(data[4:8], "little"), 12, memoryview(data)
    if data[8:12] != b"WEBP":
        raise ValueError("it is no PNG, JPEG or WebP")
    if end > len(data):
        raise ValueError(f"it is cut short: {len(data)} of {end} bytes")
    while place + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, place)
        if kind == b"VP8X" and length < VP8X_BYTES:
            raise ValueError(f"its chunk VP8X has {length} of {VP8X_BYTES} bytes")
        content = data[place + 8 : place + 8 + length] if kind in (b"EXIF", b"XMP ") else b""
        exif, xmp = content if kind == b"EXIF" else exif, content if kind == b"XMP " else xmp
        size = size if any(size) else _webp_size(kind, data[place + 8 : place + 18])
        following = place + 8 + length + length % 2
        if kind not in (b"EXIF", b"XMP "):
            kept.append(view[place : min(following, end)])
        place = following
        if len(kept) > MOST_PARTS:
            raise ValueError(f"it has more than {MOST_PARTS} chunks")
    turn, remarks = _turn(exif, xmp)
    if turn and kept and bytes(kept[0][:4]) == b"VP8X":  # a flag of it tells that there is EXIF
        kept[0] = bytes(kept[0][:8]) + bytes([kept[0][8] | 8]) + bytes(kept[0][9:])
        kept.append(struct.pack("<4sI", b"EXIF", len(turn)) + turn)
    body = b"".join(kept)
    return Content("WEBP", size, struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WEBP") + body, remarks)


def _webp_size(kind: bytes, start: bytes) -> tuple[int, int]:
    if kind == b"VP8X":
        return 1 + int.from_bytes(start[4:7], "little"), 1 + int.from_bytes(start[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(start[6:8], "little") & 0x3FFF, int.from_bytes(start[8:10], "little") & 0x3FFF
    return 0, 0


def _read_bmp(data: bytes) -> Content:
    old = data[14:18] == b"\x0c\0\0\0"
    width, height = struct.unpack_from("<HH" if old else "<ii", data.ljust(26, b"\0"), 18)
    return Content("BMP", (abs(width), abs(height)), data)


# --- EXIF ------------------------------------------------------------------------------------------------------------


def _turn(exif: bytes, xmp: bytes) -> tuple[bytes, tuple[str, ...]]:
    """EXIF data of the orientation alone, none if it is upright, or broken ones; and a remark on colours."""
    found, colours = dict[int, int](), 1
    tiff = exif.removeprefix(b"Exif\0").removeprefix(b"\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if exif and (order is None or len(tiff) < 8):
        return _BROKEN_EXIF, ()
    if order:
        found = _tags(tiff, order, struct.unpack_from(f"{order}I", tiff, 4)[0])
        colours = _tags(tiff, order, found.get(_EXIF_PART, len(tiff))).get(_COLOURS, 1)
    remarks = ("EXIF says its colours are not those of sRGB",) if colours in (2, 0xFFFF) else ()
    in_xmp = _IN_XMP.search(xmp)
    orientation = found.get(ORIENTATION, int(in_xmp[1]) if in_xmp else 1)
    if not 2 <= orientation <= 8:
        return b"", remarks
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, ORIENTATION, 3, 1, orientation, 0, 0), remarks


def _tags(tiff: bytes, order: str, start: int) -> dict[int, int]:
    """The tags that are one small number, as far as they can be read."""
    found: dict[int, int] = {}
    with suppress(struct.error):
        for place in range(start + 2, start + 2 + 12 * struct.unpack_from(f"{order}H", tiff, start)[0], 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, place)
            if kind in _NUMBERS:
                found[tag] = struct.unpack_from(order + _NUMBERS[kind], tiff, place + 8)[0]
    return found
