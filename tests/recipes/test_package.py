import json

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from cdiff_rt.export.checkpoint import read_checkpoint
from recipes.faces.package import main, runs


def log_of(*steps):
    return "".join(json.dumps({"step": step, "loss": step / 10}) + "\n" for step in steps)


def test_a_run_that_was_resumed_is_one_run():
    assert runs(log_of(200, 400, 600)) == [{"step": 600, "loss": 60.0}]


def test_a_stage_that_was_trained_again_has_two():
    assert [row["step"] for row in runs(log_of(200, 400, 200, 300))] == [400, 300]


def test_runs_of_equal_length_are_told_apart():
    assert [row["step"] for row in runs(log_of(200, 200))] == [200, 200]


def test_a_bundle_becomes_the_checkpoint_that_it_came_from(bundle, tmp_path):
    out, manifest = tmp_path / "a.safetensors", bundle.manifest
    assert CliRunner().invoke(main, ["--bundle", str(bundle.folder), "--out", str(out)]).exit_code == 0
    found = read_checkpoint(out)
    for name in ("name", "image_size", "latent_scale", "schedule", "influence", "modalities", "licence"):
        assert getattr(found.description, name) == getattr(manifest, name)
    assert found.description.provenance == {n: of for n, of in manifest.provenance.items() if n != "torch"}
    shipped = load_file(bundle.path(manifest.weights))
    assert found.weights.keys() == shipped.keys()
    assert all((found.weights[name] == shipped[name].float()).all() for name in shipped)


@pytest.mark.parametrize("given", [[], ["--bundle", ".", "--work", "."]], ids=["none", "both"])
def test_weights_come_from_one_place(given, tmp_path):
    result = CliRunner().invoke(main, [*given, "--out", str(tmp_path / "a.safetensors")])
    assert result.exit_code == 2 and "give --work or --bundle" in result.output
