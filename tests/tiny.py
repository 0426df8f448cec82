"""A whole model small enough to export in a test: two experts, 3x8x8 latents, 16-pixel images, random weights.

Heads are 4 and 2 wide, so padding them to 8 changes something; no weight is zero, so no layer can go missing unseen.
Blocks are few because exporting takes its time by their number.
"""

import dataclasses
import gc
import json
from pathlib import Path

from cdiff_rt.export.bundle import export_checkpoint
from cdiff_rt.export.checkpoint import Checkpoint, Description, in_memory, write_checkpoint
from cdiff_rt.inputs.wordpiece import END, PAD, START, UNKNOWN
from cdiff_rt.manifest import Modality
from cdiff_rt.nets.autoencoder import AutoencoderConfig
from cdiff_rt.nets.collaborative import CollaborativeModel, ExpertConfig, ModelConfig
from cdiff_rt.nets.mask_encoder import MaskEncoderConfig
from cdiff_rt.nets.text_encoder import TextEncoderConfig
from cdiff_rt.nets.unet import UNetConfig
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import Influence
from tests.nets.naive import randomise

VOCABULARY = [PAD, UNKNOWN, START, END, "this", "man", "woman", "has", "a", "long", "beard", "."]
CONTEXT, TOKENS, CLASSES, MASK_SIZE = 16, 6, 5, 4
_BRANCH = UNetConfig(
    in_channels=3,
    out_channels=3,
    model_channels=32,
    channel_mult=(1, 1),
    num_res_blocks=0,
    attention_resolutions=(1,),
    num_heads=8,
    context_dim=CONTEXT,
)
_DIFFUSER = UNetConfig(
    in_channels=3,
    out_channels=1,
    model_channels=32,
    channel_mult=(1,),
    num_res_blocks=0,
    attention_resolutions=(),
    num_heads=16,
    context_dim=CONTEXT,
)
CONFIG = ModelConfig(
    experts={
        "mask": ExpertConfig(MaskEncoderConfig(MASK_SIZE**2, CONTEXT), _BRANCH, _DIFFUSER),
        "text": ExpertConfig(
            TextEncoderConfig(len(VOCABULARY), TOKENS, CONTEXT, layers=1, heads=2, head_width=4),
            dataclasses.replace(_DIFFUSER, out_channels=3),
            _DIFFUSER,
        ),
    },
    vae=AutoencoderConfig(channels=32, channel_mult=(1, 1), num_res_blocks=0, z_channels=3),
)
DESCRIPTION = Description(
    name="tiny",
    image_size=16,
    latent_shape=(3, 8, 8),
    latent_scale=0.5,
    config=CONFIG,
    schedule=Schedule(prediction="v"),
    influence=Influence(),
    modalities=(
        Modality("mask", "labels", decays=True, anchor=False, size=MASK_SIZE, classes=CLASSES),
        Modality("text", "words", decays=False, anchor=True, tokens=TOKENS, vocabulary="vocab.txt"),
    ),
    vocabularies={"vocab.txt": VOCABULARY},
    provenance={"data": "none, random weights"},
    licence="Apache-2.0",
)


def tiny_model() -> CollaborativeModel:
    return randomise(CollaborativeModel(CONFIG)).requires_grad_(False)


def tiny_checkpoint() -> Checkpoint:
    return in_memory(DESCRIPTION, tiny_model().state_dict())


def export_tiny(folder: Path) -> None:
    """Into `folder`: the tiny bundle as `tiny`, and what the export reported as `report.json`."""
    write_checkpoint(folder / "tiny.safetensors", tiny_checkpoint())
    gc.disable()  # tracing makes millions of small objects, and looking through them takes a sixth of the time
    try:
        report = export_checkpoint([folder / "tiny.safetensors"], folder / "tiny", head_multiple=8)
    finally:
        gc.enable()
    (folder / "report.json").write_text(json.dumps(report))
