"""The shipped sketch's expert beside the embedded model."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdiff_rt.joined import space_of
from cdiff_rt.manifest import Bundle, find_model
from cdiff_rt.pipeline import Pipeline
from recipes.faces.sketch_exam import FOLLOWED
from recipes.faces.sketches import agreement, edges, features

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/faces-sketch"
CONDITIONS = {
    "sketch": FOLDER / "4.png",
    "mask": ROOT / "examples/4.png",
    "text": "The woman has blond hair. She is in her twenties.",
}
LARGEST = 8_000_000  # bytes


@pytest.fixture(scope="module")
def pipeline():
    with Pipeline.from_pretrained(with_experts={"sketch": FOLDER / "bundle"}) as opened:
        yield opened


def test_it_is_small_and_of_the_host_s_latents():
    bundle, host = Bundle.open(FOLDER / "bundle"), Bundle.open(find_model("faces-128"))
    assert sum(path.stat().st_size for path in bundle.folder.iterdir()) <= LARGEST
    assert bundle.manifest.space == space_of(host)
    assert bundle.manifest.latent_scale == host.manifest.latent_scale
    assert not bundle.manifest.image_size and "vae" not in str(list(bundle.manifest.networks))


@pytest.mark.parametrize(
    "names", [names for count in (1, 2, 3) for names in combinations(CONDITIONS, count)], ids="+".join
)
def test_any_of_the_three_conditions_run(names, pipeline):
    made = pipeline.generate(conditions={name: CONDITIONS[name] for name in names}, steps=2)
    assert made.images.shape == (1, 128, 128, 3)
    assert list(made.parameters["conditions"]) == [name for name in ("mask", "text", "sketch") if name in names]


def test_the_face_has_the_lines_of_the_sketch_and_without_it_others(pipeline):
    drawn = np.array(Image.open(CONDITIONS["sketch"])) < 128
    found = {}
    for names in (("sketch", "text"), ("text",)):
        made = pipeline.generate(conditions={name: CONDITIONS[name] for name in names}, tier="turbo").images
        image = torch.from_numpy(made).permute(0, 3, 1, 2).float() / 127.5 - 1
        found[names] = agreement(features(edges(image)), torch.from_numpy(drawn)[None]).item()
    assert found["sketch", "text"] > FOLLOWED > found["text",]
