"""A sketch's expert, untrained, beside the embedded model."""

import numpy as np
import pytest
import torch

from cdiff_rt.export.bundle import write_bundle
from cdiff_rt.export.checkpoint import in_memory
from cdiff_rt.manifest import Bundle, find_model
from cdiff_rt.nets.collaborative import CollaborativeModel
from cdiff_rt.pipeline import Pipeline
from recipes.faces.config import FACES_AND_SKETCH
from recipes.faces.package_sketch import describe
from recipes.faces.sketch_exam import Way, latents, ways
from recipes.faces.sketches import clean

LARGEST = 7_500_000  # bytes; graphs take another half million


@pytest.fixture(scope="module")
def lines():
    drawn = torch.zeros(1, 128, 128, dtype=torch.bool)
    drawn[:, 40:90, 64] = drawn[:, 60, 30:100] = True
    return drawn


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    model = CollaborativeModel(FACES_AND_SKETCH).eval()
    return {name: value for name, value in model.state_dict().items() if name.startswith("experts.sketch.")}


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    made = tmp_path_factory.mktemp("sketch") / "bundle"
    made.mkdir()
    host = Bundle.open(find_model("faces-128"))
    write_bundle(in_memory(describe(host, {}), weights), made, graphs=False)
    return made


@pytest.fixture(scope="module")
def pipeline(folder):
    with Pipeline.from_pretrained(with_experts={"sketch": folder}, backend="torch") as opened:
        yield opened


@pytest.fixture
def conditions(lines, mask):
    drawing = (255 * clean(lines)[0, 0].numpy()).astype(np.uint8)
    return {"mask": mask, "text": "The woman has blond hair.", "sketch": drawing}


def test_it_is_small_and_of_the_host_s_latents(folder):
    made, host = (Bundle.open(each).manifest for each in (folder, find_model("faces-128")))
    assert (folder / "weights.safetensors").stat().st_size <= LARGEST
    assert (made.latent_shape, made.latent_scale, made.schedule) == (
        host.latent_shape,
        host.latent_scale,
        host.schedule,
    )
    assert made.space and not made.image_size


@pytest.mark.long
@pytest.mark.parametrize("names", [("sketch",), ("mask", "text", "sketch")], ids="+".join)
def test_it_runs_alone_and_beside_others_and_what_is_drawn_matters(names, pipeline, conditions):
    given = {name: conditions[name] for name in names}
    made = [
        pipeline.generate(conditions=given | {"sketch": drawn}, steps=1)
        for drawn in (given["sketch"], given["sketch"].T)
    ]
    assert not np.array_equal(made[0].latents, made[1].latents)
    assert list(made[0].parameters["conditions"]) == list(names)


@pytest.mark.long
def test_the_exam_samples_as_the_pipeline_does(pipeline, conditions, weights, lines):
    model = CollaborativeModel(FACES_AND_SKETCH).eval()
    model.load_state_dict({name: value.half().float() for name, value in weights.items()}, strict=False)
    alone = Way("sketch", ("sketch",), ways(pipeline.manifest.influence)[0].influence)
    with torch.inference_mode():
        found = latents(model, {"sketch": clean(lines)}, alone, 0)
    wanted = pipeline.generate(sketch=conditions["sketch"], tier="fast").latents
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99  # bf16
