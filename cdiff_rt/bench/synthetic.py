"""Models of the published sizes without a trained weight, to be timed and compared.

python -m cdiff_rt.bench.synthetic 512 synthetic-512/ [--torch]

With --torch it is for PyTorch on a GPU alone: without graphs, so it needs no onnx, and with heads padded to 16.

Every tensor is a function of its official key and its shape. The reference was run with weights of this rule; its
outputs are in tests/data/golden. Numbers come from splitmix64, seeded by the key's sha256, so they are the same on every
machine and in every version of numpy.
"""

import dataclasses
import hashlib
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdiff_rt.errors import BadRequest, CdiffError
from cdiff_rt.outputs.files import check_folder

if TYPE_CHECKING:
    from torch import Tensor

    from cdiff_rt.export.checkpoint import Checkpoint
    from cdiff_rt.export.published import Published

# suffix of the key -> gain of a matrix or convolution; the others have 1
GAINS = {
    "diffusion_model.out.2.weight": 1.6,  # predictions and logits of about unit spread
    "to_q.weight": 1.5,  # attention that isn't uniform
    "to_k.weight": 1.5,
    "time_embed.0.weight": 2.0,  # outputs that depend on the timestep
    "time_embed.2.weight": 2.0,
    "emb_layers.1.weight": 1.5,
    "cond_stage_model.linear.weight": 2.0,
}


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    offset, gain = _offset_and_gain(key, shape)
    return (offset + gain * _unit_variance(key, math.prod(shape))).astype(np.float32).reshape(shape)


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform, zero mean, unit variance."""
    return _unit_variance(f"input/{name}", math.prod(shape)).astype(np.float32).reshape(shape)


def _offset_and_gain(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if len(shape) == 1:
        return (1.0, 0.15) if key.endswith("weight") else (0.0, 0.05)
    if key.endswith(("token_emb.weight", "pos_emb.emb.weight")):
        return 0.0, 0.5
    gain = next((gain for suffix, gain in GAINS.items() if key.endswith(suffix)), 1.0)
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


def _unit_variance(seed: str, count: int) -> np.ndarray:
    """splitmix64 -> 24 bits of each number -> uniform in [-sqrt(3), sqrt(3))."""
    state = np.uint64(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        z = state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (2 * (z >> np.uint64(40)).astype(np.float64) * 2.0**-24 - 1) * math.sqrt(3)


class Weights(Mapping[str, "Tensor"]):
    """The weights of a model by our names, made when asked for."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def __getitem__(self, name: str) -> "Tensor":
        import torch

        return torch.from_numpy(weight(official_key(name), self._shapes[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def official_key(name: str) -> str:
    """What a weight is called in a whole checkpoint."""
    from cdiff_rt.export.source import prefixes

    theirs, ours = next(pair for pair in prefixes("codiff") if name.startswith(pair[1]))
    return theirs + name.removeprefix(ours)


def synthetic(size: "Published") -> "Checkpoint":
    from cdiff_rt.export.checkpoint import Checkpoint, model_shapes
    from cdiff_rt.export.published import describe

    made = {"weights": "none was trained, all follow the rule of bench/synthetic.py"}
    description = dataclasses.replace(describe(size, size.model, made), name=f"synthetic-{size.name}", licence="none")
    shapes = model_shapes(size.model)
    return Checkpoint(description, Weights(shapes), shapes)


def write(name: str, out: Path, *, for_torch: bool = False) -> None:
    """The bundle of a published size. Raises BadRequest for an unknown one or if `out` exists; BadInput."""
    from cdiff_rt.export.bundle import write_bundle
    from cdiff_rt.export.published import PUBLISHED

    sizes = {size.name: size for size in PUBLISHED}
    if name not in sizes:
        raise BadRequest("size", repr(name), f"choose one of {', '.join(sizes)}")
    if out.exists():
        raise BadRequest("out", f"{out} exists", "choose another name or remove it")
    check_folder(out.parent)
    out.mkdir(parents=True)
    write_bundle(synthetic(sizes[name]), out, head_multiple=16 if for_torch else 1, graphs=not for_torch)


if __name__ == "__main__":
    try:
        write(sys.argv[1], Path(sys.argv[2]), for_torch="--torch" in sys.argv[3:])
    except IndexError:
        sys.exit("usage: python -m cdiff_rt.bench.synthetic 512|256 FOLDER [--torch]")
    except CdiffError as failure:
        sys.exit(f"error: {failure}")
