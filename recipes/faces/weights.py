"""Weights on disk, between the stages: one safetensors file for each part that a stage trains."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from cdiff_rt.nets.collaborative import CollaborativeModel
from recipes.faces.config import FACES_128


def save_weights(model: nn.Module, folder: Path, part: str) -> None:
    """`part` of the model ("vae", "mask.unet", ...) as fp32 safetensors; stages read each other's."""
    tensors = {k: v.contiguous() for k, v in model.get_submodule(part).state_dict().items()}
    save_file(tensors, folder / f"{part}.safetensors")


def load_weights(model: nn.Module, folder: Path, part: str) -> None:
    model.get_submodule(part).load_state_dict(load_file(folder / f"{part}.safetensors"))


def parts_of(modality: str) -> list[str]:
    return [f"experts.{modality}.{part}" for part in ("encoder", "unet", "diffuser")]


def all_parts() -> list[str]:
    """The files of weights that the stages leave."""
    return ["vae", *(part for modality in FACES_128.experts for part in parts_of(modality))]


def load_model(folder: Path) -> CollaborativeModel:
    """The whole model from the weights of all stages."""
    model = CollaborativeModel(FACES_128).eval()
    for part in all_parts():
        load_weights(model, folder, part)
    return model
