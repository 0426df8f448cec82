"""PyTorch's settings of the whole process that an engine wants otherwise: changed for a call, then put back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cdiff_rt.engines.base import Precision

_AS = {"fp32": "ieee", "tf32": "tf32"}  # what PyTorch calls them; no setting changes what fp16 and bf16 are
_OLDER = {"ieee": ("highest",), "tf32": ("high", "medium")}  # what its older setting, of matrices alone, calls them
_at_work = threading.RLock()  # the settings are every thread's, so calls that change them take turns


@contextmanager
def multiplying(device: str, precision: Precision) -> Iterator[None]:
    """Within, fp32 is convolved and multiplied on a device as IEEE 754 has it or, for "tf32", as TF32.

    On a GPU, PyTorch convolves in TF32 unless it is told otherwise; whoever uses this package may have told it to
    multiply matrices so too, and on a CPU even in bf16.
    """
    wanted = _AS.get(precision)
    if wanted is None:
        yield
        return
    with _at_work:
        older, before = _older(), [(op, op.fp32_precision) for where in ("cuda", "cpu") for op in _operations(where)]
        try:
            if older and older not in _OLDER[wanted]:  # first, as it sets the newer ones too, on a CPU as well
                torch.set_float32_matmul_precision(_OLDER[wanted][0])
            for operation in _operations(device):
                if operation.fp32_precision.replace("none", "ieee") != wanted:
                    operation.fp32_precision = wanted
            yield
        finally:
            if older and older != _older():
                torch.set_float32_matmul_precision(older)
            for operation, value in before:
                if operation.fp32_precision != value:
                    operation.fp32_precision = value


def _operations(device: str) -> list[Any]:
    backends: Any = torch.backends  # which declare not all that they have
    if device.startswith("cuda"):
        return [backends.cudnn.conv, backends.cuda.matmul]
    return [backends.mkldnn.conv, backends.mkldnn.matmul]


def _older() -> str | None:
    """None where it disagrees with the newer ones, for then PyTorch doesn't tell it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


@contextmanager
def timing_convolutions() -> Iterator[None]:
    """Within, cuDNN times its ways to compute a convolution that is new to it, and keeps to the fastest ever after."""
    with _at_work:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before
