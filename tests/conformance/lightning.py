"""A checkpoint of golden weights, saved as PyTorch Lightning 1.4.2 saves: callbacks keyed by class objects and all.

python -m tests.conformance.lightning GOLDEN NAME KIND OUT
"""

import sys
import types
from pathlib import Path

import torch

from tests.conformance.golden import Golden


def save(path: Path, weights: dict[str, torch.Tensor]) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    module = types.ModuleType(name)
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    parents = {part: types.ModuleType(part) for part in ("pytorch_lightning", "pytorch_lightning.callbacks")}
    sys.modules |= parents | {name: module}  # as long as the file is written
    state = {"monitor": None, "best_model_score": torch.tensor(0.5), "dirpath": "checkpoints"}
    momentum = {"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 6.4e-5, "params": [0]}]}
    try:
        torch.save(
            {
                "epoch": 12,
                "global_step": 7,
                "pytorch-lightning_version": "1.4.2",
                "state_dict": weights,
                "callbacks": {callback: state},
                "optimizer_states": [momentum],
                "lr_schedulers": [],
            },
            path,
        )
    finally:
        for part in (*parents, name):
            del sys.modules[part]


def main(golden: str, name: str, kind: str, out: str) -> None:
    given = Golden(Path(golden))
    save(Path(out), {key: given.tensor(key, shape, kind) for key, shape in given.keys(name).items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
