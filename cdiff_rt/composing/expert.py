"""An expert of a composition: a denoiser of any make, what it was trained as, and what conditions it."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cdiff_rt.errors import BadRequest, check_type, named_as
from cdiff_rt.extras import needed
from cdiff_rt.foreign.encoders import Encoder, check_encoder
from cdiff_rt.foreign.schedulers import LONGEST
from cdiff_rt.sampling.preconditioning import Parameterisation
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import RESERVED

if TYPE_CHECKING:
    from torch import nn

# (x [B, C, *latent], time [B], condition [B, *shape] if it has one) -> like x; float32. Or a torch.nn.Module that does so.
Denoise = Callable[..., Any]
# (x of the host, alpha_bar, condition if it has one) -> [B], or what broadcasts to [B, 1, *latent]. Or a torch.nn.Module
# that does so of tensors, alpha_bar [B]; or an ONNX file's path.
Logit = Any


@dataclass(frozen=True)
class Expert:
    """A denoiser, what it was trained as, and the shape of its condition; None if it has none, and always runs.

    `logit` is the logarithm of its influence, as far as that differs between places or images: the softmax of all
    experts' are the influence functions. Without it they share equally. `denoise` may keep what it is given only until
    it returns; a module of PyTorch is put into its mode of evaluation. With `fixed`, an array of the condition's shape,
    that is always the condition, and none is asked for: an empty prompt's embedding makes the expert without condition.
    `latent_shape` is what it was trained on, if that is known. An `encoder` makes the condition of what is given, such
    as a sentence; then `fixed` may be one too.
    """

    denoise: Denoise
    form: Parameterisation = field(default_factory=Parameterisation)
    condition: tuple[int, ...] | None = None
    logit: Logit | None = None
    fixed: np.ndarray | str | None = None
    latent_shape: tuple[int, ...] | None = None
    encoder: "Encoder | None" = None

    @classmethod
    def from_diffusers(
        cls,
        model: "str | Path | nn.Module",
        *,
        form: Parameterisation | None = None,
        tokens: int | None = None,
        time_ids: int = 6,
        logit: Logit | None = None,
        fixed: np.ndarray | str | None = None,
        encoder: "Encoder | str | Path | bool | None" = None,
    ) -> Self:
        """A network of diffusers, or the folder of one or of its pipeline, with the scheduler beside it if no `form` is given.

        Its condition is what it is called with beside x and time: encoder_hidden_states [tokens, width], class_labels,
        pooled embeddings, `time_ids` of SDXL (6; 5 of its refiner); of several, all their numbers one behind the other.
        `tokens` are those of the tokenizer beside it. With `encoder`, the text encoder beside it (True), a folder's or an
        ONNX file's, the condition is a sentence. Raises BadRequest, BadArtefact, BadEnvironment.
        """
        with needed("from_diffusers", "compose"):
            from cdiff_rt.foreign.from_diffusers import bring
        if encoder is True and not isinstance(model, str | Path):
            raise BadRequest("encoder", "True of a network without a folder", "give its folder")
        made = Encoder.of(model if encoder is True else encoder, tokens) if encoder else None  # type: ignore[arg-type]
        brought = bring(model, form, tokens or (made.takes[0] if made and made.tokenizer else None), time_ids)
        if made and len(brought.denoise.parts) > 1:
            seen = f"it makes one condition, and the network takes {', '.join(brought.denoise.parts)}"
            raise BadRequest("encoder", seen, "leave it out, and give all their numbers as one array")
        return cls(brought.denoise, brought.form, brought.condition, logit, fixed, brought.latent_shape, made)

    @classmethod
    def from_onnx(
        cls,
        path: str | Path,
        form: Parameterisation,
        *,
        names: Mapping[str, str] | None = None,
        logit: Logit | None = None,
        fixed: np.ndarray | str | None = None,
        encoder: "Encoder | str | Path | None" = None,
    ) -> Self:
        """An ONNX file of a network in float32, whose sizes are fixed but for the batch.

        `names` are those of its inputs x, time and condition, and of its output out, where they are not usual ones; its
        weights may lie beside it. `encoder` makes its condition. Raises BadRequest, BadArtefact, BadEnvironment.
        """
        from cdiff_rt.foreign.onnx_files import open_onnx

        check_type("path", path, str | Path, "give an ONNX file")
        check_type("names", names, Mapping | None, "give a dict such as {'x': 'sample'}")
        found = open_onnx(Path(path), names or {})
        condition = found.condition.shape if found.condition else None
        made = Encoder.of(encoder, condition[0] if condition else None) if encoder else None
        return cls(found, form, condition, logit, fixed, found.x.shape, made)

    @classmethod
    def from_bundle(cls, model: str | Path, name: str, *, with_logit: bool = False) -> Self:
        """The expert of this name, or the only one, of a bundle's folder or an embedded model, run by ONNX Runtime.

        Its condition is what the bundle takes: a mask, a sentence. `with_logit` keeps what its dynamic diffuser says of
        its influence, which counts beside others of such. Raises BadRequest, BadArtefact, BadEnvironment.
        """
        from cdiff_rt.composing.bundled import Bundled
        from cdiff_rt.manifest import Bundle, find_model

        check_type("name", name, str, "give the name of its condition")
        of = Bundled(Bundle.open(find_model(model)), name)
        logit = of.logit if with_logit else None
        return cls(of, of.form, of.condition_shape, logit, latent_shape=of.bundle.manifest.latent_shape)


def check_expert(name: str, expert: Any, host: Schedule) -> None:
    what = f"expert {name}"
    if not isinstance(expert, Expert):
        seen = f"a {type(expert).__name__}"
        raise BadRequest(what, seen, "give a cdiff_rt.Expert, which says what it predicts of which noise")
    if not callable(expert.denoise) or not (isinstance(expert.logit, str | Path | None) or callable(expert.logit)):
        raise BadRequest(what, "its denoise or logit cannot be called", "give functions")
    if not isinstance(expert.form, Parameterisation):
        raise BadRequest(what, f"its form is a {type(expert.form).__name__}", "give a cdiff_rt.Parameterisation")
    if not _is_shape(expert.condition or ()) or not _is_shape(expert.latent_shape or (1,)):
        seen = f"its condition is {expert.condition!r:.80}, its latent_shape {expert.latent_shape!r:.80}"
        raise BadRequest(what, seen, "give tuples of whole numbers above 0, or None")
    if expert.encoder is not None:
        check_encoder(name, expert.encoder, expert.condition)
    if name in RESERVED:
        raise BadRequest(what, "that is the name of a setting", "choose another name")
    try:
        expert.form.table(host.alpha_bars()[1:])
    except BadRequest as error:
        raise BadRequest(f"{what}, {error.what}", error.seen, error.remedy) from None


def check_schedule(what: str, schedule: Any) -> None:
    """Raises BadRequest for one whose numbers are none of noise that grows."""
    bars, steps = np.zeros(0), getattr(schedule, "train_steps", None)
    with np.errstate(all="ignore"), suppress(TypeError, ValueError):
        if isinstance(schedule, Schedule) and isinstance(steps, int) and 2 <= steps <= LONGEST:
            bars = schedule.alpha_bars()
    if not len(bars) or not (np.isfinite(bars).all() and 0 <= bars[-1] < bars[0] <= 1 and (np.diff(bars) <= 0).all()):
        remedy = f"give a cdiff_rt.Schedule of 2 to {LONGEST} timesteps with betas between 0 and 1"
        raise BadRequest(what, f"{schedule!r:.120} is none of noise that grows", remedy)


def fixed_condition(name: str, expert: Expert) -> np.ndarray | None:
    """Its condition, if that is always the same. Raises BadRequest."""
    if expert.fixed is None:
        return None
    if isinstance(expert.fixed, str):
        return _encoded(name, expert, expert.fixed)
    found = np.asarray(expert.fixed, np.float32)
    if expert.condition is None or found.size != math.prod(expert.condition) or not np.isfinite(found).all():
        seen = f"it is of shape {found.shape}, its condition of {expert.condition}"
        raise BadRequest(f"expert {name}, fixed", seen, "give finite numbers of the condition's shape")
    return found


def _encoded(name: str, expert: Expert, sentence: str) -> np.ndarray:
    with named_as(f"expert {name},"):
        if expert.encoder is None or expert.condition is None or not expert.encoder.tokenizer:
            raise BadRequest("fixed", f"{sentence!r:.80}, and no encoder reads sentences", "give encoder=, or an array")
        return expert.encoder(expert.encoder.ids(sentence), expert.condition)[0]


def agreed_shape(experts: Mapping[str, Expert], given: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of the latents. Raises BadRequest for experts of other channels or axes, or if nobody says one."""
    known = {name: expert.latent_shape for name, expert in experts.items() if expert.latent_shape}
    if given is None and not known:
        raise BadRequest("latent_shape", "none is given, and no expert says its own", "give one, channels first")
    if given is not None and not (given and _is_shape(given)):
        raise BadRequest(
            "latent_shape", f"{given!r:.80}", "give whole numbers above 0, channels first, e.g. (4, 64, 64)"
        )
    shape = tuple(next(iter(known.values())) if given is None else given)
    for name, own in known.items():
        if (len(own), own[0]) != (len(shape), shape[0]) or (given is None and own != shape):
            first = "those asked for" if given is not None else next(iter(known))
            seen = f"its latents are {list(own)}, {first} {list(shape)}"
            raise BadRequest(f"expert {name}", seen, "compose models of one latent space, or give latent_shape")
    return shape


def _is_shape(given: Any) -> bool:
    return isinstance(given, Sequence) and all(isinstance(size, int) and size > 0 for size in given)
