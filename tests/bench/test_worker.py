import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cdiff_rt.bench.worker import attention, launches_among, naive_attention
from tests.gpu.lints import trace


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process's peak may be its parent's")
def test_a_process_does_not_count_the_memory_of_its_parent():
    held = np.ones(2**26)  # 512 MiB
    code = "from cdiff_rt.bench.worker import peak_mib; print(peak_mib())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 5 < float(told) < held.nbytes / 2**20


def test_launches_are_those_of_kernels_and_graphs():
    names = [
        "cudaLaunchKernel",
        "cuLaunchKernelEx",
        "cudaGraphLaunch",
        "cudaMemcpyAsync",
        "aten::add",
        "cudaLaunchKernel",
    ]
    assert launches_among(names) == 4


@pytest.mark.parametrize("naive", [True, False])
def test_the_references_attention_has_every_score_in_memory(naive):
    q = torch.randn(1, 2, 16, 8)

    def attend():
        if not naive:
            return F.scaled_dot_product_attention(q, q, q)
        with naive_attention():
            return F.scaled_dot_product_attention(q, q, q)

    shapes = {shape for row in trace(attend) for shape, *_ in row[1:]}
    assert ((1, 2, 16, 16) in shapes or (2, 16, 16) in shapes) == naive


@pytest.mark.parametrize("scale", [None, 0.3])
def test_and_computes_what_fused_attention_does(scale):
    q, k, v = (torch.randn(2, 3, n, 8, generator=torch.manual_seed(n)) for n in (16, 5, 5))
    torch.testing.assert_close(attention(q, k, v, scale=scale), F.scaled_dot_product_attention(q, k, v, scale=scale))


def test_what_was_replaced_comes_back():
    fused = F.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), naive_attention():
        assert F.scaled_dot_product_attention is attention
        raise ZeroDivisionError
    assert F.scaled_dot_product_attention is fused
