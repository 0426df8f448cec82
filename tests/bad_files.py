"""Files that must be refused, by kind: how each is made, and what the one line about it must say."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from cdiff_rt.inputs.palette import PALETTE
from cdiff_rt.manifest import NAME, digest
from tests.pickles import named, value, zipped

Write = Callable[[Path], object]
Rows = dict[str, tuple[Write, tuple[str, ...]]]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HTML = "<!DOCTYPE html><html><body>404</body></html>"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 123456789\n"
RNG = np.random.default_rng(0)
LABELS = np.array([[0, 1], [13, 17]], np.uint8).repeat(32, 0).repeat(32, 1)  # [64, 64]
COLOURS = np.array(PALETTE, np.uint8)[LABELS]  # [64, 64, 3]
PHOTO = RNG.integers(0, 256, (64, 64, 3), np.uint8)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour_type: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return SIGNATURE + b"".join(png_chunk(*chunk) for chunk in chunks)


def zeros_png(path: Path, side: int) -> None:
    """A valid grey PNG of side x side black pixels, small as a file."""
    packer = zlib.compressobj(1)
    line = bytes(side + 1)
    data = b"".join(packer.compress(line * 100) for _ in range(side // 100)) + packer.flush()
    path.write_bytes(png(side, side, 8, 0, data))


def saved(pixels: np.ndarray, form: str = "PNG", **settings: Any) -> Write:
    return lambda path: Image.fromarray(pixels).save(path, form, **settings)


def content(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def png_of(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def with_chunk(kind: bytes, data: bytes, pixels: np.ndarray = LABELS) -> Write:
    """A PNG with one chunk more, after its signature and IHDR."""
    whole = png_of(pixels)
    return content(whole[:33] + png_chunk(kind, data) + whole[33:])


def cut(pixels: np.ndarray, share: float, form: str = "PNG") -> Write:
    def write(path: Path) -> None:
        saved(pixels, form)(path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


def flipped(pixels: np.ndarray) -> Write:
    """One bit of the compressed pixels."""

    def write(path: Path) -> None:
        whole = bytearray(png_of(pixels))
        whole[whole.index(b"IDAT") + 4 + 20] ^= 4
        path.write_bytes(whole)

    return write


def animated(path: Path) -> None:
    frames = [Image.fromarray(LABELS), Image.fromarray(LABELS.T.copy())]
    frames[0].save(path, "PNG", save_all=True, append_images=frames[1:])


def label_200(path: Path) -> None:
    labels = LABELS.copy()
    labels[5, 3] = 200
    Image.fromarray(labels).save(path, "PNG")


def off_palette(path: Path) -> None:
    colours = COLOURS.copy()
    colours[0, 0] = (90, 100, 110)
    Image.fromarray(colours).save(path, "PNG")


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(LABELS).save(path, "PNG", exif=exif)


def with_alpha(alpha: int) -> np.ndarray:
    return np.dstack([COLOURS, np.full(LABELS.shape, alpha, np.uint8)])


def unreadable(path: Path) -> None:
    """Nobody's file to read; root reads it all the same, so a link that leads to itself takes its place."""
    path.symlink_to(path)


NO_FILES: Rows = {
    "missing": (lambda path: None, ("no such file",)),
    "empty": (lambda path: path.touch(), ("0 bytes",)),
    "folder": (lambda path: path.mkdir(), ("not a file",)),
    "fifo": (os.mkfifo, ("not a file",)),
    "device": (lambda path: path.symlink_to("/dev/zero"), ("not a file",)),
    "link to nothing": (lambda path: path.symlink_to(path.with_name("nowhere")), ("no such file",)),
}
NO_PICTURES: Rows = {
    "a page of HTML": (content(HTML.encode()), ("cannot be read",)),
    "a Git LFS pointer": (content(LFS_POINTER.encode()), ("cannot be read",)),
    "random bytes": (content(RNG.bytes(2000)), ("cannot be read",)),
    "a signature alone": (content(SIGNATURE), ("cannot be read",)),
    "a huge header": (content(png(2**31 - 1, 2**31 - 1, 8, 0, b"")), ("pixels",)),
    "30,000 pixels wide": (content(png(30_000, 30_000, 8, 0, b"")), ("pixels",)),
    "no pixel": (content(png(0, 0, 8, 0, b"")), ("cannot be read",)),
    "TIFF": (saved(PHOTO, "TIFF"), ()),
    "GIF": (saved(LABELS, "GIF"), ("GIF",)),
    "EPS": (saved(PHOTO, "EPS"), ()),
    "PDF": (saved(PHOTO, "PDF"), ()),
    "ICO": (saved(PHOTO, "ICO"), ()),
    "PPM": (saved(PHOTO, "PPM"), ()),
    "SVG": (content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("SVG",)),
    "cut in the header": (cut(LABELS, 0.1), ("cannot be read",)),
    "cut in the pixels": (cut(PHOTO, 0.7), ("cannot be read",)),
    "a flipped bit": (flipped(PHOTO), ("cannot be read",)),
    "text bomb": (with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000))), ("cannot be read",)),
}
MASKS: Rows = {
    **NO_FILES,
    **NO_PICTURES,
    "JPEG": (saved(LABELS, "JPEG"), ("JPEG", "changes labels", "--snap")),
    "WebP": (saved(COLOURS, "WEBP"), ("WEBP", "changes labels")),
    "animated": (animated, ("animation", "2 frames")),
    "4 bits": (content(png(8, 8, 4, 0, zlib.compress(bytes(5) * 8))), ("4-bit grey", "8 bits")),
    "16-bit colour": (content(png(8, 8, 16, 2, zlib.compress(bytes(49) * 8))), ("16-bit RGB",)),
    "broken EXIF": (with_chunk(b"eXIf", b"MM\0*\0"), ("cannot be read",)),
    "16 bits": (saved(LABELS.astype(np.uint16) * 257), ("16-bit grey", "0 to 4369", "8-bit")),
    "1 bit": (saved(LABELS == 0), ("mode 1", "black and white", "--labels FILE")),
    "CMYK TIFF": (lambda path: Image.new("CMYK", (8, 8)).save(path, "TIFF"), ()),
    "transparent": (saved(with_alpha(254)), ("4096 of its 4096", "transparent", "--snap")),
    "off palette": (off_palette, ("1 colours", "#5a646e", "--snap")),
    "label 200": (label_200, ("label 200", "x 3, y 5", "0-18")),
    "rotated": (rotated, ("EXIF",)),
    "a photo": (saved(PHOTO), ("colours",)),
    "a grey photo": (saved(PHOTO[..., 0]), ("label",)),
}
PHOTOS: Rows = {
    **NO_FILES,
    **NO_PICTURES,
    "16 bits": (saved(LABELS.astype(np.uint16) * 1000), ("16-bit grey", "8 bits")),
    "32 bits": (saved(LABELS.astype(np.int32), "TIFF"), ()),
    "animated": (animated, ("2 frames",)),
    "cut JPEG": (cut(PHOTO, 0.6, "JPEG"), ("cannot be read",)),
    "cut WebP": (cut(PHOTO, 0.6, "WEBP"), ("cannot be read",)),
}
REGIONS: Rows = {
    **NO_FILES,
    "a page of HTML": NO_PICTURES["a page of HTML"],
    "a huge header": NO_PICTURES["a huge header"],
    "JPEG": (saved(LABELS, "JPEG"), ("JPEG",)),
    "soft edges": (saved(PHOTO[..., 0]), ("black and white",)),
    "colours": (saved(COLOURS), ("black and white",)),
    "cut": (cut(PHOTO[..., 0], 0.7), ("cannot be read",)),
    "a flipped bit": (flipped(PHOTO[..., 0] // 128 * 255), ("cannot be read",)),
}


def npy(array: np.ndarray, **settings: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **settings)
    return file.getvalue()


def npy_header(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


ARRAYS: Rows = {
    **NO_FILES,
    "a page of HTML": (content(HTML.encode()), ("cannot be read",)),
    "words": (content(b"1,2\n3,4\n"), ("cannot be read",)),
    "a pickle": (content(pickle.dumps([1, 2])), ("cannot be read",)),
    "objects": (content(npy(np.array([print], object), allow_pickle=True)), ("elements of type",)),
    "cut": (content(npy(np.zeros((4, 4)))[:150]), ("bytes follow",)),
    "a header alone": (content(npy(np.zeros((4, 4)))[:128]), ("bytes follow",)),
    "a forged shape": (
        content(npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000), }")),
        ("bytes follow",),
    ),
    "a negative shape": (content(npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }")), ()),
    "a header that is code": (content(npy_header("__import__('os').getpid()")), ("cannot be read",)),
    "a header without a shape": (content(npy_header("{'descr': '<f4', 'fortran_order': False}")), ()),
    "a version of the future": (content(b"\x93NUMPY\x09\x00" + bytes(20)), ("cannot be read",)),
}


def jobs(line: object) -> Write:
    """A file whose second line is this."""
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    return content(b'{"text": "a man"}\n' + raw + b'\n{"text": "a woman"}\n')


JOBS: Rows = {
    **NO_FILES,
    "not JSON": (jobs(b"{"), ("line 2", "not JSON")),
    "half a row": (jobs(b'{"text": "a"'), ("line 2", "not JSON")),
    "two rows in a line": (jobs(b'{"text": "a"} {"text": "b"}'), ("line 2", "not JSON")),
    "deep": (jobs(b"[" * 100_000), ("line 2", "not JSON")),
    "a number of 5,000 digits": (jobs(b'{"text": "a", "seed": ' + b"1" * 5000 + b"}"), ("line 2",)),
    "NaN": (jobs(b'{"text": "a", "eta": NaN}'), ("line 2", "NaN")),
    "a key twice": (jobs(b'{"text": "a", "text": "b"}'), ("line 2", "stands twice")),
    "a list": (jobs([1]), ("line 2", "a list")),
    "not UTF-8": (jobs(b'{"text": "\xff"}'), ("line 2", "UTF-8")),
    "an unknown key": (jobs({"text": "a", "colour": "red"}), ("line 2", "colour")),
    "no condition": (jobs({"seed": 1}), ("line 2", "none given")),
    "a number as text": (jobs({"text": 5}), ("line 2", "give a string")),
    "a control character": (jobs({"text": "a\0"}), ("line 2", "U+0000")),
    "half a character": (jobs(b'{"text": "\\ud800"}'), ("line 2", "U+D800")),
    "a missing mask": (jobs({"mask": "no.png"}), ("line 2", "no such file")),
    "a negative seed": (jobs({"text": "a", "seed": -1}), ("line 2", "outside")),
    "eta of 10^400": (jobs({"text": "a", "eta": 10**400}), ("line 2", "eta")),
    "7 steps": (jobs({"text": "a", "steps": 7}), ("line 2", "take 5 or 8")),
    "an unknown tier": (jobs({"text": "a", "tier": "slow"}), ("line 2", "choose one of")),
    "an id that is a path": (jobs({"text": "a", "id": "../a"}), ("line 2", "id")),
    "an id with a line end": (jobs({"text": "a", "id": "a\n"}), ("line 2", "id")),
    "an id twice": (jobs({"text": "a", "id": "000001"}), ("line 2", "line 1 too")),
}


def torch_file(thing: object, **settings: Any) -> Write:
    return lambda path: torch.save(thing, path, **settings)


def pickled(fragment: bytes) -> Write:
    return lambda path: zipped(path, b"\x80\x02" + fragment + b".")


def shortened(write: Write, share: float) -> Write:
    def cut_it(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return cut_it


def safetensors(header: bytes, data: bytes = b"") -> Write:
    return content(struct.pack("<Q", len(header)) + header + data)


def plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


WEIGHT = {"w": torch.arange(64.0)}
CHECKPOINTS: Rows = {
    **NO_FILES,
    "empty": (lambda path: path.touch(), ("it is empty",)),
    "a page of HTML": (content(HTML.encode()), ("HTML",)),
    "a Git LFS pointer": (content(LFS_POINTER.encode()), ("Git LFS",)),
    "random bytes": (content(RNG.bytes(5000)), ()),
    "a picture": (saved(PHOTO), ()),
    "a zip of something else": (plain_zip, ()),
    "a cut zip": (shortened(torch_file(WEIGHT), 0.6), ()),
    "a cut legacy file": (shortened(torch_file(WEIGHT, _use_new_zipfile_serialization=False), 0.6), ()),
    "a cut safetensors file": (shortened(lambda path: save_file(WEIGHT, path), 0.8), ()),
    "a pickle that runs os.system": (pickled(named("os", "system") + value(("true",)) + b"R"), ("os.system",)),
    "a pickle that runs eval": (pickled(named("builtins", "eval") + value(("1",)) + b"R"), ("eval",)),
    "a pickle of a module": (pickled(named("subprocess", "Popen") + value((["true"],)) + b"R"), ("subprocess",)),
    "numbers": (torch_file([1, 2, 3]), ()),
    "no weights": (torch_file({}), ()),
    "a state dict of words": (torch_file({"state_dict": {"a": "b"}}), ()),
    "a huge view": (torch_file({"w": torch.zeros(1).expand(10**9)}), ()),
    "other weights": (torch_file(WEIGHT), ()),
    "other weights as safetensors": (lambda path: save_file(WEIGHT, path), ()),
    "a header of 2^60 bytes": (content(struct.pack("<Q", 2**60) + b"{}"), ()),
    "a header that is not JSON": (safetensors(b"{"), ()),
    "a header that lists": (safetensors(b"[]"), ()),
    "a header of no tensor": (safetensors(b"{}"), ()),
    "offsets beyond the file": (
        safetensors(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(8)),
        (),
    ),
    "offsets that overlap": (
        safetensors(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
            bytes(12),
        ),
        (),
    ),
    "a shape of 10^18": (
        safetensors(b'{"w":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,16]}}', bytes(16)),
        (),
    ),
    "a dtype of nobody's": (safetensors(b'{"w":{"dtype":"Q7","shape":[4],"data_offsets":[0,16]}}', bytes(16)), ()),
}


def manifest(*change: object) -> Write:
    """The last of `change` takes the place of what the keys before it lead to; the digest is right."""
    *place, last, new = change

    def write(folder: Path) -> None:
        data = part = json.loads((folder / NAME).read_text())
        for key in place:
            part = part[key]
        part[last] = new
        (folder / NAME).write_text(json.dumps(data | {"digest": digest(data)}))

    return write


def in_manifest(text: bytes) -> Write:
    return lambda folder: (folder / NAME).write_bytes(text)


def altered(name: str) -> Write:
    def write(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return write


BUNDLES: Rows = {  # each changes a copy of a bundle that works
    "no manifest": (lambda folder: (folder / NAME).unlink(), (NAME,)),
    "an empty manifest": (in_manifest(b""), (NAME,)),
    "a manifest of 5 MB": (in_manifest(b" " * 5_000_000), ("5000000 bytes",)),
    "a manifest that is HTML": (in_manifest(HTML.encode()), ("not valid JSON",)),
    "a manifest of bytes": (in_manifest(b"\xff{}"), ("not UTF-8",)),
    "a deep manifest": (in_manifest(b"[" * 100_000), ("not valid JSON",)),
    "a list": (in_manifest(b"[]"), ("format",)),
    "another format": (in_manifest(b'{"format": 99}'), ("format 99",)),
    "a key twice": (in_manifest(b'{"format": 2, "format": 2}'), ("twice",)),
    "an edited manifest": (
        lambda folder: (folder / NAME).write_text((folder / NAME).read_text().replace('"tiny"', '"tony"')),
        ("altered",),
    ),
    "a name outside": (manifest("weights", "../weights"), ()),
    "a path as vocabulary": (manifest("modalities", 1, "vocabulary", "/etc/passwd"), ()),
    "an unknown kind": (manifest("modalities", 0, "kind", "smells"), ()),
    "a name of a setting": (manifest("modalities", 0, "name", "seed"), ()),
    "no modality": (manifest("modalities", []), ("modalities",)),
    "a latent of no size": (manifest("latent_shape", []), ("latent_shape",)),
    "a latent of 10^9": (manifest("latent_shape", [3, 10**9, 10**9]), ()),
    "10^9 timesteps": (manifest("schedule", "train_steps", 10**9), ()),
    "no timestep": (manifest("schedule", "train_steps", 0), ()),
    "a beta of 5": (manifest("schedule", "beta_end", 5.0), ()),
    "images of 10^6 pixels a side": (manifest("image_size", 10**6), ()),
    "a scale of 0": (manifest("latent_scale", 0.0), ("latent_scale",)),
    "10^9 tokens": (manifest("modalities", 1, "tokens", 10**9), ()),
    "a missing graph": (lambda folder: (folder / "vae.decode.onnx").unlink(), ("vae.decode.onnx",)),
    "an altered graph": (altered("vae.decode.onnx"), ("altered",)),
    "altered weights": (altered("weights.safetensors"), ("altered",)),
    "an altered vocabulary": (altered("vocab.txt"), ("altered",)),
    "a graph that is a folder": (
        lambda folder: ((folder / "vae.decode.onnx").unlink(), (folder / "vae.decode.onnx").mkdir()),
        ("vae.decode.onnx",),
    ),
    "a graph that is a device": (
        lambda folder: (
            (folder / "vae.decode.onnx").unlink(),
            (folder / "vae.decode.onnx").symlink_to("/dev/zero"),
        ),
        ("vae.decode.onnx",),
    ),
}
