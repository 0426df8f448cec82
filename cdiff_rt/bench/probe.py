"""What a GPU does with a model beyond what `bench time` times: its ceilings, attention, and where an image's time goes.

python -m cdiff_rt.bench.probe FILE ceilings | attention | image MODEL BACKEND PRECISION STEPS BATCH

Adds what it finds to the JSON file as it goes. Without a GPU it runs in small on the CPU, to prove its own code.
"""

import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cdiff_rt.bench.task import example
from cdiff_rt.manifest import Bundle, find_model
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.run import OnDevice

REPEATS = 5
LARGEST_ON_CPU = 256  # pixels of an image that the CPU makes in a minute
HEADS, WIDTHS = 32, (2, 12, 16, 24, 32)  # of the 512 model's attention; of branches and dynamic diffusers, and padded
KINDS = {  # of kernels, by what their names have
    "attention": r"flash|fmha|attention|softmax|sdp|attend",
    "layout, copy, cast": r"nchwToNhwc|nhwcToNchw|transpose|CatArray|copy|Memcpy|Memset|fill|pad",
    "norm": r"norm|RowwiseMoments|ComputeFusedParams|triton_(red|per)",
    "convolution": r"conv|fprop|implicit|cudnn",
    "matrix product": r"gemm|nvjet|cutlass|splitK|cublas",
    "fused step": r"fuse_step",
    "pointwise": r"elementwise|triton_poi|silu|gelu|Functor|upsample",
}


@dataclass
class Found:
    """What is known by now, in a file."""

    file: Path
    rows: dict[str, Any] = field(default_factory=dict)

    def keep(self, name: str, value: Any) -> None:
        self.rows[name] = value
        told = json.loads(self.file.read_text()) if self.file.exists() else {}
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(told | self.rows, indent=1) + "\n")
        new.replace(self.file)  # so that whoever reads it meanwhile, or ends this, has a whole one
        print(f"{name}: {json.dumps(value)[:600]}", flush=True)

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """What fails within the block is told under this name, and the next part goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - which is what the file is to tell
            self.keep(f"{name} failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def clocked(work: Callable[[], Any], inner: int = 1) -> float:
    """The median of ms that a call takes, with all that it enqueues."""
    import torch

    times = []
    for _ in range(REPEATS if device() == "cuda" else 1):
        begun = time.perf_counter()
        for _ in range(inner):
            work()
        if device() == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begun) / inner)
    return round(statistics.median(times), 4)


def ceilings(found: Found) -> None:
    """What this GPU does at best: products of large matrices, and copies."""
    import torch

    size, mib = (8192, 1024) if device() == "cuda" else (256, 8)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        with found.trying(f"matrix product {dtype}"):
            a, b = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
            a @ b
            product = clocked(partial(torch.mm, a, b))
            found.keep(f"matrix product {dtype}, TFLOP/s", round(2 * size**3 / product / 1e9, 3))
    x = torch.empty(mib << 20, dtype=torch.uint8, device=device())
    found.keep("copy, GB/s read and written", round(2 * x.numel() / clocked(x.clone) / 1e6, 1))


def attention(found: Found) -> None:
    """Self-attention of the 512 model's largest level, by each of PyTorch's kernels."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tokens, dtype = (1024, torch.float16) if device() == "cuda" else (64, torch.float32)
    for width in WIDTHS:
        q, k, v = (torch.randn(1, HEADS, tokens, width, device=device()).to(dtype) for _ in range(3))
        for kind in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
            name = f"attention, {HEADS} heads of {width}, {kind.lower()}"
            with found.trying(name), sdpa_kernel(getattr(SDPBackend, kind)), torch.inference_mode():
                run = partial(F.scaled_dot_product_attention, q, k, v, scale=0.25)
                run()
                found.keep(f"{name}, ms", clocked(run, inner=10))


def image(found: Found, model: str, backend: str, precision: str, steps: str, batch: str) -> None:
    """The first image and later ones, their memory, and kernels by kind; how far from fp32 on the CPU."""
    import torch

    bundle, name = Bundle.open(find_model(model)), f"{Path(model).name}, {backend}, {precision}, {steps}, {batch}"
    conditions: dict[str, Any] = {m.name: example(m.kind, m.classes, m.input_shape) for m in bundle.manifest.modalities}
    how = OnDevice(precision)  # type: ignore[arg-type]
    with found.trying(name), Pipeline(bundle, backend, how) as pipeline:
        make = lambda: pipeline.generate(conditions=conditions, steps=int(steps), batch=int(batch), seed=0)
        begun = time.perf_counter()
        first = make()
        row: dict[str, Any] = {"first s": round(time.perf_counter() - begun, 2), "warnings": list(first.warnings)}
        row |= {"finite": bool(np.isfinite(first.latents).all()), "image ms": clocked(make)}
        row["again the same"] = bool(np.array_equal(first.latents, make().latents))
        if device() == "cuda":
            free, total = torch.cuda.mem_get_info()
            row |= {"used MiB": (total - free) >> 20, "torch's peak MiB": torch.cuda.max_memory_allocated() >> 20}
        found.keep(name, row)
        found.keep(f"{name}: kernels", kernels(make, int(steps)))
        if bundle.manifest.image_size <= LARGEST_ON_CPU:
            fp32 = Pipeline(bundle, "torch").generate(conditions=conditions, steps=int(steps), seed=0).latents
            found.keep(
                f"{name}: largest difference / spread", float(np.abs(first.latents[:1] - fp32).max() / fp32.std())
            )


def kernels(work: Callable[[], Any], steps: int) -> dict[str, Any]:
    """Of a run, what the GPU spends on each kind of kernel, and the longest of them."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA if device() == "cuda" else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        work()
    ms, counts, rows = Counter[str](), Counter[str](), []
    for event in profiler.key_averages():
        spent = (event.self_device_time_total if device() == "cuda" else event.self_cpu_time_total) / 1000 / steps
        if spent:
            kind = next((k for k, words in KINDS.items() if re.search(words, event.key, re.IGNORECASE)), "other")
            ms[kind] += spent
            counts[kind] += event.count
            rows.append((round(spent, 4), event.count / steps, kind, event.key[:110]))
    return {
        "kernels per step": round(sum(counts.values()) / steps, 1),
        "ms per step": {kind: round(value, 4) for kind, value in ms.most_common()},
        "longest: ms per step, count per step, kind, name": sorted(rows, reverse=True)[:25],
    }


PARTS: dict[str, Callable[..., None]] = {"ceilings": ceilings, "attention": attention, "image": image}

if __name__ == "__main__":
    PARTS[sys.argv[2]](Found(Path(sys.argv[1])), *sys.argv[3:])
