"""Four modalities, and latents that are volumes: random weights go the same way as those of images and paths do."""

import json

import numpy as np
import pytest

from cdiff_rt.export.bundle import export_checkpoint
from cdiff_rt.export.checkpoint import Description, in_memory, write_checkpoint
from cdiff_rt.manifest import Modality
from cdiff_rt.nets.collaborative import CollaborativeModel, ExpertConfig, ModelConfig
from cdiff_rt.nets.mask_encoder import MaskEncoderConfig
from cdiff_rt.nets.unet import UNetConfig
from cdiff_rt.outputs.influence import InfluenceRecorder
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import Influence
from tests.nets.naive import randomise

SHAPE = (1, 4, 2, 6)  # unequal sides, so that no two can be mixed up
CONTEXT = 16

pytestmark = pytest.mark.slow  # four experts of volumes are exported; test_motion has two of lines


def unet(out_channels):
    return UNetConfig(
        in_channels=1,
        out_channels=out_channels,
        model_channels=32,
        channel_mult=(1, 1),
        num_res_blocks=0,
        attention_resolutions=(2,),
        num_heads=8,
        context_dim=CONTEXT,
        dims=3,
    )


MODALITIES = (
    Modality("size", "numbers", decays=True, anchor=False, tokens=1, width=3),
    Modality("colour", "numbers", decays=False, anchor=True, tokens=2, width=4),
    Modality("grain", "numbers", decays=True, anchor=False, tokens=1, width=2),
    Modality("weight", "numbers", decays=False, anchor=False, tokens=3, width=1),
)
DESCRIPTION = Description(
    name="voxels",
    image_size=0,
    latent_shape=SHAPE,
    latent_scale=1.0,
    config=ModelConfig(
        {
            m.name: ExpertConfig(MaskEncoderConfig(m.width, CONTEXT, classes=m.tokens), unet(1), unet(1))
            for m in MODALITIES
        },
        vae=None,
    ),
    schedule=Schedule(),
    influence=Influence(),
    modalities=MODALITIES,
    vocabularies={},
    provenance={},
    licence="Apache-2.0",
)
GIVEN = {"size": "0.5, -1, 2", "colour": np.arange(8.0).reshape(2, 4), "grain": "1,-1", "weight": "3,2,1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voxels")
    model = randomise(CollaborativeModel(DESCRIPTION.config))
    write_checkpoint(folder / "voxels.safetensors", in_memory(DESCRIPTION, model.state_dict()))
    report = export_checkpoint([folder / "voxels.safetensors"], folder / "bundle")
    assert max(report.values()) < 1e-4
    return folder / "bundle"


@pytest.fixture(scope="module")
def voxels(folder):
    return Pipeline.from_pretrained(folder)


@pytest.mark.parametrize("names", [["size"], ["colour"], ["size", "colour"], list(GIVEN)[1:], list(GIVEN)])
def test_volumes_are_the_same_on_every_backend(folder, voxels, names):
    given = {name: GIVEN[name] for name in names}
    result = voxels.generate(steps=5, batch=2, **given)
    assert result.images.size == 0 and result.latents.shape == (2, *SHAPE)
    eager = Pipeline.from_pretrained(folder, backend="torch").generate(steps=5, batch=2, **given)
    assert np.allclose(result.latents, eager.latents, atol=1e-3)
    assert np.array_equal(result.latents, voxels.generate(steps=5, batch=2, **given).latents)


def test_each_condition_matters(voxels):
    both = voxels.generate(steps=5, **GIVEN).latents
    others = {"size": "0.5, -1, -2", "colour": GIVEN["colour"][::-1], "grain": "1,1", "weight": "1,2,3"}
    for changed in ({name: value} for name, value in others.items()):
        assert not np.allclose(voxels.generate(steps=5, **GIVEN | changed).latents, both, atol=1e-3)


@pytest.mark.parametrize("name", GIVEN)
def test_any_of_four_can_be_left_out(name, voxels):
    rest = {other: value for other, value in GIVEN.items() if other != name}
    without = voxels.generate(steps=5, **GIVEN, without=[name]).latents
    assert np.array_equal(without, voxels.generate(steps=5, **rest).latents)


def test_influence_functions_are_volumes_on_disk(voxels, tmp_path):
    with InfluenceRecorder(tmp_path) as recorder:
        result = voxels.generate(steps=5, batch=2, callback_on_step_end=recorder, **GIVEN)
        paths = result.save(tmp_path, recorders=[recorder])
    for number, path in enumerate(paths):
        assert [file.name for file in path.with_suffix(".influence").iterdir()] == ["maps.npz"]
        maps = np.load(path.with_suffix(".influence") / "maps.npz")
        assert {name: maps[name].shape for name in GIVEN} == {name: (5, *SHAPE[1:]) for name in GIVEN}
        assert np.allclose(sum(maps[name] for name in GIVEN), 1, atol=1e-5)
        saved = np.load(path)
        assert np.array_equal(saved["latent"], result.latents[number])
        assert json.loads(str(saved["parameters"]))["model"] == "voxels"
