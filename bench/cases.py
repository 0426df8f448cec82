"""What is timed against what: ways of running a model, and the suites that compare them."""

import json
import logging
from dataclasses import asdict, dataclass

from cdiff_rt import records
from cdiff_rt.engines import BACKENDS, Precision, check_backend, check_precision, why_not
from cdiff_rt.errors import BadEnvironment, BadRequest

log = logging.getLogger("cdiff_rt")


@dataclass(frozen=True)
class Case:
    """One way of running a model; the settings of a device are those of `runs.OnDevice`."""

    name: str
    backend: str
    precision: Precision | None = None
    fused_step: bool = False
    graphs: bool = True
    naive: bool = False  # PyTorch's attention as the reference has it, with every score in memory

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Case":
        return records.from_json(cls, json.loads(text), "case")

    @property
    def computes_in(self) -> Precision:
        return check_precision(self.backend, self.precision)


BASELINES = ("torch", "torch-cuda, fp32 as the reference")  # the first that is among the cases

GPU_SUITE = (
    Case(BASELINES[1], "torch-cuda", "fp32", graphs=False, naive=True),
    Case("torch-cuda, fp16", "torch-cuda", "fp16", graphs=False),
    Case("torch-cuda, fp16, graph", "torch-cuda", "fp16"),
    Case("torch.compile, fp16", "torch-cuda-compiled", "fp16", graphs=False),
    Case("torch.compile, fp16, graph", "torch-cuda-compiled", "fp16"),
    Case("onnxruntime-cuda, fp32", "onnxruntime-cuda"),
    *(
        case
        for backend in ("tensorrt", "tensorrt-rtx")
        for case in (
            Case(f"{backend}, fp16", backend, graphs=False),
            Case(f"{backend}, fp16, graph", backend),
            Case(f"{backend}, fp16, fused step", backend, fused_step=True, graphs=False),
            Case(f"{backend}, fp16, fused step, graph", backend, fused_step=True),
        )
    ),
)
GPU_BATCHES: tuple[int, ...] = (1, 2, 4, 8)


def on_the_cpu(backends: tuple[str, ...]) -> tuple[Case, ...]:
    """A case for each backend, by default for all that work here without a GPU."""
    every = tuple(name for name, backend in BACKENDS.items() if backend.device == "cpu")
    return tuple(Case(name, name) for name in backends) or able(tuple(Case(name, name) for name in every))


def on_a_gpu(backends: tuple[str, ...]) -> tuple[Case, ...]:
    """The cases of the GPU suite that work here, of some backends or of all. Raises BadRequest for another backend."""
    known = {case.backend for case in GPU_SUITE}
    strange = sorted(set(backends) - known)
    if strange:
        raise BadRequest("backend", repr(strange[0]), f"the GPU suite has {', '.join(sorted(known))}")
    return able(tuple(case for case in GPU_SUITE if not backends or case.backend in backends))


def able(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Those that work here; of the others it is said why not. Raises BadEnvironment if there is none."""
    reasons = {case.backend: why_not(case.backend) for case in cases}
    for backend, reason in reasons.items():
        if reason:
            log.info("%s is left out: %s", backend, reason)
    found = tuple(case for case in cases if reasons[case.backend] is None)
    if not found:
        told = "; ".join(sorted({reason for reason in reasons.values() if reason}))
        raise BadEnvironment("benchmark", f"no backend of it works here ({told})", "see `cdiff-rt doctor`")
    return found


def check(cases: tuple[Case, ...]) -> None:
    """Raises BadRequest or BadEnvironment, before anything is started, if one of them can't run."""
    for case in cases:
        check_backend(case.backend)
        check_precision(case.backend, case.precision)
