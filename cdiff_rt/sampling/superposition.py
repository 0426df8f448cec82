"""Weights that follow from how likely each model finds the sample: superposition of diffusion models.

Skreta et al. 2024, "The Superposition of Diffusion Models Using the Ito Density Estimator" (SuperDiff), theorem 1: along a
path of the reverse SDE, with s the score of a model,

    d log q = <dx, s> + (<f, s> - g^2 |s|^2 / 2) dtau + what all models share

so the densities of the models are known from their predictions alone, without a divergence.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from cdiff_rt.errors import BadRequest, check_choice, check_range
from cdiff_rt.sampling.fusion import softmax
from cdiff_rt.sampling.solvers import C_NOISE, C_OUT

AGREE = 1e-6  # of the largest singular value, below which models count as one


@dataclass(frozen=True)
class Step:
    """What is known of a step before it is taken."""

    x: np.ndarray  # [B, C, *latent]
    outs: np.ndarray  # [M, B, C, *latent], the predictions of v
    row: np.ndarray  # [8] of the solver's table
    rest: np.ndarray  # [B, C, *latent], the next x but for what is added of the prediction, row[C_OUT] times
    alpha_bar: float
    next_alpha_bar: float


class Mixing(Protocol):
    """Decides a step's influence functions from what the experts predict, and may remember the steps before it."""

    def begin(self, experts: int, batch: int) -> None:
        """A run of M experts and B images begins."""
        ...

    def __call__(self, step: Step) -> np.ndarray:
        """[M, B, 1, *latent], which sum to 1 over M."""
        ...


@dataclass
class Superposition:
    """SuperDiff's "or", samples that any of the models finds likely, and "and", that all find equally likely.

    "or" weighs by softmax(temperature log q + bias) (algorithm 1, line 6); "and" takes the weights at which all densities
    change alike (eq. 16). The estimate holds for steps that add noise, and the better, the more steps.
    """

    kind: Literal["or", "and"]
    temperature: float = 1.0
    bias: tuple[float, ...] | None = None  # of each model, in the pipeline's order; the logarithm of its prior
    log_q: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), init=False)  # [M, B], but for a constant

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("or", "and"))
        check_range("temperature", self.temperature, 0.0, 1e6)

    def begin(self, experts: int, batch: int) -> None:
        if self.bias is not None and len(self.bias) != experts:
            raise BadRequest("bias", f"{len(self.bias)} numbers for {experts} experts", "give one for each")
        self.log_q = np.zeros((experts, batch))

    def __call__(self, step: Step) -> np.ndarray:
        _check_noise(step)
        x, outs, rest = (part.astype(np.float64) for part in (step.x, step.outs, step.rest))
        alpha, sigma = np.sqrt(step.alpha_bar), np.sqrt(1 - step.alpha_bar)
        h = np.log(step.next_alpha_bar / step.alpha_bar) / 2  # here f dtau = -h x, and g^2 dtau = 2 h
        scores = -(sigma * x + alpha * outs) / sigma
        own = inner((rest - x) - h * x - h * scores, scores, x.ndim - 1)  # [M, B]
        moved = step.row[C_OUT] * inner(outs[None], scores[:, None], x.ndim - 1)  # [M, M, B]: of i, by prediction j
        weights = self._or() if self.kind == "or" else equal_change(own, moved)
        self.log_q += own + (moved * weights).sum(1)
        return np.broadcast_to(
            weights.reshape(*weights.shape, *(1,) * (x.ndim - 1)), (*weights.shape, 1, *x.shape[2:])
        ).astype(np.float32)

    def _or(self) -> np.ndarray:
        bias = np.zeros(len(self.log_q)) if self.bias is None else np.array(self.bias)
        return softmax(self.temperature * self.log_q + bias[:, None])


def inner(a: np.ndarray, b: np.ndarray, axes: int) -> np.ndarray:
    """Over the last `axes`, those of an image: [..., B, C, *latent] -> [..., B]."""
    return (a * b).sum(tuple(range(-axes, 0)))


def _check_noise(step: Step) -> None:
    """Raises BadRequest unless the step adds all the noise that the reverse SDE does."""
    a, b = step.alpha_bar, step.next_alpha_bar
    whole = np.sqrt((1 - b) / (1 - a) * (1 - a / b))
    if abs(step.row[C_NOISE] - whole) > 1e-3 * whole:
        seen = f"a step adds {step.row[C_NOISE] / whole:.0%} of the noise of the SDE, which these weights follow from"
        raise BadRequest("solver", seen, "take ddim with eta 1 and temperature 1, or dpmpp-2m-sde")


def equal_change(own: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """[M, B] of sum 1 at which own_i + sum_j moved_ij w_j is the same for all i; where models agree, equal ones."""
    count, batch = own.shape
    system = np.zeros((batch, count + 1, count + 1))
    system[:, :count, :count] = moved.transpose(2, 0, 1)
    system[:, :count, count], system[:, count, :count] = -1.0, 1.0
    equal = np.full(count, 1 / count)
    wanted = np.zeros((batch, count + 1))
    wanted[:, :count] = -(own + (moved * equal[:, None]).sum(1)).T
    change = np.einsum("bij,bj->bi", np.linalg.pinv(system, rcond=AGREE), wanted)
    return equal[:, None] + change[:, :count].T
