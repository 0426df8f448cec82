"""N score models in, one sampler out: denoisers of any make as the experts of a pipeline, without a bundle.

    pipeline = compose({"label": Expert(f, Parameterisation("eps", schedule=theirs), condition=(1,)), ...}, (3, 32, 32))
    pipeline.generate(label=[3.0], influence={"label": 2})

Each is asked in its own terms (sampling/preconditioning.py); the loop, the solvers and the controls are those of every
pipeline.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdiff_rt.composing.bundled import encoders_of, lent
from cdiff_rt.composing.expert import Expert, agreed_shape, check_expert, check_schedule, fixed_condition
from cdiff_rt.composing.images import Decode, Encode, check_latents, decoder, decoding, encode_spec, encoding
from cdiff_rt.engines.weights import ENCODER
from cdiff_rt.errors import BadRequest, check_range, check_type, named_as, whole
from cdiff_rt.foreign.logits import as_logit, check_logit
from cdiff_rt.foreign.modules import as_function
from cdiff_rt.inputs.subwords import FILE as TOKENIZER
from cdiff_rt.manifest import Bundle, Manifest, Modality, odd
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.runners import HostRunner, Routing
from cdiff_rt.sampling.calibrated import Calibration
from cdiff_rt.sampling.preconditioning import A_OUT, A_X, C_IN, TIME, Parameterisation
from cdiff_rt.sampling.schedule import Schedule, half_log_snr
from cdiff_rt.sampling.superposition import Mixing
from cdiff_rt.settings import Influence

if TYPE_CHECKING:
    from torch import nn

BACKEND = "python"  # what runs the experts, as pictures carry it
NAME, WEIGHTS, CALIBRATED = "composed", "none", "calibrated.json"  # as a manifest names them
IN_SPACE = Schedule(1000, 1e-4, 0.02, "v", "linear")  # the host's where no expert has a schedule of timesteps


@dataclass(frozen=True)
class Composition:
    """What a pipeline was composed of, for its export."""

    experts: Mapping[str, Expert]
    decode: Any
    encode: Any
    functions: Mapping[str, Callable[..., dict[str, np.ndarray]]]  # its networks, by their names in a bundle
    mixing: Mixing | None
    top_k: int | None


def compose(
    experts: Mapping[str, Expert],
    latent_shape: Sequence[int] | None = None,
    *,
    schedule: Schedule | None = None,
    image_size: int = 0,
    decode: "Decode | str | Path | nn.Module | None" = None,
    encode: "Encode | nn.Module | None" = None,
    influence: Influence | Calibration | str | Path | None = None,
    top_k: int | None = None,
    mixing: Mixing | None = None,
) -> Pipeline:
    """A pipeline of these experts, by the names of their conditions, over latents of `latent_shape`, channels first: by
    default what the experts were trained on.

    `influence` is what holds unless a run asks for another: of the experts' logits, or in their place the weights that
    `calibrate` found, or its file. Of each image, only the `top_k` experts whose `logit` gives them most influence are
    called. `mixing`, such as a Superposition, decides the influence functions in place of logits. The loop follows
    `schedule`, or the experts' own that ends least noisy, so that each knows all noise it meets. With an `image_size`,
    `decode` makes images of latents; it may be an autoencoder of diffusers, or its folder, which knows the size. Without
    `decode`, latents [3, S, S] in [-1, 1] are the images. `encode` makes latents of images, to edit these; an autoencoder
    has its own. Raises BadRequest.
    """
    check_type("experts", experts, Mapping, "give a dict from names to cdiff_rt.Expert")
    if not experts:
        raise BadRequest("experts", "there are none", "give one or more")
    decode, host = decoder(decode), _host(experts, schedule)
    experts = {name: replace(expert, logit=as_logit(expert.logit, expert.form)) for name, expert in experts.items()}
    shape = agreed_shape(experts, latent_shape)
    for name, expert in experts.items():
        check_logit(name, expert.logit, shape, expert.condition)
    check_latents(decode, shape)
    image_size = image_size or getattr(decode, "factor", 0) * shape[-1]
    _check_top_k(top_k, experts)
    found = _calibration(influence, decided="top_k" if top_k else "mixing" if mixing else "")
    _check_ends(decode, encode, image_size, shape)
    encode = encode or getattr(decode, "image_encoder", lambda: None)()
    usual = influence if isinstance(influence, Influence) else Influence("none", 1.0, sharpness=0.0 if found else 1.0)
    content = tokenizers_of(experts) | ({CALIBRATED: found.to_json().encode()} if found else {})
    manifest = _manifest(experts, shape, host, image_size, usual, content)
    if image_size and (encode is not None or decode is None):
        manifest = replace(manifest, networks={"vae.encode": encode_spec(manifest)})
    for fault in odd(manifest):
        raise BadRequest("experts", fault, "correct it")
    if found:
        found.check_fits(list(experts), host, shape[1:])
    functions = {"vae.decode": decoding(decode, image_size), "vae.encode": encoding(encode, shape)}
    for name, expert in experts.items():
        functions |= networks_of(name, expert, host, shape)
    denoisers = {name: expert.denoise for name, expert in experts.items()}
    functions |= encoders_of(denoisers)
    routing = Routing(any(expert.logit for expert in experts.values()), top_k, mixing)
    runner = HostRunner(lambda network, threads: Function(functions[network]), parallel=False, routing=routing)
    made = Pipeline(lent(Bundle(Path(NAME), manifest, "", content), denoisers), BACKEND, runner=runner)
    made.composed = Composition(experts, decode, encode, functions, mixing, top_k)
    return made


@dataclass(frozen=True)
class Function:
    """A function in the place of an engine."""

    function: Callable[..., dict[str, np.ndarray]]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return self.function(**inputs)

    def close(self) -> None:
        """Whoever made it keeps it."""


def _check_ends(decode: Any, encode: Any, size: int, latent: tuple[int, ...]) -> None:
    if decode is not None and not size:
        raise BadRequest("image_size", "none, and something decodes", "say how many pixels a side of its images has")
    if size and decode is None and latent != (3, size, size):
        seen = f"latents {list(latent)} for images of {size} pixels"
        raise BadRequest("decode", f"none, and {seen}", "give what decodes them, or image_size=0")
    if encode is not None and (decode is None or not callable(encode)):
        raise BadRequest("encode", f"a {type(encode).__name__}", "give a function or a module, and decode= beside it")


def _calibration(given: Any, decided: str) -> Calibration | None:
    """Of what `calibrate` found, or of its file. Raises BadRequest, BadArtefact."""
    check_type(
        "influence", given, Influence | Calibration | str | Path | None, "give what calibrate found, or its file"
    )
    if given is None or isinstance(given, Influence):
        return None
    if decided:
        raise BadRequest("influence", f"weights that were found, and {decided}", "give one of them, for either decides")
    return given if isinstance(given, Calibration) else Calibration.load(given)


def _check_top_k(top_k: int | None, experts: Mapping[str, Expert]) -> None:
    if top_k is not None:
        check_range("top_k", whole("top_k", top_k), 1, len(experts))
        if not any(expert.logit for expert in experts.values()):
            raise BadRequest("top_k", "no expert has a logit to be chosen by", "give each one, or leave top_k out")


def _host(experts: Mapping[str, Any], given: Schedule | None) -> Schedule:
    """The loop's schedule, which every expert knows. Raises BadRequest."""
    for name, expert in experts.items():
        if isinstance(expert, Expert) and isinstance(expert.form, Parameterisation) and expert.form.space == "vp":
            check_schedule(f"expert {name}, schedule", expert.form.schedule)
    if given is not None:
        check_schedule("schedule", given)
    host = given or _least_noisy([expert for expert in experts.values() if isinstance(expert, Expert)])
    host = replace(host, prediction="v")
    for name, expert in experts.items():
        check_expert(name, expert, host)
    return host


def _least_noisy(experts: Sequence[Expert]) -> Schedule:
    forms = [expert.form for expert in experts if isinstance(expert.form, Parameterisation)]  # others are refused later
    schedules = [form.schedule for form in forms if form.space == "vp"]
    return max(schedules, key=lambda each: half_log_snr(each.alpha_bars()[-1]), default=IN_SPACE)


def _manifest(
    experts: Mapping[str, Expert],
    latent: tuple[int, ...],
    host: Schedule,
    size: int,
    influence: Influence,
    content: Mapping[str, bytes],
) -> Manifest:
    modalities = tuple(_modality(name, expert) for name, expert in experts.items())
    source = {"experts": {name: {ENCODER: {"vocabulary": e.encoder.knows}} for name, e in experts.items() if e.encoder}}
    files = dict.fromkeys((WEIGHTS, *content), "")
    made = Manifest(NAME, size, latent, 1.0, host, influence, modalities, {}, WEIGHTS, source, {}, "", files)
    return replace(made, calibrated=CALIBRATED if CALIBRATED in content else "")


def _modality(name: str, expert: Expert) -> Modality:
    if expert.condition is None or expert.fixed is not None:
        return Modality(name, "nothing", decays=False, anchor=False)
    encoder = expert.encoder
    if encoder and encoder.tokenizer:
        file = f"{name}.{TOKENIZER}"
        return Modality(name, "words", decays=False, anchor=False, tokens=encoder.takes[0], vocabulary=file)
    rows, width = expert.condition[:-1], expert.condition[-1] if expert.condition else 1
    tokens, width = (1, math.prod(encoder.takes)) if encoder else (math.prod(rows), width)
    return Modality(name, "numbers", decays=False, anchor=False, tokens=tokens, width=width)


def tokenizers_of(experts: Mapping[str, Expert]) -> dict[str, bytes]:
    """The files of those experts that are asked by sentences."""
    asked = {name: e.encoder.tokenizer for name, e in experts.items() if e.encoder and e.fixed is None}
    return {f"{name}.{TOKENIZER}": content for name, content in asked.items() if content}


def context_shape(modality: Modality, expert: Expert) -> tuple[int, int]:
    """Of its condition, as encoded: as many rows as its encoder reads, as a manifest has it."""
    rows = modality.input_shape[0]
    return rows, math.prod(expert.condition or ()) // rows


def networks_of(name: str, expert: Expert, host: Schedule, latent: tuple[int, ...]) -> dict[str, Callable]:
    """The three networks of an expert, as a bundle has them."""
    bars, denoise, always = host.alpha_bars(), as_function(expert.denoise), fixed_condition(name, expert)
    encoder, shape = expert.encoder, context_shape(_modality(name, expert), expert)

    def condition(inputs: np.ndarray) -> dict[str, np.ndarray]:
        if always is not None:
            return {"context": np.repeat(always.reshape(1, 1, -1), len(inputs), 0)}
        with named_as(f"expert {name},"):
            found = encoder(inputs, expert.condition or ()) if encoder else inputs
        return {"context": found.reshape(len(inputs), *shape)}

    def time(t: np.ndarray) -> dict[str, np.ndarray]:
        return {"projections": numbers_of(expert, bars[t])}

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
        logit = expert.logit.of(x, float(projections[0, -1]), *condition) if expert.logit else 0.0
        return {"logit": _broadcast(name, logit, (len(x), 1, *latent[1:]))}

    return {f"condition.{name}": condition, f"time.{name}": time, f"expert.{name}": step, f"router.{name}": route}


def numbers_of(expert: Expert, alpha_bars: np.ndarray) -> np.ndarray:
    """[S, 4], its parameterisation's; with a logit [S, 5], also what that is told of the noise."""
    told = [expert.logit.told(alpha_bars)] if expert.logit else []
    return np.column_stack([expert.form.table(alpha_bars), *told])


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
