import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cdiff_rt.engines.backends import load_engine
from cdiff_rt.export.refit import overwrite, refit
from cdiff_rt.manifest import Bundle

NAME = "experts.text.unet.out.2.bias"  # of the last layer: it is added to what the branch predicts


@pytest.fixture(scope="module")
def before(tiny_bundle):
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def after(before, tmp_path_factory):
    weight = load_file(before.path(before.manifest.weights))[NAME]
    return refit(before, {NAME: weight.float() + 2}, tmp_path_factory.mktemp("refit") / "new", {"why": "a test"})


def test_only_the_named_weights_are_others(before, after):
    old, new = (load_file(bundle.path(bundle.manifest.weights)) for bundle in (before, after))
    assert [name for name in old if not torch.equal(old[name], new[name])] == [NAME]
    torch.testing.assert_close(new[NAME], old[NAME] + 2)
    assert after.manifest.provenance == before.manifest.provenance | {"why": "a test"}


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_every_backend_runs_them(backend, before, after):
    outputs = []
    for bundle in (before, after):
        spec = bundle.manifest.networks["expert.text"]
        rng = np.random.default_rng(0)
        inputs = {
            t.name: rng.standard_normal([1 if isinstance(d, str) else d for d in t.shape]).astype(np.float32)
            for t in spec.inputs
        }
        outputs.append(load_engine(backend, bundle, "expert.text")(**inputs))
    np.testing.assert_allclose(outputs[1]["out"], outputs[0]["out"] + 2, atol=1e-2)
    np.testing.assert_allclose(outputs[1]["logit"], outputs[0]["logit"], atol=1e-6)


def test_the_old_bundle_is_as_it_was_and_the_new_one_can_be_replaced(before, after):
    Bundle.open(before.folder)
    again = refit(before, {}, after.folder.with_name("again"), {})
    again = refit(before, {}, again.folder, {"number": 2})
    assert again.manifest.provenance["number"] == 2


def test_a_weight_of_another_shape_is_a_mistake_of_ours(before, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(before.path(before.manifest.weights).read_bytes())
    with pytest.raises(AssertionError, match="another shape"):
        overwrite(path, {NAME: torch.zeros(1)})
