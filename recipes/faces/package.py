"""The stages' weights, put together into the one checkpoint that `cdiff-rt export` takes.

python -m recipes.faces.package --work trained --out faces-128.safetensors
"""

import json
from itertools import pairwise
from pathlib import Path

import click
from safetensors.torch import load_file

from cdiff_rt.export.checkpoint import Description, in_memory, write_checkpoint
from cdiff_rt.manifest import Modality
from cdiff_rt.settings import Influence
from recipes.faces.config import FACES_128, IMAGE_SIZE, MASK_CLASSES, MASK_SIZE, SCHEDULE, TOKENS, VOCABULARY
from recipes.faces.train import STAGES
from recipes.faces.weights import load_model

VOCABULARY_FILE = "vocab.txt"
MODALITIES = (
    Modality("mask", "labels", decays=True, anchor=False, size=MASK_SIZE, classes=MASK_CLASSES),
    Modality("text", "words", decays=False, anchor=True, tokens=TOKENS, vocabulary=VOCABULARY_FILE),
)


def training_log(work: Path) -> dict[str, list[dict]]:
    """stage -> the last report of each of its runs: steps, images, minutes of computing, loss."""
    return {stage: runs((work / f"{stage}.jsonl").read_text()) for stage in STAGES}


def runs(log: str) -> list[dict]:
    """The last report of each run: the next one counts its steps from the beginning."""
    rows = [json.loads(line) for line in log.splitlines()]
    return [row for row, after in pairwise([*rows, {"step": 0}]) if after["step"] <= row["step"]]


def describe(latent_scale: float, training: dict[str, list[dict]]) -> Description:
    vae = FACES_128.vae
    assert vae is not None
    return Description(
        name="faces-128",
        image_size=IMAGE_SIZE,
        latent_shape=(vae.z_channels, IMAGE_SIZE // vae.factor, IMAGE_SIZE // vae.factor),
        latent_scale=latent_scale,
        config=FACES_128,
        schedule=SCHEDULE,
        influence=Influence(decay="cosine", factor=2.0),
        modalities=MODALITIES,
        vocabularies={VOCABULARY_FILE: VOCABULARY},
        provenance={
            "recipe": "recipes/faces",
            "data": "synthetic portraits, painted by the recipe",
            "training": training,
        },
        licence="Apache-2.0",
    )


@click.command()
@click.option("--work", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(work: Path, out: Path) -> None:
    """Collect the weights in WORK into the checkpoint OUT."""
    scale = load_file(work / "latents.safetensors")["scale"].item()
    write_checkpoint(out, in_memory(describe(scale, training_log(work)), load_model(work).state_dict()))


if __name__ == "__main__":
    main()
