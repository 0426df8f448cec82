"""The sampling loop: experts, fusion, update, once per row of the solver's table."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cdiff_rt.errors import BadArtefact
from cdiff_rt.experts import Experts
from cdiff_rt.fusion import Adjustment, fuse, influence, update
from cdiff_rt.solvers import E_OUT, E_X, SolverTable


@dataclass(frozen=True)
class StepState:
    """What a callback sees after each step."""

    step: int  # 0 is the first executed
    timestep: int
    x: np.ndarray  # [B, C, *latent], after the step
    x0: np.ndarray  # [B, C, *latent], the image predicted at this step
    influence: np.ndarray  # [M, B, 1, *latent], in the order of the run's modalities


Callback = Callable[[StepState], None]


def sample(
    experts: Experts,
    x: np.ndarray,
    noise: Callable[[int], np.ndarray],
    table: SolverTable,
    adjust: Adjustment,
    callback: Callback | None = None,
) -> np.ndarray:
    """x_T [B, C, *latent] -> x_0. `noise(i)` is what step i adds, of x's shape."""
    per_modality = (-1,) + (1,) * x.ndim  # [M] -> [M, 1, 1, ...]
    rows, gains = table.rows.astype(np.float32), adjust.gains.astype(np.float32)
    anchor, factors = (part.astype(np.float32).reshape(per_modality) for part in (adjust.anchor, adjust.factors))
    hist = np.zeros_like(x)
    for i, timestep in enumerate(table.timesteps):
        outs, logits = experts(x, i)
        weights = influence(logits, gains[i].reshape(per_modality), anchor, factors, adjust.sharpness)
        fused = fuse(outs, weights)
        before = x
        x, hist = update(x, fused, hist, noise(i), rows[i])
        if callback:
            x0 = rows[i, E_X] * before + rows[i, E_OUT] * fused
            callback(StepState(i, int(timestep), x, x0, weights))
    if not np.isfinite(x).all():
        raise BadArtefact(
            "sampling", "the latents are not finite", "this bundle's weights are broken, export them again"
        )
    return x
