import dataclasses
import json

import pytest

from cdiff_rt.engines.stacked import check_alike, network_spec, stack_network, stack_spec, stacked_modalities
from cdiff_rt.errors import BadArtefact, BadRequest
from tests.alike import bundle_of


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return bundle_of({"a": 3, "b": 5, "c": 1}, tmp_path_factory.mktemp("alike")).manifest


def test_a_stacks_name_tells_its_modalities():
    assert stacked_modalities(stack_network(["mask", "text"])) == ["mask", "text"]
    assert stacked_modalities("expert.mask") == stacked_modalities("step.mask+text") == []


def test_it_takes_and_gives_what_its_experts_do_one_behind_the_other(manifest):
    spec, one = stack_spec(manifest, ("a", "b", "c")), manifest.networks["expert.a"]
    (_, e), (_, _, k) = (tensor.shape for tensor in one.inputs[1:])
    shapes = {tensor.name: tensor.shape for tensor in (*spec.inputs, *spec.outputs)}
    assert shapes == {
        "x": ("batch", 3, 8, 4),
        "projections": (3, e),
        "context": (3, "batch", 5, k),
        "out": (3, "batch", 3, 8, 4),
        "logit": (3, "batch", 1, 8, 4),
    }
    assert network_spec(manifest, "stack.a+b+c") == spec and network_spec(manifest, "expert.a") == one


def changed(manifest, *path, value):
    source = json.loads(json.dumps(manifest.source))
    inner = source["experts"]["b"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return dataclasses.replace(manifest, source=source)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("unet", "model_channels"), 96, "unet.model_channels is 64 in a and 96 in b"),
        (("unet", "channel_mult"), [1, 2], r"unet.channel_mult is \[1\] in a and \[1, 2\] in b"),
        (("diffuser", "num_heads"), 4, "diffuser.num_heads is 8 in a and 4 in b"),
        (("unet", "head_multiple"), 1, "unet.head_multiple is 16 in a and 1 in b"),
        (("diffuser_input",), "prediction", "diffuser_input is x_t in a and prediction in b"),
        (("diffuser",), None, "diffuser.in_channels is 3 in a and none in b"),
    ],
    ids=str,
)
def test_experts_of_several_shapes_are_refused_with_what_differs(path, value, words, manifest):
    other = changed(manifest, *path, value=value)
    with pytest.raises(BadRequest, match=f"experts stacked: {words}; experts of several shapes run separate"):
        check_alike(other, ("a", "b", "c"))
    check_alike(other, ("a", "c"))


@pytest.mark.parametrize(
    ("path", "value"), [(("encoder",), {"tokens": 9}), (("unet", "context_dim"), 99), (("unet", "freeu"), {"b1": 1.2})]
)
def test_what_no_weight_of_the_step_follows_from_may_differ(path, value, manifest):
    check_alike(changed(manifest, *path, value=value), ("a", "b"))


@pytest.mark.parametrize("source", [{}, {"experts": {"a": None, "b": 1}}, {"experts": {"a": {"unet": 1}, "b": {}}}])
def test_a_manifest_that_does_not_say_is_refused(source, manifest):
    with pytest.raises(BadArtefact, match=r"manifest.json: it does not describe every expert"):
        check_alike(dataclasses.replace(manifest, source=source), ("a", "b"))
