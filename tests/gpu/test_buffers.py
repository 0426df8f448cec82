import numpy as np
import pytest
import torch

from cdiff_rt.gpu.buffers import ALIGNMENT, PerStep, stacked, upload
from cdiff_rt.manifest import TensorSpec

CPU = torch.device("cpu")
VALUES = [
    TensorSpec("numbers", (40,), "float32"),
    TensorSpec("projections", (1, 77), "float16"),
    TensorSpec("weight", (), "bfloat16"),
    TensorSpec("noise", (2, 3, 5, 5), "float32"),
]


@pytest.fixture
def per_step():
    made = PerStep(VALUES, 4, CPU)
    for i, rows in enumerate(made.rows.values()):
        rows.copy_(100 * i + torch.arange(4).reshape(4, *(1,) * (rows.ndim - 1)) + torch.zeros(rows.shape))
    return made


def test_each_value_has_its_type_and_shape_and_is_as_good_as_a_tensor_of_its_own(per_step):
    for value in VALUES:
        now, rows = per_step.now[value.name], per_step.rows[value.name]
        assert (tuple(now.shape), now.dtype) == (value.shape, getattr(torch, value.dtype))
        assert (tuple(rows.shape), rows.dtype) == ((4, *value.shape), now.dtype)
        assert now.is_contiguous() and rows[1].is_contiguous()
        assert now.storage_offset() * now.itemsize % ALIGNMENT == 0 == rows.stride(0) * rows.itemsize % ALIGNMENT


def test_steps_come_in_turn_and_from_the_first_again(per_step):
    for steps in (3, 4, 1):
        per_step.restart()
        for step in range(steps):
            per_step.select()
            assert [now.unique().tolist() for now in per_step.now.values()] == [[100 * i + step] for i in range(4)]


def test_the_step_behind_the_last_is_none(per_step):
    for _ in range(4):
        per_step.select()
    with pytest.raises(IndexError):
        per_step.select()


def test_stacked_tensors_are_aligned_as_tensors_of_their_own():
    for stack in (stacked(3, shape, torch.float16, CPU) for shape in ((2, 3, 5, 7), (2, 1, 5, 7))):
        assert stack.stride(0) * stack.itemsize % ALIGNMENT == 0 and stack[1].is_contiguous()


def test_what_comes_from_the_host_takes_the_type_and_place_of_its_target(per_step):
    upload(np.arange(4 * 77, dtype=np.float32).reshape(4, 1, 77), per_step.rows["projections"])
    assert per_step.rows["projections"].flatten().tolist() == list(range(4 * 77))
    assert per_step.rows["numbers"].unique().tolist() == [0, 1, 2, 3]
