"""Engines run one network of a bundle on one backend. `BACKENDS` is the table; nothing is imported until asked for."""

import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cdiff_rt.errors import BadEnvironment, BadRequest
from cdiff_rt.manifest import Bundle, NetworkSpec


class Engine(Protocol):
    """A loaded network. Calling it takes and gives arrays by the names of its spec."""

    spec: NetworkSpec

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Backend:
    loader: str  # "module:function" with the signature (bundle, network, threads) -> Engine
    requires: tuple[str, ...]  # the libraries it imports
    extra: str  # the extra of cdiff-rt that installs them
    parallel: bool = False  # whether its engines run side by side, each on its own threads


BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend("cdiff_rt.engines.ort:load", ("onnxruntime",), "cpu", parallel=True),
    "torch": Backend("cdiff_rt.engines.eager:load", ("torch", "safetensors"), "torch"),
}


def why_not(backend: str) -> str | None:
    """What keeps a backend from working here, or None. Imports nothing."""
    missing = [name for name in BACKENDS[backend].requires if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else None


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_backend(backend: str) -> None:
    """Raises BadRequest for an unknown backend and BadEnvironment for one that isn't installed."""
    if backend not in BACKENDS:
        raise BadRequest("backend", repr(backend), f"choose one of {', '.join(BACKENDS)}")
    reason = why_not(backend)
    if reason:
        raise BadEnvironment(f"backend {backend}", reason, _install(backend))


def _install(backend: str) -> str:
    return f"run `pip install '.[{BACKENDS[backend].extra}]'` in the checkout or choose another"


def load_engine(backend: str, bundle: Bundle, network: str, *, threads: int | None = None) -> Engine:
    """The engine of one network, on `threads` of the machine's cores (None: all). Raises as `check_backend` does."""
    check_backend(backend)
    module, function = BACKENDS[backend].loader.split(":")
    try:
        return getattr(importlib.import_module(module), function)(bundle, network, threads or cores())
    except ImportError as error:
        raise BadEnvironment(f"backend {backend}", f"it does not load ({error})", _install(backend)) from error


def check_inputs(spec: NetworkSpec, inputs: dict[str, np.ndarray]) -> None:
    """Our own invariant: names, types and shapes are those of the manifest, and equal names are equal sizes."""
    sizes: dict[str, int] = {}
    assert set(inputs) == {tensor.name for tensor in spec.inputs}, f"{spec.file} takes other inputs than {set(inputs)}"
    for tensor in spec.inputs:
        array = inputs[tensor.name]
        expected = tuple(
            sizes.setdefault(d, n) if isinstance(d, str) else d for d, n in zip(tensor.shape, array.shape, strict=False)
        )
        fits = array.shape == expected and len(array.shape) == len(tensor.shape) and str(array.dtype) == tensor.dtype
        assert fits, f"{spec.file}: {tensor.name} is {array.dtype} {array.shape}, expected {tensor}"
