"""What Inductor makes of a network for a GPU, where there is none: its real code, of tensors that have no numbers.

`python -m tests.engines.standin_cuda BUNDLE NETWORK PRECISION` prints it counted, as JSON. It runs as a process of its
own, which it makes believe in a GPU. No kernel is compiled by Triton and nothing runs, so the counts are
those of launches that Inductor's code has; what the libraries behind its calls launch is theirs to know.
"""

import ctypes
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cdiff_rt.engines import modules
from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.eager import load_device_compiled
from cdiff_rt.gpu.buffers import tensors_of
from cdiff_rt.manifest import Bundle

H100 = SimpleNamespace(
    name="a stand-in",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 * 2**30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20,
    warp_size=32,
    gcnArchName="",
)
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
using Guard = c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>;
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
"""
_LAUNCH = re.compile(
    r"^ +(?:\w+ = )?(triton_\w+)\.run\((.*)|^ +(?:\w+ = )?(extern_kernels\.\w+|torch\.ops\.[\w.]+)\(", re.MULTILINE
)
_SIZES = re.compile(r"assert_size_stride\((\w+), \(([\d, ]+)\)")


@dataclass(frozen=True)
class Lowered:
    triton: int  # kernels of its own that it launches
    library: dict[str, int]  # calls of libraries by name
    relaid: int  # numbers of weights that are written anew at each call, in another layout
    channels_last: bool  # whether convolutions get channels last


class Code(BaseException):
    """What Inductor made, thrown before it is loaded."""


def counted(code: str, channels_last: bool) -> Lowered:
    body = code[code.index("def call(") :]
    sizes = {name: tuple(map(int, re.findall(r"\d+", found))) for name, found in _SIZES.findall(body)}
    found = _LAUNCH.findall(body)
    given = [re.split(r", ", arguments)[0] for kernel, arguments, _ in found if kernel]
    weights = [sizes[name] for name in given if name.startswith("arg") and max(sizes[name][2:4], default=0) == 3]
    library = Counter(call for _, _, call in found if call)
    return Lowered(
        sum(bool(kernel) for kernel, _, _ in found), dict(library), sum(map(math.prod, weights)), channels_last
    )


def believe_in_a_gpu() -> None:
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.graph import GraphLowering
    from torch.utils import _triton

    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "guard.cpp", Path(folder) / "guard.so"
        source.write_text(GUARD)
        root = Path(torch.__file__).parent
        paths = [f"-I{root / 'include'}", f"-L{root / 'lib'}", "-lc10"]
        subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", source, "-o", library, *paths], check=True)
        ctypes.CDLL(str(library))
    for name, value in {
        "get_device_properties": H100,
        "current_device": 0,
        "device_count": 1,
        "is_available": True,
        "get_compute_capability": 90,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
        "is_bf16_supported": True,
    }.items():
        for owner in (CudaInterface, CudaInterface.Worker):
            setattr(owner, name, staticmethod(lambda *_, value=value, **more: value))
    torch.cuda.get_device_properties = lambda device=None: H100
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch.cuda.device_count = lambda: 1
    _triton.triton_hash_with_backend = lambda: "a stand-in"
    modules.fp32 = lambda content, place: torch.empty(place.shape)  # of which the mode below makes one without numbers
    torch.from_numpy = lambda made: made
    torch.nn.functional.scaled_dot_product_attention = attention
    GraphLowering.compile_to_module = thrown


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """The kernel that PyTorch chooses on a GPU, which a build without CUDA does not know."""
    if mask is not None or q.dtype == torch.float32:
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, False, scale=scale)[0]
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]


def thrown(graph) -> None:
    code, _ = graph.codegen()
    raise Code(counted(code.value, bool(graph.layout_opt)))


def lowered(folder: Path, network: str, precision: str) -> Lowered:
    bundle = Bundle.open(folder)
    believe_in_a_gpu()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        engine = load_device_compiled(bundle, network, Placement("cuda", precision, batch=2))
        enqueue = engine.bind(tensors_of(engine.spec, {}, torch.device("cuda")))
        try:
            enqueue()
        except Code as code:
            return code.args[0]
    raise AssertionError("nothing was compiled")


if __name__ == "__main__":
    folder, network, precision = sys.argv[1:]
    print(json.dumps(asdict(lowered(Path(folder), network, precision))))
