import pytest
import torch
import torch.nn.functional as F

from cdiff_rt.bench.budget import (
    STEPS,
    _engines,
    _Launches,
    _replayed,
    _subject,
    count,
    count_eager,
    count_torch,
    fusion_bytes,
)
from cdiff_rt.gpu.loop import MOST_NODES
from cdiff_rt.manifest import Bundle

WEIGHT = torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("work", "launches", "moved"),
    [
        (lambda x: x + 1, 1, 2 * 48),
        (lambda x: (x + 1) * 2, 2, 4 * 48),
        (lambda x: x.view(4, 3).T[:2].unsqueeze(0).expand(5, 2, 4), 0, 0),
        (lambda x: x.mul_(2), 1, 2 * 48),
        (lambda x: torch.empty(100), 0, 0),
        (lambda x: F.linear(x.view(3, 4), WEIGHT), 1, 48 + 64 + 48),
        (lambda x: torch.stack([x, x]), 1, 4 * 48),
    ],
)
def test_launches_are_operations_that_are_no_views(work, launches, moved):
    x = torch.zeros(12)
    with torch.inference_mode(), _Launches() as watching:
        work(x)
    assert (watching.count, watching.bytes) == (launches, moved)


def test_an_eager_step_counts_every_expert_and_the_multiplications_of_its_convolutions(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    both = count_eager(_subject(str(tiny_bundle)))
    assert both.replays is None and both.launches > 150
    weights = sum(tensor.nbytes for tensor in _weights(manifest))
    assert both.bytes > weights and both.flops > 2 * 64 * 32 * 3 * 9  # of the first convolution alone


def _weights(manifest):
    from cdiff_rt import schema
    from cdiff_rt.nets.collaborative import CollaborativeModel, ModelConfig

    model = CollaborativeModel(schema.from_json(ModelConfig, manifest.source, "source"))
    return [p for expert in model.experts.values() for p in expert.unet.parameters() if p.ndim > 1]


def test_the_fusion_moves_half_predictions_and_whole_latents(bundle):
    """[2 modalities] x (16 channels and a logit) in fp16, x twice and noise in fp32, 16 x 16 pixels."""
    assert fusion_bytes(bundle.manifest) == 256 * (2 * 2 * 17 + 3 * 4 * 16)


def test_the_kernels_of_ours_leave_fewer_launches_and_half_the_bytes(tiny_bundle):
    subject = _subject(str(tiny_bundle))
    assert not subject.stackable
    eager = count_eager(subject)
    ours = count_torch(subject, eager.flops)
    assert 100 < ours.launches < eager.launches and 0.3 < ours.bytes / eager.bytes < 0.6


@pytest.mark.parametrize("model", ["faces-128", "512"])
def test_stacked_they_are_little_more_than_half(model):
    subject = _subject(model)
    separate, stacked = (count_torch(subject, 0, stacked) for stacked in (False, True))
    assert subject.stackable and 0.5 < stacked.launches / separate.launches < 0.75


@pytest.mark.parametrize(("launches", "replays"), [(MOST_NODES // STEPS, 1), (MOST_NODES // STEPS + 1, STEPS)])
def test_a_small_step_is_replayed_once_for_all(launches, replays):
    assert _replayed("", launches, 0, 0).replays == replays


@pytest.mark.slow
def test_the_budget_of_a_bundle_compiles_its_engines(tiny_bundle):
    budget = count(str(tiny_bundle), "H100")
    eager, torch, separate, *stacked, whole = budget.rows
    assert budget.steps == STEPS and not stacked  # its experts have several shapes
    for row in (torch, separate, whole):
        assert 10 < row.launches < eager.launches
    assert separate.bytes < eager.bytes and separate.flops == eager.flops


@pytest.mark.slow
def test_stacked_experts_are_fewer_launches(bundle):
    rows = _engines(bundle, True, 0)
    assert [row.way.split(", ")[1] for row in rows] == [
        "an engine per expert",
        "experts stacked",
        "one engine for the step",
    ]
    separate, stacked, whole = (row.launches for row in rows)
    assert stacked < 0.7 * separate and 0.9 < whole / separate < 1.1
