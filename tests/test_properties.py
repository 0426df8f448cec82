"""What holds of every schedule, every number of steps and every seed, not only of those that other tests name."""

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cdiff_rt.errors import BadRequest
from cdiff_rt.sampling.fusion import update
from cdiff_rt.sampling.noise import TUNING, normal, path
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import C_NOISE, SOLVERS, x0_coefficients

SEEDS = st.integers(0, 2**63 - 1)
SCHEDULES = st.builds(
    Schedule,
    train_steps=st.integers(4, 1200),
    beta_start=st.floats(1e-4, 5e-3),
    beta_end=st.floats(5e-3, 2e-2),
    prediction=st.sampled_from(["eps", "v"]),
)


@given(SCHEDULES, st.integers(-3, 1300))
def test_any_number_of_steps_is_taken_as_asked_or_another_is_named_that_works(schedule, steps):
    try:
        found = schedule.timesteps(steps)
    except BadRequest as error:
        assume(1 <= steps <= schedule.train_steps)
        for count in map(int, re.findall(r"\d+", error.remedy)):
            assert len(schedule.timesteps(count)) == count
        return
    assert len(found) == steps and found[0] >= 1 and found[-1] < schedule.train_steps
    assert (np.diff(found) > 0).all()


@given(SCHEDULES, st.integers(2, 1199), st.floats(0, 1))
def test_a_spread_of_steps_goes_forwards_and_ends_within_the_schedule(schedule, steps, weight):
    assume(steps < schedule.train_steps)
    found = schedule.spread(steps, weight)
    assert len(found) == steps and found[0] >= 1 and found[-1] == schedule.train_steps - 1
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("solver", SOLVERS)
@given(SCHEDULES, st.integers(1, 60), SEEDS)
def test_a_network_that_knows_the_image_is_led_to_it(solver, schedule, steps, seed):
    """Where no noise is added, as much of the first noise is left at the end as the noise of the steps makes room for."""
    try:
        table, noisy = (SOLVERS[solver].table(schedule, steps, temperature=t) for t in (0.0, 1.0))
    except BadRequest:
        assume(False)
    x_0, eps = np.random.default_rng(seed).standard_normal((2, 8))
    before, after = table.alpha_bars, np.append(table.alpha_bars[1:], schedule.alpha_bars()[0])
    x, hist = np.sqrt(before[0]) * x_0 + np.sqrt(1 - before[0]) * eps, np.zeros(8)
    for a, row in zip(before, table.coefficients, strict=True):
        of_x, of_out = x0_coefficients(a, schedule.prediction)
        x, hist = update(x, (x_0 - of_x * x) / of_out, hist, np.full(8, 1e9), row)
    left = np.sqrt(1 - before[0]) * np.prod(np.sqrt((1 - after - noisy.coefficients[:, C_NOISE] ** 2) / (1 - before)))
    np.testing.assert_allclose(x, np.sqrt(after[-1]) * x_0 + left * eps, atol=1e-6)


@given(SEEDS, st.integers(0, 2**31), st.integers(0, 50), st.integers(0, 3), st.integers(1, 4))
def test_an_images_noise_is_its_own_whatever_the_batch(seed, image, draw, before, batch):
    first = max(image - before, 0)
    alone = normal(seed, range(image, image + 1), draw, (2, 3))
    among = normal(seed, range(first, image + batch), draw, (2, 3))
    np.testing.assert_array_equal(among[image - first], alone[0])
    assert not np.array_equal(alone, normal(seed, range(image, image + 1), draw, (2, 3), TUNING))


@given(st.sets(st.integers(1, 999), min_size=1, max_size=40))
def test_what_steps_add_is_independent_wherever_they_lie(timesteps):
    schedule = Schedule()
    snr = schedule.snr(np.array(sorted(timesteps, reverse=True)))
    mixtures = path(snr, schedule.snr(schedule.usual()[::-1]))
    np.testing.assert_allclose(mixtures @ mixtures.T, np.eye(len(timesteps)), atol=1e-9)
