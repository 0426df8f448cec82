"""A folder of golden data: what the reference computed, and the weights and inputs it was given.

Weights are a function of a key and a shape (bench/synthetic.py), so the folder holds lists of keys only.
"""

import gzip
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cdiff_rt.bench.synthetic import noise, weight
from cdiff_rt.export.published import Published, published
from cdiff_rt.export.source import OFFICIAL

SCHEDULE_FILE = "schedule.npz"
TINY = {"latent": 16, "context": 64, "channels": 32, "text_layers": 2, "vae_channels": 32}
THREE = ("mask", "text", "sketch")
SIZES: dict[str, Published] = {
    "tiny512": published("tiny512", (1, 2, 4, 4), 0.141, **TINY),  # type: ignore[arg-type]
    "tiny256": published("tiny256", (1, 2, 4), 0.058, **TINY),  # type: ignore[arg-type]
    "tiny512_sketch": published("tiny512", (1, 2, 4, 4), 0.141, modalities=THREE, **TINY),  # type: ignore[arg-type]
}


@dataclass(frozen=True)
class Golden:
    """`folder` has key lists and the schedule; `cases`, one of its folders, inputs and outputs."""

    folder: Path

    @cached_property
    def cases(self) -> Path:
        places = [self.folder, *sorted(path for path in self.folder.iterdir() if path.is_dir())]
        found = [place for place in places if (place / "inputs.json").exists()]
        assert len(found) == 1, f"{self.folder} has {len(found)} sets of cases"
        return found[0]

    @cached_property
    def inputs(self) -> dict:
        return json.loads((self.cases / "inputs.json").read_text())

    def has(self, case: str) -> bool:
        return (self.cases / f"{case}.npz").exists()

    def arrays(self, case: str) -> dict[str, np.ndarray]:
        with np.load(self.cases / f"{case}.npz") as file:
            return dict(file)

    @property
    def schedule(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / SCHEDULE_FILE) as file:
            return dict(file)

    def keys(self, name: str) -> dict[str, tuple[int, ...]]:
        """Official key -> shape, of a checkpoint."""
        path = self.folder / "state_dict" / f"state_dict_{name}.json"
        packed = path.with_suffix(".json.gz")
        text = path.read_text() if path.exists() else gzip.decompress(packed.read_bytes()).decode()
        return {key: tuple(row["shape"]) for key, row in json.loads(text).items()}

    def tensor(self, key: str, shape: tuple[int, ...], kind: str = "codiff") -> torch.Tensor:
        """What a checkpoint of a kind holds under a key: the schedule's own numbers, or weights by the rule."""
        if key in self.schedule:
            return torch.from_numpy(self.schedule[key])
        return torch.from_numpy(weight(canonical(key, kind), shape))

    def noise(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return noise(f"{self.inputs['noise_namespace']}/{name}", shape)


def canonical(key: str, kind: str) -> str:
    """The key that a tensor of a uni-modal or vae checkpoint has in a "codiff" one."""
    if kind == "codiff":
        return key
    if kind == "vae":
        return f"first_stage_model.{key}"
    for part, whole in (("model.", "model.{}_unet."), ("cond_stage_model.", "cond_stage_model.{}_cond_stage_model.")):
        if key.startswith(part):
            return whole.format(OFFICIAL[kind]) + key.removeprefix(part)
    return key
