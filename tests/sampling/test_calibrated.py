"""The algebra of weights of least error."""

import numpy as np
import pytest

from cdiff_rt.sampling.calibrated import Calibration, cell_of, finest, least_error, mixed, spread


def some(count, of=()):
    half = np.random.default_rng(count).normal(size=(*of, count, count + 2))
    return half @ np.swapaxes(half, -1, -2)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_no_other_weights_of_sum_1_have_less_error(count):
    errors = some(count, (3,))
    weights = least_error(errors, 1e-12)
    np.testing.assert_allclose(weights.sum(-1), 1)
    known = np.linalg.solve(errors, np.ones((3, count, 1)))[..., 0]
    np.testing.assert_allclose(weights, known / known.sum(-1, keepdims=True), rtol=1e-6)
    generator = np.random.default_rng(0)
    for _ in range(20):
        other = generator.normal(size=count) * 0.1
        assert (mixed(errors, weights) <= mixed(errors, weights + other - other.mean()) + 1e-12).all()


def test_the_pull_leads_to_equal_weights_and_experts_that_agree_have_these():
    errors = some(4)
    distances = [np.abs(least_error(errors, pull) - 0.25).max() for pull in (1e-9, 0.1, 1.0, 10.0, 1e9)]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-6
    np.testing.assert_allclose(least_error(np.full((3, 3), 2.0), 0.1), 1 / 3, rtol=1e-4)
    np.testing.assert_allclose(least_error(np.zeros((2, 2)), 0.1), 1 / 2)


def test_what_all_err_alike_changes_nothing():
    errors = some(3)
    np.testing.assert_allclose(least_error(errors + 1e6, 0.1), least_error(errors, 0.1), rtol=1e-6)
    np.testing.assert_allclose(spread(errors + 1e6), spread(errors), rtol=1e-6)


def test_spread_is_the_variance():
    predictions = np.random.default_rng(0).normal(size=(5, 1000))
    errors = predictions @ predictions.T / 1000
    np.testing.assert_allclose(spread(errors), predictions.var(0, ddof=1).mean())


@pytest.mark.parametrize("latent", [(7,), (8, 8), (5, 12), (4, 6, 9)], ids=str)
def test_finer_cells_lie_within_coarser_ones(latent):
    most = finest(latent)
    assert most ** len(latent) <= 64 and most <= min(latent)
    for cells in (most, most // 2):
        parts = cell_of(latent, cells)
        assert parts.shape == latent and set(parts.ravel()) == set(range(cells ** len(latent)))
    fine, coarse = cell_of(latent, most), cell_of(latent, most // 2)
    assert len(set(zip(fine.ravel(), coarse.ravel(), strict=True))) == most ** len(latent)


def test_between_levels_weights_go_on_a_line_in_log_snr_and_beyond_stay():
    errors = np.array([np.diag([1.0, 3.0]), np.diag([3.0, 1.0])])[:, None]
    bars = (0.1, 0.9)
    found = Calibration(("a", "b"), (2,), bars, 1, 1e-12, tuple(errors.ravel()), 20, {})
    asked = np.array([1e-9, 0.1, 0.5, 0.9, 1 - 1e-12])  # log-SNR of 0.5 lies halfway
    scales = found.scales(("a", "b"), asked, (2,))
    np.testing.assert_allclose(scales[:, 0, 0], [0.75, 0.75, 0.5, 0.25, 0.25], atol=1e-6)
    np.testing.assert_allclose(scales[:, 0, 0], scales[:, 0, 1])
    np.testing.assert_allclose(found.scales(("b", "a"), asked, (2,)), scales[:, ::-1])
