"""SuperDiff's weights, on Gaussians whose densities are known."""

import numpy as np
import pytest

from cdiff_rt import Expert, Parameterisation, compose
from cdiff_rt.errors import BadRequest
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.superposition import Superposition, equal_change
from tests.denoisers import Gaussian

LINEAR = Schedule(1000, 1e-4, 0.02, betas="linear")
FORM = Parameterisation("eps", schedule=LINEAR)
LEFT, RIGHT = Gaussian(-1.0, 0.3), Gaussian(1.0, 0.3)


def expert(data):
    return Expert(lambda x, time: data.predict(FORM, x.astype(np.float64), np.float64(time[0])), FORM)


def made(mixing, *models, shape=(1, 1), batch=64, steps=100, **settings):
    pipeline = compose({f"model{i}": expert(data) for i, data in enumerate(models)}, shape, mixing=mixing)
    latents = pipeline.generate(batch=batch, steps=steps, seed=2, **settings).latents.astype(np.float64)
    return latents, pipeline.manifest.schedule.alpha_bars()[0]


def difference(latents, alpha_bar, one, two):
    """log q_1 - log q_2 of each image."""
    of = [data.log_density(latents, alpha_bar).reshape(len(latents), -1).sum(1) for data in (one, two)]
    return of[0] - of[1]


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 2, 2)], ids=str)
def test_densities_are_known_from_predictions_alone(shape):
    """Theorem 1: up to the error of the steps, which grows with the densities' difference."""
    mixing, wide = Superposition("or"), Gaussian(0.2, 0.8)
    latents, end = made(mixing, wide, Gaussian(-0.1, 0.6), shape=shape)
    known = difference(latents, end, wide, Gaussian(-0.1, 0.6))
    found = mixing.log_q[0] - mixing.log_q[1]
    assert np.corrcoef(known, found)[0, 1] > 0.99
    assert np.abs(found - known).mean() < 0.15 * known.std() + 0.05


def test_or_samples_what_any_model_finds_likely():
    latents, _ = made(Superposition("or"), LEFT, RIGHT)
    near = [np.abs(latents - data.mean) < 1.0 for data in (LEFT, RIGHT)]
    assert (near[0] | near[1]).mean() > 0.97 and min(side.mean() for side in near) > 0.3
    seen = []
    latents, end = made(Superposition("or"), LEFT, RIGHT, callback_on_step_end=seen.append)
    likelier = difference(latents, end, LEFT, RIGHT) > 0
    np.testing.assert_array_equal(seen[-1].influence[0, :, 0, 0] > 0.5, likelier)
    one, _ = made(Superposition("or", bias=(0.0, 50.0)), LEFT, RIGHT)
    assert (np.abs(one - RIGHT.mean) < 1.0).mean() > 0.97


def test_and_samples_what_all_models_find_equally_likely():
    latents, end = made(Superposition("and"), LEFT, RIGHT, batch=32)
    apart, _ = made(Superposition("or"), LEFT, RIGHT, batch=32)
    between, either = (np.abs(difference(of, end, LEFT, RIGHT)) for of in (latents, apart))
    assert np.median(between) < 0.1 * np.median(either)


@pytest.mark.parametrize("solver", ["dpmpp-2m-sde", "ddim"])
def test_of_one_model_told_twice_nothing_changes(solver):
    alone, _ = made(None, LEFT, shape=(1, 4), batch=3, steps=20, solver=solver)
    for kind in ("or", "and"):
        twice, _ = made(Superposition(kind), LEFT, LEFT, shape=(1, 4), batch=3, steps=20, solver=solver)
        np.testing.assert_allclose(twice, alone, atol=1e-5)


def test_the_weights_of_and_change_all_densities_alike():
    rng = np.random.default_rng(0)
    own, moved = rng.standard_normal((3, 5)), rng.standard_normal((3, 3, 5))
    weights = equal_change(own, moved)
    np.testing.assert_allclose(weights.sum(0), 1)
    change = own + (moved * weights).sum(1)
    np.testing.assert_allclose(change, np.broadcast_to(change[:1], change.shape), atol=1e-9)


@pytest.mark.parametrize(
    ("mixing", "settings", "words"),
    [
        (Superposition("or"), {"eta": 0.0}, "solver: a step adds 0% of the noise of the SDE"),
        (Superposition("or"), {"temperature": 0.5}, "solver: a step adds 50% of the noise"),
        (Superposition("and"), {"solver": "dpmpp-2m"}, "take ddim with eta 1 and temperature 1, or dpmpp-2m-sde"),
        (Superposition("or", bias=(1.0,)), {}, "bias: 1 numbers for 2 experts; give one for each"),
        (
            Superposition("or"),
            {"influence": "model0=2"},
            "influence: the weights of this pipeline follow from densities",
        ),
    ],
)
def test_what_the_estimate_does_not_hold_for_is_refused(mixing, settings, words):
    with pytest.raises(BadRequest) as caught:
        made(mixing, LEFT, RIGHT, batch=1, steps=10, **settings)
    assert words in str(caught.value)


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(BadRequest, match="kind: 'xor'; choose one of or, and"):
        Superposition("xor")  # type: ignore[arg-type]
