"""The weights of the sketch's expert as the checkpoint that `cdiff-rt export` takes.

python -m recipes.faces.package_sketch --work trained --out faces-sketch.safetensors
"""

from pathlib import Path

import click
import torch

from cdiff_rt.export.checkpoint import Description, in_memory, write_checkpoint
from cdiff_rt.joined import space_of
from cdiff_rt.manifest import Bundle, Modality, find_model
from cdiff_rt.nets.collaborative import ModelConfig
from cdiff_rt.nets.picture_encoder import PictureEncoderConfig
from recipes.faces.config import IMAGE_SIZE, SCHEDULE, SKETCH
from recipes.faces.package import FOLDER, training_log
from recipes.faces.sketch_exam import load
from recipes.faces.train_sketch import STAGES

NAME = "sketch"


def describe(host: Bundle, training: dict[str, list[dict]]) -> Description:
    """An expert of the host's latents, with no autoencoder of its own."""
    assert isinstance(SKETCH.encoder, PictureEncoderConfig)
    return Description(
        name=f"faces-{NAME}",
        image_size=0,
        latent_shape=host.manifest.latent_shape,
        latent_scale=host.manifest.latent_scale,
        config=ModelConfig({NAME: SKETCH}, None),
        schedule=SCHEDULE,
        influence=host.manifest.influence,
        modalities=(Modality(NAME, "picture", False, False, size=IMAGE_SIZE, tokens=SKETCH.encoder.tokens),),
        vocabularies={},
        provenance={
            "recipe": "recipes/faces",
            "data": "synthetic portraits, painted by the recipe",
            "host": host.manifest.name,
            "training": training,
        },
        licence="Apache-2.0",
        space=space_of(host),
    )


@click.command()
@click.option("--work", type=FOLDER, required=True, help="A folder of the training's stages.")
@click.option("--host", default="faces-128", show_default=True, help="The bundle in whose latents it was trained.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@torch.inference_mode()
def main(work: Path, host: str, out: Path) -> None:
    """Collect the weights in WORK into the checkpoint OUT."""
    prefix = f"experts.{NAME}."
    weights = {name: value for name, value in load(work).state_dict().items() if name.startswith(prefix)}
    write_checkpoint(out, in_memory(describe(Bundle.open(find_model(host)), training_log(work, STAGES)), weights))


if __name__ == "__main__":
    main()
