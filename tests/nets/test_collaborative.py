import dataclasses
import json

import pytest
import torch

from cdiff_rt.export.published import PUBLISHED
from cdiff_rt.nets.collaborative import CollaborativeModel, Expert, ModelConfig, network_functions
from cdiff_rt.schema import from_json
from recipes.faces.config import FACES_128
from tests.nets import naive
from tests.tiny import CONFIG


@pytest.fixture(scope="module")
def model():
    return naive.randomise(CollaborativeModel(CONFIG))


def example(name):
    torch.manual_seed(0)
    if name == "text":
        return torch.tensor([[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0]])
    return torch.nn.functional.one_hot(torch.randint(5, (2, 16)), 5).mT.float()


@pytest.mark.parametrize("config", [CONFIG, FACES_128, *(size.model for size in PUBLISHED)])
def test_configuration_survives_json(config):
    assert from_json(ModelConfig, json.loads(json.dumps(dataclasses.asdict(config))), "model") == config


@pytest.mark.parametrize("name", ["mask", "text"])
def test_an_expert_is_its_branch_and_its_diffuser(model, name):
    expert, inputs = model.experts[name], example(name)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([981, 21])
    out, logit = expert(x, expert.time(t), expert.condition(inputs))
    tokens = expert.encoder(inputs)
    naive.assert_same(out, expert.unet(x, t, tokens))
    naive.assert_same(logit, expert.diffuser(x, t, tokens))
    assert out.shape == (2, 3, 8, 8)
    assert logit.shape == (2, 1, 8, 8)


def test_a_dynamic_diffuser_may_look_at_its_branchs_prediction(model):
    plain, inputs = model.experts["text"], example("text")
    expert = Expert(dataclasses.replace(plain.config, diffuser_input="prediction"))
    expert.load_state_dict(plain.state_dict())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([981, 21])
    out, logit = expert.eval()(x, expert.time(t), expert.condition(inputs))
    naive.assert_same(out, plain(x, plain.time(t), plain.condition(inputs))[0])
    naive.assert_same(logit, expert.diffuser(out, t, expert.encoder(inputs)))


def test_a_branch_that_was_trained_alone_has_the_logit_0(model):
    plain, inputs = model.experts["mask"], example("mask")
    expert = Expert(dataclasses.replace(plain.config, diffuser=None))
    expert.load_state_dict({k: v for k, v in plain.state_dict().items() if not k.startswith("diffuser.")})
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([981, 21])
    out, logit = expert.eval()(x, expert.time(t), expert.condition(inputs))
    naive.assert_same(out, plain(x, plain.time(t), plain.condition(inputs))[0])
    assert torch.equal(logit, torch.zeros(2, 1, 8, 8))
    assert (expert.projection_width, expert.context_width) == (expert.unet.projection_width, expert.unet.context_width)


def test_latents_that_are_the_data_have_no_autoencoder():
    model = CollaborativeModel(dataclasses.replace(CONFIG, vae=None))
    assert not any(name.startswith("vae.") for name in model.state_dict())
    assert not any(name.startswith("vae.") for name in network_functions(model))


def test_one_row_serves_the_whole_batch(model):
    expert = model.experts["mask"]
    x, packed = torch.randn(2, 3, 8, 8), expert.condition(example("mask"))
    one = expert(x, expert.time(torch.tensor([501])), packed)
    each = expert(x, expert.time(torch.tensor([501, 501])), packed)
    for a, b in zip(one, each, strict=True):
        naive.assert_same(a, b)


def test_network_functions_are_the_model_s_own(model):
    functions = network_functions(model)
    assert set(functions) == {"vae.encode", "vae.decode"} | {
        f"{part}.{name}" for part in ("condition", "time", "expert") for name in ("mask", "text")
    }
    for name in ("mask", "text"):
        expert = model.experts[name]
        assert torch.equal(functions[f"condition.{name}"](example(name))[0], expert.condition(example(name)))
        assert torch.equal(functions[f"time.{name}"](torch.tensor([5]))[0], expert.time(torch.tensor([5])))
    z = torch.randn(1, 3, 8, 8)
    assert torch.equal(functions["vae.decode"](z)[0], model.vae.decode(z))
