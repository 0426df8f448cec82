"""A diffusion whose score and whose paths are known: of Gaussian data, N(mean, spread^2) in one dimension."""

import numpy as np

from cdiff_rt.sampling.fusion import update
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import C_HIST, C_NOISE, C_OUT, C_X, D_OUT, D_X

DATA = 0.3, 0.5  # mean, spread
FINE = {
    kind: Schedule(train_steps=20_000, beta_start=0.0015 / 20, beta_end=0.0195 / 20, prediction=kind)
    for kind in ("eps", "v")
}


def marginal(alpha_bar):
    """Mean and variance of x_t."""
    mean, spread = DATA
    return np.sqrt(alpha_bar) * mean, alpha_bar * spread**2 + 1 - alpha_bar


def prediction(alpha_bar, kind):
    """(factor on x, constant) of what the best network says of x_t: E[eps | x_t], or E[v | x_t]."""
    mean, variance = marginal(alpha_bar)
    on_x = np.sqrt(1 - alpha_bar) / variance  # eps = sqrt(1 - a) (x - mean) / variance
    eps = np.array([on_x, -on_x * mean])
    if kind == "eps":
        return eps
    x_0 = (np.array([1.0, 0.0]) - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
    return np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0


def ode_error(table, schedule):
    """Where a table's steps end, against where the probability-flow ODE leads: it keeps (x - mean) / spread of x_t."""
    bars = schedule.alpha_bars()
    (mean, variance), (end_mean, end_variance) = marginal(table.alpha_bars[0]), marginal(bars[0])
    x = np.array([1.7, -0.4])
    exact = end_mean + np.sqrt(end_variance / variance) * (x - mean)
    hist, nothing = np.zeros(2), np.zeros(2)
    for alpha_bar, row in zip(table.alpha_bars, table.coefficients, strict=True):
        on_x, constant = prediction(alpha_bar, schedule.prediction)
        x, hist = update(x, on_x * x + constant, hist, nothing, row)
    return np.abs(x - exact).max()


def sde_errors(table, schedule):
    """Of the last x's mean, and of its variance relatively, when x_T is drawn of the marginal: in closed form."""
    (mean, variance), (its_mean, its_variance) = _end(table, schedule), marginal(schedule.alpha_bars()[0])
    return abs(mean - its_mean), abs(variance / its_variance - 1)


def _end(table, schedule):
    mean, spread = marginal(table.alpha_bars[0])
    means, covariance = np.array([mean, 0.0]), np.diag([spread, 0.0])  # of x and hist
    for alpha_bar, row in zip(table.alpha_bars, table.coefficients, strict=True):
        on_x, constant = prediction(alpha_bar, schedule.prediction)
        step = np.array([[row[C_X] + row[C_OUT] * on_x, row[C_HIST]], [row[D_X] + row[D_OUT] * on_x, 0.0]])
        means = step @ means + constant * np.array([row[C_OUT], row[D_OUT]])
        covariance = step @ covariance @ step.T + np.diag([row[C_NOISE] ** 2, 0.0])
    return means[0], covariance[0, 0]
