"""What is installed, which backends work here, and why others don't."""

import platform

import numpy as np

from cdiff_rt.engines.backends import BACKENDS, why_not
from cdiff_rt.engines.cuda import compute_capability, why_no_device
from cdiff_rt.errors import CdiffError
from cdiff_rt.extras import install, version_of
from cdiff_rt.manifest import DEFAULT_MODEL, MODELS, Bundle
from cdiff_rt.process import cores
from cdiff_rt.runners import load_runner
from cdiff_rt.version import __version__

LIBRARIES = (
    *("numpy", "pillow", "onnxruntime", "openvino", "torch", "safetensors", "onnx", "onnxscript"),
    *("scikit-image", "ray", "onnxruntime-gpu", "triton", "tensorrt-cu13", "tensorrt-rtx-cu13"),
)


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
    lines.append(f"device  {'cuda':20} {why_no_device() or f'compute capability {compute_capability()}'}")
    states = {name: _state(name, bundles.get(DEFAULT_MODEL)) for name in BACKENDS}
    lines += [f"backend {name:20} {state}" for name, state in states.items()]
    working = [name for name, state in states.items() if state == "works"]
    lines.append(f"ready   {f'yes, with {working[0]}' if working else 'no, as no backend works'}")
    return lines, bool(working)


def _state(backend: str, bundle: Bundle | None) -> str:
    reason = why_not(backend)
    if reason:
        return reason if reason == why_no_device() else f"{reason}: {install(BACKENDS[backend].extra)}"
    if bundle is None:
        return "no intact model to try it on"
    try:
        load_runner(bundle, backend).call("vae.decode", z=np.zeros((1, *bundle.manifest.latent_shape), np.float32))
    except CdiffError as error:
        return str(error)
    return "works"
