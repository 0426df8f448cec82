"""The sampling loop on a device: a step of all experts and their fusion, recorded once as a CUDA graph and replayed.

What differs between steps is data (`PerStep`), of which a step selects its own by a number on the device. So one graph
serves every step and any number of them; new noise, another schedule or new weights of the fusion are new numbers. Only
where an expert has no weight at a step, and so is not called, that step is another graph on the same buffers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cdiff_rt.engines.base import DeviceEngine
from cdiff_rt.engines.recent import Recent
from cdiff_rt.gpu.buffers import PerStep, dtype_of, shape_of, stacked, upload
from cdiff_rt.gpu.fused_step import fuse_step
from cdiff_rt.gpu.graph import Captured, Graphs, side_by_side
from cdiff_rt.manifest import TensorSpec
from cdiff_rt.sampling.numbers import WIDTH

Called = tuple[bool, ...]  # for each expert, whether a step calls it
Advance = Callable[[bool, Called], None]
Stage = Callable[[int], None]

LEAST_CAPACITY = 64  # steps: more than any tier has, so that they share their buffers and a graph
# Of a graph of all steps. It saves the microseconds between two replays; but each node is launched once more to be
# recorded, and takes up to 64 KB of the GPU's memory (of CUDA 11.2, forums.developer.nvidia.com/t/244901): 256 MB in all.
MOST_NODES = 4096
MOST_WHOLE = 4  # such graphs of a loop, each for another number of steps, or other experts that they call
MOST_STEPS, MOST_SEEN = 8, 64  # graphs of a step, each of other experts; runs of which it is known that they were


@dataclass(frozen=True)
class LoopShape:
    """What changes a loop's structure. Runs of equal shape share buffers and graph."""

    modalities: tuple[str, ...]
    latent_shape: tuple[int, ...]
    batch: int
    capacity: int  # steps that there is room for
    noisy: bool  # whether steps add noise
    two_step: bool  # whether the solver looks back
    boosted: bool  # whether there is a second softmax
    known: bool  # whether a part of the image is known
    controlled: bool  # whether something is asked of the influence functions, per place


def capacity_for(steps: int) -> int:
    """A power of 2, so that few numbers of steps need buffers of their own."""
    return max(LEAST_CAPACITY, 1 << (steps - 1).bit_length())


@dataclass(frozen=True)
class Buffers:
    """Latents are fp32; what engines take and give has their types."""

    x: Tensor  # [B, C, *latent]
    # numbers [WIDTH], see sampling/numbers.py; controls [3, M, *latent], see sampling/controls.py; of each modality
    # projections.<m> [1, E_m]; noise [B, C, *latent]; and known [B, C, *latent], what is known of x_t, and 0 elsewhere
    per_step: PerStep
    contexts: list[Tensor]  # per modality [B, T_m, K_m]
    weights: Tensor  # [M, B, 1, *latent], the influence functions of a step that somebody watches
    hist: Tensor | None  # [B, C, *latent]
    free: Tensor | None  # [*latent], 0 where something is known, else 1


def allocate(
    shape: LoopShape, projections: Sequence[TensorSpec], contexts: Sequence[TensorSpec], device: torch.device
) -> Buffers:
    """Buffers for that shape; `projections` and `contexts` are what engines take of a step, by its name, and of a run."""
    latent, sizes = (shape.batch, *shape.latent_shape), {"batch": shape.batch}
    of_latents = [name for name, there in (("noise", shape.noisy), ("known", shape.known)) if there]
    values = [
        TensorSpec("numbers", (WIDTH,), "float32"),
        *([TensorSpec("controls", (3, len(shape.modalities), *latent[2:]), "float32")] if shape.controlled else ()),
        *(replace(spec, shape=shape_of(spec, sizes)) for spec in projections),
        *(TensorSpec(name, latent, "float32") for name in of_latents),
    ]

    def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    return Buffers(
        x=zeros(*latent),
        per_step=PerStep(values, shape.capacity, device),
        contexts=[zeros(*shape_of(spec, sizes), dtype=dtype_of(spec)) for spec in contexts],
        weights=zeros(len(shape.modalities), shape.batch, 1, *latent[2:]),
        hist=zeros(*latent) if shape.two_step else None,
        free=zeros(*latent[2:]) if shape.known else None,
    )


class Loop:
    """Owns the buffers of a shape and the graphs recorded on them. Fill `buffers`, `restart`, then `run`.

    `advance(watched, called)` does in place the step whose values were selected and, if it is watched, leaves the
    influence functions in `buffers.weights`; `outs` [M, B, C, *latent] are then the branches' own predictions, if there
    are any, of those that were called. Where experts are `separate`, only those are.
    """

    def __init__(
        self,
        shape: LoopShape,
        buffers: Buffers,
        advance: Advance,
        outs: Tensor | None,
        graphs: Graphs | None,
        *,
        separate: bool = False,
    ) -> None:
        """`graphs` records the steps; None means that they are launched each time."""
        self.shape, self.buffers, self.advance, self.outs = shape, buffers, advance, outs
        self.graphs, self._record = graphs, graphs
        self.separate = separate
        self.all: Called = (True,) * len(shape.modalities)
        self._steps = Recent[Called, Captured](MOST_STEPS)
        self._whole = Recent[tuple[Called, ...], torch.cuda.CUDAGraph](MOST_WHOLE)
        self._seen = Recent[tuple[Called, ...], bool](MOST_SEEN)

    def run(self, steps: int, stage: Stage = lambda i: None, present: np.ndarray | None = None) -> None:
        """So many steps, from x_T in `buffers.x` to x_0 in its place; `stage(i)` fills what step i alone reads.

        Each is a replay, which the host enqueues when it has staged that step, while others run; or all are one replay.
        `present` [S, M] is which experts have weight in a step, by default all.
        """
        assert steps <= self.shape.capacity, f"{steps} steps, there is room for {self.shape.capacity}"
        called = tuple(self.called(None if present is None else present[i]) for i in range(steps))
        whole = self._graph_of_all(called)
        for i in range(steps):
            stage(i)
            if whole is None:
                self._captured(called[i])(partial(self.step, called[i]))
        if whole is not None:
            whole.replay()

    def called(self, present: np.ndarray | None) -> Called:
        """The experts that a step calls, of which those `present` [M] have weight."""
        return self.all if present is None or not self.separate else tuple(bool(there) for there in present)

    def restart(self, x: np.ndarray) -> None:
        """Begins at the noise `x` [B, C, *latent]."""
        upload(x, self.buffers.x)
        self.buffers.per_step.restart()
        if self.buffers.hist is not None:
            self.buffers.hist.zero_()

    def step(self, called: Called | None = None) -> None:
        """What is recorded. It knows no step's number, and writes to the buffers only."""
        self.begin()
        self.advance(False, called or self.all)

    def begin(self) -> None:
        """Selects what is the next step's own, and puts what is known of x_t in its place."""
        b = self.buffers
        b.per_step.select()
        if b.free is not None:
            b.x.mul_(b.free).add_(b.per_step.now["known"])

    def _captured(self, called: Called) -> Captured:
        return self._steps.get(called, lambda: Captured("a step of the loop", self._record))

    def _graph_of_all(self, called: tuple[Called, ...]) -> torch.cuda.CUDAGraph | None:
        """Where it is small, and the same steps come again."""
        again = self._seen.take(called)
        self._seen.put(called, True)
        if not again or self.graphs is None or self._nodes(called) > MOST_NODES:
            return None
        name = f"{len(called)} steps of the loop"
        whole = self._whole.take(called) or self.graphs.record(partial(self._steps_of, called), name)
        if whole is None:
            self.graphs = None  # it is tried once
        else:
            self._whole.put(called, whole)
        return whole

    def _steps_of(self, called: tuple[Called, ...]) -> None:
        for each in called:
            self.step(each)

    def _nodes(self, called: tuple[Called, ...]) -> int:
        """Of these steps together; too many where one was never recorded, or the driver doesn't say."""
        return sum(self._captured(each).nodes or MOST_NODES + 1 for each in called)


def loop_of_experts(
    shape: LoopShape, engines: Sequence[DeviceEngine], device: torch.device, *, graphs: Graphs | None = None
) -> Loop:
    """Each expert an engine of its own, side by side, and one kernel that fuses them: any set of experts."""
    inputs = [{tensor.name: tensor for tensor in engine.spec.inputs} for engine in engines]
    projections = [
        replace(of["projections"], name=f"projections.{name}")
        for name, of in zip(shape.modalities, inputs, strict=True)
    ]
    b = allocate(shape, projections, [of["context"] for of in inputs], device)
    now = b.per_step.now
    out, logit = engines[0].spec.outputs
    outs, logits = (
        stacked(len(engines), shape_of(tensor, {"batch": shape.batch}), dtype_of(tensor), device)
        for tensor in (out, logit)
    )
    calls = [
        engine.bind(
            {
                "x": b.x,
                "projections": now[projections[m].name],
                "context": b.contexts[m],
                "out": outs[m],
                "logit": logits[m],
            }
        )
        for m, engine in enumerate(engines)
    ]
    capturable = all(engine.capturable for engine in engines)
    beside = device.type == "cuda" and capturable and len(engines) > 1
    streams = [torch.cuda.Stream(device) for _ in engines] if beside else []

    def advance(watched: bool, called: Called) -> None:
        there = [m for m, wanted in enumerate(called) if wanted]
        side_by_side([calls[m] for m in there], [streams[m] for m in there if streams])
        _fuse(shape, b, outs, logits, watched)

    return Loop(shape, b, advance, outs, graphs if capturable else None, separate=True)


def _fuse(shape: LoopShape, b: Buffers, outs: Tensor, logits: Tensor, watched: bool) -> None:
    now = b.per_step.now
    fuse_step(
        outs,
        logits,
        b.x,
        now["numbers"],
        hist=b.hist,
        noise=now.get("noise"),
        controls=now.get("controls"),
        weights=b.weights if watched else None,
        boosted=shape.boosted,
    )


def loop_of_stack(
    shape: LoopShape,
    engine: DeviceEngine,
    tokens: Sequence[int],
    device: torch.device,
    *,
    graphs: Graphs | None = None,
) -> Loop:
    """One engine of all experts, and the kernel that fuses them; `tokens` are the lengths of the contexts.

    Each expert's buffers are parts of the stack's, so that what is staged for it lies in its place.
    """
    inputs, sizes = {tensor.name: tensor for tensor in engine.spec.inputs}, {"batch": shape.batch}
    b = allocate(shape, [inputs["projections"]], [], device)
    now, rows = b.per_step.now, b.per_step.rows
    rows |= {f"projections.{name}": rows["projections"][:, m : m + 1] for m, name in enumerate(shape.modalities)}
    context, outs, logits = (
        torch.zeros(shape_of(tensor, sizes), dtype=dtype_of(tensor), device=device)
        for tensor in (inputs["context"], *engine.spec.outputs)
    )
    b = replace(b, contexts=[context[m, :, :own] for m, own in enumerate(tokens)])
    call = engine.bind({"x": b.x, "projections": now["projections"], "context": context, "out": outs, "logit": logits})

    def advance(watched: bool, called: Called) -> None:
        call()
        _fuse(shape, b, outs, logits, watched)

    return Loop(shape, b, advance, outs, graphs if engine.capturable else None)


def loop_of_step(shape: LoopShape, engine: DeviceEngine, device: torch.device, *, graphs: Graphs | None = None) -> Loop:
    """One engine that does the whole step of these experts. It takes noise, history and controls in any case."""
    inputs = {tensor.name: tensor for tensor in engine.spec.inputs}
    projections = [inputs[f"projections.{name}"] for name in shape.modalities]
    contexts = [inputs[f"context.{name}"] for name in shape.modalities]
    b = allocate(replace(shape, noisy=True, two_step=True, controlled=True), projections, contexts, device)
    assert b.hist is not None
    history = b.hist
    x, hist = (torch.zeros_like(b.x) for _ in range(2))
    tensors = {"x": b.x, "hist": history, "next_x": x, "next_hist": hist, "weights": b.weights}
    tensors |= {name: value for name, value in b.per_step.now.items() if name in inputs}
    tensors |= {f"context.{name}": context for name, context in zip(shape.modalities, b.contexts, strict=True)}
    call = engine.bind(tensors)

    def advance(watched: bool, called: Called) -> None:
        call()
        b.x.copy_(x)
        history.copy_(hist)

    return Loop(shape, b, advance, None, graphs if engine.capturable else None)
