"""A module of PyTorch as a denoiser: float32 arrays in and out, computed where its weights lie and in their type."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cdiff_rt.errors import BadRequest, OutOfResource, ran_out

if TYPE_CHECKING:
    from torch import Tensor, nn

CALLED = "write a torch.nn.Module whose forward(x, time, condition) returns one tensor like x (docs/own-models.md)"


@dataclass(frozen=True, eq=False)
class ModuleFunction:
    """`module(*tensors)` as a function of arrays, which get the weights' type; but times and labels, one for each image,
    stay float32, for their digits count, and whole numbers what they are."""

    module: "nn.Module"

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        import torch

        weight = next((p for p in self.module.parameters() if p.is_floating_point()), torch.zeros(0))
        try:
            with torch.inference_mode():
                given = [torch.from_numpy(np.array(a)).to(weight.device) for a in arrays]
                typed = [
                    each.to(weight.dtype) if each.is_floating_point() and each.dim() > 1 else each for each in given
                ]
                return tensor_of(self.module(*typed)).float().cpu().numpy()
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise failed(error, "called", [a.shape for a in arrays]) from error


def failed(error: Exception, verb: str, shapes: object) -> Exception:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if ran_out(error):
        return OutOfResource("its module", reason, "choose a smaller batch")
    return BadRequest("its module", f"it cannot be {verb} with {shapes} ({reason})", CALLED)


def tensor_of(out: Any) -> "Tensor":
    """The prediction within what a module returned. Raises BadRequest."""
    import torch

    found = getattr(out, "sample", out)
    found = found[0] if isinstance(found, tuple | list) and found else found
    if not isinstance(found, torch.Tensor):
        raise BadRequest("its module", f"it returned a {type(out).__name__}", CALLED)
    return found


def is_module(function: object) -> bool:
    """Whether it is one of PyTorch, which nobody needs who has none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(function, torch.nn.Module)


def as_function(function: Any) -> Callable[..., Any]:
    """A module of PyTorch as a function of arrays; anything else as it is."""
    return ModuleFunction(function.eval()) if is_module(function) else function
