import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from recipes.faces import unpack
from recipes.faces.package import training_log
from recipes.faces.weights import load_model


def run(bundle, out):
    return CliRunner().invoke(unpack.main, ["--bundle", str(bundle.folder), "--out", str(out)])


def test_the_shipped_weights_come_out_as_the_stages_weights(bundle, tmp_path):
    assert run(bundle, tmp_path / "trained").exit_code == 0
    unpacked, shipped = load_model(tmp_path / "trained").state_dict(), load_file(bundle.path(bundle.manifest.weights))
    assert unpacked.keys() == shipped.keys()
    assert all(torch.equal(unpacked[name], shipped[name].float()) for name in shipped)
    assert "encoder.conv_in.weight" in load_file(tmp_path / "trained" / "vae.safetensors")


def test_the_logs_come_out_so_that_the_next_package_tells_all_runs(bundle, tmp_path):
    run(bundle, tmp_path / "trained")
    assert training_log(tmp_path / "trained") == bundle.manifest.provenance["training"]


def test_weights_that_are_there_are_kept(bundle, tmp_path):
    result = run(bundle, tmp_path)
    assert result.exit_code == 2 and "exists" in result.output
    assert list(tmp_path.iterdir()) == []
