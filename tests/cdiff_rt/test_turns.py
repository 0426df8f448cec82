"""Threads that use pipelines at the same time: each gets what it would get alone, on every backend of the CPU."""

import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cdiff_rt.engines.backends import BACKENDS
from cdiff_rt.errors import BadRequest
from cdiff_rt.manifest import Bundle
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.turns import Turns

slow = pytest.mark.slow
ON_THE_CPU = [
    pytest.param(name, marks=slow if backend.programs else [])  # who compiles takes its time
    for name, backend in BACKENDS.items()
    if backend.device == "cpu"
]
THREADS, IMAGES = 8, 32
SENTENCES = ("a man", "a woman", "this man has a long beard", "this woman has a beard")


def made(pipeline: Pipeline, number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose seed, sentence, mask and batch are those of a number."""
    mask = pipeline.manifest.modalities[0]
    labels = np.random.default_rng(number).integers(0, mask.classes, (mask.size, mask.size), np.uint8)
    conditions = {"mask": labels} | ({"text": SENTENCES[number % 4]} if number % 3 else {})
    result = pipeline.generate(conditions=conditions, seed=number, steps=1, batch=1 + number % 2)
    return result.images, result.latents


def check_equal(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def check_threads(bundle: Bundle, backend: str) -> None:
    with Pipeline(bundle, backend) as pipeline:
        alone = [made(pipeline, number) for number in range(IMAGES)]

        def work(thread: int) -> list:
            order = random.Random(thread).sample(range(IMAGES), IMAGES)
            return [(number, made(pipeline, number)) for number in order]

        with ThreadPoolExecutor(THREADS) as pool:
            for number, found in (pair for pairs in pool.map(work, range(THREADS)) for pair in pairs):
                check_equal(found, alone[number])


@pytest.mark.parametrize(
    "backend", ["onnxruntime", "openvino", *(pytest.param(name, marks=slow) for name in ("torch", "torch-compiled"))]
)
def test_8_threads_make_each_the_32_images_that_one_makes(backend, tiny_bundle):
    check_threads(Bundle.open(tiny_bundle), backend)


@pytest.mark.long
@pytest.mark.parametrize("backend", ON_THE_CPU)
def test_8_threads_make_each_the_32_images_that_one_makes_of_the_embedded_model(backend, bundle):
    check_threads(bundle, backend)


@slow
@pytest.mark.parametrize("backends", [("onnxruntime",) * 2, ("openvino",) * 2, ("torch",) * 2, ("torch", "openvino")])
def test_two_pipelines_of_one_bundle_do_not_disturb_each_other(backends, tiny_bundle):
    pipelines = [Pipeline(Bundle.open(tiny_bundle), backend) for backend in backends]
    alone = [[made(pipeline, number) for number in range(4)] for pipeline in pipelines]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda pipeline: [made(pipeline, number) for number in range(4)], pipelines))
    pipelines[0].close()
    for found, expected in zip([*together[0], *together[1]], [*alone[0], *alone[1]], strict=True):
        check_equal(found, expected)
    check_equal(made(pipelines[1], 3), alone[1][3])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_a_callback_may_begin_runs_of_its_own_and_not_close(backend, tiny_bundle):
    with Pipeline(Bundle.open(tiny_bundle), backend) as pipeline:
        outer, inner = made(pipeline, 1), made(pipeline, 2)

        def within(state):
            check_equal(made(pipeline, 2), inner)
            pipeline.decode(state.x)
            with pytest.raises(BadRequest, match="a run's own callback closed it"):
                pipeline.close()

        real = pipeline.generate
        watched = lambda **given: real(callback_on_step_end=within, **given) if given["seed"] == 1 else real(**given)
        pipeline.generate = watched
        check_equal(made(pipeline, 1), outer)


def test_a_pipeline_closed_while_others_use_it_ends_their_runs_or_refuses_them(tiny_bundle):
    pipeline = Pipeline(Bundle.open(tiny_bundle))
    expected, begun = made(pipeline, 0), threading.Event()

    def work(_: int) -> int:
        for count in range(10_000):
            begun.set()
            try:
                check_equal(made(pipeline, 0), expected)
            except BadRequest as error:
                assert str(error) == "pipeline: it is closed; open another"
                return count
        raise AssertionError("it was never closed")

    with ThreadPoolExecutor(4) as pool:
        counts = pool.map(work, range(4))
        assert begun.wait(10)
        pipeline.close()
        assert len(list(counts)) == 4


FORKED = """
import os, sys, threading, numpy as np
import cdiff_rt
if sys.argv[1] == "torch alone":
    import torch
    torch.set_num_threads(2)
    torch.nn.functional.conv2d(torch.randn(4, 32, 64, 64), torch.randn(32, 32, 3, 3))
else:
    used = cdiff_rt.Pipeline.from_pretrained(backend=sys.argv[1], threads=2)
    used.generate(text="a man", steps=1)
    threading.Thread(target=used._turns._lock.acquire).start()
child = os.fork()
if child == 0:
    if sys.argv[1] != "torch alone":
        used.close()  # which would wait for a thread that is not here, and for those of engines
    backend = "torch" if sys.argv[1] == "torch alone" else sys.argv[1]
    made = cdiff_rt.Pipeline.from_pretrained(backend=backend, threads=2).generate(text="a man", steps=1)
    print(made.images.shape, made.warnings, flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
os._exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(
    "used", ["onnxruntime", "torch alone", *(pytest.param(b, marks=slow) for b in ("openvino", "torch"))]
)
def test_a_forked_process_opens_a_pipeline_of_its_own(used, root):
    done = subprocess.run(
        [sys.executable, "-c", FORKED, used], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    told = "threads: this process was forked from one that used PyTorch, so it has one; use spawn for more"
    assert done.stdout.strip() == f"(1, 128, 128, 3) {[told] if 'torch' in used else []}"


def test_blocks_of_threads_do_not_meet_and_those_of_one_nest():
    turns, inside, met = Turns("pipeline"), [], []

    def work(number):
        for _ in range(50):
            with turns.take(), turns.take():
                inside.append(number)
                time.sleep(0)  # for others to come in
                met.append(len(inside))
                inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert set(met) == {1} and len(met) == 400


def test_it_closes_after_the_block_of_another_thread_and_nothing_comes_after():
    turns, begun, end, order = Turns("pipeline"), threading.Event(), threading.Event(), []

    def work():
        with turns.take():
            begun.set()
            end.wait(10)
            order.append("block")

    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(work)
        assert begun.wait(10)
        closing = pool.submit(turns.close, lambda: order.append("closed"))
        end.set()
        running.result(), closing.result()
    assert order == ["block", "closed"]
    with pytest.raises(BadRequest, match="^pipeline: it is closed; open another$"), turns.take():
        pass


def test_a_block_cannot_close_what_it_uses():
    turns, closed = Turns("pipeline"), []
    with turns.take(), pytest.raises(BadRequest, match="a run's own callback closed it; to cancel a run, raise"):
        turns.close(lambda: closed.append(1))
    with turns.take():
        pass
    turns.close(lambda: closed.append(2))
    assert closed == [2]
