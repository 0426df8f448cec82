import numpy as np
import pytest

from cdiff_rt.errors import BadRequest
from cdiff_rt.noise import along, check_seed, normal, path
from cdiff_rt.schedule import Schedule
from cdiff_rt.solvers import ddim, dpmpp_2m_sde

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


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_seeds_of_the_range_are_taken(seed):
    assert check_seed(seed) == seed


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_outside_the_range_are_refused(seed):
    with pytest.raises(BadRequest, match=f"{seed} is outside"):
        check_seed(seed)


SCHEDULE = Schedule()
KNOTS = SCHEDULE.snr(SCHEDULE.usual()[::-1])


def ends(solver, steps):
    return SCHEDULE.snr(solver(SCHEDULE, steps).timesteps)


def increments(snr):
    """[S, D] of W over the steps, in draws."""
    return np.sqrt(np.diff(snr))[:, None] * path(snr, KNOTS)


def test_the_usual_steps_add_the_draws_as_they_are():
    np.testing.assert_array_equal(path(KNOTS, KNOTS)[:, :50], np.eye(50))
    assert not path(KNOTS, KNOTS)[:, 50:].any()


@pytest.mark.parametrize(
    ("solver", "steps"), [(ddim, 1), (ddim, 20), (ddim, 500), (dpmpp_2m_sde, 16), (dpmpp_2m_sde, 90)]
)
def test_steps_of_any_length_add_independent_standard_noise(solver, steps):
    found = path(ends(solver, steps), KNOTS)
    np.testing.assert_allclose(found @ found.T, np.eye(steps), atol=1e-12)


@pytest.mark.parametrize(("solver", "steps"), [(ddim, 10), (ddim, 25), (dpmpp_2m_sde, 16)])
def test_steps_over_several_knots_add_what_those_between_add_in_all(solver, steps):
    whole, parts = ends(solver, steps), increments(KNOTS)
    for start, stop, increment in zip(whole[:-1], whole[1:], increments(whole), strict=True):
        inside = (start <= KNOTS[:-1]) & (KNOTS[1:] <= stop)
        np.testing.assert_allclose(increment, parts[inside].sum(0), atol=1e-12)


@pytest.mark.parametrize("steps", [100, 200, 500])
def test_steps_between_knots_add_up_to_what_a_step_over_them_adds(steps):
    fine = ends(ddim, steps)
    assert set(KNOTS) <= set(fine)
    parts = increments(fine)
    for start, stop, increment in zip(KNOTS[:-1], KNOTS[1:], increments(KNOTS)[:, :50], strict=True):
        added = parts[(start <= fine[:-1]) & (fine[1:] <= stop)].sum(0)
        np.testing.assert_allclose(added[:50], increment, atol=1e-12)
        np.testing.assert_allclose(added[50:], 0, atol=1e-12)  # what bridges it adds nothing in all


def test_noise_along_a_path_is_the_mixture_of_the_draws():
    mixtures = np.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]])
    noise = along(mixtures, 7, range(2, 4), SHAPE)
    drawn = [normal(7, range(2, 4), draw, SHAPE) for draw in (1, 2, 3)]
    np.testing.assert_allclose(noise(0), 0.6 * drawn[0] + 0.8 * drawn[2], atol=1e-6)
    np.testing.assert_array_equal(noise(1), drawn[1])
