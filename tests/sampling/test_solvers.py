import numpy as np
import pytest

from cdiff_rt.sampling.fusion import update
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import C_HIST, C_NOISE, C_OUT, C_X, D_OUT, D_X, E_OUT, E_X, ddim, dpmpp_2m, dpmpp_2m_sde
from tests.cdiff_rt.gaussian import DATA, FINE, marginal, ode_error, sde_errors

RNG = np.random.default_rng(0)
SECOND_ORDER = {dpmpp_2m: 0.0, dpmpp_2m_sde: 1.0}  # -> the eta of DDIM that it is to


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
    for row, (_, a, a_prev, sigma) in zip(table.coefficients, reference, strict=True):
        x, out, noise = RNG.standard_normal((3, 2, 3, 4, 4))
        eps = out if prediction == "eps" else np.sqrt(a) * out + np.sqrt(1 - a) * x
        x_prev, x_0 = reference_update(x, eps, noise, a, a_prev, sigma)
        np.testing.assert_allclose(update(x, out, np.zeros_like(x), noise, row)[0], x_prev, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(row[E_X] * x + row[E_OUT] * out, x_0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [ddim, dpmpp_2m, dpmpp_2m_sde])
def test_eps_and_v_give_the_same_next_x_when_the_predictions_are_converted(solver):
    tables = [solver(Schedule(prediction=prediction), 10) for prediction in ("eps", "v")]
    alpha_bars = Schedule().alpha_bars()
    for t, by_eps, by_v in zip(tables[0].timesteps, tables[0].coefficients, tables[1].coefficients, strict=True):
        x, eps, hist, noise = RNG.standard_normal((4, 16))
        x_0 = (x - np.sqrt(1 - alpha_bars[t]) * eps) / np.sqrt(alpha_bars[t])
        v = np.sqrt(alpha_bars[t]) * eps - np.sqrt(1 - alpha_bars[t]) * x_0
        expected, given = update(x, eps, hist, noise, by_eps), update(x, v, hist, noise, by_v)
        np.testing.assert_allclose(given, expected, rtol=1e-8, atol=1e-8)


def test_the_last_step_ends_at_the_first_alpha_bar_and_not_at_one():
    row = ddim(Schedule(), 50, eta=0.0).coefficients[-1]
    assert row[C_X] ** 2 * Schedule().alpha_bars()[1] == pytest.approx(float(np.float32(0.9985)), rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_has_no_history_and_noise_only_with_eta(eta):
    coefficients = ddim(Schedule(), 10, eta=eta).coefficients
    assert not coefficients[:, [C_HIST, D_X, D_OUT]].any()
    assert (coefficients[:, C_NOISE] > 0).all() if eta else not coefficients[:, C_NOISE].any()


def test_a_temperature_scales_the_noise_alone():
    plain, hot = ddim(Schedule(), 10).coefficients, ddim(Schedule(), 10, temperature=0.5).coefficients
    np.testing.assert_allclose(hot[:, C_NOISE], plain[:, C_NOISE] / 2)
    np.testing.assert_array_equal(np.delete(hot, C_NOISE, 1), np.delete(plain, C_NOISE, 1))


def test_the_table_knows_how_much_signal_there_is():
    table = ddim(Schedule(), 10)
    np.testing.assert_array_equal(table.alpha_bars, Schedule().alpha_bars()[table.timesteps])


def papers_steps(schedule, steps, solver):
    """(alpha, sigma, lambda) at t_0 ... t_M, in the paper's notation: a list of each, from noise to image."""
    bars = schedule.alpha_bars()
    times = [*solver(schedule, steps).timesteps, 0]
    alpha, sigma = [np.sqrt(bars[t]) for t in times], [np.sqrt(1 - bars[t]) for t in times]
    return alpha, sigma, [np.log(a) - np.log(s) for a, s in zip(alpha, sigma, strict=True)]


@pytest.mark.parametrize("steps", [2, 3, 20])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_dpmpp_2m_is_the_papers_algorithm_2(prediction, steps):
    """Its buffer Q is hist; the first and the last update are line 4, the first-order one."""
    schedule = Schedule(prediction=prediction)
    alpha, sigma, lam = papers_steps(schedule, steps, dpmpp_2m)
    x, hist, before = RNG.standard_normal(16), np.zeros(16), None
    for i, row in enumerate(dpmpp_2m(schedule, steps).coefficients, start=1):
        eps = RNG.standard_normal(16)
        x_0 = (x - sigma[i - 1] * eps) / alpha[i - 1]
        h = lam[i] - lam[i - 1]
        d = x_0
        if 1 < i < steps:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * before
        expected = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-h) - 1) * d
        out = eps if prediction == "eps" else alpha[i - 1] * eps - sigma[i - 1] * x_0
        following, hist = update(x, out, hist, np.full(16, 1e9), row)
        np.testing.assert_allclose(following, expected, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(hist, x_0, rtol=1e-7, atol=1e-7)
        x, before = expected, x_0


@pytest.mark.parametrize("steps", [2, 3, 20])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_dpmpp_2m_sde_is_the_papers_update(prediction, steps):
    """x_t = s_t/s_s e^-h x_s + a_t (1 - e^-2h) x_0 + a_t (1 - e^-2h)/2 D_1 + s_t sqrt(1 - e^-2h) z."""
    schedule = Schedule(prediction=prediction)
    alpha, sigma, lam = papers_steps(schedule, steps, dpmpp_2m_sde)
    x, hist, before = RNG.standard_normal(16), np.zeros(16), None
    for i, row in enumerate(dpmpp_2m_sde(schedule, steps, temperature=0.7).coefficients, start=1):
        eps, z = RNG.standard_normal((2, 16))
        x_0 = (x - sigma[i - 1] * eps) / alpha[i - 1]
        h = lam[i] - lam[i - 1]
        shrinking = 1 - np.exp(-2 * h)
        expected = sigma[i] / sigma[i - 1] * np.exp(-h) * x + alpha[i] * shrinking * x_0
        if 1 < i < steps:
            r = (lam[i - 1] - lam[i - 2]) / h
            expected += alpha[i] * shrinking / 2 * (x_0 - before) / r
        expected += 0.7 * sigma[i] * np.sqrt(shrinking) * z
        out = eps if prediction == "eps" else alpha[i - 1] * eps - sigma[i - 1] * x_0
        following, hist = update(x, out, hist, z, row)
        np.testing.assert_allclose(following, expected, rtol=1e-8, atol=1e-8)
        x, before = expected, x_0


@pytest.mark.parametrize(("solver", "eta"), SECOND_ORDER.items())
def test_of_two_steps_nothing_is_left_of_second_order(solver, eta):
    """And what is left is DDIM, on other timesteps."""
    schedule = Schedule(prediction="v")
    coefficients, (first, last) = solver(schedule, 2).coefficients, solver(schedule, 2).timesteps
    assert not coefficients[:, C_HIST].any() and first == (981 if eta else 999)
    bars = schedule.alpha_bars()
    a, a_next = bars[[first, last]], bars[[last, 0]]
    np.testing.assert_allclose(coefficients[:, C_NOISE], eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next)))


@pytest.mark.parametrize("solver", SECOND_ORDER)
def test_all_steps_but_the_first_and_the_last_look_back(solver):
    coefficients = solver(Schedule(), 20).coefficients
    assert (coefficients[1:-1, C_HIST] != 0).all() and not coefficients[[0, -1], C_HIST].any()
    np.testing.assert_array_equal(coefficients[:, [D_X, D_OUT]], coefficients[:, [E_X, E_OUT]])


@pytest.mark.parametrize("solver", SECOND_ORDER)
def test_second_order_ends_where_ddim_does(solver):
    """Without noise, x_0 = 0 and eps = 1 leave exactly the noise of timestep 0; x_0 = 1 and eps = 0 its signal."""
    schedule, row = Schedule(), solver(Schedule(), 20, temperature=0.0).coefficients[-1]
    a, end = solver(schedule, 20).alpha_bars[-1], schedule.alpha_bars()[0]
    kept = np.hypot(row[C_X] * np.sqrt(1 - a) + row[C_OUT], solver(schedule, 20).coefficients[-1, C_NOISE])
    assert row[C_X] * np.sqrt(a) == pytest.approx(np.sqrt(end)) and kept == pytest.approx(np.sqrt(1 - end))


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("solver", "order"), [(ddim, 1), (dpmpp_2m, 2)])
def test_the_order_of_convergence_to_the_ode(solver, order, prediction):
    """From 50 to 400 steps, on Gaussian data, whose score and whose path are known, with a fine schedule."""
    settings = {"eta": 0.0} if solver is ddim else {}
    errors = [ode_error(solver(FINE[prediction], steps, **settings), FINE[prediction]) for steps in (50, 100, 200, 400)]
    measured = np.diff(np.log2(errors))
    print(f"{solver.__name__}, {prediction}: errors {errors}, orders {-measured}")
    assert (np.abs(-measured - order) < 0.3).all()


def test_at_20_steps_second_order_is_an_order_of_magnitude_nearer_to_the_ode_than_ddim():
    schedule = Schedule()
    ours, ddims = ode_error(dpmpp_2m(schedule, 20), schedule), ode_error(ddim(schedule, 20, eta=0.0), schedule)
    assert 5 * ours < ddims


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_sde_ends_at_the_datas_mean_and_variance(prediction):
    """Both follow exactly from a table, as everything is linear in x. Their errors fall with the square of the steps."""
    schedule = FINE[prediction]
    means, variances = zip(*(sde_errors(dpmpp_2m_sde(schedule, n), schedule) for n in (80, 160, 320)), strict=True)
    assert max(means) < 1e-3 and variances[-1] < 0.005
    assert (np.diff(np.log2(variances)) < -1.7).all()


@pytest.mark.parametrize("steps", [16, 20, 25, 26, 30, 40, 49, 50, 60])
def test_steps_of_any_number_leave_about_the_sdes_variance(steps):
    """Of fewer, each is longer; with timestep 1 among those to choose from, 25 steps and more left 1.4 of it."""
    schedule = Schedule(prediction="v")
    assert sde_errors(dpmpp_2m_sde(schedule, steps), schedule)[1] < 0.12


def test_ddim_with_noise_is_of_first_order_in_the_variance():
    schedule = FINE["eps"]
    variances = [sde_errors(ddim(schedule, n), schedule)[1] for n in (200, 400, 800)]
    assert (np.abs(np.diff(np.log2(variances)) + 1) < 0.3).all()


def test_with_less_noise_the_sdes_variance_is_wrong():
    """So the checks above see the noise."""
    table = dpmpp_2m_sde(FINE["eps"], 80, temperature=0.9)
    assert sde_errors(table, FINE["eps"])[1] > 0.05
    assert marginal(FINE["eps"].alpha_bars()[0])[1] == pytest.approx(DATA[1] ** 2, rel=1e-3)
