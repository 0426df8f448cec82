"""What is timed against what: ways of running a model, and the suites that compare them."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

from cdiff_rt import schema
from cdiff_rt.bench import allocators
from cdiff_rt.bench.machine import multiplies_bf16
from cdiff_rt.engines.backends import BACKENDS, check_backend, check_precision, why_not
from cdiff_rt.engines.base import Arrangement, Precision
from cdiff_rt.errors import BadEnvironment, BadRequest
from cdiff_rt.notes import log
from cdiff_rt.sampling.tiers import TIERS, Sampling


@dataclass(frozen=True)
class Case:
    """One way of running a model; the settings of a device are those of `run.OnDevice`."""

    name: str
    backend: str
    precision: Precision | None = None
    experts: Arrangement = "separate"
    graphs: bool = True
    kernels: bool = True
    naive: bool = False  # PyTorch's attention as the reference has it, with every score in memory
    allocator: str | None = None  # of allocators.ALLOCATORS; None: the one that every process has
    sampling: Sampling = TIERS["exact"]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Case":
        return schema.from_json(cls, json.loads(text), "case")

    @property
    def computes_in(self) -> Precision:
        return check_precision(self.backend, self.precision)

    @property
    def is_baseline(self) -> bool:
        """PyTorch is what the others are measured by."""
        return self.backend.startswith("torch")


REFERENCE = "torch, as the reference"
TUNED = tuple(f"{REFERENCE}, {name}" for name in allocators.ALLOCATORS)
BASELINES = (REFERENCE, "torch-cuda, fp32 as the reference", "torch")  # the first that is among the cases

GPU_SUITE = (
    Case(BASELINES[1], "torch-cuda", "fp32", graphs=False, kernels=False, naive=True),
    Case("torch-cuda, fp16", "torch-cuda", "fp16", graphs=False),
    Case("torch-cuda, fp16, graph", "torch-cuda", "fp16"),
    Case("torch-cuda, fp16, graph, PyTorch's kernels", "torch-cuda", "fp16", kernels=False),
    Case("torch-cuda, fp16, stacked, graph", "torch-cuda", "fp16", "stacked"),
    Case("torch.compile, fp16", "torch-cuda-compiled", "fp16", graphs=False),
    Case("torch.compile, fp16, graph", "torch-cuda-compiled", "fp16"),
    Case("torch.compile, fp16, graph, PyTorch's kernels", "torch-cuda-compiled", "fp16", kernels=False),
    Case("torch.compile, fp16, stacked, graph", "torch-cuda-compiled", "fp16", "stacked"),
    Case("onnxruntime-cuda, fp32", "onnxruntime-cuda", "fp32"),
    Case("onnxruntime-cuda, fp16", "onnxruntime-cuda", "fp16"),
    *(
        case
        for backend in ("tensorrt", "tensorrt-rtx")
        for case in (
            Case(f"{backend}, fp16", backend, graphs=False),
            Case(f"{backend}, fp16, graph", backend),
            Case(f"{backend}, fp16, stacked, graph", backend, experts="stacked"),
            Case(f"{backend}, fp16, whole step", backend, experts="whole-step", graphs=False),
            Case(f"{backend}, fp16, whole step, graph", backend, experts="whole-step"),
        )
    ),
)
GPU_BATCHES: tuple[int, ...] = (1, 2, 4, 8)


def cpu_suite() -> tuple[Case, ...]:
    """The reference's arithmetic, with the usual and a tuned allocator; then every backend, as good as it gets."""
    tuned = allocators.tuned()
    return (
        Case(REFERENCE, "torch", naive=True),
        *([Case(f"{REFERENCE}, {tuned}", "torch", naive=True, allocator=tuned)] if tuned else []),
        Case("torch", "torch"),
        Case("torch-compiled", "torch-compiled"),
        Case("torch-compiled, bf16", "torch-compiled", "bf16"),
        Case("onnxruntime", "onnxruntime"),
        Case("openvino", "openvino"),
        Case("openvino, bf16", "openvino", "bf16"),
    )


def select(
    suite: str,
    backends: Collection[str] = (),
    precisions: Collection[str] = (),
    samplings: tuple[Sampling, ...] = (TIERS["exact"],),
) -> tuple[Case, ...]:
    """The cases of the "cpu" or "gpu" suite that work here, of some backends and precisions or of all.

    Each is run in every sampling; PyTorch, where there are several, in the first alone, whose name goes unsaid. Raises
    BadRequest for what the suite doesn't have, BadEnvironment if nothing is left.
    """
    every = GPU_SUITE if suite == "gpu" else cpu_suite()
    known = list(dict.fromkeys(case.backend for case in every))
    strange = sorted(set(backends) - set(known))
    if strange:
        raise BadRequest("backend", repr(strange[0]), f"the {suite.upper()} suite has {', '.join(known)}")
    for backend in backends:
        check_backend(backend)  # who asks for it is told, who doesn't goes without
    cases = tuple(case for case in every if not backends or case.backend in backends)
    fitting = tuple(case for case in cases if not precisions or case.computes_in in precisions)
    if not fitting:
        has = ", ".join(sorted({case.computes_in for case in cases}))
        raise BadRequest("precision", ", ".join(precisions), f"these cases compute in {has}")
    return tuple(
        replace(case, sampling=how, name=case.name if how == samplings[0] else f"{case.name}, {how.tier or how}")
        for how in samplings
        for case in able(fitting)
        if how == samplings[0] or not case.is_baseline
    )


def able(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Those that work here; of the others it is said why not. Raises BadEnvironment if there is none."""
    reasons = {case.name: _why_not(case) for case in cases}
    told = list(
        dict.fromkeys(f"{case.backend} is left out: {reasons[case.name]}" for case in cases if reasons[case.name])
    )
    for line in told:
        log.info("%s", line)
    found = tuple(case for case in cases if reasons[case.name] is None)
    if not found:
        causes = "; ".join(sorted({reason for reason in reasons.values() if reason}))
        raise BadEnvironment("benchmark", f"no backend of it works here ({causes})", "see `cdiff-rt doctor`")
    return found


def _why_not(case: Case) -> str | None:
    slow = BACKENDS[case.backend].device == "cpu" and case.precision == "bf16" and not multiplies_bf16()
    return why_not(case.backend) or ("this CPU does not compute in bf16" if slow else None)


def check(cases: tuple[Case, ...]) -> None:
    """Raises BadRequest or BadEnvironment, before anything is started, if one of them can't run."""
    for case in cases:
        check_backend(case.backend)
        check_precision(case.backend, case.precision)
