"""What tells an expert's influence as a network, which a bundle can hold: a module of PyTorch, or an ONNX file."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cdiff_rt.errors import BadRequest
from cdiff_rt.foreign.modules import as_function, is_module
from cdiff_rt.foreign.onnx_files import OnnxFunction, open_onnx
from cdiff_rt.sampling.preconditioning import TIME, Parameterisation

ALPHA_BARS = ("alpha_bar", "alpha_bars")  # what a file may be told of the noise, in place of the expert's own time
Told = Callable[[np.ndarray], np.ndarray]  # alpha_bars [S] -> what a network is told of the noise [S]


@dataclass(frozen=True, eq=False)
class LogitFunction:
    """function(x [B, C, *latent] of the loop, what it is told of the noise, the condition if there is one) as `Expert.logit`.

    A Python function is told a number, a network [B].
    """

    function: Any  # an OnnxFunction, a module, or a Python function
    told: Told

    def __call__(self, x: np.ndarray, alpha_bar: float, *condition: np.ndarray) -> Any:
        return self.of(x, float(self.told(np.array([alpha_bar]))[0]), *condition)

    def of(self, x: np.ndarray, told: float, *condition: np.ndarray) -> Any:
        made, times = self.function, np.full(len(x), told, np.float32)
        if is_module(made):
            return as_function(made)(x, times, *condition)
        if not isinstance(made, OnnxFunction):
            return made(x, told, *condition)
        if made.condition and not condition:
            return made(x, times, np.zeros((len(x), *made.condition.shape)))
        return made(x, times, *condition) if made.condition else made(x, times)


def as_logit(given: Any, form: Parameterisation) -> LogitFunction | None:
    """Of a function, a module, or an ONNX file by its path. Raises BadRequest, BadArtefact.

    All are told alpha_bar; but a file without an input of that name the time of the expert, whose form this is.
    """
    if given is None or isinstance(given, LogitFunction):
        return given
    if not isinstance(given, str | Path):
        return LogitFunction(given, lambda alpha_bars: alpha_bars)
    opened = open_onnx(Path(given), {}, logit=True)
    own = opened.time.name not in ALPHA_BARS
    return LogitFunction(opened, lambda alpha_bars: form.table(alpha_bars)[:, TIME] if own else alpha_bars)


def check_logit(
    name: str, logit: LogitFunction | None, latent: tuple[int, ...], condition: tuple[int, ...] | None
) -> None:
    """Raises BadRequest for a file of other latents or conditions than an expert's."""
    network = logit and logit.function
    if not isinstance(network, OnnxFunction):
        return
    asks, has = network.condition and math.prod(network.condition.shape), math.prod(condition or ())
    if network.x.shape != latent or (asks is not None and asks != has):
        seen = f"its logit is of latents {list(network.x.shape)} and {asks or 0} numbers of condition"
        raise BadRequest(
            f"expert {name}", f"{seen}, the expert of {list(latent)} and {has}", "give one made for this expert"
        )
