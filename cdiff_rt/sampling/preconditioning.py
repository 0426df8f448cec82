"""Any denoiser as one that predicts v on the host's schedule: four numbers a step.

    v = a_x x + a_out F(c_in x, its own time)

A denoiser F sees x_e = alpha_e x_0 + sigma_e eps, in a space of its own: variance-preserving, on the straight line of
flow matching (alpha = 1 - u, sigma = u), or with the noise on top (alpha = 1). A state of the host,
x = alpha x_0 + sigma eps, is x_e at equal signal-to-noise but for a factor, c_in. Whatever F predicts, x_0 is linear in
x_e and F, and so is v.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from cdiff_rt.errors import BadRequest, check_choice
from cdiff_rt.sampling.schedule import Schedule, half_log_snr

Predicts = Literal["eps", "v", "x0", "flow", "edm"]
Space = Literal["vp", "flow", "sigma"]
PREDICTS, SPACES = get_args(Predicts), get_args(Space)
C_IN, TIME, A_X, A_OUT = range(4)  # columns of the table
TOLERANCE = 0.05  # of half the log-SNR, beyond the noise that a denoiser was trained with
NOISIEST = 1e-12  # alpha_bar in place of 0, where a schedule ends in pure noise


@dataclass(frozen=True)
class Parameterisation:
    """What a denoiser predicts, and of which noise levels.

    "eps", "v" and "x0" are the noise, the velocity alpha eps - sigma x_0 and the clean data; "flow" is eps - x_0; "edm"
    is the raw network of Karras et al. 2022 (eq. 7), in the space "sigma". Its time is the timestep of its schedule
    (between two of them, a fraction, unless `whole_timesteps`; cleaner than its first, that), u, sigma, or log(sigma) / 4 for "edm", each times
    `time_scale`. Raises BadRequest.
    """

    predicts: Predicts = "eps"
    space: Space = "vp"
    schedule: Schedule = field(default_factory=Schedule)  # in the space "vp"
    whole_timesteps: bool = False
    time_scale: float = 1.0
    sigma_data: float = 0.5  # of "edm"

    def __post_init__(self) -> None:
        check_choice("predicts", self.predicts, PREDICTS)
        check_choice("space", self.space, SPACES)
        only = {"v": "vp", "edm": "sigma"}.get(self.predicts, self.space)
        if self.space != only:
            raise BadRequest("space", f"{self.space} of a denoiser that predicts {self.predicts}", f"take {only}")

    def table(self, alpha_bars: np.ndarray) -> np.ndarray:
        """[S] of the host -> [S, 4] float64. Raises BadRequest for noise that the denoiser never saw."""
        alpha, sigma = np.sqrt(alpha_bars), np.sqrt(1 - alpha_bars)
        c_in = {"vp": np.ones_like(alpha), "flow": 1 / (alpha + sigma), "sigma": 1 / alpha}[self.space]
        of_x, of_out, scaling = self._x0(c_in * alpha, c_in * sigma)
        columns = np.empty((len(alpha_bars), 4))
        columns[:, C_IN], columns[:, TIME] = c_in * scaling, self._time(alpha_bars)
        columns[:, A_X], columns[:, A_OUT] = (alpha - of_x * c_in) / sigma, -of_out / sigma
        return columns

    def _x0(self, alpha: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x_0 = (first) x_e + (second) F((third) x_e), with alpha and sigma in the denoiser's own space."""
        none, one = np.zeros_like(alpha), np.ones_like(alpha)
        total = sigma**2 + self.sigma_data**2
        return {
            "eps": (1 / alpha, -sigma / alpha, one),
            "v": (alpha, -sigma, one),
            "x0": (none, one, one),
            "flow": (1 / (alpha + sigma), -sigma / (alpha + sigma), one),
            "edm": (self.sigma_data**2 / total, sigma * self.sigma_data / np.sqrt(total), 1 / np.sqrt(total)),
        }[self.predicts]

    def _time(self, alpha_bars: np.ndarray) -> np.ndarray:
        ratio = np.sqrt((1 - alpha_bars) / alpha_bars)  # sigma / alpha
        if self.space == "flow":
            return self.time_scale * ratio / (1 + ratio)
        if self.space == "sigma":
            return self.time_scale * (np.log(ratio) / 4 if self.predicts == "edm" else ratio)
        known = self.schedule.alpha_bars().clip(NOISIEST)
        asked, seen = alpha_bars.min(), known[-1]
        if np.subtract(*half_log_snr(np.array([seen, asked]))) > TOLERANCE:
            raise BadRequest(
                "schedule",
                f"it goes down to alpha_bar {asked:.6f}, and this denoiser was trained down to {seen:.6f}",
                "take a schedule that ends less noisy",
            )
        at = np.interp(-half_log_snr(alpha_bars), -half_log_snr(known), np.arange(len(known)))
        return self.time_scale * (np.rint(at) if self.whole_timesteps else at)
