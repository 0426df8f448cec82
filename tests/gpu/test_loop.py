"""The loop that is captured on a GPU, run on CPU tensors under lints; and the lints, each on planted faults."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from cdiff_rt.engines.backends import load_device_engine
from cdiff_rt.engines.base import Placement
from cdiff_rt.gpu.buffers import ALIGNMENT, stacked
from cdiff_rt.gpu.loop import LoopShape, loop_of_experts, loop_of_stack, loop_of_step
from cdiff_rt.sampling.fusion import adjustment
from cdiff_rt.sampling.numbers import pack
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import ddim
from cdiff_rt.settings import Influence
from tests.gpu.lints import NotCapturable, StaticBuffers, capturable, trace, unseen
from tests.gpu.whole_step import WholeStep

CPU = torch.device("cpu")
SHAPE = LoopShape(
    ("mask", "text"), (16, 16, 16), batch=2, steps=4, noisy=True, two_step=False, boosted=False, known=False
)
EVERYTHING = dataclasses.replace(SHAPE, two_step=True, boosted=True, known=True)
TABLE = ddim(Schedule(prediction="v"), 4)


@pytest.fixture(scope="module")
def engines(bundle):
    place = Placement("cpu", "fp32", SHAPE.batch)
    return [load_device_engine("torch-cuda", bundle, f"expert.{name}", place) for name in SHAPE.modalities]


@pytest.fixture(scope="module")
def stack(bundle):
    return load_device_engine("torch-cuda", bundle, "stack.mask+text", Placement("cpu", "fp32", SHAPE.batch))


KINDS = {
    "default": lambda engines, _, seen: loop_of_experts(SHAPE, [*map(seen, engines)], CPU),
    "every knob": lambda engines, _, seen: loop_of_experts(EVERYTHING, [*map(seen, engines)], CPU),
    "stacked": lambda _, stack, seen: loop_of_stack(EVERYTHING, seen(stack), (19, 32), CPU),
    "whole step": lambda engines, _, seen: loop_of_step(SHAPE, seen(WholeStep(engines, SHAPE)), CPU),
}


@pytest.fixture(params=KINDS)
def loop(request, engines, stack):
    with torch.inference_mode():
        yield filled(KINDS[request.param](engines, stack, lambda engine: engine))


@pytest.fixture(params=KINDS)
def hidden(request, engines, stack):
    """The same with networks whose inside no lint sees."""
    with torch.inference_mode():
        yield filled(KINDS[request.param](engines, stack, Hidden))


class Hidden:
    def __init__(self, engine):
        self.spec, self.capturable, self._engine = engine.spec, engine.capturable, engine

    def bind(self, tensors):
        return unseen(self._engine.bind(tensors))


def filled(loop):
    """With numbers of the right size in every buffer that a run reads."""
    b, generator = loop.buffers, torch.Generator().manual_seed(0)
    for buffer in (b.x, *b.projections, *b.contexts, b.noise, b.known):
        if buffer is not None:
            buffer.normal_(generator=generator)
    if b.free is not None:
        b.free[:8] = 1
    gain = np.linspace(1, 0, loop.shape.steps)
    adjust = adjustment([True, False], 1, gain, Influence(factor=2.0, boost=3.0 if loop.shape.boosted else None))
    b.numbers.copy_(torch.from_numpy(pack(TABLE, adjust)))
    return loop


VIEWS = {"aten.slice.Tensor", "aten.select.int"}


def buffers_of(loop):
    """All that the loop may write to: its buffers, and what its `advance` holds on to."""
    held = [cell.cell_contents for cell in loop.advance.__closure__]
    fields = [getattr(loop.buffers, field.name) for field in dataclasses.fields(loop.buffers)]
    fields += [tensor for tensor in held if isinstance(tensor, torch.Tensor)]
    flat = itertools.chain.from_iterable(b if isinstance(b, list) else [b] for b in fields)
    return [buffer for buffer in flat if buffer is not None]


def test_nothing_in_the_loop_or_its_networks_is_forbidden_while_capturing(loop):
    with capturable():
        loop.all_steps()


def test_every_step_launches_the_same(loop):
    first, *others = [trace(lambda i=i: (loop.begin(i), loop.advance(i, False))) for i in range(SHAPE.steps)]
    assert len(first) > 100 and all(other == first for other in others)


def test_the_loop_writes_to_its_buffers_and_allocates_nothing(hidden):
    with StaticBuffers(buffers_of(hidden)) as watching:
        hidden.all_steps()
    assert watching.strays == []


def test_beside_the_networks_a_step_is_one_copy_per_expert_and_one_fused_operation(engines):
    with torch.inference_mode():
        loop = filled(loop_of_experts(SHAPE, [Hidden(engine) for engine in engines], CPU))
        rows = [row[0] for row in trace(lambda: loop.advance(2, False)) if row[0] not in VIEWS]
    assert rows == ["aten.copy_.default"] * 2 + ["cdiff_rt.fuse_step.default"]


def test_of_a_stack_that_is_one_copy_for_all(stack):
    with torch.inference_mode():
        loop = filled(loop_of_stack(SHAPE, Hidden(stack), (19, 32), CPU))
        rows = [row[0] for row in trace(lambda: loop.advance(2, False)) if row[0] not in VIEWS]
    assert rows == ["aten.copy_.default", "cdiff_rt.fuse_step.default"]


def test_the_loop_gives_the_same_again_and_depends_on_what_is_staged(loop):
    start = loop.buffers.x.clone()

    def result():
        loop.restart(start)
        loop.run()
        return loop.buffers.x.clone()

    first = result()
    assert torch.equal(result(), first) and torch.isfinite(first).all()
    changes = [loop.buffers.numbers, loop.buffers.contexts[0], loop.buffers.projections[1], loop.buffers.noise]
    for buffer in changes:
        buffer.mul_(0.9)
        changed = result()
        assert not torch.allclose(changed, first)
        first = changed


def test_what_engines_are_bound_to_is_aligned_as_a_tensor_of_its_own():
    stacks = [stacked(3, shape, torch.float16, CPU) for shape in ((2, 3, 5, 7), (2, 1, 5, 7))]
    for stack in stacks:
        assert stack.stride(0) * stack.itemsize % ALIGNMENT == 0 and stack[1].is_contiguous()


# --- planted faults ----------------------------------------------------------------------------------------------------

X = torch.ones(2, 3)


@pytest.mark.parametrize(
    "fault",
    [
        lambda: X.sum().item(),
        lambda: float(X[0, 0]),
        lambda: int(X[0, 0]),
        lambda: X.any() and None,
        lambda: "then" if X[0, 0] > 0 else "else",
        lambda: X.tolist(),
        lambda: X.cpu(),
        lambda: X.numpy(),
        lambda: X.to("cpu"),
        lambda: X.to(device=torch.device("cpu")),
        lambda: X * torch.tensor([1.0, 2.0, 3.0]),
        lambda: X * torch.as_tensor([1.0, 2.0, 3.0]),
        lambda: X + torch.randn(3),
        lambda: X + torch.randn_like(X),
        lambda: torch.empty(3).normal_(),
        lambda: X.nonzero(),
        lambda: X[X > 0],
        lambda: torch.unique(X),
        lambda: X.clone().index_put_((X > 0,), torch.zeros(())),
        lambda: torch.equal(X, X),
    ],
)
def test_what_cannot_be_captured_is_found(fault):
    with pytest.raises(NotCapturable), capturable():
        fault()


@pytest.mark.parametrize(
    "innocent", [lambda: X * 2 + 1, lambda: X.half().float(), lambda: X.to(torch.float16), lambda: X.softmax(0)[:1]]
)
def test_what_can_be_is_not(innocent):
    with capturable():
        innocent()


@pytest.mark.parametrize("fault", ["another shape", "another operation", "one more", "another type"])
def test_a_step_that_launches_something_else_is_found(fault):
    def step(i):
        changed = fault if i == 2 else ""
        y = X[:, : 2 if changed == "another shape" else 3]
        y = y.double() if changed == "another type" else y
        y = y - 1 if changed == "another operation" else y + 1
        return y * 2 if changed == "one more" else y

    traces = [trace(lambda i=i: step(i)) for i in range(3)]
    assert traces[0] == traces[1] != traces[2]


def test_writes_outside_the_buffers_are_found():
    x, y, stranger = torch.zeros(4), torch.zeros(4), torch.zeros(4)
    with StaticBuffers([x, y]) as watching:
        torch.add(x, 1, out=y)
        x.mul_(2).add_(y)
    assert watching.strays == []
    with StaticBuffers([x, y]) as watching:
        x = x * 2
        stranger.copy_(y)
    assert len(watching.strays) >= 2 and any("copy_" in stray for stray in watching.strays)


@pytest.mark.parametrize("fault", ["new tensor", "host scalar", "own noise"])
def test_a_fault_in_the_loop_itself_is_found(fault, hidden):
    real, x = hidden.advance, hidden.buffers.x
    faults = {
        "new tensor": lambda: x * 1.0,
        "host scalar": lambda: x.mul_(float(hidden.buffers.numbers[0, 0])),
        "own noise": lambda: x.add_(torch.randn_like(x)),
    }
    known = buffers_of(hidden)
    hidden.advance = lambda i, watched: (real(i, watched), faults[fault]())
    if fault == "new tensor":
        with StaticBuffers(known) as watching:
            hidden.all_steps()
        assert len(watching.strays) == SHAPE.steps
    else:
        with pytest.raises(NotCapturable), capturable():
            hidden.all_steps()
