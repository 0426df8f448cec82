"""What a scheduler's configuration, as diffusers saves it, says of the denoiser that was trained with it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cdiff_rt.errors import BadArtefact, BadRequest, check_choice
from cdiff_rt.sampling.preconditioning import NOISIEST, PREDICTS, Parameterisation, Predicts
from cdiff_rt.sampling.schedule import Betas, Schedule

PREDICTIONS: dict[str, Predicts] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
BETAS: tuple[Betas, ...] = ("scaled_linear", "linear", "squaredcos_cap_v2")
LONGEST = 10_000  # timesteps
SAY = "say it yourself: form=Parameterisation(...), --predicts and --betas of a command (docs/own-models.md)"


def form_of(config: Mapping[str, Any]) -> Parameterisation:
    """Raises BadRequest for what is not known here."""
    kind = str(config.get("_class_name", ""))
    steps = _number(config, "num_train_timesteps", 1000, 2, LONGEST)
    if kind.startswith("EDM"):
        return _edm(config)
    if kind.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
        if config.get("invert_sigmas") or config.get("stochastic_sampling"):
            raise _unknown("invert_sigmas or stochastic_sampling", config)
        return Parameterisation("flow", "flow", time_scale=float(steps))
    predicts = PREDICTIONS.get(config.get("prediction_type", "epsilon"))
    if predicts is None:
        raise _unknown("prediction_type", config)
    return Parameterisation(predicts, "vp", schedule_of(config))


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """Of variance-preserving noise. Raises BadRequest."""
    given, kind = config.get("trained_betas"), config.get("beta_schedule", "linear")
    steps = int(_number(config, "num_train_timesteps", 1000, 2, LONGEST))
    start, end = (_number(config, f"beta_{side}", usual, 0, 1) for side, usual in (("start", 0.0001), ("end", 0.02)))
    if given is not None:
        if not isinstance(given, list | tuple) or not 2 <= len(given) <= LONGEST:
            raise _unknown("trained_betas", config)
        trained = [_number({"trained_betas": beta}, "trained_betas", 0, 0, 1) for beta in given]
        bars = np.cumprod(1 - np.asarray(trained, np.float64))
        schedule = Schedule(len(bars), given=tuple(bars.tolist()))
    elif kind in BETAS:
        schedule = Schedule(steps, start, end, betas=kind)
    elif kind == "sigmoid":
        betas = 1 / (1 + np.exp(-np.linspace(-6, 6, steps))) * (end - start) + start
        schedule = Schedule(steps, given=tuple(np.cumprod(1 - betas).tolist()))
    else:
        raise _unknown("beta_schedule", config)
    return _to_zero(schedule) if config.get("rescale_betas_zero_snr") else schedule


def _to_zero(schedule: Schedule) -> Schedule:
    """The same whose end is pure noise (Lin et al. 2024, algorithm 1), as far as numbers go."""
    roots = np.sqrt(schedule.alpha_bars())
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return Schedule(len(roots), given=tuple((roots**2).clip(NOISIEST).tolist()))


def _edm(config: Mapping[str, Any]) -> Parameterisation:
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise _unknown("prediction_type", config)
    return Parameterisation("edm", "sigma", sigma_data=_number(config, "sigma_data", 0.5, 0, 1e6))


def _number(config: Mapping[str, Any], field: str, usual: float, low: float, high: float) -> float:
    """Above 0, or from `low` on. Raises BadArtefact for what no schedule has."""
    number = config.get(field, usual)
    if isinstance(number, bool) or not isinstance(number, int | float) or not max(low, 1e-12) <= number <= high:
        seen = f"{number!r:.40} of {config.get('_class_name', 'a scheduler')!s:.80}"
        raise BadArtefact(field, seen, f"it is a number between {low:g} and {high:g}: save it again, or {SAY}")
    return number


def _unknown(field: str, config: Mapping[str, Any]) -> BadRequest:
    name = config.get("_class_name", "a scheduler")
    return BadRequest(field, f"{config.get(field, 'set')!r:.80} of {name!s:.80} is not known here", SAY)


def told(
    config: Mapping[str, Any] | None,
    *,
    predicts: str | None = None,
    space: str | None = None,
    betas: str | None = None,
    time_scale: float | None = None,
    whole_timesteps: bool = False,
) -> Parameterisation | None:
    """What is said in words, and of what is not, what the scheduler says; None if nobody says anything. Raises BadRequest."""
    known = form_of(config) if config else None
    if known is None and predicts is None:
        if space or betas or time_scale or whole_timesteps:
            raise BadRequest("predicts", "nothing says what it predicts", f"say one of {', '.join(PREDICTS)}")
        return None
    what = predicts or (known.predicts if known else "")
    check_choice("predicts", what, PREDICTS)
    where = space or (known.space if known and not predicts else {"flow": "flow", "edm": "sigma"}.get(what, "vp"))
    in_steps = known if known and known.space == "vp" else None
    if where == "vp" and not betas and not in_steps:
        raise BadRequest("betas", "nothing says its schedule of noise", "write e.g. linear:0.0001:0.02:1000")
    schedule = read_betas(betas) if betas else in_steps.schedule if in_steps else Schedule()
    usual = known.time_scale if known and known.space == where else 1.0
    data = known.sigma_data if known else 0.5
    return Parameterisation(what, where, schedule, whole_timesteps, time_scale or usual, data)  # type: ignore[arg-type]


def read_betas(text: str) -> Schedule:
    """KIND, or KIND:START:END, or KIND:START:END:STEPS. Raises BadRequest."""
    kind, *numbers = text.split(":")
    try:
        start, end, steps = [float(number) for number in numbers] + [0.0001, 0.02, 1000.0][len(numbers) :]
        if kind not in BETAS or not (0 < start < 1 and 0 < end < 1 and steps == int(steps) and 2 <= steps <= LONGEST):
            raise ValueError
    except ValueError:
        kinds = ", ".join(BETAS)
        raise BadRequest("betas", repr(text[:80]), f"write KIND:START:END:STEPS, KIND one of {kinds}") from None
    return Schedule(int(steps), start, end, betas=kind)
