from dataclasses import replace

import numpy as np
import pytest
import torch

from cdiff_rt.errors import BadRequest
from cdiff_rt.sampling.fusion import Adjustment
from cdiff_rt.sampling.numbers import WIDTH, pack, unpack
from cdiff_rt.sampling.solvers import SolverTable


def test_a_row_is_packed_with_all_that_a_step_does_differently():
    table = SolverTable(np.arange(2), np.ones(2), np.arange(16.0).reshape(2, 8))
    adjust = Adjustment(np.array([[0.5, 1.0], [0.25, 1.0]]), np.array([0.0, 1.0]), np.array([2.0, 1.0]), 1.5, 3.0)
    numbers = pack(table, adjust)
    assert numbers.dtype == np.float32
    assert numbers.flags.c_contiguous
    assert numbers.shape == (2, WIDTH) == (2, 40)
    none = [0.0] * 6
    row = [*range(8, 16), 0.25, 1, *none, 0, 1, *none, 2, 1, *none, 1.5, 3, *none]
    assert numbers[1].tolist() == row
    assert pack(table, replace(adjust, boost=None))[:, 33].tolist() == [0, 0]


def test_more_modalities_than_the_kernel_has_registers_for_are_refused():
    table = SolverTable(np.arange(1), np.ones(1), np.zeros((1, 8)))
    adjust = Adjustment(np.ones((1, 9)), np.zeros(9), np.ones(9))
    with pytest.raises(BadRequest, match="modalities: 9; .* up to 8"):
        pack(table, adjust)


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("modalities", [1, 3, 8])
def test_what_was_packed_is_unpacked_in_the_shapes_that_the_fusion_takes(modalities, array):
    rng = np.random.default_rng(modalities)
    table = SolverTable(np.arange(2), np.ones(2), rng.standard_normal((2, 8)))
    gains, (anchor, factors) = rng.random((2, modalities)), rng.random((2, modalities))
    packed = array(pack(table, Adjustment(gains, anchor, factors, 1.5, 3.0))[1])
    row, found = unpack(packed, modalities, 4, boosted=True)
    np.testing.assert_allclose(row, table.coefficients[1], rtol=1e-6)
    for name, expected in {"gains": gains[1], "anchor": anchor, "factors": factors}.items():
        np.testing.assert_allclose(getattr(found, name), expected.reshape(-1, 1, 1, 1, 1), rtol=1e-6)
    assert (found.sharpness, found.boost) == (1.5, 3.0)
    assert unpack(packed, modalities, 4, boosted=False)[1].boost is None
