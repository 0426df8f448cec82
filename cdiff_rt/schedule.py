"""The diffusion schedule: how much signal is left at each timestep, and which timesteps a run visits."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cdiff_rt.errors import BadRequest


@dataclass(frozen=True)
class Schedule:
    """The training-time schedule of a model. `prediction` is what its branches predict: "eps" or "v"."""

    train_steps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    prediction: Literal["eps", "v"] = "eps"

    def alpha_bars(self) -> np.ndarray:
        """[train_steps] float64: the cumulative products of 1 - beta, with beta linear in its square root.

        Rounded to float32, as the reference keeps them: what a solver subtracts from 1 depends on the last digits.
        """
        root = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps, dtype=np.float64)
        return np.cumprod(1.0 - root**2).astype(np.float32).astype(np.float64)

    def timesteps(self, steps: int) -> np.ndarray:
        """[steps] int64, ascending: the reference's "uniform" DDIM grid, 1 + k * (train_steps // steps).

        Not every count divides the schedule well. Where the reference would run another number of steps than asked
        for, or read past the end of its schedule, this raises BadRequest and names the nearest counts that work.
        """
        if not 1 <= steps <= self.train_steps:
            raise BadRequest(
                "steps", f"{steps} is outside 1-{self.train_steps}", "choose a number of that range, e.g. 50"
            )
        if not self._fits(steps):
            near = [n for n in range(1, self.train_steps + 1) if self._fits(n)]
            below = max((n for n in near if n < steps), default=near[0])
            above = min((n for n in near if n > steps), default=near[-1])
            raise BadRequest(
                "steps",
                f"{steps} does not divide the schedule of {self.train_steps} timesteps evenly",
                f"take {' or '.join(map(str, sorted({below, above})))}",
            )
        return self._grid(steps)

    def _grid(self, steps: int) -> np.ndarray:
        return np.arange(0, self.train_steps, self.train_steps // steps, dtype=np.int64) + 1

    def _fits(self, steps: int) -> bool:
        grid = self._grid(steps)
        return len(grid) == steps and grid[-1] < self.train_steps
