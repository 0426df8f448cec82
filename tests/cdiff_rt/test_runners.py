"""Experts side by side: all calls end before one returns, with as many threads as there are to be had."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from cdiff_rt import runners
from cdiff_rt.errors import BadRequest
from cdiff_rt.run import OnDevice
from cdiff_rt.runners import SideBySide, load_runner


def test_calls_run_beside_each_other_in_order_of_the_columns():
    together = threading.Barrier(3)  # which nobody passes alone
    with SideBySide(2) as beside:
        for _ in range(3):
            assert beside.map(lambda a, b: (together.wait(10), a + b)[1], [1, 2, 3], [10, 20, 30]) == [11, 22, 33]


def test_an_error_comes_when_all_calls_have_ended():
    ended = []

    def call(number):
        if number == 0:
            raise ValueError("zero")
        time.sleep(0.05)
        ended.append(number)

    before = threading.active_count()
    with SideBySide(2) as beside:
        with pytest.raises(ValueError, match="zero"):
            beside.map(call, [0, 1, 2])
        assert sorted(ended) == [1, 2] and beside.map(str, [1, 2]) == ["1", "2"]
    assert threading.active_count() == before


@pytest.mark.parametrize("startable", [0, 1])
def test_where_threads_cannot_be_started_the_caller_does_it(startable, monkeypatch):
    real, started = threading.Thread.start, []

    def start(thread):
        if len(started) >= startable:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with SideBySide(3) as beside:
        assert beside.map(str, range(4)) == ["0", "1", "2", "3"]


LATE = """
import sys, threading
import numpy as np
from cdiff_rt import Pipeline
pipeline = Pipeline.from_pretrained()
begun = threading.Event()
def work():
    begun.set()
    for _ in range(2):
        print(pipeline.generate(text="a man", mask=np.eye(64, dtype="uint8"), steps=8).images.shape)
threading.Thread(target=work).start()
begun.wait()
"""


def test_a_thread_that_outlives_the_main_one_ends_its_work(root):
    done = subprocess.run([sys.executable, "-c", LATE], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(1, 128, 128, 3)"] * 2 and "Error" not in done.stderr


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_each_library_has_as_many_threads_as_it_is_told(backend, bundle, monkeypatch):
    seen = []
    monkeypatch.setattr("cdiff_rt.engines.ort.startable", lambda threads: seen.append(threads) or 1)
    monkeypatch.setattr("cdiff_rt.engines.vino.startable_once", lambda threads: seen.append(threads) or 1)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    runner = load_runner(bundle, backend, OnDevice(threads=6))
    for share in (1, 2, 7):  # that run at a time
        runner._engine("time.mask", share)(t=np.zeros(1, np.int64))
    assert [*dict.fromkeys(seen)] == [6, 3, 1]


@pytest.mark.parametrize(("threads", "words"), [(0, "outside 1-1024"), (1025, "outside 1-1024"), ("2", "a str")])
def test_other_numbers_of_threads_are_refused(threads, words, bundle):
    with pytest.raises(BadRequest, match=words):
        load_runner(bundle, "onnxruntime", OnDevice(threads=threads))


def test_threads_are_the_cpus(bundle, monkeypatch):
    monkeypatch.setattr("cdiff_rt.engines.backends.why_no_device", lambda: None)
    with pytest.raises(BadRequest, match="threads: 4 with torch-cuda, which runs on a GPU; leave them out"):
        load_runner(bundle, "torch-cuda", OnDevice(threads=4))


@pytest.mark.parametrize(
    ("backend", "device", "words"),
    [
        ("onnxruntime", 1, "device: 1 with onnxruntime, which runs on the CPU; leave it out"),
        ("torch-cuda", 2, "device: 2 is outside 0-1"),
        ("torch-cuda", "cuda:1", "device: .*str.*give the number of a GPU"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(backend, device, words, bundle, monkeypatch):
    monkeypatch.setattr(runners, "check_working", lambda backend: None)
    monkeypatch.setattr(runners, "device_count", lambda: 2)
    with pytest.raises(BadRequest, match=words):
        load_runner(bundle, backend, OnDevice(device=device))


def test_a_gpu_is_chosen_by_its_number(bundle, monkeypatch):
    made = []
    monkeypatch.setattr(runners, "check_working", lambda backend: None)
    monkeypatch.setattr(runners, "device_count", lambda: 2)
    monkeypatch.setattr("cdiff_rt.gpu.runner.DeviceRunner", lambda *args, device: made.append(device))
    for device in (0, 1):
        load_runner(bundle, "torch-cuda", OnDevice(device=device))
    assert made == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("backend", "experts", "words"),
    [
        (
            "onnxruntime",
            "stacked",
            "stacked with onnxruntime, which runs them separate; .*tensorrt-rtx or torch-cuda or",
        ),
        (
            "torch-cuda",
            "whole-step",
            "whole-step with torch-cuda, which runs them separate or stacked; leave it out, or .*tensorrt or tensorrt-rtx$",
        ),
        ("onnxruntime", "together", "'together'; choose one of separate, stacked, whole-step"),
    ],
)
def test_experts_are_divided_as_a_backend_can(backend, experts, words, bundle, monkeypatch):
    monkeypatch.setattr("cdiff_rt.engines.backends.why_not", lambda backend: None)
    with pytest.raises(BadRequest, match=f"^experts: {words}"):
        load_runner(bundle, backend, OnDevice(experts=experts))
