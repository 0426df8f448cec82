"""Networks of influence for latents of any size, and the error that they learn from."""

import pytest
import torch

from cdiff_rt.nets.dynamic import DynamicDiffuser, config_of, folded, mixing_error, patch_of, unfolded


@pytest.mark.parametrize(
    ("latent", "levels"),
    [((2, 7), 1), ((1, 64), 3), ((4, 8, 8), 1), ((3, 30, 34), 2), ((1, 4, 6, 2), 1), ((1, 24, 24, 24), 1)],
    ids=str,
)
def test_a_logit_for_each_place_that_begins_at_zero(latent, levels):
    config = config_of(latent, (3, 5))
    assert len(config.channel_mult) == levels and config.dims == len(latent) - 1
    net = DynamicDiffuser(config, torch.ones(3, 5), torch.full((3, 5), 2.0))
    logit = lambda condition: net(torch.randn(2, *latent), torch.tensor([3.5, 900.0]), condition)
    assert torch.equal(logit(torch.randn(2, 3, 5)), torch.zeros(2, 1, *latent[1:]))
    seen = []
    net.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    logit(torch.full((2, 3, 5), 5.0))
    assert torch.equal(seen[0], torch.full((2, 3, 5), 2.0))


@pytest.mark.parametrize(
    ("sides", "patch"),
    [((64,), 1), ((2048,), 2), ((32, 32), 1), ((64, 64), 2), ((66, 64), 2), ((65, 64), 1), ((24, 24, 24), 4)],
    ids=str,
)
def test_neighbours_of_large_latents_are_channels_of_one_place_and_come_back(sides, patch):
    assert patch_of(sides) == patch
    x = torch.arange(2 * sides[0] * int(torch.tensor(sides[1:]).prod()), dtype=torch.float32).reshape(2, 1, *sides)
    inside = folded(x, patch)
    assert inside.shape == (2, patch ** len(sides), *(side // patch for side in sides))
    first = x[0, 0][tuple(slice(0, patch) for _ in sides)]
    assert torch.equal(inside[0].flatten(1)[:, 0].sort().values, first.flatten())
    assert torch.equal(unfolded(inside, patch), x)


def test_errors_count_as_they_show_and_relative_to_how_experts_differ():
    generator = torch.Generator().manual_seed(0)
    outs, wanted = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(3, 4, 5, generator=generator)
    half, alike = torch.full((2, 3, 1, 5), 0.5), torch.ones(4, 1)
    error = mixing_error(half, outs, wanted, alike)
    torch.testing.assert_close(mixing_error(half, 7 * outs, 7 * wanted, 3 * alike), error)
    torch.testing.assert_close(
        error, ((outs.mean(0) - wanted) ** 2).mean((1, 2)) / outs.var(0, correction=0).mean((1, 2))
    )
    first = torch.tensor([4.0, 0, 0, 0])[:, None]
    torch.testing.assert_close(
        mixing_error(half, outs, wanted, first), mixing_error(half, outs[:, :, :1], wanted[:, :1], alike[:1])
    )
    same = outs[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(mixing_error(half, same, wanted, alike, 0.1), torch.full((3,), 10.0))
    assert mixing_error(half, same, same[0], alike).tolist() == [0, 0, 0]
