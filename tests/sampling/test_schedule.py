import math

import numpy as np
import pytest

from cdiff_rt.errors import BadRequest
from cdiff_rt.sampling.schedule import Schedule, half_log_snr

CRASHING = {3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)}  # IndexError in the reference


def reference_alpha_bars():
    """The reference's schedule, written out: linear in the square root of beta."""
    low, high, product, bars = math.sqrt(0.0015), math.sqrt(0.0195), 1.0, []
    for t in range(1000):
        product *= 1 - (low + (high - low) * t / 999) ** 2
        bars.append(product)
    return bars


def test_alpha_bars_are_the_references_in_float32():
    bars = Schedule().alpha_bars()
    np.testing.assert_allclose(bars, reference_alpha_bars(), rtol=6e-8)
    assert bars.dtype == np.float64 and (bars == bars.astype(np.float32)).all()


def test_alpha_bars_end_at_almost_all_and_almost_no_signal():
    bars = Schedule().alpha_bars()
    assert bars[0] == np.float32(0.9985)
    assert math.sqrt(bars[-1]) == pytest.approx(0.0120, abs=1e-4)
    assert (np.diff(bars) < 0).all()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (50, range(1, 1000, 20)),
        (10, range(1, 1000, 100)),
        (500, range(1, 1000, 2)),
        (4, [1, 251, 501, 751]),
        (1, [1]),
    ],
)
def test_timesteps_are_the_references_grid(steps, expected):
    np.testing.assert_array_equal(Schedule().timesteps(steps), list(expected))


def test_every_count_runs_as_many_steps_as_asked_or_is_refused():
    alpha_bars = Schedule().alpha_bars()
    for steps in range(1, 1001):
        try:
            timesteps = Schedule().timesteps(steps)
        except BadRequest:
            continue
        assert len(timesteps) == steps and len(alpha_bars[timesteps]) == steps and steps not in CRASHING


@pytest.mark.parametrize("steps", [3, 9, 27, 36, 37, 101, 111, 251, 333, 501, 999, 1000])
def test_counts_that_crash_the_reference_are_refused(steps):
    with pytest.raises(BadRequest, match=rf"^steps: {steps} "):
        Schedule().timesteps(steps)


@pytest.mark.parametrize(("steps", "remedy"), [(30, "25 or 40"), (7, "5 or 8"), (3, "2 or 4"), (6, "5 or 8")])
def test_counts_that_would_run_other_counts_name_the_nearest_that_work(steps, remedy):
    with pytest.raises(BadRequest) as raised:
        Schedule().timesteps(steps)
    assert raised.value.remedy == f"take {remedy}"


def test_a_count_above_all_that_work_names_the_largest_once():
    with pytest.raises(BadRequest) as raised:
        Schedule().timesteps(600)
    assert raised.value.remedy == "take 500"


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_counts_outside_the_schedule_are_refused(steps):
    with pytest.raises(BadRequest, match="outside 1-1000"):
        Schedule().timesteps(steps)


def test_half_log_snr_is_the_logarithm_of_signal_over_noise():
    for t, alpha_bar in enumerate(reference_alpha_bars()):
        expected = math.log(math.sqrt(alpha_bar) / math.sqrt(1 - alpha_bar))
        assert half_log_snr(Schedule().alpha_bars()[t]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("in_log_snr", [0.0, 0.5, 1.0])
def test_every_count_is_spread_over_the_whole_schedule(in_log_snr):
    for steps in range(2, 1000):
        timesteps = Schedule().spread(steps, in_log_snr)
        assert len(timesteps) == steps and timesteps.dtype == np.int64
        assert timesteps[0] >= 1 and (np.diff(timesteps) > 0).all() and timesteps[-1] == 999


def test_steps_of_equal_length_in_time_in_log_snr_and_in_between():
    """By hand: the way is 0 to 999 in time and lambda_0 to lambda_999 in log-SNR."""
    bars = Schedule().alpha_bars()
    lambdas = half_log_snr(bars)
    assert Schedule().spread(10, 0.0).tolist() == [round(99.9 * k) for k in range(1, 11)]
    for step, t in enumerate(Schedule().spread(8, 1.0), start=1):
        wanted = lambdas[0] + (lambdas[-1] - lambdas[0]) * step / 8
        assert t == np.abs(lambdas - wanted).argmin()
    half = (np.arange(1000) / 999 + (lambdas[0] - lambdas) / (lambdas[0] - lambdas[-1])) / 2
    assert Schedule().spread(20, 0.5).tolist() == [np.abs(half - k / 20).argmin() for k in range(1, 21)]


def test_steps_are_some_of_given_ones_where_these_are_enough():
    usual = Schedule().usual()
    nearest = [usual[np.abs(usual - 98.1 * k).argmin()] for k in range(1, 11)]  # 981 is the last
    assert Schedule().spread(10, 0.0, among=usual).tolist() == nearest
    for steps in range(2, 51):
        timesteps = Schedule().spread(steps, 0.25, among=usual)
        assert len(timesteps) == steps and (np.diff(timesteps) > 0).all() and timesteps[-1] == 981
        assert set(timesteps) <= set(usual)
    np.testing.assert_array_equal(Schedule().spread(50, 0.25, among=usual), usual)
    np.testing.assert_array_equal(Schedule().spread(51, 0.25, among=usual), Schedule().spread(51, 0.25))


def test_the_usual_timesteps_are_what_there_is_room_for_of_50():
    np.testing.assert_array_equal(Schedule().usual(), Schedule().timesteps(50))
    np.testing.assert_array_equal(Schedule(train_steps=103).usual(), np.arange(1, 103, 2))
    np.testing.assert_array_equal(Schedule(train_steps=20).usual(), np.arange(1, 20))
    assert not len(Schedule(train_steps=1).usual())


def test_the_signal_to_noise_of_steps_ends_at_timestep_0():
    bars = Schedule().alpha_bars()
    np.testing.assert_allclose(Schedule().snr(np.array([900, 30])), [bars[t] / (1 - bars[t]) for t in (900, 30, 0)])


@pytest.mark.parametrize("steps", [-1, 0, 1, 1000])
def test_counts_that_cannot_be_spread_are_refused(steps):
    with pytest.raises(BadRequest, match=rf"^steps: {steps} is outside 2-999"):
        Schedule().spread(steps, 0.5)
