"""The kernel, without a GPU: interpreted, compiled and executed as PTX, and counted as machine code; and with one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cdiff_rt.gpu import kernel
from cdiff_rt.gpu.fused_step import LARGEST
from tests.gpu import ptx, sass
from tests.gpu.test_fused_step import BRAIN, HALF, SINGLE, TYPES, check_results, expected, step

CAPABILITIES = (80, 86, 89, 90, 100, 120)
CHANGED = ("x", "hist", "weights")


def named_arguments(jitted, args):
    return dict(zip(jitted.arg_names, args, strict=False))


class Simulated:
    """Stands in for a jitted kernel: a launch is compiled for a GPU, and the PTX executed on the arguments."""

    def __init__(self, jitted, capability):
        self.jitted, self.capability, self.memory = jitted, capability, ptx.Memory()

    def __getitem__(self, grid):
        def run(*args, **options):
            built = sass.compiled(self.jitted, self.capability, grid, args, options)
            kinds = built.src.signature
            given = {
                name: arg for name, arg in named_arguments(self.jitted, args).items() if kinds[name] != "constexpr"
            }
            ptx.execute(built.asm["ptx"], grid, [self.parameter(*item) for item in given.items()], self.memory)

        return run

    def parameter(self, name, value):
        if isinstance(value, int):
            return value
        storage = torch.tensor([], dtype=torch.uint8).set_(value.untyped_storage()).numpy()
        return self.memory.place(name, storage) + value.storage_offset() * value.element_size()


def simulate(module, one, capability=90):
    """The step through `module.launch`; the memory that it went through."""
    simulated = Simulated(module.fuse_step_kernel, capability)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fuse_step_kernel", simulated)
        launch(module, one)
    return simulated.memory


def launch(module, one):
    names = ("hist", "noise", "weights")
    given = {name: part for name, part in one.tensors.items() if name not in names}
    module.launch(**given, **{name: getattr(one, name) for name in names}, boosted=one.adjust.boost is not None)


def check_step(module, one, capability=90):
    """Right results; every byte of every tensor read once, those between modalities never, and results written once."""
    want = expected(one)
    memory = simulate(module, one, capability)
    check_results(one, want)
    for name, part in one.tensors.items():
        if part is None:
            continue
        inside = np.zeros(part.untyped_storage().nbytes() // part.element_size(), int)
        torch.as_strided(torch.from_numpy(inside), part.shape, part.stride(), part.storage_offset())[...] = 1
        inside = inside.repeat(part.element_size())
        writes = inside * (name in CHANGED)
        np.testing.assert_array_equal(memory[name].writes, writes, f"how often bytes of {name} are written")
        if name != "numbers":
            reads = inside * (name != "weights")
            np.testing.assert_array_equal(memory[name].reads, reads, f"how often bytes of {name} are read")


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("storage", [HALF, BRAIN, SINGLE])
@pytest.mark.parametrize(("modalities", "latent"), [(2, (40, 32)), (3, (13, 17))])
def test_ptx_computes_the_step(modalities, latent, storage, capability):
    check_step(kernel, step(modalities, latent, stored=storage, predicted=storage, weights=False), capability)


@pytest.mark.parametrize("modalities", range(1, LARGEST + 1))
@pytest.mark.parametrize("boosted", [False, True])
def test_ptx_of_any_number_of_modalities(modalities, boosted):
    check_step(kernel, step(modalities, (16, 24), channels=2, predicted=HALF, boosted=boosted, padded=boosted))


@pytest.mark.parametrize(("stored", "predicted"), TYPES)
def test_ptx_of_mixed_storage(stored, predicted):
    check_step(kernel, step(2, (23, 32), stored=stored, predicted=predicted, channels=1))


@pytest.mark.parametrize("latent", [(1,), (3,), (128,), (221,), (11, 100), (4, 8, 16)])
@pytest.mark.parametrize("padded", [False, True])
def test_ptx_of_any_latent(latent, padded):
    check_step(kernel, step(3, latent, channels=2, batch=3, stored=BRAIN, predicted=HALF, padded=padded))


@pytest.mark.parametrize("without", [("hist",), ("noise",), ("weights",), ("hist", "noise", "weights")])
def test_ptx_without_a_part(without):
    check_step(kernel, step(2, (16, 16), **dict.fromkeys(without, False)))


def test_ptx_of_the_embedded_models_step():
    check_step(kernel, step(2, (16, 16), channels=16, predicted=HALF, weights=False))


@pytest.mark.parametrize("boosted", [False, True])
@pytest.mark.parametrize("storage", [HALF, SINGLE])  # of bf16 the interpreter truncates what it stores
@pytest.mark.parametrize("modalities", [1, 3])
def test_interpreted(modalities, storage, boosted):
    code = f"""
import torch
from cdiff_rt.gpu import kernel
from tests.gpu.test_fused_step import check_results, expected, step
from tests.gpu.test_kernel import launch
assert "Interpreted" in type(kernel.fuse_step_kernel).__name__
one = step({modalities}, (19, 19), stored={storage}, predicted={storage}, boosted={boosted})
want = expected(one)
launch(kernel, one)
check_results(one, want)
print("agrees")
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment)
    assert done.stdout == "agrees\n", done.stderr
