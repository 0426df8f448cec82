import math
from dataclasses import replace

import array_api_compat
import numpy as np
import pytest
import torch

from cdiff_rt.sampling import fusion
from cdiff_rt.sampling.fusion import PER_MODALITY, Adjustment, adjustment, decay, fuse, influence, of_step, update
from cdiff_rt.sampling.solvers import C_HIST, C_NOISE, C_OUT, C_X, D_OUT, D_X
from cdiff_rt.settings import Influence

RNG = np.random.default_rng(0)
TIMESTEPS = np.array([981, 501, 21, 1])
MASK_TEXT = ([True, False], 1)
MASK_TEXT_SKETCH = ([True, False, True], 1)
COSINE = decay("cosine", TIMESTEPS, 1000)


def weights_at(logits, adjust, step, convert=np.asarray):
    """In float64, so that it can be held against a transcription of the formula."""
    shape = (-1,) + (1,) * (logits.ndim - 1)
    parts = {name: convert(getattr(adjust, name)[step].reshape(shape)) for name in PER_MODALITY}
    return influence(logits, replace(adjust, **parts))


def reference_two(logits, t):
    """The reference's softmax, cosine decay and factor 2 for (mask, text)."""
    mask, text = np.exp(logits) / np.exp(logits).sum(0)
    mask = mask * (math.cos(math.pi * (1 - t / 1000)) + 1) / 2
    text = 1 - mask
    return np.stack([2 * mask / (text + 2 * mask), text / (text + 2 * mask)])


def reference_three(logits, t):
    """The same for (mask, text, sketch)."""
    mask, text, sketch = np.exp(logits) / np.exp(logits).sum(0)
    s = (math.cos(math.pi * (1 - t / 1000)) + 1) / 2
    mask, sketch = mask * s, sketch * s
    text = 1 - mask - sketch
    mask, sketch = 2 * mask, 2 * sketch
    return np.stack([mask, text, sketch]) / (mask + text + sketch)


@pytest.mark.parametrize("step", range(len(TIMESTEPS)))
@pytest.mark.parametrize(("roles", "reference"), [(MASK_TEXT, reference_two), (MASK_TEXT_SKETCH, reference_three)])
def test_the_default_adjustment_is_the_references(roles, reference, step):
    logits = RNG.standard_normal((len(roles[0]), 2, 1, 4, 4)) * 3
    found = weights_at(logits, adjustment(*roles, COSINE, Influence(factor=2.0)), step)
    np.testing.assert_allclose(found, reference(logits, TIMESTEPS[step]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("roles", [MASK_TEXT, MASK_TEXT_SKETCH, ([True], None), ([False], 0), ([True, True], None)])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_influence_sums_to_one_and_is_finite(roles, scale):
    logits = (RNG.standard_normal((len(roles[0]), 2, 1, 8, 8)) * scale).astype(np.float32)
    for step in range(len(TIMESTEPS)):
        weights = weights_at(logits, adjustment(*roles, COSINE.astype(np.float32), Influence(factor=2.0)), step)
        assert weights.shape == logits.shape and (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)


@pytest.mark.parametrize("roles", [([True], None), ([False], 0)])
def test_one_modality_alone_has_all_influence_everywhere(roles):
    logits = RNG.standard_normal((1, 2, 1, 4, 4))
    for step in range(len(TIMESTEPS)):
        np.testing.assert_array_equal(
            weights_at(logits, adjustment(*roles, COSINE, Influence(factor=2.0)), step), np.ones_like(logits)
        )


@pytest.mark.parametrize(
    "adjust",
    [
        Adjustment(np.ones((4, 3)), np.zeros((4, 3)), np.ones((4, 3)), np.ones((4, 3))),
        adjustment([True, True, True], None, COSINE, Influence(factor=2.0)),  # none to take the remainder
        adjustment([False, False, False], 1, COSINE, Influence(factor=2.0)),  # nothing that decays
        adjustment([True, False, True], 1, decay("none", TIMESTEPS, 1000), Influence(factor=1.0)),
    ],
)
def test_without_an_adjustment_influence_is_the_softmax(adjust):
    logits = RNG.standard_normal((3, 2, 1, 4, 4))
    expected = np.exp(logits) / np.exp(logits).sum(0)
    np.testing.assert_allclose(weights_at(logits, adjust, 2), expected, rtol=1e-12)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("roles", [MASK_TEXT, MASK_TEXT_SKETCH])
def test_without_sharpness_every_modality_has_as_much_influence(roles, convert):
    count = len(roles[0])
    logits = convert((RNG.standard_normal((count, 2, 1, 4, 4)) * 100).astype(np.float32))
    weights = weights_at(logits, adjustment(*roles, np.ones(4), Influence(factor=1.0, sharpness=0.0)), 2, convert)
    np.testing.assert_allclose(np.asarray(weights), np.full(logits.shape, 1 / count), rtol=1e-6)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_sharpness_multiplies_the_logits_and_one_is_the_softmax_as_trained(convert):
    logits = convert(RNG.standard_normal((3, 2, 1, 4, 4)).astype(np.float32))
    plain = weights_at(logits, adjustment(*MASK_TEXT_SKETCH, COSINE, Influence(factor=2.0)), 1, convert)
    same = weights_at(logits, adjustment(*MASK_TEXT_SKETCH, COSINE, Influence(factor=2.0, sharpness=1.0)), 1, convert)
    doubled = weights_at(
        logits, adjustment(*MASK_TEXT_SKETCH, COSINE, Influence(factor=2.0, sharpness=2.0)), 1, convert
    )
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(same))
    by_hand = weights_at(2 * logits, adjustment(*MASK_TEXT_SKETCH, COSINE, Influence(factor=2.0)), 1, convert)
    np.testing.assert_allclose(np.asarray(doubled), np.asarray(by_hand), rtol=1e-6)
    assert np.abs(np.asarray(doubled) - np.asarray(plain)).max() > 0.05


def test_sharpness_leaves_float32_as_it_is():
    logits = RNG.standard_normal((2, 1, 1, 4, 4)).astype(np.float32)
    adjust = adjustment([True, False], 1, COSINE, Influence(sharpness=0.5, boost=2.0))
    assert influence(logits, of_step(adjust, 1, 4)).dtype == np.float32


def test_a_modality_that_is_absent_neither_fades_nor_takes_the_remainder():
    present = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 1]], bool)
    adjust = adjustment([True, False, False], 1, COSINE, Influence(factor=2.0), present)
    assert adjust.anchor.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert adjust.factors.tolist() == [[2, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert adjust.gains[0, 0] == COSINE[0] and (adjust.gains[1:] == 1).all() and (adjust.gains[:, 1:] == 1).all()
    logits = RNG.standard_normal((3, 2, 1, 4, 4))
    for step in (1, 2, 3):
        alone = fusion.softmax(logits[present[step]])
        np.testing.assert_allclose(weights_at(logits, adjust, step)[present[step]], alone, rtol=1e-12)
    boosted = weights_at(logits, replace(adjust, boost=3.0), 2)
    np.testing.assert_allclose(boosted[[0, 2]], fusion.softmax(3 * fusion.softmax(logits[[0, 2]])), rtol=1e-12)
    assert (boosted[1] == 0).all()


def test_a_step_has_its_own_gains_and_what_all_steps_share():
    adjust = adjustment([True, False], 1, COSINE, Influence(factor=3.0, sharpness=0.5, boost=2.0))
    step = of_step(adjust, 2, 3)
    assert all(getattr(step, name).shape == (2, 1, 1, 1) for name in PER_MODALITY)
    np.testing.assert_allclose(step.gains.ravel(), [COSINE[2], 1.0], rtol=1e-6)
    assert (step.anchor.ravel().tolist(), step.factors.ravel().tolist()) == ([0, 1], [3, 1])
    assert (step.sharpness, step.boost) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("none", [1, 1, 1]), ("linear", [1, 0.25, 0]), ("cosine", [1, (1 - math.sqrt(0.5)) / 2, 0])],
)
def test_decay_goes_from_one_at_noise_to_zero_at_the_image(kind, expected):
    np.testing.assert_allclose(decay(kind, np.array([1000, 250, 0]), 1000), expected, atol=1e-12)


def test_numpy_and_torch_give_equal_results():
    logits, outs = RNG.standard_normal((3, 2, 1, 4, 4)), RNG.standard_normal((3, 2, 16, 4, 4))
    x, hist, noise = RNG.standard_normal((3, 2, 16, 4, 4))
    adjust, row = adjustment(*MASK_TEXT_SKETCH, COSINE, Influence(factor=2.0)), RNG.standard_normal(8)
    results = []
    for convert in (np.asarray, torch.from_numpy):
        weights = weights_at(convert(logits), adjust, 1, convert)
        fused = fuse(convert(outs), weights)
        results.append((weights, fused, *update(convert(x), fused, convert(hist), convert(noise), convert(row))))
    for by_numpy, by_torch in zip(*results, strict=True):
        assert array_api_compat.is_torch_array(by_torch)
        np.testing.assert_allclose(by_numpy, by_torch.numpy(), rtol=1e-12, atol=1e-12)


def test_fuse_is_the_weighted_sum_of_the_predictions():
    outs = RNG.standard_normal((2, 3, 16, 4, 4))
    weights = RNG.random((2, 3, 1, 4, 4))
    np.testing.assert_allclose(fuse(outs, weights), weights[0] * outs[0] + weights[1] * outs[1], rtol=1e-12)


def test_fuse_of_equal_predictions_returns_them():
    out = RNG.standard_normal((2, 16, 4, 4))
    weights = weights_at(
        RNG.standard_normal((3, 2, 1, 4, 4)), adjustment(*MASK_TEXT_SKETCH, COSINE, Influence(factor=2.0)), 1
    )
    np.testing.assert_allclose(fuse(np.stack([out] * 3), weights), out, rtol=1e-12)


def test_update_is_the_rows_formula():
    x, out, hist, noise = RNG.standard_normal((4, 5))
    row = RNG.standard_normal(8)
    following, next_hist = update(x, out, hist, noise, row)
    np.testing.assert_allclose(following, row[C_X] * x + row[C_OUT] * out + row[C_HIST] * hist + row[C_NOISE] * noise)
    np.testing.assert_allclose(next_hist, row[D_X] * x + row[D_OUT] * out)


def test_the_definition_names_no_modality():
    source = fusion.__loader__.get_source(fusion.__name__)
    assert not [name for name in ('"mask"', '"text"', '"sketch"') if name in source]
