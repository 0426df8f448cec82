"""What every test may use: the embedded model, a painted mask, and the masks that must be refused."""

import json
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Before anything imports torch, and for the processes that tests start: with a thread for each core in each of several
# workers, most of the time goes into waiting for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.export.checkpoint import Checkpoint
from cdiff_rt.inputs.palette import PALETTE
from cdiff_rt.manifest import DEFAULT_MODEL, MODELS, Bundle
from cdiff_rt.pipeline import Pipeline
from tests import tiny
from tests.shared import once, shared_folder

ROOT = Path(__file__).parents[1]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # "gw0", "gw1" and so on, or none


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", help="File that tests/conformance writes its errors to.")
    parser.addoption(
        "--golden",
        default=str(ROOT / "tests" / "data" / "golden"),
        help="Folder of golden data, for tests/conformance.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Each worker keeps to a core of its own, so that whatever asks for the number of cores is told one."""
    if WORKER and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})


@pytest.fixture(autouse=True)
def own_logging():
    """The commands set up the package's logger, which outlives them."""
    log = logging.getLogger("cdiff_rt")
    before = log.handlers[:], log.level
    yield
    log.handlers[:], log.level = before


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle.open(MODELS / DEFAULT_MODEL)


@pytest.fixture(scope="session")
def pipeline(bundle: Bundle) -> Pipeline:
    return Pipeline(bundle)


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Checkpoint:
    return tiny.tiny_checkpoint()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `once`: what one worker makes, all use."""
    return shared_folder(tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_export(shared: Path) -> tuple[Path, dict[str, float]]:
    """The tiny bundle's folder and what `export_checkpoint` reported."""
    folder = once(shared / "tiny-export", tiny.export_tiny)
    return folder / "tiny", json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="session")
def tiny_bundle(tiny_export: tuple[Path, dict[str, float]]) -> Path:
    return tiny_export[0]


@pytest.fixture
def bundle_copy(bundle: Bundle, tmp_path: Path) -> Path:
    """A whole bundle that a test may alter."""
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def mask() -> np.ndarray:
    """A face from the front, [128, 128] labels."""
    y, x = np.mgrid[:128, :128]
    labels = np.zeros((128, 128), np.uint8)
    for label, (centre_x, centre_y, half_width, half_height) in (
        (18, (64, 130, 58, 26)),
        (13, (64, 56, 42, 48)),
        (17, (64, 100, 14, 22)),
        (1, (64, 64, 30, 40)),
        (5, (52, 56, 6, 3)),
        (4, (76, 56, 6, 3)),
        (11, (64, 84, 11, 4)),
        (12, (64, 88, 9, 4)),
    ):
        labels[((x - centre_x) / half_width) ** 2 + ((y - centre_y) / half_height) ** 2 <= 1] = label
    return labels


@pytest.fixture
def mask_file(mask: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "face.png"
    Image.fromarray(mask).save(path)
    return path


class BadMask(NamedTuple):
    path: Path
    words: tuple[str, ...]  # what the message must say


LABELS = np.array([[0, 1], [13, 17]], np.uint8).repeat(32, 0).repeat(32, 1)  # [64, 64]
COLOURS = np.array(PALETTE, np.uint8)[LABELS]  # [64, 64, 3]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros_png(path: Path, side: int) -> None:
    """A valid grey PNG of side x side black pixels, small as a file."""
    packer = zlib.compressobj(1)
    line = bytes(side + 1)
    data = b"".join(packer.compress(line * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))


@pytest.fixture(scope="session")
def bomb_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """169 megapixels in 170 kB or so; Pillow opens it with no more than a warning."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.png"
    zeros_png(path, 13_000)
    return path


def small_png(*, bits: int, colour_type: int, row: bytes) -> bytes:
    """A PNG of 8 x 8 pixels with equal rows, of a depth that Pillow does not write."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, colour_type, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress((b"\0" + row) * 8)) + png_chunk(b"IEND", b"")
    )


def broken_exif(path: Path) -> None:
    Image.fromarray(LABELS).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + png_chunk(b"eXIf", b"MM\0*\0") + whole[33:])  # after the signature and IHDR


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 19, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1000])


def animated(path: Path) -> None:
    frames = [Image.fromarray(LABELS), Image.fromarray(LABELS.T.copy())]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def label_200(path: Path) -> None:
    labels = LABELS.copy()
    labels[5, 3] = 200
    Image.fromarray(labels).save(path)


def off_palette(path: Path) -> None:
    colours = COLOURS.copy()
    colours[0, 0] = (90, 100, 110)
    Image.fromarray(colours).save(path)


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(LABELS).save(path, exif=exif)


def text_bomb(path: Path) -> None:
    Image.fromarray(LABELS).save(path)
    whole = path.read_bytes()
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000)))
    path.write_bytes(whole[:33] + bomb + whole[33:])  # after the signature and IHDR


def with_alpha(value: int) -> np.ndarray:
    return np.dstack([COLOURS, np.full(LABELS.shape, value, np.uint8)])


BAD_MASKS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (lambda path: None, ("no such file",)),
    "empty": (lambda path: path.touch(), ("0 bytes",)),
    "truncated": (truncated, ("cannot be read",)),
    "not an image": (lambda path: path.write_text("<html></html>"), ("cannot be read",)),
    "directory": (lambda path: path.mkdir(), ("not a file",)),
    "fifo": (os.mkfifo, ("not a file",)),
    "device": (lambda path: path.symlink_to("/dev/zero"), ("not a file",)),
    "jpeg named png": (lambda path: Image.fromarray(LABELS).save(path, "JPEG"), ("JPEG", "changes labels", "--snap")),
    "gif named png": (lambda path: Image.fromarray(LABELS).save(path, "GIF"), ("GIF",)),
    "animated": (animated, ("animation", "2 frames")),
    "4 bits": (lambda path: path.write_bytes(small_png(bits=4, colour_type=0, row=bytes(4))), ("L;4", "8 bits")),
    "16-bit colour": (lambda path: path.write_bytes(small_png(bits=16, colour_type=2, row=bytes(48))), ("RGB;16B",)),
    "broken exif": (broken_exif, ("cannot be read",)),
    "16 bits": (lambda path: Image.fromarray(LABELS.astype(np.uint16)).save(path), ("I;16",)),
    "1 bit": (lambda path: Image.fromarray(LABELS == 0).save(path), ("mode 1", "black and white", "--labels FILE")),
    "transparent": (
        lambda path: Image.fromarray(with_alpha(254)).save(path),
        ("4096 of its 4096", "transparent", "--snap"),
    ),
    "off palette": (off_palette, ("1 colours", "#5a646e", "--snap")),
    "label 200": (label_200, ("label 200", "x 3, y 5", "0-18")),
    "rotated": (rotated, ("EXIF",)),
    "text bomb": (text_bomb, ("cannot be read",)),
}


@pytest.fixture(params=BAD_MASKS)
def bad_mask(request: pytest.FixtureRequest, tmp_path: Path) -> BadMask:
    write, words = BAD_MASKS[request.param]
    path = tmp_path / "bad.png"
    write(path)
    return BadMask(path, words)
