"""A UNet's weights for a narrower one of the same make: evenly chosen channels, and louder for those left out.

The narrow network is not the wide one, but it begins with edges and colours in its channels instead of noise. Channels of
a context that only it has beside x begin without weight.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cdiff_rt.nets.unet import UNet

FIRST = "input_blocks.0.0.weight"  # [channels, in, height, width]


def slim(wide: UNet, narrow: UNet) -> None:
    """Gives `narrow` weights from `wide`. Both have the same blocks, and head for head, group for group fewer channels."""
    found, joined = wide.state_dict(), _joined(wide, narrow)
    beside = narrow.input_blocks[0][0].in_channels - wide.input_blocks[0][0].in_channels  # type: ignore[index]
    found[FIRST] = F.pad(found[FIRST], (0, 0, 0, 0, 0, beside))
    for name, target in narrow.state_dict().items():
        block = ".".join(name.split(".")[:3])
        source = found[name] if name in found else _unchanged(name, len(target))
        for axis, (have, want) in enumerate(zip(source.shape, target.shape, strict=True)):
            parts = joined.get(block, [(have, want)])
            if (sum(a for a, _ in parts), sum(b for _, b in parts)) != (have, want):
                parts = [(have, want)]
            source = source.index_select(axis, _chosen(parts))
            source = source * (have / want) if axis == 1 else source
        target.copy_(source)


def _unchanged(name: str, count: int) -> Tensor:
    """Weights of the wide block's skip where it needs none, because it takes as many channels as it gives."""
    return torch.zeros(count) if name.endswith("bias") else torch.eye(count)[:, :, None, None]


def _joined(wide: UNet, narrow: UNet) -> dict[str, list[tuple[int, int]]]:
    """A block that takes channels from below and from a skip -> both numbers of both, wide and narrow."""
    return {
        f"output_blocks.{i}.0": list(zip(a, b, strict=True))
        for i, (a, b) in enumerate(zip(_inputs(wide), _inputs(narrow), strict=True))
    }


def _inputs(unet: UNet) -> list[tuple[int, int]]:
    """Of each output block: channels from below, and from the skip."""
    below = [unet.middle_block[0].out_channels, *(stage[0].out_channels for stage in unet.output_blocks)]  # type: ignore[index]
    taken = [stage[0].in_layers[2].in_channels for stage in unet.output_blocks]  # type: ignore[index]
    return [(a, b - a) for a, b in zip(below, taken, strict=False)]


def _chosen(parts: list[tuple[int, int]]) -> Tensor:
    """Places of the channels that stay, evenly spread in each part."""
    starts = torch.tensor([0, *(have for have, _ in parts)]).cumsum(0)
    even = [(torch.arange(want) * have) // want for have, want in parts]
    return torch.cat([start + places for start, places in zip(starts, even, strict=False)])
