"""Scenarios in forked processes, in each of which one operation on a file fails or a signal comes before it.

    LD_PRELOAD=faults.so python -m tests.faults SCENARIO FOLDER KINDS EVERY

tells as JSON how many operations there are, how many were tried, and what was wrong after any of them: it must be as
before or as after an undisturbed run. `faults.c` counts the operations.
"""

import ctypes
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cdiff_rt.errors import CdiffError
from cdiff_rt.outputs.files import PLACE, check_folder

KINDS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EACCES")}
KINDS |= {name: -getattr(signal, name) for name in ("SIGKILL", "SIGINT", "SIGTERM")}
TOLD = {0, 2, 3, 4, 5, 6, 130, 143, -signal.SIGKILL}  # exit codes that say what happened
State = dict[str, object]


@dataclass(frozen=True)
class Scenario:
    prepare: Callable[[Path], object]  # what is there before
    run: Callable[[Path], object]
    go_on: Callable[[Path], object] | None = None  # after which all must be as undisturbed; else a look at the folder
    out: str = ""  # where it writes


def state_of(folder: Path) -> State:
    """What each file says that the user sees, but for the time it was written at."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and PLACE not in path.parts]
    return {str(path.relative_to(folder)): content(path) for path in paths}


def content(path: Path) -> object:
    data = path.read_bytes()
    if path.suffix == ".npz" and zipfile.is_zipfile(path):
        with np.load(io.BytesIO(data)) as arrays:
            data = b"".join(name.encode() + arrays[name].tobytes() for name in arrays)
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in data.splitlines()]
        return sorted((line["id"], line.get("sha256"), "error" in line) for line in lines)
    return hashlib.sha256(data).hexdigest()


def forked(work: Callable[[], object]) -> int:
    """The exit code of a process that does this, as the command ends by its errors."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        work()
        code = 0
    except CdiffError as error:
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:  # noqa: BLE001 - told by the code 1
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(code)


def try_all(scenario: Scenario, folder: Path, kinds: list[str], every: int) -> dict:
    shim, place = ctypes.CDLL(os.environ["LD_PRELOAD"]), folder / "place"

    def fresh() -> Path:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        scenario.prepare(place)
        return place

    def disturbed(number: int, kind: int) -> None:
        shim.fault_arm(os.fsencode(place), number, kind)
        scenario.run(place)
        count = shim.fault_arm(b"", -1, 0)
        (folder / "count").write_text(str(count))

    old = state_of(fresh())
    assert forked(lambda: disturbed(-1, 0)) == 0
    new, operations, wrong, runs = state_of(place), int((folder / "count").read_text()), [], 0
    for name in kinds:
        for number in range(1, operations + 1, every):
            fresh()
            code = forked(lambda: disturbed(number, KINDS[name]))  # noqa: B023 - it is called now
            wrong += [f"{name} at {number}: {fault}" for fault in faults(scenario, place, code, old, new)]
            runs += 1
    return {"operations": operations, "runs": runs, "wrong": wrong}


def faults(scenario: Scenario, place: Path, code: int, old: State, new: State) -> list[str]:
    found = [] if code in TOLD else [f"it ended with {code}"]
    for name, value in state_of(place).items():
        if scenario.go_on is None and value not in (old.get(name), new.get(name)):
            found.append(f"{name} is neither old nor new")
    hidden = place / scenario.out / PLACE
    left = [str(path) for path in hidden.rglob("*") if path.is_file()]  # an interrupt may leave a folder
    if code != -signal.SIGKILL and (left or code not in (130, 143) and hidden.exists()):
        found.append(f"{code} left {left}")
    if again := forked(lambda: scenario.go_on(place) if scenario.go_on else check_folder(place / scenario.out)):
        found.append(f"going on ended with {again}")
    after, expected = state_of(place), [new] if code == 0 or scenario.go_on else [old, new]
    if after not in expected:
        found.append(f"after {code} there is {after}")
    if hidden.exists():
        found.append("something hidden is left")
    return found


def check_faults(
    scenario: str, folder: Path, kinds: list[str], every: int = 1, most: int = 600, bundle: Path = Path()
) -> None:
    """Runs this file with what `faults.c` becomes. Skips the test where there is no compiler or no such loader."""
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("needs Linux and a C compiler")
    source, shim = Path(__file__).with_suffix(".c"), folder / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
    command = [sys.executable, "-m", "tests.faults", scenario, str(folder), ",".join(kinds), str(every)]
    environment = os.environ | {
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "TINY": str(bundle),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=most)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["wrong"] == [], done.stderr
    assert told["operations"] >= 10 and told["runs"] >= len(kinds) * told["operations"] // every


if __name__ == "__main__":
    from tests.fault_scenarios import SCENARIOS

    chosen, where, how, step = sys.argv[1:]
    print(json.dumps(try_all(SCENARIOS[chosen], Path(where), how.split(","), int(step))))
