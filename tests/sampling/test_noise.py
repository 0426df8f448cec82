import itertools
import threading

import numpy as np
import pytest

from cdiff_rt.sampling.noise import ahead, normal, of_steps, path
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import C_NOISE, ddim, dpmpp_2m_sde

SHAPE = (16, 16, 16)


@pytest.mark.parametrize(("images", "place"), [(range(3, 4), 0), (range(4), 3), (range(2, 10), 1)])
def test_an_images_noise_is_the_same_in_any_batch(images, place):
    alone = normal(7, range(3, 4), 5, SHAPE)[0]
    np.testing.assert_array_equal(normal(7, images, 5, SHAPE)[place], alone)


@pytest.mark.parametrize(("seed", "image", "draw"), [(8, 3, 5), (7, 4, 5), (7, 3, 6), (7, 5, 3), (2**63 - 1, 3, 5)])
def test_noise_differs_by_seed_image_and_draw(seed, image, draw):
    first, second = normal(7, range(3, 4), 5, SHAPE), normal(seed, range(image, image + 1), draw, SHAPE)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1


def test_noise_is_standard_normal_float32():
    drawn = normal(0, range(64), 0, SHAPE)
    assert drawn.dtype == np.float32 and drawn.shape == (64, *SHAPE)
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01
    assert abs((np.abs(drawn) < 1).mean() - 0.6827) < 0.01


def test_noise_leaves_the_global_generator_alone():
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    normal(0, range(1), 0, SHAPE)
    assert np.random.random() == expected


SCHEDULE = Schedule()
KNOTS = SCHEDULE.snr(SCHEDULE.usual()[::-1])


RUNS = [(ddim, 1), (ddim, 20), (ddim, 50), (ddim, 500), (dpmpp_2m_sde, 16), (dpmpp_2m_sde, 90)]


def ends(solver, steps):
    return SCHEDULE.snr(solver(SCHEDULE, steps).timesteps)


def increments(snr):
    """[S, D] of W over the steps, in draws."""
    return np.sqrt(np.diff(snr))[:, None] * path(snr, KNOTS)


@pytest.mark.parametrize(("solver", "steps"), RUNS)
def test_what_a_step_adds_is_an_increment_of_the_motion(solver, steps):
    """(1 - a') / sqrt(a') (W(snr') - W(snr)), by the solvers' own coefficients."""
    table = solver(SCHEDULE, steps)
    after = SCHEDULE.alpha_bars()[[*table.timesteps[1:], 0]]
    spread = np.sqrt(np.diff(ends(solver, steps)))
    np.testing.assert_allclose(table.coefficients[:, C_NOISE], (1 - after) / np.sqrt(after) * spread, rtol=1e-9)


def test_the_usual_steps_add_the_draws_as_they_are():
    np.testing.assert_array_equal(path(KNOTS, KNOTS)[:, :50], np.eye(50))
    assert not path(KNOTS, KNOTS)[:, 50:].any()


@pytest.mark.parametrize(("solver", "steps"), RUNS)
def test_steps_of_any_length_add_independent_standard_noise(solver, steps):
    found = path(ends(solver, steps), KNOTS)
    np.testing.assert_allclose(found @ found.T, np.eye(steps), atol=1e-12)


@pytest.mark.parametrize(("solver", "steps"), [*RUNS, (ddim, 10), (ddim, 125), (dpmpp_2m_sde, 10)])
def test_between_knots_that_it_meets_a_run_adds_what_the_usual_steps_do(solver, steps):
    snr = ends(solver, steps)
    ours, usual = increments(snr), increments(KNOTS)
    met = [at for at in KNOTS if at in snr]
    assert len(met) >= 2
    for start, stop in itertools.pairwise(met):
        added = ours[(start <= snr[:-1]) & (snr[1:] <= stop)].sum(0)
        between = usual[(start <= KNOTS[:-1]) & (KNOTS[1:] <= stop)].sum(0)
        np.testing.assert_allclose(added[:50], between[:50], atol=1e-12)
        np.testing.assert_allclose(added[50:], 0, atol=1e-12)  # what bridges it adds nothing in all


def test_the_noise_of_a_step_is_its_mixture_of_the_draws():
    table, images = dpmpp_2m_sde(SCHEDULE, 16), range(2, 4)
    noise, mixtures = of_steps(SCHEDULE, table, 7, images, (2, 8, 8)), path(ends(dpmpp_2m_sde, 16), KNOTS)
    drawn = np.stack([normal(7, images, draw, (2, 8, 8)) for draw in range(1, 1 + mixtures.shape[1])])
    for step in (0, 7, 15):
        assert noise(step).dtype == np.float32
        np.testing.assert_allclose(noise(step), np.tensordot(mixtures[step], drawn, 1), atol=1e-6)
    usual = of_steps(SCHEDULE, ddim(SCHEDULE, 50), 7, images, (2, 8, 8))
    np.testing.assert_array_equal([usual(step) for step in range(50)], drawn[:50])


def test_steps_that_add_nothing_draw_nothing():
    assert not of_steps(SCHEDULE, ddim(SCHEDULE, 50, eta=0.0), 7, range(1), (2, 8, 8))(3).any()


@pytest.mark.parametrize("helpers", [0, 1, 3])
@pytest.mark.parametrize(("solver", "steps"), [(ddim, 50), (dpmpp_2m_sde, 16)])
def test_noise_that_is_drawn_ahead_is_the_same(solver, steps, helpers):
    draw = of_steps(SCHEDULE, solver(SCHEDULE, steps), 7, range(2, 4), (2, 8, 8))
    with ahead(draw, steps, helpers) as drawn:
        for step in range(steps):
            np.testing.assert_array_equal(drawn(step), draw(step))


def test_it_is_drawn_while_the_caller_does_else():
    by = {}

    def draw(step):
        by[step] = threading.current_thread()
        if len(by) == 4:
            all_there.set()
        return step

    all_there = threading.Event()
    with ahead(draw, 4, 2) as drawn:
        assert all_there.wait(10)
        assert [drawn(step) for step in range(4)] == [0, 1, 2, 3]
    assert threading.current_thread() not in by.values()


def test_where_no_thread_can_be_started_the_caller_draws(monkeypatch):
    def refused(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    asked = []
    with ahead(lambda step: asked.append(step), 3, 2) as drawn:
        for step in range(3):
            drawn(step)
            assert asked == [*range(step + 1)]


@pytest.mark.parametrize("helpers", [0, 2])
def test_what_a_draw_raises_is_raised_where_it_is_asked_for(helpers):
    def draw(step):
        if step == 2:
            raise MemoryError(f"no room for {step}")
        return step

    before = threading.active_count()
    with pytest.raises(MemoryError, match="no room for 2"), ahead(draw, 4, helpers) as drawn:
        assert [drawn(0), drawn(1)] == [0, 1]
        drawn(2)
    assert threading.active_count() == before


def test_who_leaves_early_leaves_no_thread_behind():
    begun, before = [], threading.active_count()
    with ahead(lambda step: (begun.append(step), threading.Event().wait(0.005)), 1000, 2) as drawn:
        drawn(0)
    assert threading.active_count() == before and len(begun) < 100
