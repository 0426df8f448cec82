"""What every test may use: the embedded model, a painted mask, and the masks that must be refused."""

import json
import logging
import os
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

# Before anything imports torch, and for the processes that tests start: with a thread for each core in each of several
# workers, most of the time goes into waiting for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from cdiff_rt.export.checkpoint import Checkpoint
from cdiff_rt.manifest import DEFAULT_MODEL, MODELS, Bundle
from cdiff_rt.pipeline import Pipeline
from tests import tiny
from tests.bad_files import MASKS, zeros_png
from tests.parts import Parts
from tests.shared import once, shared_folder

ROOT = Path(__file__).parents[1]
settings.register_profile("all", deadline=None, derandomize=True, max_examples=300)
settings.load_profile("all")  # the same examples in every run: a failure is nobody's luck
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


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file is skipped that needs diffusers, which the extra [test] does not bring; and with `-m gpu` any that needs a
    library which is not installed: no extra for a GPU brings them all."""
    report = yield
    error = report.call.excinfo and report.call.excinfo.value.__cause__  # type: ignore[attr-defined]
    on_gpu = re.search(r"(?<!not )\bgpu\b", collector.config.option.markexpr)
    if isinstance(error, ModuleNotFoundError) and (on_gpu or error.name == "diffusers"):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {error}")
    return report


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


@pytest.fixture(scope="session")
def parts(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The embedded model's modalities apart."""
    return Parts.of(bundle, tmp_path_factory.mktemp("parts"))


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


@pytest.fixture(scope="session")
def bomb_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """169 megapixels in 170 kB or so; Pillow opens it with no more than a warning."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.png"
    zeros_png(path, 13_000)
    return path


@pytest.fixture(params=MASKS)
def bad_mask(request: pytest.FixtureRequest, tmp_path: Path) -> BadMask:
    write, words = MASKS[request.param]
    path = tmp_path / "bad.png"
    write(path)
    return BadMask(path, words)
