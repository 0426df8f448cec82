"""What `train` leaves: a folder with a network for each expert, which tells its influence without PyTorch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cdiff_rt.errors import BadArtefact, BadRequest, named_as, without_file
from cdiff_rt.extras import needed
from cdiff_rt.foreign.logits import LogitFunction
from cdiff_rt.foreign.onnx_files import open_onnx
from cdiff_rt.sampling.schedule import half_log_snr
from cdiff_rt.schema import from_json, parse

ABOUT, NETWORK = "influence.json", ".onnx"  # of the folder; the second behind an expert's name
MIDDLE, PER_LAMBDA, CLEANEST = 500.0, 80.0, 1e-6  # of the time that networks are told, about 0 to 1000; of alpha_bar
PORTS = {"x": "x", "time": "time", "condition": "condition", "out": "logit"}  # of a network
LARGEST_FILE = 2**24  # bytes, of ABOUT


@dataclass(frozen=True)
class About:
    conditions: dict[str, list[int]]  # by expert [tokens, width]; of one that has none [1, 1]
    latent: list[int]  # [C, *latent]
    iterations: int
    table: dict[
        str, float
    ]  # squared error on pairs held out: of each alone, "plain mean", "calibrated", "collaborative"


@dataclass(frozen=True)
class Plan:
    """All that the result follows from, beside pipeline and pairs."""

    iterations: int | None  # or as many as `minutes` have room for
    minutes: float
    seed: int
    rate: float  # of learning, falling to 0
    channels: tuple[float, ...] | None
    width: int  # of the networks


def time_of(alpha_bars: np.ndarray) -> np.ndarray:
    """What a network is told of the noise: its half log-SNR, in the range of timesteps."""
    return MIDDLE - PER_LAMBDA * half_log_snr(np.clip(alpha_bars, CLEANEST, 1 - CLEANEST))


class Learned:
    """Dynamic diffusers of experts, by their names: `compose(learned.over(experts), ...)`."""

    def __init__(self, folder: str | Path) -> None:
        """Raises BadRequest or BadArtefact."""
        self.folder = Path(folder)
        about = self.folder / ABOUT
        try:
            if about.stat().st_size > LARGEST_FILE:
                raise ValueError(f"it has more than {LARGEST_FILE} bytes")
            self.about = from_json(About, parse(about.read_text()), ABOUT)
        except FileNotFoundError:
            raise BadRequest(f"learned {about}", *without_file(about)) from None
        except (OSError, ValueError, TypeError) as error:
            raise BadArtefact(f"learned {about}", f"{error!s:.200}", "train it anew") from None

    @property
    def table(self) -> dict[str, float]:
        return self.about.table

    def over(self, experts: Mapping[str, Any]) -> dict[str, Any]:
        """The same experts, with influence as it was learned. Raises BadRequest, BadArtefact."""
        unknown = [name for name in experts if name not in self.about.conditions]
        if unknown:
            known = ", ".join(self.about.conditions)
            raise BadRequest("experts", f"{self.folder} knows no {unknown[0]}", f"it is of {known}")
        return {name: replace(expert, logit=self._logit(name, expert)) for name, expert in experts.items()}

    def _logit(self, name: str, expert: Any) -> LogitFunction:
        asks, has = math.prod(self.about.conditions[name]), math.prod(expert.condition or ())
        if asks != has:
            seen = f"its condition has {has} numbers, and {self.folder} was learned with {asks}"
            raise BadRequest(f"expert {name}", seen, "train with these experts")
        with needed(f"learned influence of {name}", "cpu"), named_as(f"learned influence {self.folder},"):
            return LogitFunction(open_onnx(self.folder / f"{name}{NETWORK}", PORTS, logit=True), time_of)
