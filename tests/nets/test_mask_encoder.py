import torch

from cdiff_rt.nets.mask_encoder import MaskEncoder, MaskEncoderConfig
from tests.nets import naive


def test_a_class_s_token_is_the_sum_of_its_pixels_columns():
    encoder = naive.randomise(MaskEncoder(MaskEncoderConfig(pixels=4, width=3)))
    labels = torch.tensor([0, 2, 2, 0])
    one_hot = torch.stack([(labels == label).float() for label in range(3)])[None]
    weight, bias = encoder.linear.weight, encoder.linear.bias
    expected = torch.stack([weight[:, 0] + weight[:, 3] + bias, bias, weight[:, 1] + weight[:, 2] + bias])
    naive.assert_same(encoder(one_hot), expected[None])


def test_a_class_vector_is_added_to_its_token_only():
    encoder = naive.randomise(MaskEncoder(MaskEncoderConfig(pixels=4, width=3, classes=2)))
    one_hot = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]])
    naive.assert_same(encoder(one_hot), encoder.linear(one_hot) + encoder.class_emb)
    assert not torch.allclose(encoder(one_hot.flip(1)).flip(1), encoder(one_hot))
