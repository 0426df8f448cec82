"""The sampling loop on a device: all steps of all experts and their fusion, captured as one CUDA graph.

Everything is staged into buffers before the loop: x_T, every step's noise and numbers, time projections, contexts. So a step
launches work and nothing else, and new weights of the fusion or another schedule are new numbers in the same graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cdiff_rt.engines.base import DeviceEngine
from cdiff_rt.gpu.buffers import dtype_of, shape_of, stacked
from cdiff_rt.gpu.fused_step import fuse_step
from cdiff_rt.gpu.graph import Captured, side_by_side
from cdiff_rt.manifest import TensorSpec
from cdiff_rt.sampling.numbers import WIDTH

Advance = Callable[[int, bool], None]


@dataclass(frozen=True)
class LoopShape:
    """What changes a loop's structure. Runs of equal shape share buffers and graph."""

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
    numbers: Tensor  # [S, WIDTH], see sampling/numbers.py
    projections: list[Tensor]  # per modality [S, E_m]
    projection: list[Tensor]  # per modality [1, E_m], the current step's
    contexts: list[Tensor]  # per modality [B, T_m, K_m]
    weights: Tensor  # [M, B, 1, *latent], the influence functions of a step that somebody watches
    hist: Tensor | None  # [B, C, *latent]
    noise: Tensor | None  # [S, B, C, *latent]
    known: Tensor | None  # [S, B, C, *latent], what is known of x_t, and 0 where nothing is
    free: Tensor | None  # [*latent], 0 where something is known, else 1


def allocate(
    shape: LoopShape, projections: Sequence[TensorSpec], contexts: Sequence[TensorSpec], device: torch.device
) -> Buffers:
    """Buffers for that shape; `projections` and `contexts` are what the engines take of each modality."""
    latent, sizes = (shape.batch, *shape.latent_shape), {"batch": shape.batch}

    def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    return Buffers(
        x=zeros(*latent),
        numbers=zeros(shape.steps, WIDTH),
        projections=[zeros(shape.steps, *shape_of(spec, sizes)[1:], dtype=dtype_of(spec)) for spec in projections],
        projection=[zeros(*shape_of(spec, sizes), dtype=dtype_of(spec)) for spec in projections],
        contexts=[zeros(*shape_of(spec, sizes), dtype=dtype_of(spec)) for spec in contexts],
        weights=zeros(len(projections), shape.batch, 1, *shape.latent_shape[1:]),
        hist=zeros(*latent) if shape.two_step else None,
        noise=zeros(shape.steps, *latent) if shape.noisy else None,
        known=zeros(shape.steps, *latent) if shape.known else None,
        free=zeros(*shape.latent_shape[1:]) if shape.known else None,
    )


class Loop:
    """Owns the buffers of a shape and the graph that was captured on them. Fill `buffers`, then call `run`.

    `advance(i, watched)` does step i in place and, if it is watched, leaves the influence functions in
    `buffers.weights`; `outs` [M, B, C, *latent] are then the branches' own predictions, if there are any.
    """

    def __init__(
        self, shape: LoopShape, buffers: Buffers, advance: Advance, outs: Tensor | None, capture: bool | None
    ) -> None:
        """`capture` is whether to capture a CUDA graph; None means that an engine's work can't be captured."""
        self.shape, self.buffers, self.advance, self.outs = shape, buffers, advance, outs
        self._capture = capture
        self._captured: Captured | None = None

    def run(self) -> None:
        """All steps, from the x_T in `buffers.x` to x_0 in its place: one replay, where graphs can be had."""
        if self._captured is None:
            start = self.buffers.x.clone()
            self._captured = Captured(self.all_steps, start.device, name="the loop", capture=self._capture)
            self.restart(start)  # capturing has moved the buffers
        self._captured()

    def restart(self, x: Tensor) -> None:
        """Begins at the noise `x`."""
        self.buffers.x.copy_(x)
        if self.buffers.hist is not None:
            self.buffers.hist.zero_()

    def all_steps(self) -> None:
        """What is captured. It launches the same for every step, and writes to the buffers only."""
        for i in range(self.shape.steps):
            self.begin(i)
            self.advance(i, False)

    def begin(self, i: int) -> None:
        """Puts what is known of x_t in its place."""
        b = self.buffers
        if b.known is not None and b.free is not None:
            b.x.mul_(b.free).add_(b.known[i])


def loop_of_experts(
    shape: LoopShape, engines: Sequence[DeviceEngine], device: torch.device, *, graphs: bool = True
) -> Loop:
    """Each expert an engine of its own, side by side, and one kernel that fuses them: any set of experts."""
    inputs = [{tensor.name: tensor for tensor in engine.spec.inputs} for engine in engines]
    b = allocate(shape, [of["projections"] for of in inputs], [of["context"] for of in inputs], device)
    out, logit = engines[0].spec.outputs
    outs, logits = (
        stacked(len(engines), shape_of(tensor, {"batch": shape.batch}), dtype_of(tensor), device)
        for tensor in (out, logit)
    )
    calls = [
        engine.bind(
            {"x": b.x, "projections": b.projection[m], "context": b.contexts[m], "out": outs[m], "logit": logits[m]}
        )
        for m, engine in enumerate(engines)
    ]
    capturable = all(engine.capturable for engine in engines)
    beside = device.type == "cuda" and capturable and len(engines) > 1
    streams = [torch.cuda.Stream(device) for _ in engines] if beside else []

    def expert(m: int, i: int) -> None:
        b.projection[m].copy_(b.projections[m][i : i + 1])
        calls[m]()

    def advance(i: int, watched: bool) -> None:
        side_by_side([partial(expert, m, i) for m in range(len(calls))], streams)
        noise, weights = None if b.noise is None else b.noise[i], b.weights if watched else None
        fuse_step(outs, logits, b.x, b.numbers[i], hist=b.hist, noise=noise, weights=weights, boosted=shape.boosted)

    return Loop(shape, b, advance, outs, graphs if capturable else None)


def loop_of_stack(
    shape: LoopShape, engine: DeviceEngine, tokens: Sequence[int], device: torch.device, *, graphs: bool = True
) -> Loop:
    """One engine of all experts, and the kernel that fuses them; `tokens` are the lengths of the contexts.

    Each expert's buffers are parts of the stack's, so that what is staged for it lies in its place.
    """
    sizes = {"batch": shape.batch}
    x, projection, context, outs, logits = (
        torch.zeros(shape_of(tensor, sizes), dtype=dtype_of(tensor), device=device)
        for tensor in (*engine.spec.inputs, *engine.spec.outputs)
    )
    staged = torch.zeros(shape.steps, *projection.shape, dtype=projection.dtype, device=device)
    b = replace(
        allocate(shape, [], [], device),
        x=x,
        projections=list(staged.unbind(1)),
        projection=[projection],
        contexts=[context[m, :, :own] for m, own in enumerate(tokens)],
        weights=torch.zeros(logits.shape, device=device),
    )
    call = engine.bind({"x": x, "projections": projection, "context": context, "out": outs, "logit": logits})

    def advance(i: int, watched: bool) -> None:
        projection.copy_(staged[i])
        call()
        noise, weights = None if b.noise is None else b.noise[i], b.weights if watched else None
        fuse_step(outs, logits, x, b.numbers[i], hist=b.hist, noise=noise, weights=weights, boosted=shape.boosted)

    return Loop(shape, b, advance, outs, graphs if engine.capturable else None)


def loop_of_step(shape: LoopShape, engine: DeviceEngine, device: torch.device, *, graphs: bool = True) -> Loop:
    """One engine that does the whole step of these experts. It takes noise and history in any case."""
    inputs = {tensor.name: tensor for tensor in engine.spec.inputs}
    projections, contexts = (
        [inputs[f"{part}.{name}"] for name in shape.modalities] for part in ("projections", "context")
    )
    b = allocate(replace(shape, noisy=True, two_step=True), projections, contexts, device)
    assert b.noise is not None and b.hist is not None
    staged, history = b.noise, b.hist
    numbers, noise, x, hist = (torch.zeros_like(value) for value in (b.numbers[0], b.x, b.x, b.x))
    tensors = {"x": b.x, "hist": history, "noise": noise, "numbers": numbers, "next_x": x, "next_hist": hist}
    tensors |= {f"projections.{name}": now for name, now in zip(shape.modalities, b.projection, strict=True)}
    tensors |= {f"context.{name}": context for name, context in zip(shape.modalities, b.contexts, strict=True)}
    call = engine.bind(tensors | {"weights": b.weights})

    def advance(i: int, watched: bool) -> None:
        for now, all_projections in zip(b.projection, b.projections, strict=True):
            now.copy_(all_projections[i : i + 1])
        numbers.copy_(b.numbers[i])
        noise.copy_(staged[i])
        call()
        b.x.copy_(x)
        history.copy_(hist)

    return Loop(shape, b, advance, None, graphs if engine.capturable else None)
