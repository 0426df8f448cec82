"""The sizes of `faces-128` and the vocabulary of its captions."""

from dataclasses import replace

from cdiff_rt.inputs.palette import CLASSES
from cdiff_rt.inputs.wordpiece import END, PAD, START, UNKNOWN
from cdiff_rt.nets.autoencoder import AutoencoderConfig
from cdiff_rt.nets.collaborative import ExpertConfig, ModelConfig
from cdiff_rt.nets.mask_encoder import MaskEncoderConfig
from cdiff_rt.nets.picture_encoder import PictureEncoderConfig
from cdiff_rt.nets.text_encoder import TextEncoderConfig
from cdiff_rt.nets.unet import UNetConfig
from cdiff_rt.sampling.schedule import Schedule
from recipes.faces.captions import words

VOCABULARY = [PAD, UNKNOWN, START, END, *words()]
TOKENS = 32
IMAGE_SIZE = 128
MASK_SIZE = 32
MASK_CLASSES = len(CLASSES)
SCHEDULE = Schedule(prediction="v")

_CONTEXT, _LATENT = 128, 16
_BRANCH = UNetConfig(
    in_channels=_LATENT,
    out_channels=_LATENT,
    model_channels=64,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(1, 2),
    num_heads=2,
    context_dim=_CONTEXT,
)
_DIFFUSER = UNetConfig(
    in_channels=_LATENT,
    out_channels=1,
    model_channels=32,
    channel_mult=(1, 1),
    num_res_blocks=1,
    attention_resolutions=(2,),
    num_heads=2,
    context_dim=_CONTEXT,
)
FACES_128 = ModelConfig(
    experts={
        "mask": ExpertConfig(MaskEncoderConfig(MASK_SIZE**2, _CONTEXT, classes=MASK_CLASSES), _BRANCH, _DIFFUSER),
        "text": ExpertConfig(
            TextEncoderConfig(len(VOCABULARY), TOKENS, _CONTEXT, layers=3, heads=4, head_width=32), _BRANCH, _DIFFUSER
        ),
    },
    vae=AutoencoderConfig(channels=32, channel_mult=(2, 3), num_res_blocks=1, z_channels=_LATENT, patch=4, linear=True),
)

# A branch that fits into a few megabytes, and thinks of the same latents. It has a token for each of their places.
SKETCH = ExpertConfig(
    PictureEncoderConfig(IMAGE_SIZE, _CONTEXT, halvings=3),
    replace(_BRANCH, model_channels=32, channel_mult=(2, 3), tokens_at_places=True),
    replace(_DIFFUSER, tokens_at_places=True),
)
FACES_AND_SKETCH = replace(FACES_128, experts=FACES_128.experts | {"sketch": SKETCH})
