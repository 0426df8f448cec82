"""The sampling loop: experts, fusion, update, once per row of the solver's table."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cdiff_rt.sampling.experts import Experts
from cdiff_rt.sampling.fusion import Adjustment, fuse, influence, of_step, update
from cdiff_rt.sampling.solvers import E_OUT, E_X, SolverTable
from cdiff_rt.sampling.superposition import Mixing, Step

Noise = Callable[[int], np.ndarray]  # step -> standard normal of x's shape


@dataclass(frozen=True)
class StepState:
    """What a callback sees after each step."""

    step: int  # 0 is the first executed
    timestep: int
    x: np.ndarray  # [B, C, *latent], after the step
    x0: np.ndarray  # [B, C, *latent], the image predicted at this step
    modalities: tuple[str, ...]  # M of them, in this order below
    influence: np.ndarray  # [M, B, 1, *latent]
    predictions: np.ndarray  # [M, B, C, *latent], each branch's own


Callback = Callable[[StepState], object]
Progress = Callable[[], object]  # called after each step, and told nothing of it


@dataclass(frozen=True)
class KnownRegion:
    """A part of the image that is known: there, each step begins with a noisy version of it (inpainting)."""

    x0: np.ndarray  # [B or 1, C, *latent]
    keep: np.ndarray  # [*latent], 1 where x0 is known, 0 where it is not
    noise: Noise

    def noisy(self, step: int, alpha_bar: float) -> np.ndarray:
        """A draw of q(x_t | x_0)."""
        signal, spread = np.float32(alpha_bar**0.5), np.float32((1 - alpha_bar) ** 0.5)
        return signal * self.x0 + spread * self.noise(step)

    def onto(self, x: np.ndarray, step: int, alpha_bar: float) -> np.ndarray:
        """x_t with q(x_t | x_0) in place of what is known."""
        return self.keep * self.noisy(step, alpha_bar) + (1 - self.keep) * x


def sample(
    experts: Experts,
    x: np.ndarray,
    noise: Noise,
    table: SolverTable,
    adjust: Adjustment,
    callback: Callback | None = None,
    known: KnownRegion | None = None,
    progress: Progress | None = None,
    mixing: Mixing | None = None,
) -> np.ndarray:
    """x_T [B, C, *latent] -> x_0. `noise(i)` is what step i adds; `mixing` decides in place of the experts' logits."""
    coefficients = table.coefficients.astype(np.float32)
    hist = np.zeros_like(x)
    levels = np.append(table.alpha_bars, table.end)
    if mixing:
        mixing.begin(len(experts.modalities), len(x))
    for i, timestep in enumerate(table.timesteps):
        if known:
            x = known.onto(x, i, table.alpha_bars[i])
        outs, logits = experts(x, i, adjust.present[i])
        added = noise(i)
        if mixing:
            rest = update(x, np.zeros_like(x), hist, added, coefficients[i])[0]
            weights = mixing(Step(x, outs, coefficients[i], rest, *levels[i : i + 2]))
        else:
            weights = influence(logits, of_step(adjust, i, x.ndim))
        fused = fuse(outs, weights)
        before = x
        x, hist = update(x, fused, hist, added, coefficients[i])
        if progress:
            progress()
        if callback:
            x0 = coefficients[i, E_X] * before + coefficients[i, E_OUT] * fused
            callback(StepState(i, int(timestep), x, x0, experts.modalities, weights, outs))
    return x
