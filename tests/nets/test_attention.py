import pytest
import torch
from torch import nn

from cdiff_rt.nets.attention import Attention
from tests.nets import naive


@pytest.mark.parametrize(("heads", "width"), [(1, 8), (4, 3), (2, 8)])
@pytest.mark.parametrize("tokens", [1, 7])
def test_attention_is_a_softmax_of_scaled_products_per_head(heads, width, tokens):
    out = nn.Linear(heads * width, 12)
    attention = naive.randomise(Attention(12, 5, heads=heads, width=width, padded=width, out=out))
    x, context = torch.randn(2, 6, 12), torch.randn(2, tokens, 5)
    q, k, v = (
        naive.linear(value, layer)
        for value, layer in ((x, attention.to_q), (context, attention.to_k), (context, attention.to_v))
    )
    expected = naive.linear(naive.softmax_attention(q, k, v, heads, width**-0.5), out)
    naive.assert_same(attention(x, attention.to_k(context), attention.to_v(context)), expected)


def test_padding_leaves_the_scale_of_the_true_width():
    attention = Attention(12, 12, heads=2, width=3, padded=8, out=nn.Identity())
    assert attention.to_q.out_features == 16
    assert attention.scale == pytest.approx(3**-0.5)
