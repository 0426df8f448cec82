"""How much experts disagree, held against its formula written out, and who is told of it when."""

import logging

import numpy as np
import pytest

from cdiff_rt.sampling.conflict import FROM, LEVELS, PERCENTILE, Conflict, disagreement
from cdiff_rt.sampling.loop import StepState

NAMES = ("mask", "text", "sketch")
KNOWN = next(iter(LEVELS))


def some(modalities=2, batch=2, latent=(4, 4), seed=0):
    """predictions [M, B, 3, *latent], influence [M, B, 1, *latent] of sum 1."""
    rng = np.random.default_rng(seed)
    raw = rng.random((modalities, batch, 1, *latent))
    return rng.normal(size=(modalities, batch, 3, *latent)), raw / raw.sum(0)


def state(step, timestep, modalities=2, scale=1.0, **sizes):
    predictions, influence = some(modalities, **sizes, seed=step)
    empty = np.empty(0)
    return StepState(step, timestep, empty, empty, NAMES[:modalities], influence, scale * predictions)


@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("latent", [(5,), (3, 4), (2, 2, 3)], ids=str)
def test_it_is_the_distance_from_the_mix_by_influence(modalities, latent):
    predictions, influence = some(modalities, 2, latent)
    found = disagreement(predictions, influence)
    assert found.shape == (2, *latent)
    for place in np.ndindex(2, *latent):
        shares = [influence[m, place[0], 0, *place[1:]] for m in range(modalities)]
        own = [predictions[m, place[0], :, *place[1:]] for m in range(modalities)]
        mix = sum(share * each for share, each in zip(shares, own, strict=True))
        squares = [share * ((each - mix) ** 2).mean() for share, each in zip(shares, own, strict=True)]
        assert found[place] == pytest.approx(np.sqrt(sum(squares)), abs=1e-12)


def test_nobody_contradicts_himself_and_who_decides_nothing_does_not_count():
    predictions, influence = some()
    assert np.allclose(disagreement(np.stack([predictions[0]] * 2), influence), 0)
    decided = np.stack([np.ones_like(influence[0]), np.zeros_like(influence[0])])
    assert np.allclose(disagreement(predictions, decided), 0)


def test_a_weight_below_0_counts_by_its_size():
    predictions, _ = some(batch=1)
    away = np.array([1.5, -0.5]).reshape(2, 1, 1, 1, 1) * np.ones((2, 1, 1, 4, 4))
    mix = 1.5 * predictions[0] - 0.5 * predictions[1]
    squares = 0.75 * (predictions[0] - mix) ** 2 + 0.25 * (predictions[1] - mix) ** 2
    np.testing.assert_allclose(disagreement(predictions, away), np.sqrt(squares.mean(1)))


def test_only_later_steps_count_and_their_mean_is_the_map():
    assert FROM == 0.4
    conflict, seen = Conflict(1000), [state(i, t) for i, t in enumerate((981, 601, 600, 300, 1))]
    for each in seen:
        conflict(each)
    expected = np.mean([disagreement(each.predictions, each.influence) for each in seen[2:]], axis=0)
    np.testing.assert_allclose(conflict.map, expected)
    numbers = [np.percentile(each, PERCENTILE) for each in expected]
    assert conflict.of_images == pytest.approx(numbers) and len(numbers) == 2


def test_a_run_begins_anew():
    conflict = Conflict(1000)
    for run in range(2):
        for step, timestep in enumerate((500, 1)):
            conflict(state(step, timestep, 2 + run))
    assert len(conflict.steps) == 2 and conflict.modalities == NAMES


@pytest.mark.parametrize(("modalities", "timestep"), [(1, 1), (2, 999)])
def test_one_alone_and_noise_alone_say_nothing(modalities, timestep):
    conflict = Conflict(1000)
    conflict(state(0, timestep, modalities))
    assert conflict.map is None and conflict.of_images == []


def test_a_callback_beside_it_sees_every_step_and_nobody_watches_without_need():
    seen, conflict = [], Conflict(1000)
    watch = conflict.beside(seen.append, always=False)
    both = [state(0, 900), state(1, 100)]
    for each in both:
        watch(each)
    assert seen == both and len(conflict.steps) == 1
    assert conflict.beside(None, always=False) is None
    conflict.beside(None, always=True)(both[0])
    assert conflict.steps == []


@pytest.mark.parametrize(
    ("scale", "model", "decided", "noted"),
    [(9.0, KNOWN, False, True), (1e-3, KNOWN, False, False), (9.0, "other", False, False), (9.0, KNOWN, True, False)],
)
def test_a_note_says_what_to_do_where_a_condition_is_likely_not_followed(scale, model, decided, noted, caplog):
    conflict = Conflict(1000)
    conflict(state(0, 100, scale=scale))
    with caplog.at_level(logging.INFO, "cdiff_rt"):
        conflict.tell(model, decided=decided)
    words = f"mask and text disagree ({max(conflict.of_images):.2f}): one of them may not be followed"
    assert (words in caplog.text) == noted == ("--influence text-first" in caplog.text)


def test_the_model_that_ships_has_a_level(bundle):
    assert bundle.manifest_hash in LEVELS
