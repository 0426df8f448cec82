"""Trained weights and what describes them; as one file, safetensors with the description in its metadata.

The description is all of a manifest that isn't made by exporting: sizes, schedule, modalities, word pieces, licence.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdiff_rt import schema
from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.stored import plain
from cdiff_rt.export.tensors import metadata, open_tensors, tell, write_tensors
from cdiff_rt.inputs.wordpiece import END, PAD, START, UNKNOWN
from cdiff_rt.manifest import Modality, is_plain_name
from cdiff_rt.nets.autoencoder import AutoencoderConfig
from cdiff_rt.nets.collaborative import CollaborativeModel, ModelConfig
from cdiff_rt.nets.text_encoder import TextEncoderConfig
from cdiff_rt.nets.unet import UNetConfig
from cdiff_rt.notes import log
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import RESERVED, Influence

_KEY = "cdiff_rt"
_HELP = "give a file that a recipe's `package.py` wrote"
# More than any model has: of a number in a description, of a latent's elements, a picture's side, what an encoder takes.
LARGEST, MOST_LATENTS, LARGEST_IMAGE, MOST_INPUTS, MOST_STEPS = 1 << 24, 1 << 22, 4096, 1 << 24, 100_000


@dataclass(frozen=True)
class Description:
    name: str
    image_size: int  # 0 without an autoencoder
    latent_shape: tuple[int, ...]
    latent_scale: float
    config: ModelConfig
    schedule: Schedule
    influence: Influence
    modalities: tuple[Modality, ...]
    vocabularies: dict[str, list[str]]  # file name -> word pieces
    provenance: dict
    licence: str
    space: str = ""  # whose latents these are, without an autoencoder; see `space_of` in joined.py


@dataclass(frozen=True)
class Checkpoint:
    """`weights` may be read one by one when they are asked for."""

    description: Description
    weights: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]


def in_memory(description: Description, weights: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(description, weights, {name: tuple(weight.shape) for name, weight in weights.items()})


def finite(checkpoint: Checkpoint, name: str) -> Tensor:
    """A weight in fp32. Raises BadArtefact if it holds what isn't a number."""
    weight = checkpoint.weights[name].float()
    broken = int((~torch.isfinite(weight)).sum())
    if broken:
        what = f"checkpoint of {checkpoint.description.name}"
        raise BadArtefact(what, f"{name} holds {broken} values that are not finite", "get or train it again")
    return weight


def check_types(file: str, dtypes: Mapping[str, str]) -> None:
    """Of weights. Raises BadArtefact unless they are floating-point numbers."""
    for name, dtype in dtypes.items():
        if not getattr(torch, dtype).is_floating_point:
            remedy = "give the weights before they were quantised or converted"
            raise BadArtefact(f"checkpoint {file}", f"{plain(name)} has whole numbers, {dtype}", remedy)
    others = sorted(set(dtypes.values()) - {"float32"})
    if others:
        log.info("%s: weights in %s become fp32 first", file, ", ".join(others))


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Tensor by tensor, as fp32."""
    specs = {name: ("float32", shape) for name, shape in checkpoint.shapes.items()}
    tensors = ((name, finite(checkpoint, name)) for name in specs)
    write_tensors(path, specs, tensors, {_KEY: json.dumps(asdict(checkpoint.description))})


def describes_itself(path: Path) -> bool:
    """Whether it is a file that `write_checkpoint` wrote."""
    return _KEY in metadata(path)


def read_checkpoint(path: Path, sha256: str = "") -> Checkpoint:
    """Raises BadArtefact unless the file describes itself and holds exactly its model's weights."""
    tensors = open_tensors(path, sha256)
    try:
        data = json.loads(tensors.metadata.get(_KEY, ""))
        description = schema.from_json(Description, data, "description")
    except (ValueError, TypeError, RecursionError) as error:
        raise BadArtefact(
            f"checkpoint {path.name}", f"its description cannot be read ({plain(error)})", _HELP
        ) from None
    wrong = next(_wrong(description, len(tensors)), None)
    if wrong:
        raise BadArtefact(f"checkpoint {path.name}", wrong, _HELP)
    _check_shapes(path.name, description, tensors.shapes)
    check_types(path.name, tensors.dtypes)
    tell(path, tensors)
    return Checkpoint(description, tensors, tensors.shapes)


def _wrong(description: Description, tensors: int) -> Iterator[str]:
    """What contradicts itself in a description, or would take memory or time without end."""
    names = [modality.name for modality in description.modalities]
    if sorted(names) != sorted(description.config.experts):
        yield f"{', '.join(sorted({*names} ^ {*description.config.experts}))}: not both a modality and an expert"
    for name in names:
        if not name.isidentifier() or name in RESERVED:
            yield f"a modality has the name {plain(name)!r}, which is no word or that of a setting"
    yield from _too_large(description, tensors)
    yield from _wrong_vocabulary(description)
    vae = description.config.vae
    if vae and vae.factor < 1:
        yield f"an autoencoder of {vae.factor} pixels in one of a latent"
    side = description.image_size // vae.factor if vae else 0
    if bool(vae) != bool(description.image_size) or (vae and description.latent_shape != (vae.z_channels, side, side)):
        yield f"images of {description.image_size} pixels, latents {description.latent_shape} do not fit its autoencoder"
    bars = description.schedule.alpha_bars()
    if not (bars > 0).all() or not (bars < 1).all():
        yield f"{description.schedule} is no schedule"


def _too_large(description: Description, tensors: int) -> Iterator[str]:
    """`tensors` are those of the file: a model has several for each of its blocks."""
    described = {
        name: value for name, value in asdict(description).items() if name not in ("provenance", "vocabularies")
    }
    odd = next((n for n in _numbers(described) if not -LARGEST <= n <= LARGEST), None)
    if odd is not None:
        yield f"the number {plain(odd)} is larger than any model's"
    if (
        not all(0 < size <= MOST_LATENTS for size in (*description.latent_shape, math.prod(description.latent_shape)))
        or not 0 <= description.image_size <= LARGEST_IMAGE
    ):
        yield f"images of {description.image_size} pixels, latents {description.latent_shape} are larger than any model's"
    if not description.latent_scale > 0:
        yield f"latent_scale {description.latent_scale}"
    if not 1 <= description.schedule.train_steps <= MOST_STEPS:
        yield f"{description.schedule.train_steps} training steps"
    for modality in description.modalities:
        if not all(0 < size <= MOST_INPUTS for size in (*modality.input_shape, math.prod(modality.input_shape))):
            yield f"{modality.name} takes {modality.input_shape}"
    if _blocks(description.config) > tensors:
        yield f"its networks have {_blocks(description.config)} blocks, the file {tensors} tensors"


def _blocks(config: ModelConfig) -> int:
    unets = [net for expert in config.experts.values() for net in (expert.unet, expert.diffuser) if net]
    encoders = [expert.encoder for expert in config.experts.values()]
    layers = sum(encoder.layers for encoder in encoders if isinstance(encoder, TextEncoderConfig))
    nets: list[UNetConfig | AutoencoderConfig] = [*unets, *([config.vae] if config.vae else [])]
    return layers + sum(max(1, net.num_res_blocks) * len(net.channel_mult) for net in nets)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value


def _wrong_vocabulary(description: Description) -> Iterator[str]:
    """A vocabulary is a text file of the bundle, with a line for each piece that the encoder embeds."""
    for file, pieces in description.vocabularies.items():
        if not is_plain_name(file) or not file.endswith(".txt"):
            yield f"vocabulary file {file!r} is no plain .txt name"
        if any("\n" in piece or "\r" in piece for piece in pieces):
            yield f"vocabulary {file!r} has a piece of two lines"
    for modality in description.modalities:
        encoder = description.config.experts[modality.name].encoder
        if isinstance(encoder, TextEncoderConfig):
            pieces = description.vocabularies.get(modality.vocabulary, [])
            if len(pieces) != encoder.vocabulary or not {PAD, UNKNOWN, START, END} <= set(pieces):
                needed = f"{encoder.vocabulary} with {PAD}, {UNKNOWN}, {START} and {END} are embedded"
                yield f"vocabulary {modality.vocabulary!r} has {len(pieces)} pieces, {needed}"


def model_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all weights of a model."""
    return _shapes(_without_numbers(config))


def _without_numbers(config: ModelConfig) -> CollaborativeModel:
    with torch.device("meta"):
        return CollaborativeModel(config)


def _shapes(model: CollaborativeModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _check_shapes(name: str, description: Description, shapes: Mapping[str, tuple[int, ...]]) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch, about empty weights
            model = _without_numbers(description.config)
            expected = _shapes(model)
            _try_out(description, model)
    except (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError, AssertionError) as error:
        raise BadArtefact(f"checkpoint {name}", f"its description makes no model ({plain(error)})", _HELP) from None
    wrong = sorted(set(expected) ^ set(shapes))
    if wrong:
        role = "missing" if wrong[0] in expected else "surplus"
        raise BadArtefact(f"checkpoint {name}", f"{len(wrong)} keys differ, e.g. {wrong[0]} is {role}", _HELP)
    for key, shape in shapes.items():
        if shape != expected[key]:
            seen = f"{key} is {list(shape)}, expected {list(expected[key])}"
            raise BadArtefact(f"checkpoint {name}", seen, _HELP)


def _try_out(description: Description, model: CollaborativeModel) -> None:
    """Every network once, without numbers: any error of torch means that sizes do not go together."""
    latent = torch.empty(1, *description.latent_shape, device="meta")
    with torch.device("meta"):
        for modality in description.modalities:
            expert, words = model.expert(modality.name), modality.kind == "words"
            inputs = torch.empty(1, *modality.input_shape, dtype=torch.int64 if words else torch.float32)
            context, time = expert.condition(inputs), expert.time(torch.zeros(1, dtype=torch.int64))
            out, logit = expert(latent, time, context)
            assert out.shape == latent.shape, f"{modality.name} predicts {list(out.shape)}"
            assert logit.shape == latent[:, :1].shape, f"{modality.name} has influence {list(logit.shape)}"
            assert context.shape[1] == modality.context_tokens, f"{modality.name} has {context.shape[1]} tokens"
        if description.config.vae:
            image = model.vae.decode(latent)
            assert image.shape == (1, 3, description.image_size, description.image_size), f"images {list(image.shape)}"
            assert model.vae.encode(image)[0].shape == latent.shape
