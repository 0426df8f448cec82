"""A picture's tokens and a UNet's queries begin with words for places that fit each other, so that each place of a latent
looks at once at the patch of the picture that lies there. To learn that by descent alone took longer than all the rest.
"""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from cdiff_rt.nets.attention import Attention
from cdiff_rt.nets.collaborative import Expert
from cdiff_rt.nets.picture_encoder import PictureEncoder
from cdiff_rt.nets.unet import TransformerBlock
from recipes.faces.config import SCHEDULE
from recipes.faces.train import at_timestep, cosines

SHARPNESS = 2.0  # of the attention's scores between places
RIDGE = 1e-4  # of the regression, as a share of the features' power


def start_at_places(expert: Expert, latents: Tensor, generator: torch.Generator) -> None:
    """`latents` show what the UNet knows of places: queries begin as the best linear guess at where they are."""
    encoder = expert.encoder
    assert isinstance(encoder, PictureEncoder)
    side = math.isqrt(len(encoder.position))
    words = side * cosines(side, min(len(encoder.position), encoder.position.shape[1] // 2))  # [words, places]
    encoder.position.zero_()
    encoder.position[:, : len(words)] = words.T
    encoder.norm.weight[: len(words)] = 0
    tokens = encoder(torch.ones(1, 1, *[side << len(encoder.halved)] * 2)).expand(len(latents), -1, -1)
    steps = torch.randint(SCHEDULE.train_steps, (len(latents),), generator=generator)
    x, t, _ = at_timestep(latents, steps, generator)
    for block in _decoding(expert):
        seen: list[Tensor] = []
        hook = block.norm2.register_forward_hook(lambda module, given, h, seen=seen: seen.append(h))
        expert.unet(x, t, tokens)
        hook.remove()
        if seen[0].shape[1] == len(encoder.position):
            _look_where_it_is(block, seen[0], words)


def _decoding(expert: Expert) -> Iterator[TransformerBlock]:
    """Of the way up: those on the way down see too little to know where they are."""
    for layer in expert.unet.output_blocks.modules():
        if isinstance(layer, TransformerBlock):
            yield layer


def _look_where_it_is(block: TransformerBlock, features: Tensor, words: Tensor) -> None:
    """features [B, places, dim], words [words, places]: queries and keys of every head say the lowest words."""
    attention = cast(Attention, block.attn2)
    to_q, to_k, to_v = (cast(nn.Linear, layer) for layer in (attention.to_q, attention.to_k, attention.to_v))
    width = to_q.out_features // attention.heads
    lowest = words[:width]
    x = features.flatten(0, 1)
    power = x.T @ x
    wanted = lowest.T.expand(len(features), -1, -1).flatten(0, 1)
    guess = torch.linalg.solve(power + RIDGE * power.trace() * torch.eye(len(power)), x.T @ wanted)  # [dim, words]
    nn.init.zeros_(to_k.weight)
    for head in range(attention.heads):
        rows = slice(head * width, head * width + len(lowest))
        to_q.weight[rows] = SHARPNESS * guess.T
        to_k.weight[rows, : len(lowest)] = torch.eye(len(lowest))
    to_v.reset_parameters()
