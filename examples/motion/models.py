"""The networks and what describes them: two experts over lines of points, and no autoencoder, for the data are latents.

This is all that a runtime has to be told of a new domain.
"""

from dataclasses import replace

import numpy as np

from cdiff_rt.export.checkpoint import Description
from cdiff_rt.inputs.wordpiece import END, PAD, START, UNKNOWN, WordPiece
from cdiff_rt.manifest import Modality
from cdiff_rt.nets.collaborative import EncoderConfig, ExpertConfig, ModelConfig
from cdiff_rt.nets.mask_encoder import MaskEncoderConfig
from cdiff_rt.nets.text_encoder import TextEncoderConfig
from cdiff_rt.nets.unet import UNetConfig
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import Influence
from examples.motion.paths import NAMES, POINTS, Requests, as_numbers

VOCABULARY, VOCABULARY_FILE = [PAD, UNKNOWN, START, END, *NAMES], "styles.txt"
TOKENS = 3  # a word between START and END
SCHEDULE = Schedule(beta_start=0.0001, beta_end=0.02, prediction="v")  # at its end the noise is no more than a tremble

# 64 channels, for a GroupNorm has 32 groups: in a group of one channel it removes whatever is equal at all points,
# that is the timestep and where a path lies.
BRANCH = UNetConfig(
    in_channels=2,
    out_channels=2,
    model_channels=64,
    channel_mult=(1, 1, 1),
    num_res_blocks=0,
    attention_resolutions=(4,),
    num_heads=4,
    context_dim=64,
    dims=1,
)
DIFFUSER = replace(BRANCH, out_channels=1)
MODALITIES = (
    Modality("endpoints", "numbers", decays=False, anchor=False, tokens=2, width=2),
    Modality("style", "words", decays=False, anchor=False, tokens=TOKENS, vocabulary=VOCABULARY_FILE),
)


def model_config(branch: UNetConfig = BRANCH, diffuser: UNetConfig = DIFFUSER) -> ModelConfig:
    """Start and goal are a token each; a style is a word."""
    ends = MaskEncoderConfig(pixels=2, width=branch.context_dim, classes=2)
    words = TextEncoderConfig(len(VOCABULARY), TOKENS, branch.context_dim, layers=1, heads=2, head_width=32)
    encoders: dict[str, EncoderConfig] = {"endpoints": ends, "style": words}
    return ModelConfig({name: ExpertConfig(encoder, branch, diffuser) for name, encoder in encoders.items()}, vae=None)


def describe(config: ModelConfig) -> Description:
    return Description(
        name="motion",
        image_size=0,
        latent_shape=(2, POINTS),
        latent_scale=1.0,
        config=config,
        schedule=SCHEDULE,
        influence=Influence(decay="none", factor=1.0),
        modalities=MODALITIES,
        vocabularies={VOCABULARY_FILE: VOCABULARY},
        provenance={"recipe": "examples/motion"},
        licence="Apache-2.0",
    )


def encoder_inputs(requests: Requests) -> dict[str, np.ndarray]:
    """modality -> what its encoder takes [N, ...], as the runtime makes it of a user's values."""
    words = WordPiece(VOCABULARY)
    ids = np.array([words.encode(name, TOKENS).ids for name in NAMES])
    return {"endpoints": as_numbers(requests.ends), "style": ids[requests.styles]}
