"""The sampling loop on a device: all steps of all experts and their fusion, recorded as one CUDA graph.

Everything is staged into buffers before the loop: x_T, every step's noise and numbers, time rows, contexts. So a step
launches work and nothing else, and new weights of the fusion or another schedule are new numbers in the same graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdiff_rt.engines import DeviceEngine
from cdiff_rt.gpu.buffers import dtype_of, shape_of, stacked
from cdiff_rt.gpu.fused_step import WIDTH, fuse_step
from cdiff_rt.gpu.graph import Captured, side_by_side


@dataclass(frozen=True)
class Plan:
    """What changes a loop's structure. Runs with equal plans share buffers and graph."""

    modalities: tuple[str, ...]
    latent_shape: tuple[int, ...]
    batch: int
    steps: int
    noisy: bool  # whether steps add noise
    two_step: bool  # whether the solver looks back
    boosted: bool  # whether there is a second softmax
    known: bool  # whether a part of the image is known


@dataclass(frozen=True)
class Buffers:
    """M modalities, S steps. Latents are fp32; what engines take and give has their types."""

    x: Tensor  # [B, C, *latent]
    numbers: Tensor  # [S, WIDTH], see fused_step.py
    rows: list[Tensor]  # per modality [S, E_m]
    row: list[Tensor]  # per modality [1, E_m], the current step's
    contexts: list[Tensor]  # per modality [B, T_m, K_m]
    outs: Tensor  # [M, B, C, *latent]
    logits: Tensor  # [M, B, 1, *latent]
    weights: Tensor  # [M, B, 1, *latent], the influence functions of a step that somebody watches
    hist: Tensor | None  # [B, C, *latent]
    noise: Tensor | None  # [S, B, C, *latent]
    known: Tensor | None  # [S, B, C, *latent], what is known of x_t, and 0 where nothing is
    free: Tensor | None  # [*latent], 0 where something is known, else 1


def allocate(plan: Plan, engines: Sequence[DeviceEngine], device: torch.device) -> Buffers:
    """Buffers for engines of one precision."""
    count, latent = len(engines), (plan.batch, *plan.latent_shape)
    scalar = (plan.batch, 1, *plan.latent_shape[1:])
    inputs = [{tensor.name: tensor for tensor in engine.spec.inputs} for engine in engines]
    out, logit = engines[0].spec.outputs

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    rows = [(shape_of(of["rows"], {})[1], dtype_of(of["rows"])) for of in inputs]
    return Buffers(
        x=zeros(*latent),
        numbers=zeros(plan.steps, WIDTH),
        rows=[zeros(plan.steps, width, dtype=dtype) for width, dtype in rows],
        row=[zeros(1, width, dtype=dtype) for width, dtype in rows],
        contexts=[
            zeros(*shape_of(of["context"], {"batch": plan.batch}), dtype=dtype_of(of["context"])) for of in inputs
        ],
        outs=stacked(count, latent, dtype_of(out), device),
        logits=stacked(count, scalar, dtype_of(logit), device),
        weights=zeros(count, *scalar),
        hist=zeros(*latent) if plan.two_step else None,
        noise=zeros(plan.steps, *latent) if plan.noisy else None,
        known=zeros(plan.steps, *latent) if plan.known else None,
        free=zeros(*plan.latent_shape[1:]) if plan.known else None,
    )


class Loop:
    """Owns the buffers of a plan and the graph that was recorded on them. Fill `buffers`, then call `run`."""

    def __init__(self, plan: Plan, engines: Sequence[DeviceEngine], device: torch.device) -> None:
        self.plan = plan
        self.buffers = b = allocate(plan, engines, device)
        self._experts = [
            engine.bind({"x": b.x, "rows": b.row[m], "context": b.contexts[m], "out": b.outs[m], "logit": b.logits[m]})
            for m, engine in enumerate(engines)
        ]
        self._capturable = all(engine.capturable for engine in engines)
        beside = device.type == "cuda" and self._capturable and len(engines) > 1
        self._streams = [torch.cuda.Stream(device) for _ in engines] if beside else []
        self._device = device
        self._captured: Captured | None = None

    def run(self) -> None:
        """All steps, from the x_T in `buffers.x` to x_0 in its place: one replay, where graphs can be had."""
        if self._captured is None:
            start = self.buffers.x.clone()
            self._captured = Captured(self.all_steps, self._device, name="the loop", capturable=self._capturable)
            self.restart(start)
        self._captured()

    def restart(self, x: Tensor) -> None:
        """Begins at the noise `x`; the recording's own warm-up has moved the buffers."""
        self.buffers.x.copy_(x)
        if self.buffers.hist is not None:
            self.buffers.hist.zero_()

    def all_steps(self) -> None:
        """What is recorded. It launches the same for every step, and writes to the buffers only."""
        for i in range(self.plan.steps):
            self.begin(i)
            self.advance(i)

    def begin(self, i: int) -> None:
        """Puts what is known of x_t in its place."""
        b = self.buffers
        if b.known is not None and b.free is not None:
            b.x.mul_(b.free).add_(b.known[i])

    def advance(self, i: int, *, watched: bool = False) -> None:
        """x_t -> the next x; `watched` also leaves the influence functions in `buffers.weights`."""
        b = self.buffers
        side_by_side([self._expert(m, i) for m in range(len(self._experts))], self._streams)
        fuse_step(
            b.outs,
            b.logits,
            b.x,
            b.numbers[i],
            hist=b.hist,
            noise=None if b.noise is None else b.noise[i],
            weights=b.weights if watched else None,
            boosted=self.plan.boosted,
        )

    def _expert(self, m: int, i: int) -> Callable[[], None]:
        def run() -> None:
            self.buffers.row[m].copy_(self.buffers.rows[m][i : i + 1])
            self._experts[m]()

        return run
