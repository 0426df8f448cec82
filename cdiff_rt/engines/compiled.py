"""A network's function as code that Inductor, PyTorch's compiler, makes for inputs of one shape."""

from types import FunctionType
from typing import cast

import torch
from torch import Tensor

from cdiff_rt.engines.stacked import STACK
from cdiff_rt.errors import BadEnvironment, ran_out
from cdiff_rt.nets.collaborative import Function

_REFUSED = ("InductorError", "BackendCompilerFailed", "Unsupported", "FailOnRecompileLimitHit")


def is_compiled(network: str) -> bool:
    """What runs at each step, and the decoder. Compiling the rest takes longer than it ever does."""
    return network.startswith(("expert.", f"{STACK}.")) or network == "vae.decode"


def compiled(function: Function) -> Function:
    """The same, compiled as a whole at its first call. Raises BadEnvironment if it can't be.

    Code that can be compiled in pieces only, or that was compiled too often, PyTorch would run as it is without a word.
    It counts by code object, so this function has one of its own.
    """

    def whole(*inputs: Tensor) -> tuple[Tensor, ...]:
        return function(*inputs)

    own = FunctionType(whole.__code__.replace(), whole.__globals__, closure=whole.__closure__)
    # A convolution of width 1 on channels that lie together is a product of matrices, which also adds its bias.
    code = torch.compile(own, dynamic=False, fullgraph=True, options={"conv_1x1_as_mm": True})

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        try:
            return cast(tuple[Tensor, ...], code(*inputs))
        except Exception as error:  # its exceptions have no base class in common
            if ran_out(error) or type(error).__name__ not in _REFUSED:
                raise
            reason = " ".join(str(error).split())[:200]
            raise BadEnvironment(
                "PyTorch's compiler", reason, "choose torch or torch-cuda, which compile nothing"
            ) from error

    return call
