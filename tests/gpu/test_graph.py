"""Capturing and replaying, with a stand-in for CUDA that keeps what was launched while it captures."""

import logging
from contextlib import contextmanager

import pytest
import torch

from cdiff_rt.errors import BadEnvironment
from cdiff_rt.gpu.graph import Captured, side_by_side

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch):
    """Each "launch" is a line in `done`; while capturing, in the graph instead. `breaks` is an error of the end."""

    class Cuda:
        def __init__(self):
            self.done, self.capturing, self.breaks = [], None, None

        def launch(self, name):
            (self.capturing.lines if self.capturing else self.done).append(name)

    state = Cuda()

    class Graph:
        def __init__(self):
            self.lines = []

        def replay(self):
            state.done.append(f"replay of {'+'.join(self.lines)}")

    @contextmanager
    def capturing(graph, stream):
        state.capturing = graph
        try:
            yield
        finally:
            state.capturing = None
            if state.breaks:
                raise state.breaks

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: state.done.append("wait"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "stream")
    return state


def test_work_is_warmed_up_captured_once_and_replayed(cuda):
    def work():
        cuda.launch("a")
        cuda.launch("b")

    captured = Captured(work, CUDA, name="it", capture=True)
    assert cuda.done == ["a", "b", "wait"]
    captured()
    captured()
    assert cuda.done[3:] == ["replay of a+b"] * 2


def test_on_a_cpu_the_work_is_just_done(cuda):
    captured = Captured(lambda: cuda.launch("a"), CPU, name="it", capture=True)
    assert cuda.done == []
    captured()
    assert cuda.done == ["a"]


def test_what_cannot_be_captured_is_launched_each_time_and_says_so(cuda, caplog):
    with caplog.at_level(logging.INFO, "cdiff_rt"):
        captured = Captured(lambda: cuda.launch("a"), CUDA, name="vae.decode", capture=None)
    captured()
    assert cuda.done == ["a", "wait", "a"]
    assert "vae.decode" in caplog.text and "launched each time" in caplog.text


def test_a_capture_that_cuda_refuses_is_told_with_its_reason(cuda, caplog):
    cuda.breaks = RuntimeError("operation not permitted when stream is capturing\nmore")
    captured = Captured(lambda: cuda.launch("a"), CUDA, name="the loop", capture=True)
    captured()
    assert cuda.done == ["a", "wait", "a"]
    assert "the loop: the CUDA graph was not captured (operation not permitted" in caplog.text
    assert "more" not in caplog.text


@pytest.mark.parametrize("breaks", [None, RuntimeError("the capture was invalidated")])
def test_an_engine_that_refuses_while_capturing_is_an_error_and_no_empty_graph(breaks, cuda):
    cuda.breaks, calls = breaks, []

    def work():
        calls.append(1)
        if len(calls) == 2:
            raise BadEnvironment("engine", "enqueue refused", "look into its log")

    with pytest.raises(BadEnvironment, match="enqueue refused"):
        Captured(work, CUDA, name="it", capture=True)


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
