"""Train a third expert for `faces-128`, of sketches, alone; then its dynamic diffuser beside the shipped ones.

python -m recipes.faces.train_sketch sketch --minutes 25 --data data --out trained
python -m recipes.faces.train_sketch sketch-diffuser --minutes 8 --data data --out trained

OUT holds the weights of `faces-128` (unpack.py), which stay as they are.
"""

from dataclasses import replace

import torch
from torch import nn

from recipes.faces.config import FACES_AND_SKETCH
from recipes.faces.examples import Examples, Stage, encode_all, lines_of
from recipes.faces.slimmer import slim
from recipes.faces.train import Stages, begin, branch_loss, diffusers_loss, trainer, visibility
from recipes.faces.training import fit
from recipes.faces.weights import load_weights, parts_of, save_weights

SKETCH = "sketch"
SUBSETS = (("mask", SKETCH), ("text", SKETCH), ("mask", "text", SKETCH), ("mask", "text", SKETCH))


def examples_of(stage: Stage) -> Examples:
    found = encode_all(stage)
    lines = lines_of(stage.portraits, stage.portraits.train_count)
    return replace(found, conditions=found.conditions | {SKETCH: lines})


def train_sketch(stage: Stage) -> None:
    """Its encoder and UNet, which starts as a slim one of the mask's, or `again` as it is: such draw faces already."""
    examples, expert = examples_of(stage), stage.model.expert(SKETCH)
    load_weights(stage.model, stage.plan.folder, parts_of("mask")[1])
    with torch.no_grad():
        begin(stage, parts_of(SKETCH)[1:2], lambda: slim(stage.model.expert("mask").unet, expert.unet))
    branch = nn.ModuleDict({"encoder": expert.encoder, "unet": expert.unet})
    expert.unet.compile()
    fit(stage.plan, branch, branch_loss(expert, SKETCH, examples))
    for part in parts_of(SKETCH)[:2]:
        save_weights(stage.model, stage.plan.folder, part)


def train_diffuser(stage: Stage) -> None:
    """The sketch's alone, which starts as the mask's, so that its logits are as large as theirs."""
    examples = examples_of(stage)
    experts = {modality: stage.model.expert(modality) for modality in stage.model.experts}
    stage.model.requires_grad_(False)
    mask = parts_of("mask")
    for part in ("vae", *mask, *parts_of("text"), *parts_of(SKETCH)[:2]):
        load_weights(stage.model, stage.plan.folder, part)
    trained = experts[SKETCH].diffuser
    with torch.no_grad():
        slim(experts["mask"].diffuser, trained)
    trained.requires_grad_(True)
    fit(stage.plan, trained, diffusers_loss(experts, visibility(stage.model.vae), examples, SUBSETS))
    save_weights(stage.model, stage.plan.folder, parts_of(SKETCH)[2])


STAGES: Stages = {
    SKETCH: (train_sketch, {"batch": 32, "learning_rate": 1.5e-3, "ema": 0.999}),
    "sketch-diffuser": (train_diffuser, {"batch": 32, "learning_rate": 1e-3}),
}

main = trainer(STAGES, FACES_AND_SKETCH)

if __name__ == "__main__":
    main()
