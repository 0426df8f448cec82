"""Several experts as one network against each of them alone."""

import dataclasses
from collections import Counter

import pytest
import torch

from cdiff_rt.nets.collaborative import Expert, ExpertConfig
from cdiff_rt.nets.freeu import FreeUConfig
from cdiff_rt.nets.mask_encoder import MaskEncoderConfig
from cdiff_rt.nets.stacked import Stacked
from cdiff_rt.nets.unet import UNetConfig
from tests.gpu.lints import trace
from tests.nets import naive

LARGE = ("conv2d", "group_norm", "layer_norm", "scaled_dot_product")
BRANCH = UNetConfig(
    in_channels=3,
    out_channels=3,
    model_channels=64,  # two in a group, so that normalising leaves something of the time rows
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2,),
    num_heads=4,
    context_dim=10,
)
DIFFUSER = dataclasses.replace(BRANCH, out_channels=1, channel_mult=(1,), attention_resolutions=(), num_heads=16)
FREEU = FreeUConfig(1.1, 1.2, 0.9, 0.2)


def unets(expert, **changed):
    nets = {name: dataclasses.replace(getattr(expert, name), **changed) for name in ("unet", "diffuser")}
    return dataclasses.replace(expert, **nets)


def experts(count, **changed):
    """Each with an encoder of its own, whose tokens are of another width."""
    return [
        unets(ExpertConfig(MaskEncoderConfig(4, 8 + i), BRANCH, DIFFUSER), context_dim=8 + i, **changed)
        for i in range(count)
    ]


def of_several(configs):
    return [naive.randomise(Expert(config), seed) for seed, config in enumerate(configs)]


def stack(experts, tokens):
    """Their stack, with their weights."""
    stacked, states = Stacked([expert.config for expert in experts], tokens), [e.state_dict() for e in experts]
    stacked.load_state_dict({name: torch.cat([state[name] for state in states]) for name in stacked.state_dict()})
    return stacked.eval()


def check(experts, tokens, batch=2, latent=(8, 8), dtype=torch.float32, tolerance=1e-5):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, *latent, generator=generator)
    rows = [expert.time(torch.tensor([501])) for expert in experts]
    contexts = [
        torch.randn(batch, n, e.context_width, generator=generator) for n, e in zip(tokens, experts, strict=True)
    ]
    packed = torch.full((len(experts), batch, max(tokens), contexts[0].shape[2]), 7.0)  # what is padded is not seen
    for m, context in enumerate(contexts):
        packed[m, :, : tokens[m]] = context
    stacked = stack(experts, tokens).to(dtype)
    given = [value.to(dtype) for value in (x, torch.cat(rows), packed)]
    found = stacked(*given)
    for m, expert in enumerate(experts):
        for ours, theirs in zip(found, expert(x, rows[m], contexts[m]), strict=True):
            assert ours[m].shape == theirs.shape and torch.isfinite(theirs).all()
            assert (ours[m] - theirs).abs().max() <= tolerance * max(theirs.abs().max(), 1e-9)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("tokens", [(5,), (5, 5), (6, 1), (3, 9, 4)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_it_gives_what_each_gives_alone(tokens, batch):
    check(of_several(experts(len(tokens))), tokens, batch)


@pytest.mark.parametrize("dims", [1, 3])
def test_latents_may_be_lines_and_volumes(dims):
    check(of_several(experts(2, dims=dims)), (4, 2), latent=(8, 4, 2)[:dims])


def test_padded_heads_keep_their_scale():
    check(of_several(experts(2, num_heads=8, head_multiple=8)), (4, 2))


@pytest.mark.parametrize(
    "freeu", [(FREEU, FREEU), (None, FREEU), (FREEU, FreeUConfig(), None)], ids=["same", "one", "own"]
)
def test_each_has_its_own_freeu(freeu):
    branches = [
        dataclasses.replace(expert, unet=dataclasses.replace(expert.unet, freeu=own))
        for expert, own in zip(experts(len(freeu)), freeu, strict=True)
    ]
    check(of_several(branches), (4,) * len(freeu))


def test_dynamic_diffusers_may_look_at_the_prediction_of_their_own_branch():
    check(of_several([dataclasses.replace(e, diffuser_input="prediction") for e in experts(3)]), (4, 2, 3))


def test_branches_that_were_trained_alone_have_the_logit_0():
    check(of_several([dataclasses.replace(e, diffuser=None) for e in experts(2)]), (4, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_near(dtype):
    check(of_several(experts(2)), (4, 2), dtype=dtype, tolerance=0.1 if dtype == torch.bfloat16 else 1e-2)


def test_an_experts_input_reaches_no_other():
    torch.manual_seed(0)
    pair = of_several(experts(2))
    x, rows, packed = (
        torch.randn(1, 3, 8, 8),
        torch.randn(2, pair[0].projection_width),
        torch.randn(2, 1, 4, pair[0].context_width),
    )
    stacked = stack(pair, (4, 4))
    before = stacked(x, rows, packed)
    for changed in (
        (x, torch.stack([rows[0], -rows[1]]), packed),
        (x, rows, packed * torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)),
    ):
        for old, new in zip(before, stacked(*changed), strict=True):
            assert torch.equal(old[0], new[0]) and (old[1] - new[1]).abs().max() > 1e-3


def test_it_has_the_weights_of_a_step_and_no_others():
    (expert,) = of_several(experts(1))
    once = ("encoder.", "time_embed", "emb_layers", "attn2.to_k", "attn2.to_v")
    wanted = {name: w.shape for name, w in expert.state_dict().items() if not any(part in name for part in once)}
    found = {name: w.shape for name, w in Stacked([expert.config] * 3, (4,) * 3).state_dict().items()}
    assert {name: (shape[0] / 3, *shape[1:]) for name, shape in found.items()} == wanted


def test_two_take_as_many_convolutions_norms_and_attentions_as_one():
    pair = of_several(experts(2))
    e, k, x = pair[0].projection_width, pair[0].context_width, torch.randn(1, 3, 8, 8)
    together = trace(lambda: stack(pair, (4, 4))(x, torch.randn(2, e), torch.randn(2, 1, 4, k)))
    alone = trace(lambda: pair[0](x, torch.randn(1, e), torch.randn(1, 4, k)))
    counts = [Counter(name for row in rows for name in LARGE if name in row[0]) for rows in (together, alone)]
    assert counts[0] == counts[1] and min(counts[0].values()) > 5 and len(counts[0]) == len(LARGE)
