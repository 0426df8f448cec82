"""Colour profiles, made of the numbers that stand for them."""

import itertools
import struct

import numpy as np

# The red, green and blue of a kind of colours, as XYZ under D50.
PRIMARIES = {
    "sRGB": ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)),
    "Display P3": ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)),
    "Adobe RGB": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
}
GAMMA = 563 / 256  # as Adobe RGB has it


def profile(name: str) -> bytes:
    """Of a display with this gamma."""
    colours = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), PRIMARIES[name], strict=True))
    tags = {tag: b"XYZ \0\0\0\0" + _fixed(*xyz) for tag, xyz in colours.items()}
    return _file(b"mntr", b"RGB ", b"XYZ ", name, tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(GAMMA)))


def grey_profile(gamma: float) -> bytes:
    return _file(b"mntr", b"GRAY", b"XYZ ", "grey", {b"kTRC": _curve(gamma)})


def ink_profile() -> bytes:
    """Of CMYK whose lightness falls straight from paper to any ink, without colours."""
    lightness = (255 * (1 - max(inks)) for inks in itertools.product((0, 1), repeat=4))
    table = bytes(value for light in lightness for value in (light, 128, 128))
    head = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return _file(
        b"prtr", b"CMYK", b"Lab ", "inks", {b"A2B0": head + bytes(range(256)) * 4 + table + bytes(range(256)) * 3}
    )


def to_srgb(pixels: np.ndarray, name: str) -> np.ndarray:
    """What pixels of such a display are in sRGB, by the definition; out of range is cut off."""
    linear = (pixels / 255) ** GAMMA @ np.array(PRIMARIES[name]) @ np.linalg.inv(np.array(PRIMARIES["sRGB"]))
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def _file(kind: bytes, colours: bytes, between: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    text = name.encode() + b"\0"
    tags = tags | {b"wtpt": b"XYZ \0\0\0\0" + _fixed(0.9642, 1, 0.8249), b"cprt": b"text\0\0\0\0free\0"}
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    places, body, start = b"", b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        places += tag + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"\0\0\0\0", 0x02100000, kind, colours, between)
    head += bytes(12) + b"acsp" + bytes(28) + _fixed(0.9642, 1, 0.8249) + bytes(48)
    return head + struct.pack(">I", len(tags)) + places + body
