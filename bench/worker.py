"""One backend in a process of its own: loads a pipeline, then makes one run for each line it is sent.

Speaks JSON lines: {"load_s", "sample"} once, or {"error"}, then {"ms"} per run, at the end {"memory_mib"}.
"""

import json
import sys
import time
from typing import Any

from cdiff_rt.errors import CdiffError


def serve(model: str, backend: str, steps: int, batch: int) -> None:
    import resource

    start = time.perf_counter()
    from cdiff_rt.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(model, backend=backend)
    conditions: dict[str, Any] = {m.name: _example(m.kind, m.classes) for m in pipeline.manifest.modalities}
    first = pipeline.generate(steps=steps, batch=batch, **conditions)
    load = time.perf_counter() - start
    print(json.dumps({"load_s": load, "sample": first.latents.ravel()[:256].tolist()}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        pipeline.generate(steps=steps, batch=batch, **conditions)
        print(json.dumps({"ms": 1000 * (time.perf_counter() - start)}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"memory_mib": peak / 1024}), flush=True)


def _example(kind: str, classes: int) -> Any:
    """A condition whose content doesn't matter: latency depends on sizes only."""
    import numpy as np

    if kind == "words":
        return "This man has a long beard. He is in his fifties."
    return np.arange(64 * 64).reshape(64, 64) // 216 % classes


if __name__ == "__main__":
    try:
        serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    except CdiffError as failure:
        print(json.dumps({"error": str(failure)}), flush=True)
