"""TensorRT in both its flavours: full TensorRT, built on the GPU that runs it, and TensorRT-RTX, built anywhere.

The one file that imports either. Precision is in the graph (export/typed.py), so one code path serves both.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cdiff_rt.engines.cuda import compute_capability, device_name, why_no_device
from cdiff_rt.errors import BadEnvironment, BadRequest
from cdiff_rt.extras import install
from cdiff_rt.notes import log


@dataclass(frozen=True)
class Flavour:
    name: str
    module: str
    portable: bool  # a plan is built without a GPU, for the kinds of GPU that are named; else for the one that is here
    flags: tuple[str, ...] = ()  # of the builder
    defaults: tuple[str, ...] = ()  # compute capabilities, where nobody names one


FLAVOURS = {
    "tensorrt": Flavour("tensorrt", "tensorrt", portable=False),
    "tensorrt-rtx": Flavour(
        "tensorrt-rtx",
        "tensorrt_rtx",
        portable=True,
        # Memory that the library took while it runs could not be captured in a CUDA graph.
        flags=("REQUIRE_USER_ALLOCATION",),
        defaults=("8.6", "8.9", "12.0"),
    ),
}


def library(flavour: Flavour) -> Any:
    """The module. Raises BadEnvironment if it isn't installed or doesn't load."""
    try:
        return importlib.import_module(flavour.module)
    except (ImportError, OSError) as error:
        raise BadEnvironment(flavour.name, " ".join(str(error).split()), f"run {install(flavour.name)}") from None


def check_device(device: str) -> None:
    """Raises BadEnvironment without a CUDA device, where TensorRT's runtime would crash the process."""
    reason = why_no_device()
    if reason:
        raise BadEnvironment(f"device {device}", reason, "choose a backend that needs no GPU: see `cdiff-rt doctor`")


def capability_of(device: str) -> str:
    return compute_capability(_index(device))


def name_of(device: str) -> str:
    return device_name(_index(device))


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def check_capabilities(flavour: Flavour, capabilities: Sequence[str]) -> None:
    """Raises BadRequest unless the flavour builds for such GPUs, and BadEnvironment if it needs one that isn't here."""
    if not flavour.portable:
        check_device("cuda")
        here = capability_of("cuda")
        if list(capabilities) != [here]:
            seen = f"{', '.join(capabilities)}, but {flavour.name} builds for the GPU that is here, {here}"
            raise BadRequest("compute capability", seen, "leave it out, or build with --target tensorrt-rtx")
        return
    known = known_capabilities(flavour)
    unknown = [capability for capability in capabilities if capability not in known]
    if unknown or not capabilities:
        seen = f"{unknown[0] if unknown else 'none'}, but {flavour.name} knows {', '.join(known)}"
        raise BadRequest("compute capability", seen, "for other GPUs build on one with --target tensorrt")


def known_capabilities(flavour: Flavour) -> list[str]:
    """Those that a portable flavour builds for, e.g. SM120 as 12.0."""
    names = library(flavour).ComputeCapability.__members__
    return [f"{name[2:-1]}.{name[-1]}" for name in names if name.startswith("SM")]


def new_log(trt: Any, hear: Callable[[str], None] = lambda message: None) -> Any:
    """A logger of the library: errors are kept, warnings become notes, and `hear` gets everything if it is given."""

    class Log(trt.ILogger):  # known only when the library is loaded
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            hear(message)
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.WARNING:
                log.debug(message)

        def said(self, otherwise: str) -> str:
            return self.errors[-1] if self.errors else otherwise

    return Log()
