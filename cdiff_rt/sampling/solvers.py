"""A solver is a table. Every solver used here is linear in what it has, so a schedule turns it into numbers:

    x'    = c_x x + c_out out + c_hist hist + c_noise noise
    hist' = d_x x + d_out out
    x_0   = e_x x + e_out out

`out` is the fused prediction, eps or v; which of the two shows in the coefficients only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cdiff_rt.sampling.schedule import Schedule, half_log_snr

C_X, C_OUT, C_HIST, C_NOISE, D_X, D_OUT, E_X, E_OUT = range(8)
# Weight of log-SNR in the length of a step of second order, see Schedule.spread. At 0.5 images in 10 steps are 1.8 dB farther
# from those in 50, and in 16 steps 0.6 dB nearer (`bench drift --pairs 24`, with earlier weights of faces-128).
IN_LOG_SNR = 0.25


@dataclass(frozen=True)
class SolverTable:
    """In the order of execution, from noise to image."""

    timesteps: np.ndarray  # [S] int64
    alpha_bars: np.ndarray  # [S] float64, at the timesteps
    coefficients: np.ndarray  # [S, 8] float64, columns C_X ... E_OUT
    end: float = 1.0  # alpha_bar after the last step


def x0_coefficients(alpha_bar: np.ndarray, prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """(on x_t, on the prediction) of x_0. eps: x_t = sqrt(a) x_0 + sqrt(1 - a) eps; v: sqrt(a) eps - sqrt(1 - a) x_0."""
    if prediction == "v":
        return np.sqrt(alpha_bar), -np.sqrt(1 - alpha_bar)
    return 1 / np.sqrt(alpha_bar), -np.sqrt((1 - alpha_bar) / alpha_bar)


def eps_coefficients(alpha_bar: np.ndarray, prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """(on x_t, on the prediction) of eps."""
    if prediction == "v":
        return np.sqrt(1 - alpha_bar), np.sqrt(alpha_bar)
    return np.zeros_like(alpha_bar), np.ones_like(alpha_bar)


def ddim(schedule: Schedule, steps: int, *, eta: float = 1.0, temperature: float = 1.0) -> SolverTable:
    """DDIM (Song et al. 2021, eq. 12 and 16) on the reference's grid, which ends at alpha_bar of timestep 0, not at 1.

    sigma = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a')
    x'    = sqrt(a') x_0 + sqrt(1 - a' - sigma^2) eps + temperature sigma noise
    """
    return _first_order(schedule, schedule.timesteps(steps), eta, temperature)


def dpmpp_2m(schedule: Schedule, steps: int, *, temperature: float = 1.0) -> SolverTable:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), of second order for the probability-flow ODE.

    h = lambda' - lambda;  r = h_before / h;  D = (1 + 1 / 2r) x_0 - hist / 2r
    x' = sqrt((1 - a') / (1 - a)) x - sqrt(a') (exp(-h) - 1) D
    No step adds noise, so `temperature` changes nothing. It ends where `ddim` does.
    """
    return _second_order(schedule, schedule.spread(steps, IN_LOG_SNR), 0.0, temperature)


def dpmpp_2m_sde(schedule: Schedule, steps: int, *, temperature: float = 1.0) -> SolverTable:
    """SDE-DPM-Solver++(2M) of the same paper, for the diffusion SDE, with the same h and D.

    x' = sqrt((1 - a') / (1 - a)) exp(-h) x + sqrt(a') (1 - exp(-2h)) D + temperature sqrt((1 - a') (1 - exp(-2h))) noise

    Fewer than 50 steps visit some of the timesteps that `ddim` does in 50, so that they can follow the same path of noise;
    but never 1, for from 21 to there it is too far in log-SNR to go along a line.
    """
    usual = schedule.usual()[1:]
    return _second_order(schedule, schedule.spread(steps, IN_LOG_SNR, among=usual), 1.0, temperature)


def _first_order(schedule: Schedule, timesteps: np.ndarray, eta: float, temperature: float) -> SolverTable:
    """DDIM on timesteps [S], ascending."""
    alpha_bars = schedule.alpha_bars()
    a = alpha_bars[timesteps]
    a_next = np.concatenate([alpha_bars[:1], a[:-1]])
    sigma = eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
    to_eps = np.sqrt(1 - a_next - sigma**2)
    x0_x, x0_out = x0_coefficients(a, schedule.prediction)
    eps_x, eps_out = eps_coefficients(a, schedule.prediction)
    coefficients = np.zeros((len(timesteps), 8))
    coefficients[:, C_X] = np.sqrt(a_next) * x0_x + to_eps * eps_x
    coefficients[:, C_OUT] = np.sqrt(a_next) * x0_out + to_eps * eps_out
    coefficients[:, C_NOISE] = temperature * sigma
    coefficients[:, E_X], coefficients[:, E_OUT] = x0_x, x0_out
    return SolverTable(timesteps[::-1].copy(), a[::-1].copy(), coefficients[::-1].copy(), float(alpha_bars[0]))


def _second_order(schedule: Schedule, timesteps: np.ndarray, eta: float, temperature: float) -> SolverTable:
    """DDIM with D in place of x_0, the line through it and the one before (hist), half a step of lambda ahead.

    For eta 0 and 1 that is what the paper's two updates come to. The first step has nothing to look back to. The last
    is of first order too, as the authors' code has it for few steps: it is the longest, and nothing corrects it.
    """
    table = _first_order(schedule, timesteps, eta, temperature)
    h = np.diff(half_log_snr(np.append(table.alpha_bars, schedule.alpha_bars()[0])))
    ahead = np.zeros_like(h)
    ahead[1:-1] = h[1:-1] / (2 * h[:-2])  # 1 / 2r
    coefficients = table.coefficients
    of_x0 = ahead * coefficients[:, C_OUT] / coefficients[:, E_OUT]  # for given x all of `out` goes through x_0
    coefficients[:, C_X] += of_x0 * coefficients[:, E_X]
    coefficients[:, C_OUT] += of_x0 * coefficients[:, E_OUT]
    coefficients[:, C_HIST] = -of_x0
    coefficients[:, D_X], coefficients[:, D_OUT] = coefficients[:, E_X], coefficients[:, E_OUT]
    return table


@dataclass(frozen=True)
class Solver:
    """`table(schedule, steps, temperature=...)` makes its table; it also takes `eta` unless it is for one alone."""

    table: Callable[..., SolverTable]
    gallery_name: str  # as galleries of pictures write it
    only_eta: float | None = None


# The one list of them: options, tiers and messages follow from it.
SOLVERS = {
    "ddim": Solver(ddim, "DDIM"),
    "dpmpp-2m": Solver(dpmpp_2m, "DPM++ 2M", only_eta=0.0),
    "dpmpp-2m-sde": Solver(dpmpp_2m_sde, "DPM++ 2M SDE", only_eta=1.0),
}
