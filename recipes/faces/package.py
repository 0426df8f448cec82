"""The stages' weights, put together into the one checkpoint that `cdiff-rt export` takes.

python -m recipes.faces.package --work trained --out faces-128.safetensors

The same from a bundle, for what is said beside its weights:

python -m recipes.faces.package --bundle cdiff_rt/models/faces-128 --out faces-128.safetensors
"""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import click
from safetensors.torch import load_file

from cdiff_rt.export.checkpoint import Description, in_memory, write_checkpoint
from cdiff_rt.manifest import Bundle, Modality
from cdiff_rt.settings import Influence
from recipes.faces.captions import SYNONYMS
from recipes.faces.config import FACES_128, IMAGE_SIZE, MASK_CLASSES, MASK_SIZE, SCHEDULE, TOKENS, VOCABULARY
from recipes.faces.train import STAGES
from recipes.faces.weights import load_model

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
VOCABULARY_FILE = "vocab.txt"
MODALITIES = (
    Modality("mask", "labels", decays=True, anchor=False, size=MASK_SIZE, classes=MASK_CLASSES),
    Modality("text", "words", decays=False, anchor=True, tokens=TOKENS, vocabulary=VOCABULARY_FILE, synonyms=SYNONYMS),
)


def training_log(work: Path, stages: Iterable[str] = STAGES) -> dict[str, list[dict]]:
    """stage -> the last report of each of its runs: steps, images, minutes of computing, loss."""
    return {stage: runs((work / f"{stage}.jsonl").read_text()) for stage in stages}


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
@click.option("--work", type=FOLDER, help="A folder of the training's stages.")
@click.option("--bundle", type=FOLDER, help="Or a bundle of this model.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(work: Path | None, bundle: Path | None, out: Path) -> None:
    """Collect the weights in WORK or BUNDLE into the checkpoint OUT."""
    if work and not bundle:
        scale = load_file(work / "latents.safetensors")["scale"].item()
        found = in_memory(describe(scale, training_log(work)), load_model(work).state_dict())
    elif bundle and not work:
        opened = Bundle.open(bundle)
        weights = load_file(opened.path(opened.manifest.weights))
        found = in_memory(describe(opened.manifest.latent_scale, opened.manifest.provenance["training"]), weights)
    else:
        raise click.UsageError("give --work or --bundle")
    write_checkpoint(out, found)


if __name__ == "__main__":
    main()
