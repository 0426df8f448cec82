import torch
from torch import nn

from cdiff_rt.nets.imagic import Diffusion, adam, descend

BARS = torch.tensor([0.9, 0.5, 0.1])


def test_targets_belong_to_what_is_predicted():
    """x_0 = sqrt(a) x_t - sqrt(1 - a) v, and x_t = sqrt(a) x_0 + sqrt(1 - a) eps."""
    z, noise = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    eps, v = Diffusion(BARS, "eps"), Diffusion(BARS, "v")
    for t, a in enumerate(BARS):
        x = eps.noisy(z, t, noise)
        torch.testing.assert_close(a.sqrt() * x - (1 - a).sqrt() * v.target(z, t, noise), z)
        torch.testing.assert_close((x - a.sqrt() * z) / (1 - a).sqrt(), eps.target(z, t, noise))


def test_only_the_optimizers_parameters_move_and_the_loss_falls():
    torch.manual_seed(0)
    net, embedding = nn.Linear(3, 3), nn.Parameter(torch.zeros(1, 1, 3))
    net.requires_grad_(False)
    before = net.weight.clone()
    z, noise = torch.randn(1, 3), torch.zeros(1, 3)

    def denoise(x, t, tokens):
        assert t.tolist() == [1]
        return net(x) + tokens[:, 0]

    draws = [(1, noise)] * 200
    losses = list(descend(denoise, embedding, adam([embedding], 0.05), z, draws, Diffusion(BARS, "eps")))
    assert len(losses) == 200 and losses[-1] < 1e-3 * losses[0]
    torch.testing.assert_close(net.weight, before)
