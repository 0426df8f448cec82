"""Trained weights and what describes them; as one file, safetensors with the description in its metadata.

The description is all of a manifest that isn't made by exporting: sizes, schedule, modalities, word pieces, licence.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from cdiff_rt import schema
from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.tensors import metadata, open_tensors, write_tensors
from cdiff_rt.inputs.wordpiece import END, PAD, START, UNKNOWN
from cdiff_rt.manifest import Modality, is_plain_name
from cdiff_rt.nets.collaborative import ModelConfig
from cdiff_rt.nets.text_encoder import TextEncoderConfig
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import Influence

_KEY = "cdiff_rt"
_HELP = "give a file that a recipe's `package.py` wrote"


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


@dataclass(frozen=True)
class Checkpoint:
    """`weights` may be read one by one when they are asked for."""

    description: Description
    weights: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]


def in_memory(description: Description, weights: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(description, weights, {name: tuple(weight.shape) for name, weight in weights.items()})


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Tensor by tensor, as fp32."""
    specs = {name: ("float32", shape) for name, shape in checkpoint.shapes.items()}
    tensors = ((name, checkpoint.weights[name].float()) for name in specs)
    write_tensors(path, specs, tensors, {_KEY: json.dumps(asdict(checkpoint.description))})


def describes_itself(path: Path) -> bool:
    """Whether it is a file that `write_checkpoint` wrote."""
    return _KEY in metadata(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises BadArtefact unless the file describes itself and holds exactly its model's weights."""
    tensors = open_tensors(path)
    try:
        description = schema.from_json(Description, json.loads(metadata(path).get(_KEY, "")), "description")
    except (ValueError, TypeError) as error:
        raise BadArtefact(f"checkpoint {path.name}", f"its description cannot be read ({error})", _HELP) from None
    _check_description(path.name, description)
    _check_shapes(path.name, description, tensors.shapes)
    return Checkpoint(description, tensors, tensors.shapes)


def _check_description(name: str, description: Description) -> None:
    """Raises BadArtefact if modalities and experts don't match, or a vocabulary would not be a text file of the bundle."""
    strangers = {modality.name for modality in description.modalities} ^ set(description.config.experts)
    if strangers:
        raise BadArtefact(
            f"checkpoint {name}", f"{', '.join(sorted(strangers))}: not both a modality and an expert", _HELP
        )
    for file in description.vocabularies:
        if not is_plain_name(file) or not file.endswith(".txt"):
            raise BadArtefact(f"checkpoint {name}", f"vocabulary file {file!r} is no plain .txt name", _HELP)
    for modality in description.modalities:
        encoder = description.config.experts[modality.name].encoder
        if isinstance(encoder, TextEncoderConfig):
            pieces = description.vocabularies.get(modality.vocabulary, [])
            if len(pieces) != encoder.vocabulary or not {PAD, UNKNOWN, START, END} <= set(pieces):
                seen = f"vocabulary {modality.vocabulary!r} has {len(pieces)} pieces, {encoder.vocabulary} are embedded"
                raise BadArtefact(f"checkpoint {name}", seen, f"it needs those, {PAD}, {UNKNOWN}, {START} and {END}")
    vae = description.config.vae
    side = description.image_size // vae.factor if vae else 0
    if bool(vae) != bool(description.image_size) or (vae and description.latent_shape != (vae.z_channels, side, side)):
        seen = f"images of {description.image_size} pixels, latents {description.latent_shape}"
        raise BadArtefact(f"checkpoint {name}", f"{seen} do not fit its autoencoder", _HELP)


def model_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all weights of a model."""
    import torch

    from cdiff_rt.nets.collaborative import CollaborativeModel

    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in CollaborativeModel(config).state_dict().items()}


def _check_shapes(name: str, description: Description, shapes: Mapping[str, tuple[int, ...]]) -> None:
    try:
        expected = model_shapes(description.config)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise BadArtefact(f"checkpoint {name}", f"its description makes no model ({error})", _HELP) from None
    wrong = sorted(set(expected) ^ set(shapes))
    if wrong:
        role = "missing" if wrong[0] in expected else "surplus"
        raise BadArtefact(f"checkpoint {name}", f"{len(wrong)} keys differ, e.g. {wrong[0]} is {role}", _HELP)
    for key, shape in shapes.items():
        if shape != expected[key]:
            seen = f"{key} is {list(shape)}, expected {list(expected[key])}"
            raise BadArtefact(f"checkpoint {name}", seen, _HELP)
