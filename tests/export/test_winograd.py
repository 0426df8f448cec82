import numpy as np
import pytest

from cdiff_rt.export.winograd import TAPS, transforms

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("tile", [2, 4])
def test_a_tile_is_that_of_the_convolution(tile):
    size = tile + TAPS - 1
    image, kernel = RNG.standard_normal((size, size)), RNG.standard_normal((TAPS, TAPS))
    expected = [[(image[y : y + TAPS, x : x + TAPS] * kernel).sum() for x in range(tile)] for y in range(tile)]
    found = transforms(tile)
    products = (found.cut[:, 0] * image).sum((1, 2)) * (found.kernel * kernel).sum((1, 2))
    np.testing.assert_allclose(np.tensordot(products, found.join[:, 0], 1), expected, atol=2e-5)


@pytest.mark.parametrize(("tile", "products"), [(2, 16), (4, 36)])
def test_it_takes_fewer_products(tile, products):
    assert len(transforms(tile).kernel) == products < TAPS**2 * tile**2
