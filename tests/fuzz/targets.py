"""What reads foreign bytes, each as a function of bytes that lets only CdiffError pass, and seeds to begin with."""

import atexit
import functools
import io
import json
import pickle
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from cdiff_rt.errors import CdiffError
from cdiff_rt.inputs.drawings import read_drawing
from cdiff_rt.inputs.images import read_array, read_photo
from cdiff_rt.inputs.label_maps import read_labels
from cdiff_rt.inputs.modalities import check_text
from cdiff_rt.inputs.palette import PALETTE
from cdiff_rt.inputs.region_maps import read_map, read_region
from cdiff_rt.inputs.wordpiece import WordPiece
from cdiff_rt.jobs.file import read_jobs
from cdiff_rt.jobs.results import read_results
from cdiff_rt.manifest import DEFAULT_MODEL, MODELS, NAME, Manifest, digest
from cdiff_rt.outputs.formats import inputs_text, npz_bytes, parameters_text, png_bytes
from cdiff_rt.records.find import inputs_of
from cdiff_rt.records.read import read_record
from cdiff_rt.records.show import lines
from cdiff_rt.sampling.calibrated import Calibration

EMBEDDED = MODELS / DEFAULT_MODEL
CORPUS = Path(__file__).parent / "corpus"  # what once raised something else, by target
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 19, (12, 12), np.uint8)
LARGEST = 2**20  # bytes of a tensor that are read


@dataclass(frozen=True)
class Target:
    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    repair: Callable[[bytes], bytes] = bytes  # its checksums, so that what is behind them is reached too

    def __call__(self, data: bytes) -> None:
        with suppress(CdiffError):
            self.read(data)


# --- pictures --------------------------------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def orientation(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = turn, "maker"
    return exif


def masks() -> list[bytes]:
    grey, colours = Image.fromarray(LABELS), Image.fromarray(np.array(PALETTE, np.uint8)[LABELS])
    palette = grey.convert("P")
    palette.putpalette([value for colour in PALETTE for value in colour])
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "words " * 50, zip=True)
    text.add_itxt("XML:com.adobe.xmp", 'tiff:Orientation="1"')
    made = [grey, colours, palette, colours.convert("RGBA"), grey.convert("LA"), colours.quantize(19)]
    return [saved(image, "PNG") for image in made] + [
        saved(grey, "PNG", pnginfo=text, exif=orientation(1)),
        saved(grey, "PNG", save_all=True, append_images=[Image.fromarray(LABELS.T.copy())]),
        saved(colours, "JPEG"), saved(colours, "WEBP", lossless=True), saved(colours, "BMP"),
    ]  # fmt: skip


def photos() -> list[bytes]:
    photo = Image.fromarray(RNG.integers(0, 256, (12, 16, 3), np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    half = Image.fromarray(np.dstack([np.asarray(photo), LABELS[:, :1].repeat(16, 1) * 13]))
    return [
        saved(photo, "PNG", icc_profile=profile, exif=orientation(6)),
        saved(half, "PNG"), saved(half, "WEBP"), saved(photo.convert("P"), "PNG", transparency=3),
        saved(photo, "JPEG", icc_profile=profile, exif=orientation(8), comment=b"words"),
        saved(photo, "JPEG", progressive=True), saved(photo.convert("L"), "JPEG"), saved(photo.convert("CMYK"), "JPEG"),
        saved(photo, "MPO", save_all=True, append_images=[photo]),
        saved(photo, "WEBP", icc_profile=profile, exif=orientation(3), xmp=b'tiff:Orientation="3"'),
    ]  # fmt: skip


def regions() -> list[bytes]:
    white = Image.fromarray((LABELS > 9).astype(np.uint8) * 255)
    return [saved(white.convert(mode), "PNG") for mode in ("1", "L", "P", "RGB", "LA", "RGBA")]


def records() -> list[bytes]:
    """Files that hold how they were made, by us of today and before, and by others."""
    pixels, shares = np.zeros((8, 8, 3), np.uint8), np.zeros((2, 2), np.float32)
    told = {
        "record": 2, "command": "edit", "solver": "ddim", "steps": 4, "eta": 1.0, "temperature": 1.0, "seed": 7, "first": 0,
        "batch": 1, "rounding": "truncate", "labels": "celebamask", "snap": False, "without": ["mask"], "image": 0,
        "influence": ["mask-first", "text=1.5@0.2-1"], "region": ["text=b.png:only"], "decay": "cosine", "size": 8,
        "adjustment": {"decay": "cosine", "boost": None}, "conditions": {"mask": "m.png", "text": "a man"},
        "inputs": {"mask": {"file": "m.png", "bytes": 3, "sha256": "0"}, "text": {"text": "-a"}, "region.0": {"array": "x"}},
        "prompt": "a man", "read_as": {"mask": "grey"}, "model": "faces-128", "model_hash": "0" * 64, "version": "0.1.0",
        "backend": "onnxruntime", "precision": "fp32", "threads": 2, "libraries": {"numpy": "2"}, "machine": "x86_64",
        "edit": {"method": "imagic", "of_steps": 4, "strength": 0.5, "alphas": [0, 1], "keep": [1], "tuning": {"seed": 1}},
    }  # fmt: skip
    old = {name: value for name, value in told.items() if name not in ("record", "inputs", "command", "influence")}
    made = []
    for parameters in (told, old | {"influence": {"decay": "cosine"}}):
        texts = parameters_text(parameters) | inputs_text({"mask": LABELS, "region.0": shares})
        made += [png_bytes(pixels, texts), npz_bytes(shares, texts)]
    return [
        *made,
        png_bytes(pixels, {"parameters": "a man\nSteps: 20"}),
        png_bytes(pixels, {"workflow": "{}", "é": "ü"}),
    ]


def read_whole_record(data: bytes) -> None:
    record = read_record(data)
    list(lines(record))
    record.embedded()
    if record.parameters:
        record.settings()
        inputs_of(record, embedded(), folder(), [])


def repair_png(data: bytes) -> bytes:
    mended, place = bytearray(data), 8
    while data.startswith(b"\x89PNG") and place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        if end > len(data):
            break
        mended[end - 4 : end] = struct.pack(">I", zlib.crc32(data[place + 4 : end - 4]))
        place = end
    return bytes(mended)


# --- arrays, texts ---------------------------------------------------------------------------------------------------


def arrays() -> list[bytes]:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    made = []
    for array in (values, np.asfortranarray(values), values.astype(">f8"), values.astype(np.int16), np.zeros(0)):
        file = io.BytesIO()
        np.lib.format.write_array(file, array, version=(1 + len(made) % 3, 0))
        made.append(file.getvalue())
    archive, objects = io.BytesIO(), io.BytesIO()
    np.savez(archive, values)
    np.save(objects, np.array([{}], object), allow_pickle=True)
    return [*made, archive.getvalue(), objects.getvalue(), pickle.dumps([1, 2])]


@functools.cache
def vocabulary() -> WordPiece:
    manifest = embedded()
    return WordPiece.from_file(EMBEDDED / next(m.vocabulary for m in manifest.modalities if m.vocabulary))


def read_text(data: bytes) -> None:
    text = check_text(data.decode("utf-8", "surrogateescape"), "text")
    ids = vocabulary().encode(text, 77).ids
    assert len(ids) == 77 and all(0 <= i < len(vocabulary().index) for i in ids)


def texts() -> list[bytes]:
    words = (
        "This man has a long beard.",
        "Ünïcödé 彼女 ﷽ 👩‍👩‍👧 e\u0301\u200b",
        "%s {0} ../../x \\x1b",
        "a" * 300 + " ##x [UNK]",
    )
    return [text.encode() for text in words]


# --- files of JSON ---------------------------------------------------------------------------------------------------


@functools.cache
def embedded() -> Manifest:
    return Manifest.from_json((EMBEDDED / NAME).read_text())


def sign(data: bytes) -> bytes:
    with suppress(ValueError, RecursionError, TypeError, AttributeError):
        fields = json.loads(data)
        return json.dumps(fields | {"digest": digest(fields)}).encode()
    return data


def jobs() -> list[bytes]:
    row = {"id": "a", "text": "A man.", "seed": 7, "steps": 5, "mask": "m.png", "without": ["mask"], "eta": 0.5}
    return [json.dumps(row).encode(), b'{"text": "x"}\n{"text": "y", "tier": "fast"}\n', b"\xef\xbb\xbf{}\r\n"]


def tables() -> list[bytes]:
    return [
        b'id,mask,text,seed,without,meta.a\na,m.png,"A ""man"", old.",7,"[""mask""]",x\n',
        b"\xef\xbb\xbftext;snap;eta\r\nA man;TRUE;0.5\r\n\r\n",
    ]


def results() -> list[bytes]:
    line = {"id": "a", "seed": 7, "seconds": 0.5, "file": "a.png", "sha256": "0" * 64, "request": "0" * 64}
    return [
        json.dumps(line | {"warnings": ["w"], "meta": {"a": [1]}, "parameters": {"steps": 5}}).encode() + b"\n",
        b'{"id": "b", "seed": 1, "seconds": 1, "error": "e"}\n',
    ]


def calibrations() -> list[bytes]:
    errors = tuple(float(i % 5) for i in range(16))
    table = {"a": 1.0, "b": 0.5, "plain mean": 0.4, "calibrated": 0.3}
    found = Calibration(("a", "b"), (4, 4), (0.1, 0.9), 1, 0.1, errors[:8], 20, table)
    finer = Calibration(("a", "b"), (4,), (0.5,), 4, 1.0, errors, 20, table)
    return [found.to_json().encode(), finer.to_json().encode()]


def read_weights(path: Path) -> None:
    found = Calibration.load(path)
    if len(found.names) < 9 and np.prod(found.latent, dtype=float) < LARGEST:
        scales = found.scales(found.names, np.array([0.2, 0.5]), found.latent)
        np.testing.assert_allclose(scales.sum(1), 1, atol=1e-3 * np.abs(scales).max())


# --- files on disk ---------------------------------------------------------------------------------------------------


@functools.cache
def folder() -> Path:
    made = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def on_disk(read: Callable[[Path], object], name: str) -> Callable[[bytes], None]:
    def read_bytes(data: bytes) -> None:
        path = folder() / name
        path.write_bytes(data)
        read(path)

    return read_bytes


def read_tensors(path: Path) -> None:
    from cdiff_rt.export.tensors import metadata, open_tensors

    tensors = open_tensors(path)
    for name in tensors:
        if np.prod(tensors.shapes[name], dtype=float) < LARGEST:
            assert tuple(tensors[name].shape) == tensors.shapes[name]
    metadata(path)


def checkpoints() -> list[bytes]:
    import torch

    weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.float16)}
    made = []
    one = {"a.weight": weights["a.weight"]}
    for content, zipped in ((weights, True), ({"state_dict": weights, "epoch": 3}, True), (one, False)):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        made.append(without_address(file.getvalue()))
    return made


def without_address(data: bytes) -> bytes:
    """The old format calls a storage by its address, which is another each time."""
    return re.sub(rb"X.\0\0\0\d{9,}", b"X\1\0\0\x000", data)


def repair_zip(data: bytes) -> bytes:
    """Each entry's checksum in the directory at the end, by which it is read."""
    mended, place = bytearray(data), data.find(b"PK\1\2")
    with suppress(struct.error):
        while place >= 0:
            size, local = *struct.unpack_from("<I", data, place + 20), *struct.unpack_from("<I", data, place + 42)
            begin = local + 30 + sum(struct.unpack_from("<HH", data, local + 26))
            mended[place + 16 : place + 20] = struct.pack("<I", zlib.crc32(data[begin : begin + size]))
            place = data.find(b"PK\1\2", place + 4)
    return bytes(mended)[: len(data)]


def safetensors() -> list[bytes]:
    from safetensors.numpy import save

    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.zeros((), np.int64),
        "c": np.ones(2, np.float16),
    }
    return [save(tensors), save(tensors, {"model": "x"}), save({})]


TARGETS = {
    "mask": Target(lambda data: read_labels(data, 19), masks, repair_png),
    "photo": Target(lambda data: read_photo(data, 8), photos, repair_png),
    "drawing": Target(lambda data: read_drawing(data, 8, "sketch"), photos, repair_png),
    "region": Target(read_region, regions, repair_png),
    "map": Target(lambda data: read_map(data, "region of text", (4, 4)), regions, repair_png),
    "record": Target(read_whole_record, records, lambda data: repair_zip(repair_png(data))),
    "npy": Target(lambda data: read_array(data, "sketch"), arrays),
    "text": Target(read_text, texts),
    "manifest": Target(
        lambda data: Manifest.from_json(data.decode("utf-8", "replace")),
        lambda: [(EMBEDDED / NAME).read_bytes()],
        sign,
    ),
    "jobs": Target(on_disk(lambda path: read_jobs(path, embedded()), "jobs.jsonl"), jobs),
    "table": Target(on_disk(lambda path: read_jobs(path, embedded()), "jobs.csv"), tables),
    "calibration": Target(on_disk(read_weights, "weights.json"), calibrations),
    "results": Target(on_disk(read_results, "results.jsonl"), results),
    "checkpoint": Target(on_disk(read_tensors, "checkpoint.ckpt"), checkpoints, repair_zip),
    "safetensors": Target(on_disk(read_tensors, "weights.safetensors"), safetensors),
}


def corpus(name: str) -> Iterator[bytes]:
    """The seeds, and what once was a fault."""
    yield from TARGETS[name].seeds()
    yield from (path.read_bytes() for path in sorted((CORPUS / name).glob("*")))
