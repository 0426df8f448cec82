"""What networks of influence are told of the noise."""

import numpy as np

from cdiff_rt.learning.learned import time_of


def test_the_more_noise_the_later_and_within_the_range_that_timesteps_have():
    times = [time_of(a) for a in (1.0, 0.999, 0.9, 0.5, 0.1, 0.001, 0.0)]
    assert times == sorted(times) and times[3] == 500
    np.testing.assert_allclose(times[2], 500 - 40 * np.log(9))
    assert -60 < times[0] < times[1] < 250 and 750 < times[-2] < times[-1] < 1060
