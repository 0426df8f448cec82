"""N score models in, one sampler out: denoisers of any make as the experts of a pipeline, without a bundle.

    pipeline = compose({"label": Expert(f, Parameterisation("eps", schedule=theirs), condition=(1,)), ...}, (3, 32, 32))
    pipeline.generate(label=[3.0], influence={"label": 2})

Each is asked in its own terms (sampling/preconditioning.py); the loop, the solvers and the controls are those of every
pipeline.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdiff_rt.bundled import encoders_of, lent
from cdiff_rt.errors import BadRequest, check_range, check_type, named_as, whole
from cdiff_rt.expert import Expert, agreed_shape, check_expert, fixed_condition
from cdiff_rt.extras import needed
from cdiff_rt.foreign.modules import as_function
from cdiff_rt.manifest import Bundle, Manifest, Modality, odd
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.runners import HostRunner, Routing
from cdiff_rt.sampling.preconditioning import A_OUT, A_X, C_IN, TIME, Parameterisation
from cdiff_rt.sampling.schedule import Schedule, half_log_snr
from cdiff_rt.sampling.superposition import Mixing
from cdiff_rt.settings import Influence

if TYPE_CHECKING:
    from torch import nn

BACKEND = "python"  # what runs the experts, as pictures carry it
NAME, WEIGHTS = "composed", "none"  # as a manifest names them
IN_SPACE = Schedule(1000, 1e-4, 0.02, "v", "linear")  # the host's where no expert has a schedule of timesteps

Decode = Callable[[np.ndarray], np.ndarray]  # latents [B, C, *latent] -> images [B, 3, S, S] in [-1, 1]


@dataclass(frozen=True)
class Composition:
    """What a pipeline was composed of, for its export."""

    experts: Mapping[str, Expert]
    decode: Any
    functions: Mapping[str, Callable[..., dict[str, np.ndarray]]]  # its networks, by their names in a bundle
    mixing: Mixing | None


def compose(
    experts: Mapping[str, Expert],
    latent_shape: Sequence[int] | None = None,
    *,
    schedule: Schedule | None = None,
    image_size: int = 0,
    decode: "Decode | str | Path | nn.Module | None" = None,
    influence: Influence | None = None,
    top_k: int | None = None,
    mixing: Mixing | None = None,
) -> Pipeline:
    """A pipeline of these experts, by the names of their conditions, over latents of `latent_shape`, channels first: by
    default what the experts were trained on.

    Of each image, only the `top_k` experts whose `logit` gives them most influence are called. `mixing`, such as a
    Superposition, decides the influence functions in place of logits. The loop follows `schedule`, or the experts' own
    that ends least noisy, so that each knows all noise it meets. With an `image_size`, `decode` makes images of latents;
    it may be an autoencoder of diffusers, or its folder, which knows the size. Without `decode`, latents [3, S, S] in
    [-1, 1] are the images. Raises BadRequest.
    """
    check_type("experts", experts, Mapping, "give a dict from names to cdiff_rt.Expert")
    if not experts:
        raise BadRequest("experts", "there are none", "give one or more")
    decode = _decoder(decode)
    host = schedule or _least_noisy([expert for expert in experts.values() if isinstance(expert, Expert)])
    host = Schedule(**{**vars(host), "prediction": "v"})
    for name, expert in experts.items():
        check_expert(name, expert, host)
    shape = agreed_shape(experts, latent_shape)
    image_size = image_size or getattr(decode, "factor", 0) * shape[-1]
    _check_top_k(top_k, experts)
    if decode is not None and not image_size:
        raise BadRequest("image_size", "none, and something decodes", "say how many pixels a side of its images has")
    if image_size and decode is None and shape != (3, image_size, image_size):
        seen = f"latents {list(shape)} for images of {image_size} pixels"
        raise BadRequest("decode", f"none, and {seen}", "give what decodes them, or image_size=0")
    manifest = _manifest(experts, shape, host, image_size, influence or Influence("none", 1.0))
    for fault in odd(manifest):
        raise BadRequest("experts", fault, "correct it")
    functions = {"vae.decode": _decoding(decode, image_size)}
    for name, expert in experts.items():
        functions |= networks_of(name, expert, host, shape)
    denoisers = {name: expert.denoise for name, expert in experts.items()}
    functions |= encoders_of(denoisers)
    routing = Routing(any(expert.logit for expert in experts.values()), top_k, mixing)
    runner = HostRunner(lambda network, threads: Function(functions[network]), parallel=False, routing=routing)
    made = Pipeline(lent(Bundle(Path(NAME), manifest, "", {}), denoisers), BACKEND, runner=runner)
    made.composed = Composition(dict(experts), decode, functions, mixing)
    return made


@dataclass(frozen=True)
class Function:
    """A function in the place of an engine."""

    function: Callable[..., dict[str, np.ndarray]]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return self.function(**inputs)

    def close(self) -> None:
        """Whoever made it keeps it."""


def _check_top_k(top_k: int | None, experts: Mapping[str, Expert]) -> None:
    if top_k is not None:
        check_range("top_k", whole("top_k", top_k), 1, len(experts))
        if not any(expert.logit for expert in experts.values()):
            raise BadRequest("top_k", "no expert has a logit to be chosen by", "give each one, or leave top_k out")


def _decoder(given: Any) -> Any:
    """A folder's, or an autoencoder's of diffusers; anything else as it is. Raises BadRequest, BadArtefact."""
    if not isinstance(given, str | Path) and not (hasattr(given, "config") and hasattr(given, "decode")):
        if given is None or callable(given):
            return given
        raise BadRequest("decode", f"a {type(given).__name__}", "give a function, a module, or an autoencoder's folder")
    with needed("decode", "compose"):
        from cdiff_rt.foreign.from_diffusers import bring_decoder
    return bring_decoder(given)


def _decoding(decode: Any, size: int) -> Callable[..., dict[str, np.ndarray]]:
    """What decodes latents, whose images are looked at."""
    decoder = as_function(decode) if decode is not None else lambda z: z

    def call(z: np.ndarray) -> dict[str, np.ndarray]:
        with named_as("decode,"):
            image = np.asarray(decoder(z))
        wanted = (len(z), 3, size, size)
        if image.shape != wanted or image.dtype.kind != "f":
            seen = f"it returned {image.dtype} of shape {image.shape}"
            raise BadRequest("decode", seen, f"return numbers in [-1, 1] of shape {wanted}")
        return {"image": image.astype(np.float32, copy=False)}

    return call


def _least_noisy(experts: Sequence[Expert]) -> Schedule:
    forms = [expert.form for expert in experts if isinstance(expert.form, Parameterisation)]  # others are refused later
    schedules = [form.schedule for form in forms if form.space == "vp"]
    return max(schedules, key=lambda each: half_log_snr(each.alpha_bars()[-1]), default=IN_SPACE)


def _manifest(
    experts: Mapping[str, Expert], latent: tuple[int, ...], host: Schedule, size: int, influence: Influence
) -> Manifest:
    modalities = tuple(_modality(name, None if e.fixed is not None else e.condition) for name, e in experts.items())
    return Manifest(NAME, size, latent, 1.0, host, influence, modalities, {}, WEIGHTS, {}, {}, "", {WEIGHTS: ""})


def _modality(name: str, condition: tuple[int, ...] | None) -> Modality:
    if condition is None:
        return Modality(name, "nothing", decays=False, anchor=False)
    tokens, width = math.prod(condition[:-1]), condition[-1] if condition else 1
    return Modality(name, "numbers", decays=False, anchor=False, tokens=tokens, width=width)


def networks_of(name: str, expert: Expert, host: Schedule, latent: tuple[int, ...]) -> dict[str, Callable]:
    """The three networks of an expert, as a bundle has them."""
    bars, denoise, always = host.alpha_bars(), as_function(expert.denoise), fixed_condition(name, expert)

    def condition(inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {"context": inputs if always is None else np.repeat(always.reshape(1, 1, -1), len(inputs), 0)}

    def time(t: np.ndarray) -> dict[str, np.ndarray]:
        return {"projections": np.column_stack([expert.form.table(bars[t]), bars[t]])}

    def step(x: np.ndarray, projections: np.ndarray, context: np.ndarray) -> dict[str, np.ndarray]:
        row = projections[0]
        condition = [] if expert.condition is None else [context.reshape(len(x), *expert.condition)]
        given = (np.float32(row[C_IN]) * x, np.full(len(x), row[TIME], np.float32), *condition)
        with named_as(f"expert {name},"):
            answer = denoise(*given)
        out = _checked(name, answer, x.shape)
        logit = np.zeros((len(x), 1, *latent[1:]), np.float32)
        return {"out": np.float32(row[A_X]) * x + np.float32(row[A_OUT]) * out, "logit": logit}

    def route(x: np.ndarray, projections: np.ndarray, context: np.ndarray) -> dict[str, np.ndarray]:
        condition = [] if expert.condition is None else [context.reshape(len(x), *expert.condition)]
        logit = expert.logit(x, float(projections[0, -1]), *condition) if expert.logit else 0.0
        return {"logit": _broadcast(name, logit, (len(x), 1, *latent[1:]))}

    return {f"condition.{name}": condition, f"time.{name}": time, f"expert.{name}": step, f"router.{name}": route}


def _checked(name: str, out: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What a denoiser returned, as float32. Raises BadRequest."""
    found = np.asarray(out)
    if found.shape != shape or found.dtype.kind != "f":
        seen = f"it returned {found.dtype} of shape {found.shape}"
        raise BadRequest(f"expert {name}", seen, f"return floating-point numbers of shape {shape}, as it was given")
    if not np.isfinite(found).all():
        raise BadRequest(f"expert {name}", "it returned numbers that are not finite", "correct it, or what it predicts")
    return found.astype(np.float32, copy=False)


def _broadcast(name: str, logit: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A logit for each image [B], or for each place. Raises BadRequest."""
    found = np.asarray(logit, dtype=np.float32)
    if found.shape == shape[:1]:
        found = found.reshape(-1, *(1,) * (len(shape) - 1))
    try:
        return np.broadcast_to(found, shape)
    except ValueError:
        seen = f"its logit has the shape {found.shape}"
        raise BadRequest(f"expert {name}", seen, f"return {shape[:1]}, or what broadcasts to {shape}") from None
