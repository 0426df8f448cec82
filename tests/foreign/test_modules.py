"""Modules of PyTorch as denoisers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cdiff_rt import Expert, Parameterisation, compose
from cdiff_rt.errors import BadRequest
from cdiff_rt.foreign.modules import ModuleFunction, as_function
from tests.brought import Small

FLOW = Parameterisation("flow", "flow")


class Seen(nn.Module):
    """Notes what it is given."""

    def __init__(self, dtype, answer=lambda x: x):
        super().__init__()
        self.weight, self.answer, self.given = nn.Parameter(torch.ones(1, dtype=dtype)), answer, []

    def forward(self, *tensors):
        self.given += [
            (tensor.dtype, tuple(tensor.shape), self.training, torch.is_grad_enabled()) for tensor in tensors
        ]
        return self.answer(tensors[0] * self.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_module_computes_in_the_type_of_its_weights_and_time_keeps_its_digits(dtype):
    module = Seen(dtype)
    pipeline = compose({"a": Expert(module, FLOW, condition=(2,))}, (1, 4))
    made = pipeline.generate(a=[0.5, 0.25], steps=1, batch=3)
    assert module.given == [
        (dtype, (3, 1, 4), False, False),
        (torch.float32, (3,), False, False),
        (dtype, (3, 2), False, False),
    ]
    assert made.latents.dtype == np.float32
    compose({"a": Expert(module, FLOW, condition=())}, (1, 4)).generate(a=4001, steps=1)
    assert module.given[-1][:2] == (torch.float32, (1,))  # a label


@pytest.mark.parametrize(
    "answer", [lambda x: (x, 7), lambda x: [x], lambda x: SimpleNamespace(sample=x)], ids=["tuple", "list", "sample"]
)
def test_the_prediction_is_found_in_what_a_module_returns(answer):
    x = np.ones((2, 1, 4), np.float32)
    np.testing.assert_array_equal(ModuleFunction(Seen(torch.float32, answer))(x, np.zeros(2, np.float32)), x)


def test_a_module_is_the_function_that_it_is_and_others_stay_as_they_are():
    module, x = Small(), torch.randn(2, 3, 8, 8)
    time, condition = torch.tensor([3.5, 700.0]), torch.randn(2, 5)
    found = as_function(module)(x.numpy(), time.numpy(), condition.numpy())
    np.testing.assert_array_equal(found, module(x, time, condition).detach().numpy())
    assert as_function(len) is len


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Linear(7, 7), "expert a, its module: it cannot be called with [(1, 1, 4), (1,)] (Linear.forward() takes"),
        (nn.Identity(7), "expert a, its module: it cannot be called with"),
        (Seen(torch.float32, lambda x: None), "expert a, its module: it returned a NoneType; write a torch.nn.Module"),
        (Seen(torch.float32, lambda x: x[:, :, :3]), "expert a: it returned float32 of shape (1, 1, 3)"),
        (Seen(torch.float32, lambda x: x / 0), "expert a: it returned numbers that are not finite"),
    ],
)
def test_a_module_that_does_something_else_is_refused_in_one_line(module, words):
    with pytest.raises(BadRequest) as caught:
        compose({"a": Expert(module, FLOW)}, (1, 4)).generate(steps=1)
    assert str(caught.value).startswith(words)
