"""Trained weights in one file: safetensors with the model's description in its metadata.

The description is all of a manifest that isn't made by exporting: sizes, schedule, modalities, word pieces, licence.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from cdiff_rt import records
from cdiff_rt.errors import BadArtefact
from cdiff_rt.manifest import Influence, Modality, is_plain_name
from cdiff_rt.nets.collaborative import ModelConfig
from cdiff_rt.nets.text_encoder import TextEncoderConfig
from cdiff_rt.schedule import Schedule
from cdiff_rt.wordpiece import END, PAD, START, UNKNOWN

_KEY = "cdiff_rt"
_HELP = "give a file that a recipe's `finish` stage wrote"


@dataclass(frozen=True)
class Description:
    name: str
    image_size: int
    latent_scale: float
    config: ModelConfig
    schedule: Schedule
    influence: Influence
    modalities: tuple[Modality, ...]
    vocabularies: dict[str, list[str]]  # file name -> word pieces
    provenance: dict
    licence: str

    @property
    def latent_shape(self) -> tuple[int, ...]:
        side = self.image_size // self.config.vae.factor
        return (self.config.vae.z_channels, side, side)


@dataclass(frozen=True)
class Checkpoint:
    description: Description
    weights: dict[str, Tensor]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    from safetensors.torch import save_file

    description = asdict(checkpoint.description)
    save_file(checkpoint.weights, path, metadata={_KEY: json.dumps(description)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises BadArtefact unless the file describes itself and holds exactly its model's weights, all finite."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise BadArtefact(f"checkpoint {path}", "there is no such file", "check the path")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise BadArtefact(f"checkpoint {path.name}", f"not a safetensors file ({error})", _HELP) from None
    if _KEY not in metadata:
        raise BadArtefact(f"checkpoint {path.name}", "it does not describe its model", _HELP)
    try:
        description = records.from_json(Description, json.loads(metadata[_KEY]), "description")
    except (ValueError, TypeError) as error:
        raise BadArtefact(f"checkpoint {path.name}", f"its description cannot be read ({error})", _HELP) from None
    checkpoint = Checkpoint(description, weights)
    _check_description(path.name, description)
    _check_weights(path.name, checkpoint)
    return checkpoint


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
    if description.image_size % description.config.vae.factor:
        seen = f"images of {description.image_size} pixels, latents {description.config.vae.factor} times smaller"
        raise BadArtefact(f"checkpoint {name}", seen, _HELP)


def _check_weights(name: str, checkpoint: Checkpoint) -> None:
    import torch

    from cdiff_rt.nets.collaborative import CollaborativeModel

    try:
        with torch.device("meta"):
            expected = CollaborativeModel(checkpoint.description.config).state_dict()
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise BadArtefact(f"checkpoint {name}", f"its description makes no model ({error})", _HELP) from None
    wrong = sorted(set(expected) ^ set(checkpoint.weights))
    if wrong:
        role = "missing" if wrong[0] in expected else "surplus"
        raise BadArtefact(f"checkpoint {name}", f"{len(wrong)} keys differ, e.g. {wrong[0]} is {role}", _HELP)
    for key, weight in checkpoint.weights.items():
        if weight.shape != expected[key].shape:
            shapes = f"{key} is {list(weight.shape)}, expected {list(expected[key].shape)}"
            raise BadArtefact(f"checkpoint {name}", shapes, _HELP)
        if not torch.isfinite(weight).all():
            raise BadArtefact(f"checkpoint {name}", f"{key} holds values that are not finite", "train it again")
