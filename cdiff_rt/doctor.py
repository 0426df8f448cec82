"""What is installed, which backends work here, and why others don't."""

import platform
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cdiff_rt.engines.backends import BACKENDS, lacking
from cdiff_rt.engines.cuda import compute_capability, device_name, driver_cuda, why_no_device
from cdiff_rt.errors import CdiffError
from cdiff_rt.extras import version_of
from cdiff_rt.manifest import DEFAULT_MODEL, MODELS, Bundle
from cdiff_rt.process import cores
from cdiff_rt.runners import load_runner
from cdiff_rt.version import __version__

LIBRARIES = (
    *("numpy", "pillow", "onnxruntime", "openvino", "torch", "safetensors", "onnx", "onnxscript"),
    *("scikit-image", "ray", "onnxruntime-gpu", "triton", "tensorrt-cu13", "tensorrt-rtx-cu13"),
)
PICTURE = ("--quiet", "generate", "--text", "man", "--steps", "1")  # that a backend on a GPU is tried with
PATIENCE = 120  # seconds, in which the slowest has compiled its kernels


def examine() -> tuple[list[str], bool]:
    """Lines to print, and whether a picture can be made: an intact model and a backend that loads it."""
    lines = [f"cdiff-rt {__version__}, Python {platform.python_version()}, {platform.platform()}, {cores()} cores"]
    lines += [f"library {name:20} {version_of(name)}" for name in LIBRARIES]
    bundles = {}
    for folder in sorted(MODELS.glob("*/")):
        try:
            bundles[folder.name] = Bundle.open(folder)
            lines.append(f"model   {folder.name:20} intact")
        except CdiffError as error:
            lines.append(f"model   {folder.name:20} {error}")
    lines.append(f"device  {'cuda':20} {_device()}")
    states = _states(bundles.get(DEFAULT_MODEL))
    lines += [f"backend {name:20} {state}" for name, state in states.items()]
    working = [name for name, state in states.items() if state == "works"]
    lines.append(f"ready   {f'yes, with {working[0]}' if working else 'no, as no backend works'}")
    return lines, bool(working)


def _device() -> str:
    try:
        return why_no_device() or f"{device_name()}, compute capability {compute_capability()}, CUDA {driver_cuda()}"
    except CdiffError as error:
        return error.seen


def _states(bundle: Bundle | None) -> dict[str, str]:
    """What becomes of each backend when it is tried; those on a GPU beside one another, for each takes a while."""
    with ThreadPoolExecutor() as pool:
        on_gpu = {name: pool.submit(_state, name, bundle) for name in BACKENDS if BACKENDS[name].device == "cuda"}
        return {name: on_gpu[name].result() if name in on_gpu else _state(name, bundle) for name in BACKENDS}


def _state(backend: str, bundle: Bundle | None) -> str:
    try:
        if lacks := lacking(backend):
            return "; ".join(f"{lack.reason}: {lack.mend.removeprefix('run ')}".removesuffix(": ") for lack in lacks)
        if bundle is None:
            return "no intact model to try it on"
        if BACKENDS[backend].device == "cuda":
            return _in_a_process(backend)
        load_runner(bundle, backend).call("vae.decode", z=np.zeros((1, *bundle.manifest.latent_shape), np.float32))
    except CdiffError as error:
        return str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of a broken library: the others are to be told of too
        return f"does not work ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
    return "works"


def _in_a_process(backend: str) -> str:
    """Makes a picture in a process of its own: a driver and a library at odds may end it, and libraries of several
    backends do not bear each other."""
    with TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "cdiff_rt",
            *PICTURE,
            "--backend",
            backend,
            "--out",
            str(Path(folder, "a.png")),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return f"no picture after {PATIENCE} s"
    if not done.returncode:
        return "works"
    said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
    reason = next((line.removeprefix("error: ") for line in said if line.startswith("error: ")), said[-1])
    return f"its process ended with {_ending(done.returncode)} ({reason})" if done.returncode < 0 else reason


def _ending(code: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
