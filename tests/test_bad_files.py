"""Every bad file ends a command in one line with its exit code, quickly, and leaves nothing behind."""

import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.images import read_array
from tests import bad_files
from tests.bad_files import Rows
from tests.command_line import run

SECONDS, GROWTH = 5, 256 * 1024  # of a command; kB of its memory


def rows(kind: Rows) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", kind)


def check(result: object, code: int, words: tuple[str, ...]) -> None:
    """One error in the end, perhaps after notes; what it leaves out is not told as a fault of the program's."""
    *notes, error = result.stderr.splitlines()
    assert result.stdout == "" and result.exit_code == code and isinstance(result.exception, SystemExit)
    assert error.startswith("error: ") and "Traceback" not in error and len(error) < 1000
    assert all(note.startswith(("note: ", "warning: ")) for note in notes)
    assert [word for word in words if word not in error] == []


@pytest.fixture
def refuse(tmp_path):
    """Writes a bad file, then runs a command on it, to which its path and that of the output are added."""
    bad, out = tmp_path / "bad", tmp_path / "out"

    def run_on(row, code: int, *arguments: object) -> None:
        write, words = row
        write(bad)
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        result = run(*(bad if argument is bad_files else argument for argument in arguments), "--out", out)
        assert time.monotonic() - started < SECONDS
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH
        check(result, code, words)
        assert {path.name for path in tmp_path.iterdir()} <= {"bad", "photo.png"}

    return run_on


@rows(bad_files.MASKS)
def test_a_bad_mask_is_refused(name, refuse):
    refuse(bad_files.MASKS[name], 3, "generate", "--mask", bad_files)


@rows(bad_files.PHOTOS)
def test_a_bad_photo_is_refused(name, refuse):
    refuse(bad_files.PHOTOS[name], 3, "edit", "--text", "a man", "--image", bad_files)


@rows(bad_files.REGIONS)
def test_a_bad_region_is_refused(name, refuse, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((128, 128, 3), np.uint8)).save(photo)
    refuse(bad_files.REGIONS[name], 3, "generate", "--text", "a man", "--inpaint", photo, "--keep", bad_files)


@rows(bad_files.JOBS)
def test_a_bad_file_of_jobs_is_refused(name, refuse):
    refuse(bad_files.JOBS[name], 3, "generate", "--jobs", bad_files)


@rows(bad_files.CHECKPOINTS)
def test_a_bad_checkpoint_is_refused(name, refuse):
    refuse(bad_files.CHECKPOINTS[name], 4, "export", "--checkpoint", bad_files)


@rows(bad_files.BUNDLES)
def test_a_bad_bundle_is_refused(name, refuse, tiny_bundle):
    change, words = bad_files.BUNDLES[name]

    def write(bad: Path) -> None:
        shutil.copytree(tiny_bundle, bad)
        change(bad)

    refuse((write, words), 4, "generate", "--text", "a man", "--model", bad_files)


@rows(bad_files.ARRAYS)
def test_a_bad_array_is_refused(name, tmp_path):
    """No included model takes one, so this is the reader alone."""
    write, words = bad_files.ARRAYS[name]
    write(tmp_path / "bad.npy")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInput) as raised:
        read_array(tmp_path / "bad.npy", "sketch")
    assert "\n" not in str(raised.value) and [word for word in words if word not in str(raised.value)] == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH


def test_they_are_many():
    kinds = (getattr(bad_files, kind) for kind in ("MASKS", "PHOTOS", "REGIONS", "JOBS", "CHECKPOINTS", "BUNDLES"))
    assert sum(map(len, kinds)) + len(bad_files.ARRAYS) >= 150
