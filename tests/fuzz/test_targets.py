"""The quick part of fuzzing: a few hundred damaged inputs for each target. `python -m tests.fuzz` goes on for longer."""

import random
import subprocess
import sys
from dataclasses import replace

import pytest

from cdiff_rt.errors import CdiffError
from cdiff_rt.inputs import containers
from tests.fuzz import targets
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS

RUNS, SLOW_RUNS = 400, 20_000


def run(name, target, runs):
    rng, seeds = random.Random(name), list(targets.corpus(name))
    for number in range(runs):
        data = mutated(rng.choice(seeds), rng, seeds)
        target(target.repair(data) if number % 2 else data)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name):
    read = [data for data in TARGETS[name].seeds() if not raises(TARGETS[name], data)]
    assert len(read) >= 1


def raises(target, data):
    try:
        target.read(data)
    except CdiffError:
        return True
    return False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused_in_words_or_read(name):
    for data in targets.corpus(name):
        TARGETS[name](data)
    run(name, TARGETS[name], RUNS)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_much_damaged_input_is(name):
    run(name, TARGETS[name], SLOW_RUNS)


def test_a_fault_behind_a_checksum_is_found_because_checksums_are_mended(monkeypatch):
    def faulty(kind, content, room):
        assert b"\xff" not in content
        return content, b""

    monkeypatch.setattr(containers, "_text", faulty)
    run("mask", replace(TARGETS["mask"], repair=bytes), 3000)
    with pytest.raises(AssertionError):
        run("mask", TARGETS["mask"], 3000)


@pytest.mark.parametrize(
    ("repair", "seeds"), [(targets.repair_png, targets.masks), (targets.repair_zip, targets.checkpoints)]
)
def test_mended_checksums_leave_whole_files_as_they_are(repair, seeds):
    assert [repair(data) for data in seeds()] == seeds()


def test_the_command_counts_its_runs(root):
    command = [sys.executable, "-m", "tests.fuzz", "text", "--plain", "--seconds", "60", "--runs", "50"]
    done = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("text: 50 runs in ") and "no traceback" in done.stdout
