"""Recording and replaying, with a stand-in for CUDA that keeps what was launched while it captures."""

import ctypes
import gc
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from cdiff_rt.errors import BadEnvironment
from cdiff_rt.gpu import graph
from cdiff_rt.gpu.graph import Captured, Graphs, end_allocation, nodes_of, side_by_side
from tests.gpu.standin_cuda import Standin


@pytest.fixture
def cuda(monkeypatch):
    return Standin(monkeypatch)


class Work:
    """Adds 1, and counts how often the host did it."""

    def __init__(self, fault=None):
        self.x, self.calls, self.fault = torch.zeros(3), 0, fault

    def __call__(self):
        self.calls += 1
        self.x.add_(1)
        if self.fault and self.calls == 2:
            raise self.fault

    def done(self):
        (value,) = self.x.unique().tolist()
        return value


def repeated(captured, work, times):
    for i in range(times):
        captured(work)
        assert work.done() == i + 1


def test_work_is_launched_then_recorded_and_replayed(cuda):
    captured, work = Captured("it", Graphs()), Work()
    captured(work)
    assert work.calls == 1 and cuda.recorded == []
    captured(work)
    captured(work)
    assert work.calls == 2 and work.done() == 3
    assert (len(cuda.recorded), len(cuda.replayed)) == (1, 2) and captured.nodes == 1


def test_without_graphs_the_work_is_just_done(cuda):
    captured, work = Captured("it", None), Work()
    repeated(captured, work, 3)
    assert work.calls == 3 and cuda.pools == [] and captured.nodes is None


def test_only_this_threads_calls_can_spoil_a_recording(cuda):
    Graphs().record(Work(), "it")
    assert cuda.modes == ["thread_local"]


def test_a_recording_that_cuda_refuses_is_told_once_with_its_reason(cuda, caplog):
    cuda.breaks = RuntimeError("operation not permitted when stream is capturing\nmore")
    captured, work = Captured("the loop", Graphs()), Work()
    repeated(captured, work, 4)
    assert cuda.replayed == [] and work.calls == 5
    reason = "the loop: no CUDA graph was recorded (operation not permitted when stream is capturing)"
    assert caplog.text.count(reason) == 1 and "more" not in caplog.text


def test_the_reason_is_what_went_wrong_first(cuda, caplog):
    cuda.breaks = RuntimeError("operation failed due to a previous error during capture")
    repeated(Captured("it", Graphs()), Work(RuntimeError("cublas wants memory")), 3)
    assert "(cublas wants memory)" in caplog.text and "previous error" not in caplog.text


@pytest.mark.parametrize("place", ["within", "at its end", "after it"])
def test_after_a_refusal_memory_can_be_had_and_other_work_recorded(place, cuda):
    error, graphs = torch.OutOfMemoryError("CUDA out of memory"), Graphs()
    first = graphs.record(Work(), "first")
    cuda.breaks = error if place == "at its end" else None
    cuda.uninstantiable = error if place == "after it" else None
    captured, work = Captured("it", graphs), Work(error if place == "within" else None)
    repeated(captured, work, 3)
    assert captured.graph is None and cuda.allocating == []
    cuda.breaks = cuda.uninstantiable = None
    captured = Captured("it", graphs)
    repeated(captured, Work(), 3)
    assert captured.graph is not None
    assert (cuda.pools[2] == cuda.pools[0]) == (place == "within")
    first.replay()


def test_an_allocator_that_has_ended_by_itself_is_left_alone(cuda, monkeypatch):
    end_allocation((0, 7))
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    end_allocation((0, 7))


def test_graphs_share_their_memory_as_long_as_there_is_one(cuda):
    graphs = Graphs()
    kept = [graphs.record(Work(), "it") for _ in range(2)]
    assert len({*cuda.pools}) == 1
    Graphs().record(Work(), "another runner's")
    assert cuda.pools[2] != cuda.pools[0]
    kept.clear()
    cuda.recorded.clear()
    gc.collect()
    graphs.record(Work(), "it")
    assert cuda.pools[3] not in cuda.pools[:3]


@pytest.mark.parametrize("breaks", [None, RuntimeError("the capture was invalidated")])
@pytest.mark.parametrize(
    "error", [BadEnvironment("engine", "enqueue refused", "look into its log"), KeyboardInterrupt()]
)
def test_an_engine_that_refuses_while_capturing_is_an_error_and_no_empty_graph(error, breaks, cuda):
    cuda.breaks = breaks
    captured, work = Captured("it", Graphs()), Work(error)
    captured(work)
    with pytest.raises(type(error)) as raised:
        captured(work)
    assert raised.value is error and captured.graph is None and cuda.allocating == []


@pytest.mark.parametrize(("answer", "nodes"), [(0, 683), (1, None)])
def test_the_driver_counts_a_graphs_nodes(answer, nodes, monkeypatch):
    def count(handle, places, found):
        assert handle.value == 2**40 + 1 and places is None
        ctypes.cast(found, ctypes.POINTER(ctypes.c_size_t))[0] = 683
        return answer

    monkeypatch.setattr(graph.ctypes, "CDLL", lambda name: SimpleNamespace(cuGraphGetNodes=count))
    assert nodes_of(SimpleNamespace(raw_cuda_graph=lambda: 2**40 + 1)) == nodes


def test_without_a_driver_nobody_knows_them(monkeypatch):
    monkeypatch.setattr(graph.ctypes, "CDLL", absent)
    assert nodes_of(SimpleNamespace(raw_cuda_graph=lambda: 1)) is None


def absent(name):
    raise OSError(f"{name}: cannot open shared object file")


def test_works_fork_from_the_current_stream_and_join_it_again(monkeypatch):
    lines = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            lines.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def on(stream):
        lines.append(f"on {stream.name}")
        yield

    main, one, two = Stream("main"), Stream("1"), Stream("2")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", on)
    side_by_side([lambda: lines.append("a"), lambda: lines.append("b")], [one, two])
    assert lines == [
        *("1 waits for main", "on 1", "a", "2 waits for main", "on 2", "b"),
        *("main waits for 1", "main waits for 2"),
    ]


def test_without_streams_works_are_done_in_turn():
    done = []
    side_by_side([lambda: done.append(1), lambda: done.append(2)], [])
    assert done == [1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
class TestOnADevice:
    def test_what_is_recorded_is_counted_and_replayed(self):
        x, captured = torch.zeros(1000, device="cuda"), Captured("it", Graphs())
        with torch.cuda.stream(torch.cuda.Stream()):
            for i in range(4):
                captured(lambda: (x.add_(1), x.add_(1)))
                assert x.unique().tolist() == [2 * i + 2]
        assert captured.graph is not None and captured.nodes == 2

    def test_after_a_refusal_memory_can_be_had_and_other_work_recorded(self, caplog):
        x, graphs = torch.zeros(1000, device="cuda"), Graphs()
        refused, captured = Captured("it", graphs), Captured("other", graphs)
        with torch.cuda.stream(torch.cuda.Stream()):
            for i in range(3):
                refused(lambda: x.add_(1 + 0 * x.sum().item()))
                assert x.unique().tolist() == [i + 1]
            torch.cuda.empty_cache()
            for _ in range(3):
                captured(lambda: x.mul_(2))
        assert x.unique().tolist() == [24]
        assert refused.graph is None and captured.graph is not None
        assert "it: no CUDA graph was recorded (CUDA error: operation not permitted when stream is" in caplog.text
