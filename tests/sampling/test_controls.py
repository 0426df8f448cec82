"""What weights and regions come to, held against the papers' formulas and a transcription in float64."""

import numpy as np
import pytest
import torch

from cdiff_rt.controls import Region, Weight
from cdiff_rt.errors import BadRequest
from cdiff_rt.sampling.controls import LEAST, MOST, SCALE, controls, places_of, weight_at
from cdiff_rt.sampling.fusion import Adjustment, fuse, influence, of_step

NAMES = ("mask", "text", "sketch")
PLACES = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
LATENT = (4, 4)
RNG = np.random.default_rng(0)
LEFT = np.zeros(LATENT, np.float32)
LEFT[:, :2] = 1
SOFT = np.linspace(0, 1, 16, dtype=np.float32).reshape(LATENT)


def made(weights=(), regions=(), names=NAMES, places=PLACES):
    return controls(names, [Weight(name, ((0.0, value),)) for name, value in weights], regions, places, LATENT)


def shares(held, logits, *, step=0, sharpness=1.0):
    """Influence functions of a step, without any adjustment but the controls."""
    ones = np.ones(held.present.shape)
    adjust = Adjustment(ones, 0 * ones, ones, held.present.astype(float), sharpness, None, held.values)
    return influence(logits, of_step(adjust, step, logits.ndim - 1))


def logits_of(count, scale=1.0):
    return (scale * RNG.standard_normal((count, 2, 1, *LATENT))).astype(np.float32)


def test_a_place_is_the_share_of_the_way_in_any_number_of_steps():
    assert places_of(np.array([1000, 750, 0]), 1000).tolist() == [0, 0.25, 1]


def test_a_weight_changes_on_lines_between_keyframes_and_is_nothing_outside_its_span():
    keyed = Weight("text", ((0.25, 1.0), (0.75, 3.0)))
    assert weight_at(keyed, PLACES).tolist() == [1, 1, 2, 3, 3]
    assert weight_at(Weight("text", ((0.0, 2.0),), 0.25, 0.5), PLACES).tolist() == [0, 2, 2, 0, 0]


def test_without_a_wish_there_are_no_controls_and_all_are_present():
    held = made()
    assert held.values is None and held.present.all() and held.present.shape == (5, 3)


# --- formulas of papers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 7.5, 0.5])
def test_weights_that_sum_to_one_are_classifier_free_guidance(weight):
    """Ho and Salimans 2022, eq. 6: eps = (1 + w) eps_c - w eps_u; here w is 1 + theirs."""
    held = made(
        [("mask", weight), ("text", 1 - weight)] if weight != 1 else [("mask", 1.0), ("text", 0.0)], names=NAMES[:2]
    )
    outs = RNG.standard_normal((2, 2, 3, *LATENT))
    mixed = fuse(outs, shares(held, logits_of(2), sharpness=0.0))
    np.testing.assert_allclose(mixed, outs[1] + weight * (outs[0] - outs[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (7.5, 3.0), (0.3, 0.2), (2.0, -1.5), (2.0, -1.0)], ids=str)
def test_and_and_not_are_composable_diffusions(weights):
    """Liu et al. 2022, eq. 11 and 14: eps = eps_u + sum of w_i (eps_i - eps_u), w_i below 0 for NOT."""
    held = made([("mask", weights[0]), ("text", weights[1]), ("sketch", 1 - sum(weights))])
    outs = RNG.standard_normal((3, 2, 3, *LATENT))
    expected = outs[2] + weights[0] * (outs[0] - outs[2]) + weights[1] * (outs[1] - outs[2])
    mixed = fuse(outs, shares(held, logits_of(3), sharpness=0.0))
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-4)


def test_regions_are_multidiffusions():
    """Bar-Tal et al. 2023, eq. 5: the sum of W_i * F_i over the sum of W_j, at every pixel."""
    maps = [SOFT, LEFT, (1 - LEFT + 0.25).clip(0, 1)]
    held = made(regions=[(Region(name, ""), map_) for name, map_ in zip(NAMES, maps, strict=True)])
    outs, wide = RNG.standard_normal((3, 2, 3, *LATENT)), np.stack(maps)[:, None, None]
    mixed = fuse(outs, shares(held, logits_of(3), sharpness=0.0))
    np.testing.assert_allclose(mixed, (wide * outs).sum(0) / wide.sum(0), rtol=1e-5, atol=1e-5)


def test_positive_weights_multiply_the_dynamic_diffusers_influence():
    logits, weights = logits_of(3), np.array([0.5, 2.0, 1.0]).reshape(-1, 1, 1, 1, 1)
    softmax = np.exp(logits) / np.exp(logits).sum(0)
    found = shares(made(list(zip(NAMES, weights.ravel(), strict=True))), logits)
    np.testing.assert_allclose(found, weights * softmax / (weights * softmax).sum(0), rtol=1e-5)


def test_a_weight_of_one_changes_nothing():
    logits = logits_of(3)
    plain = shares(made(), logits)
    np.testing.assert_allclose(shares(made([("text", 1.0)]), logits), plain, atol=1e-6)


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("value", [0.0, 0.3, 0.8, 1.0])
def test_influence_is_no_less_than_at_least_and_no_more_than_at_most(value, scale):
    logits = logits_of(3, scale)
    least = shares(made(regions=[(Region("text", "", "at-least", value), LEFT)]), logits)
    most = shares(made(regions=[(Region("text", "", "at-most", value), LEFT)]), logits)
    plain = shares(made(), logits)
    assert least[1, ..., :2].min() >= value - 1e-5 and most[1, ..., :2].max() <= value + 1e-5
    for found in (least, most):
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
        np.testing.assert_allclose(found[..., 2:], plain[..., 2:], atol=1e-5)
        assert found.min() >= -1e-6
    np.testing.assert_array_less(plain[1] - 1e-5, least[1])
    np.testing.assert_array_less(most[1], plain[1] + 1e-5)


def test_the_others_keep_their_proportions_where_one_is_held_up():
    logits = logits_of(3)
    plain, found = shares(made(), logits), shares(made(regions=[(Region("text", "", "at-least", 0.9), LEFT)]), logits)
    np.testing.assert_allclose((found[0] / found[2])[..., :2], (plain[0] / plain[2])[..., :2], rtol=1e-3)


def test_bounds_of_several_hold_together_and_grey_counts_for_as_much_as_it_is():
    regions = [(Region("text", "", "at-least", 0.8), SOFT), (Region("mask", "", "at-most", 0.1), LEFT)]
    held = made(regions=regions)
    np.testing.assert_allclose(held.values[0, LEAST, 1], 0.8 * SOFT, rtol=1e-6)
    np.testing.assert_allclose(held.values[0, MOST, 0], 1 - 0.9 * LEFT, rtol=1e-6)
    found = shares(held, logits_of(3, 3.0))
    assert (found[1] >= 0.8 * SOFT - 1e-5).all() and (found[0, ..., :2] <= 0.1 + 1e-5).all()
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_a_region_can_weigh_and_hold_for_a_while():
    weighing = Region("text", "", "weight", 3.0, start=0.25, end=0.5)
    held = made(regions=[(weighing, SOFT)])
    assert (held.values[[0, 3, 4], SCALE] == 1).all()
    np.testing.assert_allclose(held.values[1, SCALE, 1], 1 + 2 * SOFT, rtol=1e-6)
    only = made(regions=[(Region("text", "", "only", 1.0, 0.0, 0.25), LEFT)])
    np.testing.assert_array_equal(only.values[1, SCALE, 1], LEFT)
    assert (only.values[2, SCALE, 1] == 1).all()


def test_influence_stays_finite_where_a_softmax_underflows():
    logits = np.zeros((2, 1, 1, *LATENT), np.float32)
    logits[1] = 1000.0  # of the mask nothing is left
    held = made(regions=[(Region("text", ""), 1 - LEFT)], names=NAMES[:2])
    found = shares(held, logits)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0, ..., :2], 1)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_arrays_of_numpy_and_torch_are_steered_alike(convert):
    regions = [(Region("text", "", "at-least", 0.7), SOFT)]
    held, logits = made([("mask", -0.5), ("sketch", 2.0)], regions), logits_of(3)
    ones = convert(np.ones((3, 1, 1, 1, 1), np.float32))
    adjust = Adjustment(ones, 0 * ones, ones, ones, controls=convert(held.values[0][:, :, None, None]))
    found = np.asarray(influence(convert(logits), adjust))
    np.testing.assert_allclose(found, shares(held, logits), rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_a_weight_that_would_underflow_is_none():
    held, logits = made([("mask", 1e-11), ("text", 0.0), ("sketch", -1.0)]), np.zeros((3, 2, 1, *LATENT), np.float32)
    logits[0] = -200.0
    assert np.isfinite(shares(held, logits)).all()
    with pytest.raises(BadRequest, match="no weight above 0 for mask or text or sketch"):
        made([("mask", 1e-13), ("text", 0.0), ("sketch", 0.0)])


# --- presence --------------------------------------------------------------------------------------------------------


def test_a_condition_without_weight_is_not_present_and_the_others_share_as_if_it_had_not_been_given():
    weights = [Weight("text", ((0.0, 1.0),), 0.5, 1.0)]
    held = controls(NAMES, weights, [], PLACES, LATENT)
    assert held.present[:, 1].tolist() == [False, False, True, True, True] and held.present[:, [0, 2]].all()
    logits = logits_of(3)
    alone = shares(made(names=("mask", "sketch")), logits[[0, 2]])
    logits[1] = np.inf  # what nobody computed may be anything
    found = shares(held, logits)
    np.testing.assert_allclose(found[[0, 2]], alone, rtol=1e-6)
    assert (found[1] == 0).all()


def test_a_region_that_is_nowhere_calls_nobody():
    held = made(regions=[(Region("text", ""), 0 * LEFT)])
    assert held.present.tolist() == [[True, False, True]] * 5


# --- what cannot hold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "regions", "words"),
    [
        (
            [("mask", 0.0), ("text", 0.0), ("sketch", 0.0)],
            [],
            "in step 1 of 5, no weight above 0 for mask or text or sketch; give one there, or another condition",
        ),
        ([("mask", -1.0), ("text", 0.0), ("sketch", 0.0)], [], "no weight above 0 for mask or text or sketch"),
        (
            [("mask", 0.0), ("sketch", 0.0)],
            [(Region("text", ""), LEFT)],
            "in step 1 of 5 at 50% of the places, no weight above 0 for mask",
        ),
        (
            [],
            [(Region("text", "", "at-least", 0.7), LEFT), (Region("mask", "", "at-least", 0.7), SOFT)],
            "what is asked for at least is more than all; lower :at-least",
        ),
        (
            [("mask", 0.0), ("sketch", 0.0)],
            [(Region("text", "", "at-most", 0.5, 0.5, 1.0), LEFT)],
            "in step 3 of 5 at 50% of the places, what is allowed at most is less than all; raise :at-most",
        ),
        (
            [],
            [(Region("text", "", "at-least", 0.7), LEFT), (Region("text", "", "at-most", 0.5), LEFT)],
            "at least is more than at most",
        ),
    ],
)
def test_what_cannot_hold_is_refused_with_its_first_step(weights, regions, words):
    with pytest.raises(BadRequest) as caught:
        made(weights, regions)
    assert words in str(caught.value)
