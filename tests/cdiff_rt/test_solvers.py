import numpy as np
import pytest

from cdiff_rt.fusion import update
from cdiff_rt.schedule import Schedule
from cdiff_rt.solvers import C_HIST, C_NOISE, C_OUT, C_X, D_OUT, D_X, E_OUT, E_X, ddim

RNG = np.random.default_rng(0)


def reference_steps(steps, eta):
    """(t, a, a_prev, sigma) from noise to image, as the reference makes them."""
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=np.float64) ** 2
    cumulative = np.cumprod(1 - betas).astype(np.float32).astype(np.float64)
    ts = [c + 1 for c in range(0, 1000, 1000 // steps)]
    for i in reversed(range(steps)):
        a = cumulative[ts[i]]
        a_prev = cumulative[ts[i - 1]] if i > 0 else cumulative[0]
        yield ts[i], a, a_prev, eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))


def reference_update(x, e, noise, a, a_prev, sigma):
    """The reference's p_sample_ddim, in its order -> x_prev, pred_x0."""
    pred_x0 = (x - np.sqrt(1 - a) * e) / np.sqrt(a)
    direction = np.sqrt(1 - a_prev - sigma**2) * e
    return np.sqrt(a_prev) * pred_x0 + direction + sigma * noise, pred_x0


@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_ddim_rows_are_the_references_update(prediction, eta, steps):
    table = ddim(Schedule(prediction=prediction), steps, eta=eta)
    reference = list(reference_steps(steps, eta))
    assert table.timesteps.tolist() == [t for t, *_ in reference]
    for row, (_, a, a_prev, sigma) in zip(table.rows, reference, strict=True):
        x, out, noise = RNG.standard_normal((3, 2, 3, 4, 4))
        eps = out if prediction == "eps" else np.sqrt(a) * out + np.sqrt(1 - a) * x
        x_prev, x_0 = reference_update(x, eps, noise, a, a_prev, sigma)
        np.testing.assert_allclose(update(x, out, np.zeros_like(x), noise, row)[0], x_prev, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(row[E_X] * x + row[E_OUT] * out, x_0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_eps_and_v_give_the_same_next_x_when_the_predictions_are_converted(eta):
    tables = [ddim(Schedule(prediction=prediction), 10, eta=eta) for prediction in ("eps", "v")]
    alpha_bars = Schedule().alpha_bars()
    for t, by_eps, by_v in zip(tables[0].timesteps, tables[0].rows, tables[1].rows, strict=True):
        x, eps, noise = RNG.standard_normal((3, 16))
        x_0 = (x - np.sqrt(1 - alpha_bars[t]) * eps) / np.sqrt(alpha_bars[t])
        v = np.sqrt(alpha_bars[t]) * eps - np.sqrt(1 - alpha_bars[t]) * x_0
        expected = by_eps[C_X] * x + by_eps[C_OUT] * eps + by_eps[C_NOISE] * noise
        np.testing.assert_allclose(by_v[C_X] * x + by_v[C_OUT] * v + by_v[C_NOISE] * noise, expected, rtol=1e-8)


def test_the_last_step_ends_at_the_first_alpha_bar_and_not_at_one():
    row = ddim(Schedule(), 50, eta=0.0).rows[-1]
    assert row[C_X] ** 2 * Schedule().alpha_bars()[1] == pytest.approx(float(np.float32(0.9985)), rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_has_no_history_and_noise_only_with_eta(eta):
    rows = ddim(Schedule(), 10, eta=eta).rows
    assert not rows[:, [C_HIST, D_X, D_OUT]].any()
    assert (rows[:, C_NOISE] > 0).all() if eta else not rows[:, C_NOISE].any()


def test_a_temperature_scales_the_noise_alone():
    plain, hot = ddim(Schedule(), 10).rows, ddim(Schedule(), 10, temperature=0.5).rows
    np.testing.assert_allclose(hot[:, C_NOISE], plain[:, C_NOISE] / 2)
    np.testing.assert_array_equal(np.delete(hot, C_NOISE, 1), np.delete(plain, C_NOISE, 1))


def test_the_table_knows_how_much_signal_there_is():
    table = ddim(Schedule(), 10)
    np.testing.assert_array_equal(table.alpha_bars, Schedule().alpha_bars()[table.timesteps])
