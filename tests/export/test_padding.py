import pytest
import torch

from cdiff_rt.export.padding import pad_weight, padded_config
from cdiff_rt.nets.attention import Attention
from cdiff_rt.nets.collaborative import CollaborativeModel, network_functions
from tests.nets.naive import assert_same
from tests.tiny import CONFIG, tiny_model


def pad_heads(config, weights, multiple):
    wider = padded_config(config, multiple)
    return wider, {name: pad_weight(name, weight, wider) for name, weight in weights.items()}


def padded_model(multiple):
    config, weights = pad_heads(CONFIG, tiny_model().state_dict(), multiple)
    model = CollaborativeModel(config).eval()
    model.load_state_dict(weights)
    return model


def unet_attentions(model):
    nets = [net for expert in model.experts.values() for net in (expert.unet, expert.diffuser)]
    return [module for net in nets for module in net.modules() if isinstance(module, Attention)]


@pytest.mark.parametrize("multiple", [8, 16])
def test_heads_of_a_padded_model_are_a_multiple_wide(multiple):
    attentions = unet_attentions(padded_model(multiple))
    assert attentions
    for attention in attentions:
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            assert layer.out_features == attention.heads * multiple
        assert attention.to_out[0].in_features == attention.heads * multiple


@pytest.mark.parametrize("name", ["mask", "text"])
@pytest.mark.parametrize("multiple", [8, 16])
def test_padding_changes_no_output(name, multiple):
    torch.manual_seed(0)
    inputs = torch.rand(2, 5, 16) if name == "mask" else torch.randint(12, (2, 6))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([501])
    outputs = []
    for model in (tiny_model(), padded_model(multiple)):
        functions = network_functions(model)
        (rows,), (context,) = functions[f"time.{name}"](t), functions[f"condition.{name}"](inputs)
        outputs.append(functions[f"expert.{name}"](x, rows, context))
    for plain, padded in zip(*outputs, strict=True):
        assert_same(padded, plain)


def test_only_attention_of_the_unets_is_padded():
    plain = tiny_model().state_dict()
    _, padded = pad_heads(CONFIG, plain, 8)
    changed = {key for key in plain if plain[key].shape != padded[key].shape}
    assert changed == {
        key for key in plain if ".transformer_blocks." in key and (".to_" in key) and not key.endswith(".bias")
    }
    assert all(padded[key] is plain[key] for key in set(plain) - changed)


def test_heads_that_fit_stay_as_they_are():
    plain = tiny_model().state_dict()
    _, padded = pad_heads(CONFIG, plain, 2)
    assert all(torch.equal(padded[key], weight) for key, weight in plain.items())
