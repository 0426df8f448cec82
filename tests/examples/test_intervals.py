import numpy as np
import pytest

from examples.intervals import wilson


@pytest.mark.parametrize(
    ("met", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (205, 250, 0.7677, 0.8627),
        (0, 24, 0.0, 0.138),
        (24, 24, 0.862, 1.0),
        (0, 240, 0.0, 0.0158),
    ],
)
def test_intervals_are_those_of_wilson_and_within_0_and_1(met, n, low, high):
    found = wilson(np.arange(n) < met)
    assert found == pytest.approx((low, high), abs=1e-3)
    assert 0 <= found[0] <= found[1] <= 1
