import pytest
import torch

from cdiff_rt.nets.text_encoder import TextEncoder, TextEncoderConfig
from tests.nets import naive

CONFIG = TextEncoderConfig(vocabulary=11, tokens=6, width=12, layers=2, heads=2, head_width=4)
IDS = torch.tensor([[2, 5, 7, 3, 0, 0], [2, 9, 3, 0, 0, 0]])


@pytest.fixture(scope="module")
def encoder():
    return naive.randomise(TextEncoder(CONFIG))


def test_encoder_is_a_pre_norm_transformer(encoder):
    net = encoder.transformer
    x = net.token_emb.weight[IDS] + net.pos_emb.emb.weight
    for i, (norm, layer) in enumerate(net.attn_layers.layers):
        h = naive.layer_norm(x, norm)
        if i % 2 == 0:
            q, k, v = (naive.linear(h, to) for to in (layer.to_q, layer.to_k, layer.to_v))
            x = x + naive.linear(naive.softmax_attention(q, k, v, 2, 4**-0.5), layer.to_out)
        else:
            x = x + naive.linear(naive.gelu(naive.linear(h, layer.net[0][0])), layer.net[2])
    assert i == 2 * CONFIG.layers - 1
    naive.assert_same(encoder(IDS), naive.layer_norm(x, net.norm))


@pytest.mark.parametrize(
    ("change", "position"), [("padding is attended to", 5), ("the last word reaches the first", 2)]
)
def test_every_position_reaches_every_other(encoder, change, position):
    other = IDS.clone()
    other[:, position] = 10
    assert ((encoder(IDS) - encoder(other)).abs().amax(2) > 1e-4).all(), change


def test_order_of_words_matters(encoder):
    swapped = IDS[:, [0, 2, 1, 3, 4, 5]]
    assert (encoder(IDS)[0, 0] - encoder(swapped)[0, 0]).abs().max() > 1e-4
