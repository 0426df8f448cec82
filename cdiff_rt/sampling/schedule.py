"""The diffusion schedule: how much signal is left at each timestep, and which timesteps a run visits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cdiff_rt.errors import BadRequest

USUAL_STEPS = 50


def half_log_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """lambda = log(sqrt(a) / sqrt(1 - a)): the time in which solvers of higher order take their steps."""
    return np.log(alpha_bar / (1 - alpha_bar)) / 2


Betas = Literal["scaled_linear", "linear", "squaredcos_cap_v2"]  # as diffusers calls them
LARGEST_BETA = 0.999  # of the cosine schedule


@dataclass(frozen=True)
class Schedule:
    """The training-time schedule of a model. `prediction` is what its branches predict: "eps" or "v".

    `betas` is linear, linear in its square root, or such that alpha_bar is a squared cosine (Nichol and Dhariwal 2021,
    eq. 17), which has no start and end; `given` are alpha_bars in place of any.
    """

    train_steps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    prediction: Literal["eps", "v"] = "eps"
    betas: Betas = "scaled_linear"
    given: tuple[float, ...] = ()

    def alpha_bars(self) -> np.ndarray:
        """[train_steps] float64: the cumulative products of 1 - beta.

        Rounded to float32, as the reference keeps them: what a solver subtracts from 1 depends on the last digits.
        """
        bars = np.array(self.given, np.float64) if self.given else np.cumprod(1.0 - self._betas())
        return bars.astype(np.float32).astype(np.float64)

    def _betas(self) -> np.ndarray:
        if self.betas == "squaredcos_cap_v2":
            bars = np.cos((np.arange(self.train_steps + 1) / self.train_steps + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - bars[1:] / bars[:-1], LARGEST_BETA)
        power = 0.5 if self.betas == "scaled_linear" else 1.0
        return np.linspace(self.beta_start**power, self.beta_end**power, self.train_steps) ** (1 / power)

    def timesteps(self, steps: int) -> np.ndarray:
        """[steps] int64, ascending: the reference's "uniform" DDIM grid, 1 + k * (train_steps // steps).

        Not every count divides the schedule well. Where the reference would run another number of steps than asked
        for, or read past the end of its schedule, this raises BadRequest and names the nearest counts that work.
        """
        if not 1 <= steps <= self.train_steps:
            raise BadRequest(
                "steps", f"{steps} is outside 1-{self.train_steps}", "choose a number in that range, e.g. 50"
            )
        if not self._fits(steps):
            near = [n for n in range(1, self.train_steps + 1) if self._fits(n)]
            below = max((n for n in near if n < steps), default=near[0])
            above = min((n for n in near if n > steps), default=near[-1])
            raise BadRequest(
                "steps",
                f"{steps} does not divide the timesteps 1-{self.train_steps - 1} evenly",
                f"take {' or '.join(map(str, sorted({below, above})))}",
            )
        return self._grid(steps)

    def spread(self, steps: int, in_log_snr: float, among: Sequence[int] | np.ndarray = ()) -> np.ndarray:
        """[steps] int64, ascending: steps of equal length from the noise to timestep 0.

        Length is a mean of that in time and of that in log-SNR, which has the weight `in_log_snr`; either is 1 for the
        whole way. The timesteps are some of those of `among`, ascending, if these are enough, else of all. Where two
        steps would be the same, the next one is taken. Raises BadRequest.
        """
        if not 2 <= steps < self.train_steps:
            raise BadRequest(
                "steps", f"{steps} is outside 2-{self.train_steps - 1}", "choose a number in that range, e.g. 20"
            )
        at = np.append(0, among if steps <= len(among) else np.arange(1, self.train_steps))
        lambdas = half_log_snr(self.alpha_bars()[at])
        way = (lambdas[0] - lambdas) / (lambdas[0] - lambdas[-1])  # 0 at timestep 0, 1 at the last
        length = in_log_snr * way + (1 - in_log_snr) * at / at[-1]
        number = np.arange(steps)
        nearest = np.rint(np.interp((number + 1) / steps, length, np.arange(len(at)))).astype(np.int64)
        distinct = np.maximum.accumulate(np.maximum(nearest, 1) - number) + number
        return at[np.minimum(distinct, len(at) - steps + number)]

    def usual(self) -> np.ndarray:
        """[K] ascending: the reference's grid of 50 timesteps, or what of it the schedule has room for."""
        grid = self._grid(min(USUAL_STEPS, self.train_steps))
        return grid[grid < self.train_steps]

    def snr(self, timesteps: np.ndarray) -> np.ndarray:
        """[S + 1] ascending: signal to noise, a / (1 - a), at [S] timesteps as they are executed, and at the end, 0."""
        a = self.alpha_bars()[np.append(timesteps, 0)]
        return a / (1 - a)

    def _grid(self, steps: int) -> np.ndarray:
        return np.arange(0, self.train_steps, self.train_steps // steps, dtype=np.int64) + 1

    def _fits(self, steps: int) -> bool:
        grid = self._grid(steps)
        return len(grid) == steps and grid[-1] < self.train_steps
