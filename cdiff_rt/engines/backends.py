"""Engines run one network of a bundle on one backend. `BACKENDS` is the table; nothing is imported until asked for."""

import importlib
import importlib.util
import shutil
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cdiff_rt.engines.base import DTYPES, Arrangement, DeviceEngine, Engine, Placement, Precision
from cdiff_rt.engines.cuda import why_no_device
from cdiff_rt.engines.graphs import Graph
from cdiff_rt.errors import BadEnvironment, BadRequest
from cdiff_rt.extras import install
from cdiff_rt.manifest import Bundle, Manifest, NetworkSpec
from cdiff_rt.notes import log
from cdiff_rt.process import usual_threads

ANY: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
BUILT: tuple[Arrangement, ...] = get_args(Arrangement)  # of what `export --target` builds


@dataclass(frozen=True)
class Backend:
    loader: str  # "module:function": (bundle, network, placement) -> Engine, or DeviceEngine on a device
    requires: tuple[str, ...]  # the libraries it imports
    extra: str  # the extra of cdiff-rt that installs them
    parallel: bool = False  # whether its engines run side by side, each on its own threads
    device: Literal["cpu", "cuda"] = "cpu"
    precisions: tuple[Precision, ...] = ("fp32",)  # the first is the default
    experts: tuple[Arrangement, ...] = ("separate",)  # how its engines divide them; the first is the default
    programs: tuple[str, ...] = ()  # of which it needs one, whichever


def _cuda(
    loader: str,
    library: str,
    extra: str,
    precisions: tuple[Precision, ...] = ANY,
    experts: tuple[Arrangement, ...] = ("separate", "stacked"),
) -> Backend:
    return Backend(loader, (library, "torch"), extra, device="cuda", precisions=precisions, experts=experts)


BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend("cdiff_rt.engines.ort:load", ("onnxruntime",), "cpu", parallel=True),
    "openvino": Backend(
        "cdiff_rt.engines.vino:load", ("openvino",), "openvino", parallel=True, precisions=("fp32", "bf16")
    ),
    "torch": Backend("cdiff_rt.engines.eager:load", ("torch", "safetensors"), "torch", precisions=("fp32", "bf16")),
    "torch-compiled": Backend(
        "cdiff_rt.engines.eager:load_compiled",
        ("torch", "safetensors"),
        "torch",
        precisions=("fp32", "bf16"),
        programs=("g++", "clang++"),
    ),
    "tensorrt": _cuda("cdiff_rt.engines.trt:load_tensorrt", "tensorrt", "tensorrt", experts=BUILT),
    "tensorrt-rtx": _cuda("cdiff_rt.engines.trt:load_rtx", "tensorrt_rtx", "tensorrt-rtx", experts=BUILT),
    "onnxruntime-cuda": _cuda("cdiff_rt.export.ort_cuda:load", "onnxruntime", "gpu", ("fp16", "fp32"), ("separate",)),
    "torch-cuda": _cuda("cdiff_rt.gpu.own_kernels:load_device", "safetensors", "torch", (*ANY, "tf32")),
    "torch-cuda-compiled": _cuda(
        "cdiff_rt.gpu.own_kernels:load_device_compiled", "safetensors", "torch", (*ANY, "tf32")
    ),
}


AUTO = "auto"
FASTEST = ("torch-cuda", "openvino", "onnxruntime", "torch")  # what `auto` tries; engines built for a GPU go by name


def fastest(manifest: Manifest) -> tuple[str, ...]:
    """`FASTEST`, but onnxruntime passes openvino where it has graphs of its own for all experts (docs/speed.md)."""
    experts = [network for name, network in manifest.networks.items() if name.startswith("expert.")]
    passes = all(network.cpu_file for network in experts)
    return ("torch-cuda", "onnxruntime", "openvino", "torch") if passes else FASTEST


def resolve(backend: str, manifest: Manifest, precision: Precision | None = None) -> str:
    """A backend's name; of "auto" that of the fastest that works here, in this precision, which a note tells.

    Raises BadEnvironment if none does, BadRequest for a precision that none has.
    """
    if backend != AUTO:
        return backend
    tried = [name for name in fastest(manifest) if precision is None or precision in BACKENDS[name].precisions]
    if not tried:
        raise BadRequest("precision", repr(precision), f"choose one of {', '.join(DTYPES)}")
    reasons = {name: why_not(name) for name in tried}
    found = next((name for name, reason in reasons.items() if reason is None), None)
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    if found is None:
        asked, other = (f" in {precision}", "choose another precision or ") if precision else ("", "")
        raise BadEnvironment("backend auto", f"none works here{asked} ({told})", f"{other}see `cdiff-rt doctor`")
    log.info("backend auto: %s%s", found, f" ({told})" if told else "")
    return found


def why_not(backend: str) -> str | None:
    """What keeps a backend from working here, or None. Imports no library."""
    if BACKENDS[backend].device == "cuda" and (reason := why_no_device()):
        return reason  # first, for nobody should install gigabytes to learn of it
    missing = [name for name in BACKENDS[backend].requires if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    programs = BACKENDS[backend].programs
    if programs and not any(map(shutil.which, programs)):
        return f"no compiler: none of {', '.join(programs)} is on the path"
    return None


def check_backend(backend: str) -> None:
    """Raises BadRequest for an unknown backend and BadEnvironment for one that doesn't work here."""
    if backend not in BACKENDS:
        raise BadRequest("backend", repr(backend), f"choose one of {', '.join(BACKENDS)}")
    reason = why_not(backend)
    if reason:
        raise BadEnvironment(f"backend {backend}", reason, _remedy(backend, reason))


def check_precision(backend: str, precision: Precision | None) -> Precision:
    """What is asked for, or the backend's default. Raises BadRequest if it doesn't compute in that."""
    known = BACKENDS[backend].precisions
    if precision and precision not in known:
        raise BadRequest("precision", repr(precision), f"{backend} computes in {', '.join(known)}")
    return precision or known[0]


def check_experts(backend: str, experts: Arrangement) -> None:
    """Raises BadRequest unless the backend's engines divide a step's experts so."""
    if experts not in get_args(Arrangement):
        raise BadRequest("experts", repr(experts), f"choose one of {', '.join(get_args(Arrangement))}")
    if experts not in BACKENDS[backend].experts:
        able = " or ".join(name for name, other in BACKENDS.items() if experts in other.experts)
        seen = f"{experts} with {backend}, which runs them {' or '.join(BACKENDS[backend].experts)}"
        raise BadRequest("experts", seen, f"leave it out, or choose the backend {able}")


def _remedy(backend: str, reason: str) -> str:
    if reason == why_no_device():
        return "choose a backend that needs no GPU: see `cdiff-rt doctor`"
    if BACKENDS[backend].programs and reason.startswith("no compiler"):
        return "install one or choose another backend"
    able = [name for name in BACKENDS if name != backend and why_not(name) is None]
    other = f"choose one that is: {', '.join(able)}" if able else "choose another"
    return f"run {install(BACKENDS[backend].extra)}, or {other}"


def load_engine(
    backend: str, bundle: Bundle, network: str, *, threads: int | None = None, precision: Precision | None = None
) -> Engine:
    """The engine of one network, on so many threads (None: as many as is usual), in `precision` or the backend's own.

    Raises as `check_backend` and `check_precision` do.
    """
    check_backend(backend)
    assert BACKENDS[backend].device == "cpu"
    placement = Placement("cpu", check_precision(backend, precision), threads=threads or usual_threads())
    return _load(backend, bundle, network, placement)


def load_graph(graph: Graph, spec: NetworkSpec) -> Engine:
    """The engine of a graph that is no bundle's, on a CPU. Raises BadEnvironment where no library runs one."""
    if why_not("onnxruntime") is None:
        from cdiff_rt.engines.ort import OrtEngine

        return OrtEngine(graph, spec, usual_threads())
    if why_not("openvino") is None:
        from cdiff_rt.engines.vino import VinoEngine

        return VinoEngine(graph, spec, usual_threads(), "fp32")
    raise BadEnvironment(graph.file, "neither onnxruntime nor openvino is installed", f"run {install('cpu')}")


def load_device_engine(backend: str, bundle: Bundle, network: str, placement: Placement) -> DeviceEngine:
    """The engine of one network on a device. Raises BadArtefact, BadEnvironment."""
    return _load(backend, bundle, network, placement)


def _load(backend: str, bundle: Bundle, network: str, placement: Placement) -> Any:
    module, function = BACKENDS[backend].loader.split(":")
    try:
        return getattr(importlib.import_module(module), function)(bundle, network, placement)
    except ImportError as error:
        reason = f"it does not load ({error})"
        raise BadEnvironment(f"backend {backend}", reason, _remedy(backend, reason)) from error
