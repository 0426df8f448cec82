"""A model of experts of equal shape, with random weights: what of a bundle their stack is made of, and no graphs."""

import dataclasses
import json
from pathlib import Path

from cdiff_rt.export.bundle import WEIGHTS, part_specs
from cdiff_rt.export.checkpoint import Description
from cdiff_rt.export.tensors import write_tensors
from cdiff_rt.manifest import Bundle, Manifest, Modality
from cdiff_rt.nets.collaborative import CollaborativeModel, ExpertConfig, ModelConfig
from cdiff_rt.nets.mask_encoder import MaskEncoderConfig
from cdiff_rt.nets.unet import UNetConfig
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import Influence
from tests.nets.naive import randomise

CONTEXT = 16
BRANCH = UNetConfig(
    in_channels=3,
    out_channels=3,
    model_channels=64,  # two channels in a group, so that normalising leaves something of the time rows
    channel_mult=(1,),
    num_res_blocks=0,
    attention_resolutions=(),
    num_heads=8,
    context_dim=CONTEXT,
    head_multiple=16,
)
DIFFUSER = dataclasses.replace(BRANCH, out_channels=1)


def bundle_of(tokens: dict[str, int], folder: Path, latent: tuple[int, ...] = (8, 4), **changed) -> Bundle:
    """`tokens` are the lengths of the contexts, by modality; `changed` is of every UNet."""
    branch, diffuser = (dataclasses.replace(net, dims=len(latent), **changed) for net in (BRANCH, DIFFUSER))
    encoder = MaskEncoderConfig(3, CONTEXT)
    config = ModelConfig({name: ExpertConfig(encoder, branch, diffuser) for name in tokens}, vae=None)
    modalities = tuple(
        Modality(name, "numbers", decays=False, anchor=False, tokens=count, width=3) for name, count in tokens.items()
    )
    described = Description("alike", 0, (3, *latent), 1.0, config, Schedule(), Influence(), modalities, {}, {}, "none")
    model = randomise(CollaborativeModel(config))
    state = model.state_dict()
    write_tensors(folder / WEIGHTS, {n: ("float32", tuple(w.shape)) for n, w in state.items()}, state.items(), {})
    specs = {}
    for name in tokens:
        specs |= part_specs(described, f"experts.{name}", model.expert(name))
    fields = ("name", "image_size", "latent_shape", "latent_scale", "schedule", "influence", "modalities", "licence")
    manifest = Manifest(
        **{field: getattr(described, field) for field in fields},
        networks=specs,
        weights=WEIGHTS,
        source=json.loads(json.dumps(dataclasses.asdict(config))),
        provenance={},
        files={WEIGHTS: "of the weights"},
    )
    return Bundle(folder, manifest, "", {WEIGHTS: (folder / WEIGHTS).read_bytes()})
