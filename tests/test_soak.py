"""Thousands of generations with what a server would be asked for: memory, files and threads stay what they were."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
GROWTH = 20.0  # MiB from the middle to the end
SOAK = """
import gc, os, sys
import numpy as np
from cdiff_rt import Pipeline
from cdiff_rt.sampling.solvers import SOLVERS
from cdiff_rt.gpu.runner import DeviceRunner
from cdiff_rt.run import OnDevice

bundle, backend, runs, leak = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "leak"
pipeline = Pipeline.from_pretrained(bundle, backend="onnxruntime" if backend == "device" else backend, threads=1)
if backend == "device":
    pipeline._runner = DeviceRunner(pipeline.bundle, "torch-cuda", OnDevice("fp32"), device="cpu")
pages, kept, rng = os.sysconf("SC_PAGE_SIZE"), [], np.random.default_rng(0)
for number in range(runs):
    solver = [*SOLVERS][number % len(SOLVERS)]
    steps, batch = (1, 2, 4)[number % 3] if solver == "ddim" else 2 + number % 4, 1 + int(rng.integers(9))
    mask = {"mask": rng.integers(0, 5, (4, 4), np.uint8)} if number % 2 else {}
    made = pipeline.generate(text=("a man", "a woman")[number // 2 % 2], conditions=mask, solver=solver, steps=steps, batch=batch)
    if leak:
        kept.append(np.ones(2**14))  # 128 KiB
    if number % 10 == 9:
        gc.collect()
        resident = int(open("/proc/self/statm").read().split()[1]) * pages / 2**20
        print(resident, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
"""


def soaked(bundle: Path, backend: str, runs: int, leak: bool) -> np.ndarray:
    """[n, 3]: MiB, open files and threads, every ten runs."""
    arguments = [str(bundle), backend, str(runs), "leak" if leak else "none"]
    done = subprocess.run(
        [sys.executable, "-c", SOAK, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return np.array([line.split() for line in done.stdout.splitlines()], float)


def grown(rows: np.ndarray) -> float:
    """MiB from the middle to the end, by the line of least squares."""
    later = rows[len(rows) // 2 :, 0]
    return float(np.polyfit(np.arange(len(later)), later, 1)[0] * len(later))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("backend", "runs"), [("onnxruntime", 2000), ("openvino", 300), ("torch", 500), ("device", 300)]
)
def test_thousands_of_generations_grow_nothing(backend, runs, tiny_bundle):
    """On onnxruntime; the others, which compile or compute more slowly, make hundreds."""
    rows = soaked(tiny_bundle, backend, runs, leak=False)
    assert grown(rows) < GROWTH
    half = len(rows) // 2
    assert rows[half:, 1:].max(0).tolist() == rows[half, 1:].tolist() == rows[half:, 1:].min(0).tolist()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_leak_of_128_kib_a_run_is_found(tiny_bundle):
    """In fewer runs than those that must not: the second half of these leaks 50 MiB."""
    assert grown(soaked(tiny_bundle, "onnxruntime", 800, leak=True)) > GROWTH
