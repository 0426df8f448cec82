import torch

from cdiff_rt.nets.collaborative import build_encoder
from cdiff_rt.nets.picture_encoder import PictureEncoder, PictureEncoderConfig
from tests.nets import naive

CONFIG = PictureEncoderConfig(size=16, width=8, halvings=2)


def test_each_patch_becomes_a_token_row_by_row():
    encoder = naive.randomise(PictureEncoder(CONFIG))
    paper = torch.ones(1, 1, 16, 16)
    drawn = paper.clone()
    drawn[0, 0, 13, 0] = 0  # in the last row of patches, the first column
    changed = (encoder(drawn) - encoder(paper)).abs().amax((0, 2)).reshape(4, 4) > 1e-6
    assert encoder(paper).shape == (1, CONFIG.tokens, 8) == (1, 16, 8)
    assert changed[3, 0]
    assert not changed[:2].any()
    assert not changed[:, 2:].any()


def test_the_configuration_says_which_encoder():
    assert isinstance(build_encoder(CONFIG), PictureEncoder)
