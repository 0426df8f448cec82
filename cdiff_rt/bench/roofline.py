"""What this machine can do at best, measured on the spot, and what a task needs of it, counted.

The limit of a task is the time that its convolutions would take at the speed of the best convolution measured and its
other multiplications at that of the best matrix product, or, where that is longer, that of reading its weights once.
So 100 % is out of reach of direct convolutions, for normalisations, activations and softmaxes count as nothing.
"""

import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cdiff_rt import schema
from cdiff_rt.bench.machine import multiplies_bf16
from cdiff_rt.bench.task import What
from cdiff_rt.engines.base import Precision
from cdiff_rt.errors import BadEnvironment
from cdiff_rt.manifest import Manifest
from cdiff_rt.notes import log
from cdiff_rt.process import cores

KERNEL_S = 0.4  # each kernel is run for so long, and its fastest run counts
PRODUCTS = ((2048, 2048, 2048), (1024, 1536, 384), (4096, 576, 576))  # [m, k] x [k, n]
CONVOLUTIONS = ((192, 64), (384, 32), (576, 32), (960, 16))  # channels, pixels of a side; 3 x 3
COPIED = 2**29  # bytes: more than caches hold
BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "tf32": 4}


@dataclass(frozen=True)
class Roofline:
    product: dict[str, float] = field(
        default_factory=dict
    )  # by precision, operations per second; a multiply-add is two
    convolution: dict[str, float] = field(default_factory=dict)
    bandwidth: float = 0.0  # bytes per second

    def __str__(self) -> str:
        speeds = [
            f"{kind} {precision} {speed / 1e9:.0f} GFLOP/s"
            for kind, found in (("matrix product", self.product), ("convolution", self.convolution))
            for precision, speed in found.items()
        ]
        return ", ".join([*speeds, f"memory {self.bandwidth / 1e9:.1f} GB/s"])


@dataclass(frozen=True)
class Operations:
    """Of one call of some networks."""

    product: int = 0  # operations
    convolution: int = 0
    weights: int = 0  # numbers
    calls: int = 1


def limit_s(works: list[Operations], roofline: Roofline, precision: Precision) -> float | None:
    """The least time that a task can take; None if the roofline doesn't have the precision."""
    if precision not in roofline.product:
        return None
    total = 0.0
    for work in works:
        busy = work.product / roofline.product[precision] + work.convolution / roofline.convolution[precision]
        total += work.calls * max(busy, work.weights * BYTES[precision] / roofline.bandwidth)
    return total


def measure() -> Roofline | None:
    """In a process of its own, on all cores. None without PyTorch, whose kernels are run."""
    if importlib.util.find_spec("torch") is None:
        log.info("the roofline is left out: torch not installed")
        return None
    done = subprocess.run(
        [sys.executable, "-m", "cdiff_rt.bench.roofline"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BadEnvironment("roofline", " ".join(done.stderr.split())[-200:], "see `cdiff-rt doctor`")
    found: Roofline = schema.from_json(Roofline, json.loads(done.stdout), "roofline")
    log.info("roofline: %s", found)
    return found


def run_kernels() -> Roofline:
    import torch

    torch.set_num_threads(cores())
    types = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if multiplies_bf16() else {})
    with torch.inference_mode():
        return Roofline(
            {name: max(_product(*sizes, dtype) for sizes in PRODUCTS) for name, dtype in types.items()},
            {name: max(_convolution(*sizes, dtype) for sizes in CONVOLUTIONS) for name, dtype in types.items()},
            _bandwidth(),
        )


def _product(m: int, k: int, n: int, dtype: Any) -> float:
    """As such, or as a convolution of 1 x 1: another library's, and on some processors twice as fast."""
    import torch

    a, b, out = (torch.ones(shape, dtype=dtype) for shape in ((m, k), (k, n), (m, n)))
    return 2 * m * k * n / min(fastest(lambda: torch.mm(a, b, out=out)), _convolved(k, n, 1, (m, 1), dtype))


def _convolution(channels: int, side: int, dtype: Any) -> float:
    return 2 * 9 * channels**2 * side**2 / _convolved(channels, channels, 3, (side, side), dtype)


def _convolved(channels: int, out: int, kernel: int, image: tuple[int, int], dtype: Any) -> float:
    """The least time of a convolution of [1, channels, *image] to [1, out, *image], in seconds."""
    import torch

    layer = torch.nn.Conv2d(channels, out, kernel, padding="same", dtype=dtype)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.ones(1, channels, *image, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return fastest(lambda: layer(x))


def _bandwidth() -> float:
    """Of reading or of copying, whichever moves more."""
    import torch

    a = torch.ones(COPIED // 4)
    b = torch.empty_like(a)
    return max(2 * COPIED / fastest(lambda: b.copy_(a)), COPIED / fastest(lambda: a.sum()))


def fastest(kernel: Callable[[], Any], seconds: float = KERNEL_S) -> float:
    """The least time of a call, in seconds."""
    kernel()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        kernel()
        best = min(best, time.perf_counter() - start)
    return best


# --- what a task needs -----------------------------------------------------------------------------------------------


def operations_of(manifest: Manifest, what: What, steps: int, batch: int) -> list[Operations]:
    """A step of all experts, as often as the task takes one, and the decoder. What runs once per image is left out."""
    step = Operations()
    for modality in manifest.modalities:
        one = count(manifest, f"expert.{modality.name}", batch)
        step = Operations(step.product + one.product, step.convolution + one.convolution, step.weights + one.weights)
    if what == "step":
        return [step]
    decoder = [count(manifest, "vae.decode", batch)] if manifest.image_size else []
    return [replace(step, calls=steps), *decoder]


def count(manifest: Manifest, network: str, batch: int) -> Operations:
    """One call of a network, counted on tensors without data."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cdiff_rt.engines.weights import part_of
    from cdiff_rt.nets.collaborative import ModelConfig, build_part, part_functions, reads

    config = schema.from_json(ModelConfig, manifest.source, "source")
    counter, spec = FlopCounterMode(display=False), manifest.networks[network]
    with torch.device("meta"), torch.inference_mode():
        module = build_part(config, part_of(network)).eval()
        sizes = [[batch if isinstance(d, str) else d for d in tensor.shape] for tensor in spec.inputs]
        inputs = [torch.zeros(s, dtype=getattr(torch, t.dtype)) for s, t in zip(sizes, spec.inputs, strict=True)]
        with counter:
            part_functions(part_of(network), module)[network](*inputs)
    counts = {str(operation): flops for operation, flops in counter.get_flop_counts()["Global"].items()}
    convolution = sum(flops for operation, flops in counts.items() if "convolution" in operation)
    used = [tensor.numel() for name, tensor in module.named_parameters() if reads(network, name)]
    return Operations(sum(counts.values()) - convolution, convolution, sum(used))


if __name__ == "__main__":
    print(json.dumps(asdict(run_kernels())))
