"""One case in a process of its own: does its task once, then again for each line it is sent.

Speaks JSON lines: {"latents", "pixels"} once, or {"error"}; {"ms"} for each line "run", {"latents"} for "after N", at
the end {"memory_mib", "launches"}.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdiff_rt.bench.allocators import check_loaded
from cdiff_rt.bench.cases import Case
from cdiff_rt.bench.task import WAYS, Result, Task, open_bundle
from cdiff_rt.engines.backends import BACKENDS
from cdiff_rt.errors import as_told

if TYPE_CHECKING:
    from torch import Tensor

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")  # what the calls' names begin with


def serve(task: Task, case: Case) -> None:
    check_loaded(case.allocator)
    bundle = open_bundle(task)
    with naive_attention() if case.naive else nullcontext(), WAYS[task.what](bundle, case, task) as timed:
        tell(**values(timed.once()))
        for line in sys.stdin:
            word, _, steps = line.strip().partition(" ")
            if word == "after":
                tell(**values(timed.after(int(steps))))
            else:
                start = time.perf_counter()
                timed.once()
                tell(ms=1000 * (time.perf_counter() - start))
        on_cuda = BACKENDS[case.backend].device == "cuda"
        tell(memory_mib=peak_mib(), launches=profiled(timed.once) if on_cuda else None)


def tell(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def values(result: Result) -> dict[str, list]:
    return {"latents": result.latents.ravel().tolist(), "pixels": result.pixels.tolist()}


def peak_mib() -> float:
    """The most memory that the process held at a time.

    Linux's VmHWM is of this program alone; getrusage's figure begins with what the parent held when it started it.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def naive_attention() -> Iterator[None]:
    """PyTorch multiplies, scales, takes the softmax and multiplies, line by line as the reference's code does."""
    import torch.nn.functional as F

    fused = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def attention(
    q: "Tensor", k: "Tensor", v: "Tensor", mask: "Tensor | None" = None, *, scale: float | None = None
) -> "Tensor":
    """q [B, H, N, D], k and v [B, H, T, D] -> [B, H, N, D], with every score [B, H, N, T] in memory."""
    import torch

    scores = torch.einsum("bhnd,bhtd->bhnt", q, k) * (scale or q.shape[-1] ** -0.5)
    scores = scores if mask is None else scores + mask
    return torch.einsum("bhnt,bhtd->bhnd", scores.softmax(-1), v)


def profiled(run: Callable[[], Any]) -> int:
    """How many launches of kernels and graphs the host makes in a run."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
    return launches_among(event.name for event in profiler.events())


def launches_among(names: Iterable[str]) -> int:
    return sum(count for name, count in Counter(names).items() if name.startswith(LAUNCHES))


if __name__ == "__main__":
    try:
        serve(Task.from_json(sys.argv[1]), Case.from_json(sys.argv[2]))
    except Exception as failure:  # noqa: BLE001 - which is told; the other cases go on
        tell(error=str(as_told(failure)))
