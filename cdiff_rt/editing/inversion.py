"""Editing: the noises that lead to a photo under what it shows now are kept, and the conditions are changed.

The inversion is the edit-friendly one of DDPM (Huberman-Spiegelglas et al., CVPR 2024, arXiv 2304.06140). Every x_t is
a draw of q(x_t | x_0) of its own, so the noise of a step follows from the step itself,

    z_t = (x_{t-1} - mu_t(x_t)) / sigma_t ,

and the sampling loop, given this x_T and these z_t, walks to the photo exactly, whatever the networks are. Both ways
take as many steps as a generated image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cdiff_rt.errors import BadRequest, check_choice, check_range
from cdiff_rt.inputs.modalities import Condition
from cdiff_rt.notes import log
from cdiff_rt.outputs.generated import Generated
from cdiff_rt.run import Run, Runner
from cdiff_rt.sampling.loop import Callback, KnownRegion, Progress, StepState
from cdiff_rt.sampling.solvers import C_NOISE, SolverTable
from cdiff_rt.sampling.tiers import TIERS
from cdiff_rt.settings import LARGEST_BATCH, SETTINGS, Settings, real

ALPHAS = (-10.0, 10.0)  # the lowest and the highest
Conditions = dict[str, Condition]
Reading = Callable[[np.ndarray], Mapping[str, Condition]]  # a photo [S, S, 3] uint8 -> what it shows, by modality


@dataclass(frozen=True, eq=False)
class Inversion:
    """What leads to a photo: x_T [1, C, *latent], and the noise of each step, of that shape."""

    start: np.ndarray
    noises: list[np.ndarray]

    def noise(self, step: int) -> np.ndarray:
        return self.noises[step]

    def walk(
        self,
        runner: Runner,
        run: Run,
        count: int,
        callback: Callback | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Where `run` ends with this start and these noises, [count, C, *latent]."""

        def repeated(value: np.ndarray) -> np.ndarray:
            return np.repeat(value, count, axis=0)

        noise = lambda step: repeated(self.noise(step))
        return runner.sample(replace(run, start=repeated(self.start), noise=noise), callback, progress)


def invert(runner: Runner, run: Run, known: KnownRegion, progress: Progress | None = None) -> Inversion:
    """What makes `run` end at `known.x0` [1, C, *latent]; its own start, noise and known part do not matter.

    `known.noise` draws every x_t. As all of the image is known, each step begins at its own draw; and as it adds no
    noise, it ends at mu_t.
    """
    table, x0 = run.table, known.x0
    noises: list[np.ndarray] = []

    def x(step: int) -> np.ndarray:
        return known.noisy(step, table.alpha_bars[step]) if step < len(table.timesteps) else x0

    def after_step(state: StepState) -> None:
        sigma = np.float32(table.coefficients[state.step, C_NOISE])
        noises.append((x(state.step + 1) - state.x) / sigma)
        if progress:
            progress()

    everywhere = replace(known, keep=np.ones(x0.shape[2:], np.float32))
    runner.sample(replace(run, start=x(0), noise=lambda step: np.zeros_like(x0), known=everywhere), after_step)
    return Inversion(x(0), noises)


def forget(runner: Runner, run: Run, known: KnownRegion, progress: Progress | None = None) -> Inversion:
    """A start near the photo, and noises that know nothing of it: SDEdit (Meng et al., ICLR 2022). A baseline."""
    steps = range(len(run.table.timesteps))
    return Inversion(known.noisy(0, run.table.alpha_bars[0]), [known.noise(step + 1) for step in steps])


METHODS = {"inversion": invert, "sdedit": forget}


def last_steps(table: SolverTable, strength: float) -> SolverTable:
    """The share `strength` of the steps that lies nearest to the image."""
    first = len(table.timesteps) - walked(len(table.timesteps), strength)
    return SolverTable(table.timesteps[first:], table.alpha_bars[first:], table.coefficients[first:], table.end)


def between(before: np.ndarray, after: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """Two contexts [1, T, K] -> [A, T, K]. Keys and values are linear in the embedding, so it is one between theirs."""
    share = np.array(alphas, np.float32).reshape(-1, 1, 1)
    return (1 - share) * before + share * after


def contexts_between(runner: Runner, old: Run, new: Run, alphas: Sequence[float]) -> list[np.ndarray] | None:
    """Contexts [A, T, K] per modality of the new run; None where no others than its own are asked for."""
    if set(alphas) == {1.0}:
        return None
    known = {modality.name: value for modality, value in zip(old.modalities, old.inputs, strict=True)}
    contexts = []
    for modality, value in zip(new.modalities, new.inputs, strict=True):
        name = modality.name
        if name not in known:
            remedy = f"give the source's {name}, or leave alphas out"
            raise BadRequest("alphas", f"nothing says what {name} the image has now", remedy)
        now, then = (runner.call(f"condition.{name}", inputs=x)["context"] for x in (known[name], value))
        contexts.append(between(now, then, alphas))
    return contexts


def check(
    settings: Settings, strength: float, alphas: Sequence[float], method: str = "inversion"
) -> tuple[float, tuple[float, ...]]:
    """`strength` and `alphas` as plain numbers. Raises BadRequest for a setting that is none, or not an edit's."""
    for name in ("batch", "first"):
        if getattr(settings, name) != SETTINGS[name].default:
            raise BadRequest(name, f"{getattr(settings, name)} for an edit", "leave it out; alphas say how many images")
    how = settings.sampling()
    if not how.eta:
        remedy = f"take a solver that adds noise, e.g. tier {' or '.join(n for n, tier in TIERS.items() if tier.eta)}"
        raise BadRequest("eta", f"0 with {how.solver}, and an edit keeps the noise of every step", remedy)
    strength = real("strength", strength)
    check_range("strength", strength, 0.0, 1.0)
    if not walked(how.steps, strength):
        raise BadRequest("strength", f"{strength:g} of {how.steps} steps is none", f"give {1 / how.steps:g} or more")
    if isinstance(alphas, str) or not isinstance(alphas, Sequence):
        raise BadRequest("alphas", f"{alphas!r:.80}", "give a list of numbers")
    check_range("number of alphas", len(alphas), 1, LARGEST_BATCH)
    for alpha in (values := tuple(real("alphas", alpha) for alpha in alphas)):
        check_range("alphas", alpha, *ALPHAS)
    check_choice("method", method, tuple(METHODS))
    return strength, values


def told(method: str, settings: Settings, strength: float, alphas: Sequence[float]) -> dict[str, Any]:
    """As records have it."""
    return {"method": method, "strength": strength, "of_steps": settings.sampling().steps, "alphas": list(alphas)}


def read_alphas(text: str) -> list[float]:
    """ "0,0.5,1" -> numbers. Raises BadRequest."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise BadRequest("alphas", repr(text[:80]), "give numbers with commas between them") from None


def calls(steps: int, strength: float) -> int:
    """How often `progress` is called."""
    return 2 * walked(steps, strength)


def walked(steps: int, strength: float) -> int:
    return round(strength * steps)


def side_by_side(result: Generated) -> Generated:
    """All images of a run as one: a strip."""
    told = result.parameters | {"edit": result.parameters["edit"] | {"strip": True}}
    strip = np.concatenate(result.images, axis=1)[None]
    return replace(result, images=strip, latents=result.latents[:1], parameters=told)


def tell_change(result: Generated) -> None:
    change = result.parameters["edit"].get("change", {})
    for where, levels in change.items():
        shown = ", ".join(f"{level:.1f}" for level in levels)
        place = f"{where} the edited region " if len(change) > 1 else ""
        log.info("%spixels changed by %s of 255 on average", place, shown)
