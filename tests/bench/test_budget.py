import pytest
import torch
import torch.nn.functional as F

from cdiff_rt.bench.budget import STEPS, _Launches, _subject, count, count_eager, fusion_bytes
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


@pytest.mark.slow
def test_the_budget_of_a_bundle_compiles_its_engines(tiny_bundle):
    budget = count(str(tiny_bundle), "H100")
    eager, separate, whole = budget.rows
    assert budget.steps == STEPS and (separate.replays, whole.replays) == (1, 1)
    assert 10 < separate.launches < eager.launches and 10 < whole.launches < eager.launches
    assert separate.bytes < eager.bytes and separate.flops == eager.flops
