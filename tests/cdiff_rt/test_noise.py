import numpy as np
import pytest

from cdiff_rt.errors import BadRequest
from cdiff_rt.noise import check_seed, normal

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
