"""The loop that is captured on a GPU, run on CPU tensors under lints; and the lints, each on planted faults."""

import dataclasses
from itertools import starmap

import numpy as np
import pytest
import torch

from cdiff_rt.engines.backends import load_device_engine
from cdiff_rt.engines.base import Placement
from cdiff_rt.gpu.buffers import upload
from cdiff_rt.gpu.graph import Graphs
from cdiff_rt.gpu.loop import Loop, LoopShape, capacity_for, loop_of_experts, loop_of_stack, loop_of_step
from cdiff_rt.manifest import NetworkSpec, TensorSpec
from cdiff_rt.sampling.controls import MOST
from cdiff_rt.sampling.fusion import adjustment
from cdiff_rt.sampling.numbers import pack
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import ddim
from cdiff_rt.settings import Influence
from tests.gpu.lints import NotCapturable, StaticBuffers, capturable, trace, unseen
from tests.gpu.standin_cuda import Standin
from tests.gpu.whole_step import WholeStep

CPU = torch.device("cpu")
STEPS = 4
SHAPE = LoopShape(
    ("mask", "text"),
    (16, 16, 16),
    batch=2,
    capacity=8,
    noisy=True,
    two_step=False,
    boosted=False,
    known=False,
    controlled=False,
)
EVERYTHING = dataclasses.replace(SHAPE, two_step=True, boosted=True, known=True, controlled=True)
TABLE = ddim(Schedule(prediction="v"), SHAPE.capacity)


@pytest.fixture(scope="module")
def engines(bundle):
    place = Placement("cpu", "fp32", SHAPE.batch)
    return [load_device_engine("torch-cuda", bundle, f"expert.{name}", place) for name in SHAPE.modalities]


@pytest.fixture(scope="module")
def stack(bundle):
    return load_device_engine("torch-cuda", bundle, "stack.mask+text", Placement("cpu", "fp32", SHAPE.batch))


KINDS = {"default": SHAPE, "every knob": EVERYTHING}
WAYS = [*KINDS, "stacked", "whole step"]


def loop_of(kind, engines, stack, wrap=lambda engine: engine):
    if kind in KINDS:
        return filled(loop_of_experts(KINDS[kind], [wrap(engine) for engine in engines], CPU))
    if kind == "stacked":
        longest = stack.spec.inputs[2].shape[-2]
        return filled(loop_of_stack(EVERYTHING, wrap(stack), (longest - 1, longest), CPU))
    return filled(loop_of_step(SHAPE, wrap(WholeStep(engines, SHAPE)), CPU))


@pytest.fixture(params=WAYS)
def loop(request, engines, stack):
    with torch.inference_mode():
        yield loop_of(request.param, engines, stack)


@pytest.fixture(params=WAYS)
def small(request):
    """The same of networks that are a line each."""
    with torch.inference_mode():
        yield loop_of(request.param, LINES, StackOfLines())


@pytest.fixture(params=WAYS)
def hidden(request):
    """Of networks whose inside no lint sees."""
    with torch.inference_mode():
        yield loop_of(request.param, LINES, StackOfLines(), Hidden)


class Hidden:
    def __init__(self, engine):
        self.spec, self.capturable, self._engine = engine.spec, engine.capturable, engine

    def bind(self, tensors):
        return unseen(self._engine.bind(tensors))


class Line:
    """An expert with weights of its own that depends on all that it is given."""

    capturable = True

    def __init__(self, weight):
        latent, pixels = (SHAPE.batch, *SHAPE.latent_shape), (SHAPE.batch, 1, *SHAPE.latent_shape[1:])
        inputs = {"x": latent, "projections": (1, 5 + weight), "context": (SHAPE.batch, 3, 7)}
        outputs = {"out": latent, "logit": pixels}
        self.spec = NetworkSpec("expert.onnx", *([*starmap(float32, of.items())] for of in (inputs, outputs)))
        self._weight = weight

    def bind(self, tensors):
        x, projections, context, out, logit = tensors.values()

        def enqueue():
            torch.tanh(x + projections.mean() + context.mean() - self._weight, out=out)
            logit.copy_(out.mean(1, keepdim=True))

        return enqueue


class StackOfLines:
    """Such experts as one network."""

    capturable = True

    def __init__(self):
        count, latent = len(SHAPE.modalities), (SHAPE.batch, *SHAPE.latent_shape)
        pixels = (SHAPE.batch, 1, *SHAPE.latent_shape[1:])
        inputs = {"x": latent, "projections": (count, 6), "context": (count, SHAPE.batch, 3, 7)}
        outputs = {"out": (count, *latent), "logit": (count, *pixels)}
        self.spec = NetworkSpec("stack.onnx", *([*starmap(float32, of.items())] for of in (inputs, outputs)))

    def bind(self, tensors):
        x, *of_each = tensors.values()
        calls = [line.bind(dict(enumerate((x, *own)))) for line, *own in zip(LINES, *of_each, strict=True)]
        return lambda: [call() for call in calls]


def float32(name, shape):
    return TensorSpec(name, shape, "float32")


LINES = [Line(m) for m in range(len(SHAPE.modalities))]


def filled(loop):
    """With numbers of the right size in every buffer that a run reads."""
    b, generator = loop.buffers, torch.Generator().manual_seed(0)
    for name, rows in b.per_step.rows.items():
        if name == "controls":
            rows.uniform_(generator=generator)[:, 1:] *= torch.tensor([0.5, 0.0]).view(-1, *(1,) * (rows.ndim - 2))
            rows[:, MOST] = 1
        elif name != "numbers":
            rows.normal_(generator=generator)
    for buffer in (b.x, *b.contexts):
        buffer.normal_(generator=generator)
    if b.free is not None:
        b.free[:8] = 1
    gain = np.linspace(1, 0, loop.shape.capacity)
    adjust = adjustment([True, False], 1, gain, Influence(factor=2.0, boost=3.0 if loop.shape.boosted else None))
    b.per_step.rows["numbers"].copy_(torch.from_numpy(pack(TABLE, adjust)))
    return loop


def result(loop, start, steps=STEPS):
    loop.restart(start)
    loop.run(steps)
    return loop.buffers.x.clone()


VIEWS = {"aten.slice.Tensor", "aten.select.int"}


def buffers_of(loop):
    """All that the loop may write to: its buffers, and what its `advance` holds on to."""
    b = loop.buffers
    held = [cell.cell_contents for cell in loop.advance.__closure__]
    written = [b.x, b.hist, b.weights, *vars(b.per_step).values(), *held]
    return [tensor for tensor in written if isinstance(tensor, torch.Tensor)]


def test_nothing_in_the_loop_or_its_networks_is_forbidden_while_capturing(loop):
    with capturable():
        loop.step()
        loop.step()


def test_the_host_waits_for_nothing_between_steps_and_their_staging(small):
    rows, noise = small.buffers.per_step.rows, small.buffers.x.numpy()
    with capturable():
        small.run(STEPS, lambda i: upload(noise, rows["noise"][i]))


def test_every_step_launches_the_same(loop):
    first, *others = [trace(loop.step) for _ in range(STEPS)]
    assert len(first) > 100 and all(other == first for other in others)


def test_the_loop_writes_to_its_buffers_and_allocates_nothing(hidden):
    with StaticBuffers(buffers_of(hidden)) as watching:
        hidden.step()
    assert watching.strays == []


def test_beside_the_networks_a_step_selects_its_own_in_one_launch_and_counts_on(hidden):
    rows = [row[0] for row in trace(hidden.step) if row[0] not in VIEWS]
    known = ["aten.mul_.Tensor", "aten.add_.Tensor"] if hidden.shape.known else []
    fused = ["cdiff_rt.fuse_step.default"] if hidden.outs is not None else ["aten.copy_.default"] * 2
    assert rows == ["aten.index_select.out", "aten.add_.Tensor", *known, *fused]


def test_the_loop_gives_the_same_again_and_depends_on_what_is_staged(small):
    start, rows = small.buffers.x.clone().numpy(), small.buffers.per_step.rows
    first = result(small, start)
    assert torch.equal(result(small, start), first) and torch.isfinite(first).all()
    for name, buffer in {**rows, "context": small.buffers.contexts[0]}.items():
        buffer[: 1 if name == "context" else STEPS].mul_(0.9)
        changed = result(small, start)
        assert not torch.allclose(changed, first), name
        first = changed


def test_each_step_reads_its_own_row_and_none_behind_the_last(small):
    start, rows = small.buffers.x.clone().numpy(), small.buffers.per_step.rows
    first = result(small, start)
    for of_all in rows.values():
        of_all[STEPS:] = torch.nan
    assert torch.equal(result(small, start), first)
    seen = []
    small.restart(start)
    for _ in range(STEPS):
        small.step()
        seen.append({name: value.clone() for name, value in small.buffers.per_step.now.items()})
    for i, now in enumerate(seen):
        for name, value in now.items():
            assert torch.equal(value, rows[name][i]), (i, name)


# --- recorded graphs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(small, monkeypatch):
    """The loop as it runs where CUDA graphs can be had, and who stands in for CUDA."""
    standin = Standin(monkeypatch)
    with torch.inference_mode():
        yield Loop(small.shape, small.buffers, small.advance, small.outs, Graphs(), separate=small.separate), standin


def test_one_graph_of_a_step_serves_any_number_of_steps(recorded, small, monkeypatch):
    monkeypatch.setattr("cdiff_rt.gpu.loop.MOST_NODES", 0)
    (graphs, standin), start = recorded, small.buffers.x.clone().numpy()
    for steps, launched in ((4, 1), (1, 0), (7, 0), (4, 0), (8, 0)):
        expected = result(small, start, steps)
        before = len(standin.replayed)
        assert torch.equal(result(graphs, start, steps), expected)
        assert len(standin.recorded) == 1 and len(standin.replayed) == before + steps - launched
    small.buffers.per_step.rows["numbers"].mul_(0.9)
    assert torch.equal(result(graphs, start, 5), result(small, start, 5))
    assert len(standin.recorded) == 1


def test_steps_that_come_again_are_one_graph_where_it_is_small(recorded, small, monkeypatch):
    (graphs, standin), start = recorded, small.buffers.x.clone().numpy()
    expected = {steps: result(small, start, steps) for steps in (2, 4, 5)}
    result(graphs, start, 4)
    monkeypatch.setattr("cdiff_rt.gpu.loop.MOST_NODES", 4 * len(standin.recorded[0].nodes))
    for steps, recordings, replays in ((5, 1, 5), (5, 1, 5), (2, 1, 2), (4, 2, 1), (4, 2, 1), (2, 3, 1), (5, 3, 5)):
        before = len(standin.replayed)
        assert torch.equal(result(graphs, start, steps), expected[steps])
        assert (len(standin.recorded), len(standin.replayed) - before) == (recordings, replays)


def test_what_comes_once_is_not_recorded(recorded, small):
    graphs, standin = recorded
    result(graphs, small.buffers.x.clone().numpy(), 1)
    assert standin.recorded == [] == standin.replayed


def test_a_graph_of_all_steps_that_is_refused_leaves_that_of_one(recorded, small, caplog):
    (graphs, standin), start = recorded, small.buffers.x.clone().numpy()
    expected = result(small, start)
    result(graphs, start)
    standin.breaks = RuntimeError("out of memory")
    for _ in range(2):
        before = len(standin.replayed)
        assert torch.equal(result(graphs, start), expected)
        assert len(standin.replayed) == before + STEPS
    assert caplog.text.count("4 steps of the loop: no CUDA graph was recorded (out of memory)") == 1


def test_a_step_is_staged_before_it_is_launched(recorded, small):
    (graphs, standin), start = recorded, small.buffers.x.clone().numpy()
    expected = result(small, start)
    rows = {name: of_all.clone() for name, of_all in small.buffers.per_step.rows.items()}

    def stage(i):
        launches.append(len(standin.replayed))
        for name, of_all in small.buffers.per_step.rows.items():
            of_all[i].copy_(rows[name][i])

    for of_all in small.buffers.per_step.rows.values():
        of_all.fill_(torch.nan)
    for expected_launches in ([0, 0, 1, 2], [3, 3, 3, 3]):
        launches = []
        graphs.restart(start)
        graphs.run(STEPS, stage)
        assert torch.equal(graphs.buffers.x, expected)
        assert launches == expected_launches


def test_more_steps_than_there_is_room_for_are_our_own_fault(small):
    with pytest.raises(AssertionError, match="9 steps, there is room for 8"):
        small.run(9)


@pytest.mark.parametrize(("steps", "capacity"), [(1, 64), (50, 64), (64, 64), (65, 128), (1000, 1024)])
def test_few_numbers_of_steps_need_buffers_of_their_own(steps, capacity):
    assert capacity_for(steps) == capacity


# --- experts without weight ---------------------------------------------------------------------------------------------

NOBODY_MISSING = np.ones((STEPS, 2), bool)
SEQUENCES = {
    "none is left out": NOBODY_MISSING,
    "one begins": np.array([[0, 1], [0, 1], [1, 1], [1, 1]], bool),
    "by turns": np.array([[1, 0], [0, 1], [1, 0], [1, 1]], bool),
    "one ends": np.array([[1, 1], [1, 1], [1, 0], [1, 0]], bool),
}


class Counted:
    """Counts an engine's calls on the device, so that those of a replay count too."""

    def __init__(self, engine):
        self.spec, self.capturable, self._engine = engine.spec, engine.capturable, engine
        self.calls = torch.zeros((), dtype=torch.int64)

    def bind(self, tensors):
        call = self._engine.bind(tensors)
        return lambda: (self.calls.add_(1), call())


def weigh(loop, present):
    """Puts into the numbers who takes part in a step."""
    steps = len(present)
    gain, asked = np.linspace(1, 0, steps), Influence(factor=2.0)
    table = dataclasses.replace(TABLE, coefficients=TABLE.coefficients[:steps], timesteps=TABLE.timesteps[:steps])
    adjust = adjustment([True, False], 1, gain, asked, present)
    loop.buffers.per_step.rows["numbers"][:steps] = torch.from_numpy(pack(table, adjust))


@pytest.fixture
def counted(monkeypatch):
    """A loop of experts that count their calls, with a stand-in for CUDA's graphs."""
    standin = Standin(monkeypatch)
    engines = [Counted(line) for line in LINES]
    with torch.inference_mode():
        loop = filled(loop_of_experts(SHAPE, engines, CPU, graphs=Graphs()))
        yield loop, [engine.calls for engine in engines], standin


def outcome(loop, calls, start, present):
    """What a run gives, and how often it called each expert."""
    before = [int(count) for count in calls]
    weigh(loop, present)
    loop.restart(start)
    loop.run(len(present), present=present)
    return loop.buffers.x.clone(), [int(count) - old for count, old in zip(calls, before, strict=True)]


@pytest.mark.parametrize("most_nodes", [0, 4096], ids=["a graph of each step", "a graph of all"])
def test_an_expert_is_called_where_it_has_weight_and_nowhere_else(most_nodes, counted, monkeypatch):
    monkeypatch.setattr("cdiff_rt.gpu.loop.MOST_NODES", most_nodes)
    loop, calls, standin = counted
    start, plain = loop.buffers.x.clone().numpy(), Loop(SHAPE, loop.buffers, loop.advance, loop.outs, None)
    own = [*loop.buffers.per_step.rows.values(), loop.buffers.x, loop.outs]
    addresses = [tensor.data_ptr() for tensor in own]
    for _ in range(3):
        for present in SEQUENCES.values():
            expected, _ = outcome(plain, calls, start, present)  # every expert called, the numbers say who counts
            got, called = outcome(loop, calls, start, present)
            assert torch.equal(got, expected) and called == present.sum(0).tolist()
    assert [tensor.data_ptr() for tensor in own] == addresses
    recorded = len(standin.recorded)
    assert recorded == 3 + len(SEQUENCES) * (most_nodes > 0)  # of each set of experts one, and of each sequence
    for present in SEQUENCES.values():
        before = len(standin.replayed)
        outcome(loop, calls, start, present)
        assert len(standin.replayed) - before == (1 if most_nodes else STEPS)
    assert len(standin.recorded) == recorded


def test_what_an_expert_left_that_is_not_called_does_not_count(counted):
    """Were it infinite, no weight of 0 would make 0 of it."""
    loop, calls, _ = counted
    start, present = loop.buffers.x.clone().numpy(), SEQUENCES["one begins"][:2]
    expected, _ = outcome(loop, calls, start, present)
    loop.outs[0].fill_(torch.inf)
    got, _ = outcome(loop, calls, start, present)
    assert torch.isfinite(expected).all() and torch.equal(got, expected)


@pytest.mark.parametrize("small", ["stacked", "whole step"], indirect=True)
def test_who_cannot_leave_an_expert_out_has_one_graph_all_the_same(recorded, small):
    graphs, standin = recorded
    start = small.buffers.x.clone().numpy()
    for present in SEQUENCES.values():
        weigh(small, present)
        expected = result(small, start)
        graphs.restart(start)
        graphs.run(STEPS, present=present)
        assert torch.equal(graphs.buffers.x, expected)
    assert len(standin.recorded) == 2  # of a step, and of all


def test_of_many_graphs_of_a_step_the_last_few_stay(counted, monkeypatch):
    monkeypatch.setattr("cdiff_rt.gpu.loop.MOST_STEPS", 2)
    monkeypatch.setattr("cdiff_rt.gpu.loop.MOST_SEEN", 2)
    plain = counted[0]
    loop = Loop(SHAPE, plain.buffers, plain.advance, plain.outs, Graphs(), separate=True)
    start = loop.buffers.x.clone().numpy()
    for present in [*SEQUENCES.values()] * 2:
        assert torch.equal(outcome(loop, [], start, present)[0], outcome(plain, [], start, present)[0])
        assert len([*loop._steps]) <= 2 and len([*loop._seen]) <= 2


# --- planted faults ----------------------------------------------------------------------------------------------------

X, NUMBER = torch.ones(2, 3), torch.ones(1, dtype=torch.int64)


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
        lambda: X[NUMBER[0]],
        lambda: X[NUMBER[0] :],
        lambda: X.select(0, NUMBER[0]),
        lambda: X.narrow(0, NUMBER[0], 1),
    ],
)
def test_what_cannot_be_captured_is_found(fault):
    with pytest.raises(NotCapturable), capturable():
        fault()


@pytest.mark.parametrize(
    "innocent",
    [
        lambda: X.index_select(0, NUMBER),
        lambda: X * 2 + 1,
        lambda: X.half().float(),
        lambda: X.to(torch.float16),
        lambda: X.softmax(0)[:1],
    ],
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


@pytest.mark.parametrize("fault", ["new tensor", "host scalar", "step's number", "own noise"])
def test_a_fault_in_the_loop_itself_is_found(fault, hidden):
    real, x, per_step = hidden.advance, hidden.buffers.x, hidden.buffers.per_step
    faults = {
        "new tensor": lambda: x * 1.0,
        "host scalar": lambda: x.mul_(float(per_step.now["numbers"][0])),
        "step's number": lambda: x.mul_(per_step.rows["numbers"][per_step._next[0]][0]),
        "own noise": lambda: x.add_(torch.randn_like(x)),
    }
    known = buffers_of(hidden)
    hidden.advance = lambda *how: (real(*how), faults[fault]())
    if fault == "new tensor":
        with StaticBuffers(known) as watching:
            hidden.step()
        assert len(watching.strays) == 1
    else:
        with pytest.raises(NotCapturable), capturable():
            hidden.step()


def test_a_number_that_is_not_on_the_device_is_found(recorded, small):
    """Were a step's row chosen by the host, the graph would hold the second step's for good."""
    (graphs, _), start = recorded, small.buffers.x.clone().numpy()
    expected, per_step, steps = result(small, start), small.buffers.per_step, iter(range(STEPS))

    def select():
        i = next(steps)
        per_step._row.copy_(per_step._rows[i : i + 1])

    per_step.select = select
    assert not torch.equal(result(graphs, start), expected)
