"""How long a command takes from nothing: a new process for each run, in turns."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cdiff_rt.bench.comparison import Comparison, Timing
from cdiff_rt.bench.latency import WARM_UP
from cdiff_rt.bench.machine import machine
from cdiff_rt.errors import BadEnvironment, CdiffError

TEXT = "This man has a long beard. He is in his fifties."


def measure(model: str, repeats: int) -> Comparison:
    """`cdiff-rt --help`, and an image from a sentence. The first of the uncounted runs fills the disk's cache."""
    with tempfile.TemporaryDirectory(prefix="cdiff-rt-") as folder:
        image = ["generate", "--model", model, "--text", TEXT, "--out", str(Path(folder) / "image.png"), "--force"]
        commands = {"cdiff-rt --help": ["--help"], "cdiff-rt generate, one image": image}
        firsts = {name: seconds(command) for name, command in commands.items()}
        rounds = [{name: seconds(c) for name, c in commands.items()} for _ in range(WARM_UP + repeats)][WARM_UP:]
    timings = [Timing(name, firsts[name], None, [1000 * row[name] for row in rounds]) for name in commands]
    settings: dict[str, int | str] = {"model": model, "what": "start", "batch": 1}
    return Comparison(machine(), settings | {"warm-up": WARM_UP, "repeats": repeats}, timings)


def _told(command: str, stderr: str, code: int) -> CdiffError:
    """What the command ended with, as it would be here: its one line, and its exit code."""
    kinds = {kind.exit_code: kind for kind in CdiffError.__subclasses__()}
    *_, line = stderr.splitlines() or [""]
    what, colon, rest = line.removeprefix("error: ").partition(": ")
    seen, semicolon, remedy = rest.rpartition("; ")
    if code in kinds and line.startswith("error: ") and colon and semicolon:
        return kinds[code](what, seen, remedy)
    return BadEnvironment(f"cdiff-rt {command}", f"it ended with {code}: {line[-200:]}", "see `cdiff-rt doctor`")


def seconds(arguments: list[str]) -> float:
    """The wall time of a command in a new process. Raises what that ends with, if it fails."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "cdiff_rt", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _told(arguments[0], done.stderr, done.returncode)
    return time.perf_counter() - start
