import math

import numpy as np
import pytest

from cdiff_rt.errors import BadRequest
from cdiff_rt.schedule import Schedule

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
