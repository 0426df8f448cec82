import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cdiff_rt.engines import eager
from cdiff_rt.engines.base import Placement, device_spec
from cdiff_rt.engines.compiled import compiled, is_compiled
from cdiff_rt.engines.eager import EagerDeviceEngine, EagerEngine
from cdiff_rt.errors import BadArtefact, BadEnvironment, OutOfResource
from cdiff_rt.gpu.buffers import tensors_of
from cdiff_rt.manifest import NetworkSpec, TensorSpec

SIZES = range(1, 13)  # more than PyTorch compiles of one code object
LATENT, IMAGE = ("batch", 3, 4, 4), ("batch", 3, 4, 4)
DECODE = NetworkSpec("vae.decode.onnx", (TensorSpec("z", LATENT, "float32"),), (TensorSpec("image", IMAGE, "float32"),))


class Compiler:
    """In Inductor's place: keeps what it is given, and how often that ran."""

    def __init__(self) -> None:
        self.graphs, self.runs, self.fails = [], 0, None

    def __call__(self, graph, inputs):
        if self.fails:
            raise self.fails
        self.graphs.append(graph)

        def run(*given):
            self.runs += 1
            return graph(*given)

        return run


@pytest.fixture
def compiler(monkeypatch):
    real, standin = torch.compile, Compiler()
    monkeypatch.setattr(torch, "compile", lambda code, *, options, **more: real(code, backend=standin, **more))
    return standin


@pytest.fixture
def decoder(monkeypatch):
    """A network that is traced in no time, and a function made anew for each engine, as those of real ones are."""
    monkeypatch.setattr(eager, "function_of", lambda network, module: lambda z: (module(z),))
    return torch.nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)


def test_an_engine_on_the_cpu_compiles_every_size(compiler, decoder):
    ours, plain = (EagerEngine(DECODE, "vae.decode", decoder, compiles=compiles) for compiles in (True, False))
    for size in (*SIZES, 12, 11, 10):
        z = np.random.default_rng(size).standard_normal((size, 3, 4, 4), np.float32)
        np.testing.assert_allclose(ours(z=z)["image"], plain(z=z)["image"], rtol=1e-4, atol=1e-4)
    assert len(compiler.graphs) == len(SIZES) and compiler.runs == len(SIZES) + 3


def test_engines_on_a_device_are_compiled_each_for_its_size(compiler, decoder):
    for size in SIZES:
        place = Placement("cpu", "fp32", size)
        spec = device_spec(DECODE, "vae.decode", place)
        enqueue = EagerDeviceEngine(spec, "vae.decode", decoder, place, compiles=True).bind(
            tensors_of(spec, {}, torch.device("cpu"))
        )
        with torch.inference_mode():
            enqueue()
            enqueue()
    assert len(compiler.graphs) == len(SIZES) and compiler.runs == 2 * len(SIZES)


def test_what_compiles_in_pieces_only_is_refused(compiler):
    def in_pieces(x):
        x = x + 1
        torch._dynamo.graph_break()
        return (x * 2,)

    with pytest.raises(BadEnvironment, match="PyTorch's compiler: .*choose torch or torch-cuda"):
        compiled(in_pieces)(torch.zeros(1))
    assert compiler.runs == 0


def test_what_was_compiled_too_often_is_refused_and_not_run_as_it_is(compiler):
    doubled = compiled(lambda x: (2 * x,))
    with torch._dynamo.config.patch(recompile_limit=2):
        doubled(torch.zeros(1)), doubled(torch.zeros(2))
        with pytest.raises(BadEnvironment, match="PyTorch's compiler"):
            doubled(torch.zeros(3))
    assert compiler.runs == 2


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RuntimeError("Python.h: No such file or directory"), BadEnvironment, "compiler: .*Python.h: No such file"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            OutOfResource,
            "running vae.decode.*out of memory",
        ),
    ],
    ids=["no compiler", "no memory"],
)
def test_what_the_compiler_says_is_told(error, kind, words, compiler, decoder):
    compiler.fails = error
    with pytest.raises(kind, match=words):
        EagerEngine(DECODE, "vae.decode", decoder, compiles=True)(z=np.zeros((1, 3, 4, 4), np.float32))


def test_a_network_that_its_inputs_do_not_fit_is_at_fault_itself(compiler, decoder):
    other = torch.nn.Conv2d(2, 3, 3, padding=1)
    with pytest.raises(BadArtefact, match="torch cannot run it"):
        EagerEngine(DECODE, "vae.decode", other, compiles=True)(z=np.zeros((1, 3, 4, 4), np.float32))


def test_what_runs_once_is_not_compiled(bundle):
    assert [network for network in bundle.manifest.networks if is_compiled(network)] == [
        *("expert.mask", "expert.text", "vae.decode")
    ]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="g++ not on the path")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton not installed")
def test_for_a_gpu_an_expert_is_few_launches_and_no_weight_is_laid_anew(tiny_bundle):
    """What Inductor makes for an H100. Without channels last, 16 launches more write weights anew in each call."""
    command = [sys.executable, "-m", "tests.engines.standin_cuda", tiny_bundle, "expert.text", "fp16"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["relaid"] == 0 and found["channels_last"]
    assert found["library"] == {
        "extern_kernels.convolution": 16,
        "extern_kernels.addmm": 14,  # six of them convolutions of width 1
        "extern_kernels.mm": 8,
        "torch.ops.aten._scaled_dot_product_flash_attention.default": 4,
    }
    assert 30 < found["triton"] <= 50  # 38 as a build of PyTorch for CPUs makes them, 50 as one for CUDA 13 does
