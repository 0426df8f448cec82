"""One case in a process of its own: loads a pipeline, then makes one run for each line it is sent.

Speaks JSON lines: {"load_s", "sample"} once, or {"error"}, then {"ms"} per run, at the end {"memory_mib", "launches"}.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from cdiff_rt.bench.cases import Case
from cdiff_rt.errors import CdiffError

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")  # what the calls' names begin with


def serve(model: str, case: Case, steps: int, batch: int) -> None:
    import resource

    start = time.perf_counter()
    from cdiff_rt.engines import BACKENDS
    from cdiff_rt.manifest import Bundle
    from cdiff_rt.pipeline import Pipeline, find_model
    from cdiff_rt.runs import OnDevice

    how = OnDevice(case.precision, case.fused_step, case.graphs)
    pipeline = Pipeline(Bundle.open(find_model(model)), case.backend, how)
    conditions: dict[str, Any] = {m.name: _example(m.kind, m.classes) for m in pipeline.manifest.modalities}

    def run() -> Any:
        with naive_attention() if case.naive else nullcontext():
            return pipeline.generate(steps=steps, batch=batch, **conditions)

    first = run()
    load = time.perf_counter() - start
    print(json.dumps({"load_s": load, "sample": first.latents.ravel()[:256].tolist()}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(json.dumps({"ms": 1000 * (time.perf_counter() - start)}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    launches = profiled(run) if BACKENDS[case.backend].device == "cuda" else None
    print(json.dumps({"memory_mib": peak / 1024, "launches": launches}), flush=True)


def naive_attention() -> AbstractContextManager[None]:
    """PyTorch multiplies, takes the softmax and multiplies, as the reference's code does."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)


def profiled(run: Callable[[], Any]) -> int:
    """How many launches of kernels and graphs the host makes in a run."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
    return launches_among(event.name for event in profiler.events())


def launches_among(names: Iterable[str]) -> int:
    return sum(count for name, count in Counter(names).items() if name.startswith(LAUNCHES))


def _example(kind: str, classes: int) -> Any:
    """A condition whose content doesn't matter: latency depends on sizes only."""
    import numpy as np

    if kind == "words":
        return "This man has a long beard. He is in his fifties."
    return np.arange(64 * 64).reshape(64, 64) // 216 % classes


if __name__ == "__main__":
    try:
        serve(sys.argv[1], Case.from_json(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    except CdiffError as failure:
        print(json.dumps({"error": str(failure)}), flush=True)
