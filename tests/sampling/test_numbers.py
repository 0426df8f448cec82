from dataclasses import replace

import numpy as np
import pytest
import torch

from cdiff_rt.errors import BadRequest
from cdiff_rt.sampling.fusion import PER_MODALITY, Adjustment
from cdiff_rt.sampling.numbers import WIDTH, pack, unpack
from cdiff_rt.sampling.solvers import SolverTable


def test_a_row_is_packed_with_all_that_a_step_does_differently():
    table = SolverTable(np.arange(2), np.ones(2), np.arange(16.0).reshape(2, 8))
    anchor, factors, present = ([[9.0, 9.0], row] for row in ([0.0, 1.0], [2.0, 1.0], [1.0, 0.0]))
    gains = np.array([[0.5, 1.0], [0.25, 1.0]])
    adjust = Adjustment(gains, np.array(anchor), np.array(factors), np.array(present), 1.5, 3.0)
    numbers = pack(table, adjust)
    assert numbers.dtype == np.float32
    assert numbers.flags.c_contiguous
    assert numbers.shape == (2, WIDTH) == (2, 44)
    none = [0.0] * 6
    row = [*range(8, 16), 0.25, 1, *none, 0, 1, *none, 2, 1, *none, 1, 0, *none, 1.5, 3, 0, 0]
    assert numbers[1].tolist() == row
    assert pack(table, replace(adjust, boost=None))[:, 41].tolist() == [0, 0]


def test_more_modalities_than_the_kernel_has_registers_for_are_refused():
    table = SolverTable(np.arange(1), np.ones(1), np.zeros((1, 8)))
    adjust = Adjustment(*np.ones((4, 1, 9)))
    with pytest.raises(BadRequest, match="modalities: 9; .* up to 8"):
        pack(table, adjust)


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("modalities", [1, 3, 8])
def test_what_was_packed_is_unpacked_in_the_shapes_that_the_fusion_takes(modalities, array):
    rng = np.random.default_rng(modalities)
    table = SolverTable(np.arange(2), np.ones(2), rng.standard_normal((2, 8)))
    parts = dict(zip(PER_MODALITY, rng.random((4, 2, modalities)), strict=True))
    packed = array(pack(table, Adjustment(**parts, sharpness=1.5, boost=3.0))[1])
    row, found = unpack(packed, modalities, 4, boosted=True)
    np.testing.assert_allclose(row, table.coefficients[1], rtol=1e-6)
    for name, expected in parts.items():
        np.testing.assert_allclose(getattr(found, name), expected[1].reshape(-1, 1, 1, 1, 1), rtol=1e-6)
    assert (found.sharpness, found.boost) == (1.5, 3.0)
    assert unpack(packed, modalities, 4, boosted=False)[1].boost is None


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy])
def test_controls_are_unpacked_for_every_image_and_channel(array):
    controls = array(np.arange(3 * 2 * 4 * 5, dtype=np.float32).reshape(3, 2, 4, 5))
    found = unpack(array(np.zeros(WIDTH, np.float32)), 2, 4, False, controls)[1].controls
    assert found is not None and tuple(found.shape) == (3, 2, 1, 1, 4, 5)
    assert unpack(array(np.zeros(WIDTH, np.float32)), 2, 4, False)[1].controls is None
