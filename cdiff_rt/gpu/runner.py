"""Runs a bundle's networks and its sampling loop on a device, from and to numpy arrays."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from cdiff_rt.engines.backends import check_precision, load_device_engine
from cdiff_rt.engines.base import DeviceEngine, Placement
from cdiff_rt.engines.cache import step_network
from cdiff_rt.engines.recent import Recent
from cdiff_rt.engines.stacked import check_alike, stack_network
from cdiff_rt.errors import BadEnvironment, BadRequest, OutOfResource
from cdiff_rt.gpu.buffers import sizes_of, tensors_of, upload
from cdiff_rt.gpu.graph import Captured, Graphs
from cdiff_rt.gpu.loop import Loop, LoopShape, capacity_for, loop_of_experts, loop_of_stack, loop_of_step
from cdiff_rt.manifest import Bundle
from cdiff_rt.notes import log
from cdiff_rt.process import cores
from cdiff_rt.run import OnDevice, Run
from cdiff_rt.sampling.controls import NEUTRAL
from cdiff_rt.sampling.loop import Callback, Progress, StepState
from cdiff_rt.sampling.noise import ahead
from cdiff_rt.sampling.numbers import pack
from cdiff_rt.sampling.solvers import C_HIST, C_NOISE, E_OUT, E_X

MOST_LOOPS, MOST_CALLS = 8, 32  # that are kept, each with buffers of its own
MOST_HELPERS = 8  # threads that draw noise; more would wait for the interpreter


class Call:
    """One network with buffers of its own, recorded like a step of the loop."""

    def __init__(
        self, engine: DeviceEngine, sizes: Mapping[str, int], device: torch.device, name: str, graphs: Graphs | None
    ) -> None:
        self._outputs = [tensor.name for tensor in engine.spec.outputs]
        self._tensors = tensors_of(engine.spec, sizes, device)
        self._enqueue: Callable[[], None] = engine.bind(self._tensors)
        fixed = not any(isinstance(d, str) for tensor in engine.spec.inputs for d in tensor.shape)
        self._captured = Captured(name, graphs if engine.capturable and fixed else None)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The outputs stay valid until the next call."""
        for name, value in inputs.items():
            upload(value, self._tensors[name])
        self._captured(self._enqueue)
        return {name: self._tensors[name] for name in self._outputs}


class DeviceRunner:
    """Engines, buffers and graphs of a bundle on a device; they are made at first use, and the last few stay."""

    shows_steps = False  # those of a graph that is replayed are seen by nobody

    def __init__(self, bundle: Bundle, backend: str, how: OnDevice, *, device: str = "cuda") -> None:
        self._bundle, self._backend, self._how, self._device = bundle, backend, how, torch.device(device)
        self.precision = check_precision(backend, how.precision)
        # An engine stays as long as something is bound to it.
        self._engines: WeakValueDictionary[tuple[str, int], DeviceEngine] = WeakValueDictionary()
        self._calls = Recent[tuple[str, tuple[tuple[str, int], ...]], Call](MOST_CALLS)
        self._loops = Recent[LoopShape, Loop](MOST_LOOPS)
        self._graphs = Graphs() if how.graphs and self._device.type == "cuda" else None
        # Not the default stream: it cannot be captured, and onnxruntime takes its number for none.
        self._stream = _stream(self._device) if self._device.type == "cuda" else None

    def call(self, network: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """One network of the bundle, fp32 or int64 in and fp32 out."""
        with self._at_work():
            return {name: _host(value) for name, value in self._outputs(network, inputs).items()}

    def sample(self, run: Run, callback: Callback | None = None, progress: Progress | None = None) -> np.ndarray:
        """x_T -> x_0 [B, C, *latent]. With a callback, launched step by step, without a graph: the same results.

        `progress` is called when a step was put into the stream, which is before it has run.
        """
        steps, helpers = len(run.table.timesteps), min(cores() - 1, MOST_HELPERS)
        with (
            self._at_work(),
            ahead(partial(_of_step, run), steps, helpers) as drawn,
            self._loop(self._shape(run)) as loop,
        ):
            if callback and loop.outs is None:
                remedy = "choose experts separate or stacked"
                raise BadRequest("callback_on_step_end", "this engine shows no branch's own prediction", remedy)
            self._stage(loop, run)

            def stage(i: int) -> None:
                _stage_step(loop, drawn, i)
                if progress:
                    progress()

            if callback:
                for i in range(steps):
                    stage(i)
                    callback(_watched(loop, run, i))
            else:
                loop.run(steps, stage, run.adjust.present)
            return _host(loop.buffers.x)

    def close(self) -> None:
        with self._at_work():
            self._loops.clear()
            self._calls.clear()
            for engine in list(self._engines.values()):
                engine.close()
            self._engines.clear()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream) if self._stream else nullcontext():
                yield
        except torch.OutOfMemoryError as error:
            self._loops.clear()  # so that a smaller one finds room
            what = f"memory of {self._device}"
            raise OutOfResource(what, str(error).splitlines()[0], "choose a smaller batch or fewer steps") from error

    def _outputs(self, network: str, inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
        spec = self._bundle.manifest.networks[network]
        sizes = sizes_of(spec, inputs)
        key = network, tuple(sorted(sizes.items()))

        def make() -> Call:
            engine = self._engine(network, sizes.get("batch", 1))
            return Call(engine, sizes, self._device, network, self._graphs)

        return self._calls.get(key, make)(inputs)

    def _engine(self, network: str, batch: int) -> DeviceEngine:
        engine = self._engines.get((network, batch))
        if engine is None:
            placement = Placement(str(self._device), self.precision, batch, kernels=self._how.kernels)
            engine = load_device_engine(self._backend, self._bundle, network, placement)
            self._engines[network, batch] = engine
        return engine

    @contextmanager
    def _loop(self, shape: LoopShape) -> Iterator[Loop]:
        """One that nobody else has meanwhile: a callback may begin a run of its own."""
        loop = self._loops.take(shape) or self._new_loop(shape)
        try:
            yield loop
        finally:
            self._loops.put(shape, loop)

    def _shape(self, run: Run) -> LoopShape:
        table, adjust, batch = run.table, run.adjust, len(run.start)
        return LoopShape(
            modalities=tuple(modality.name for modality in run.modalities),
            latent_shape=self._bundle.manifest.latent_shape,
            batch=batch,
            capacity=capacity_for(len(table.timesteps)),
            noisy=bool(table.coefficients[:, C_NOISE].any()),
            two_step=bool(table.coefficients[:, C_HIST].any()),
            boosted=adjust.boost is not None,
            known=run.known is not None,
            controlled=adjust.controls is not None,
        )

    def _new_loop(self, shape: LoopShape) -> Loop:
        loop = self._loop_of_engines(shape)
        if self._graphs and not loop.graphs:
            log.info("%s: its steps cannot be recorded as a CUDA graph; they are launched each time", self._backend)
        return loop

    def _loop_of_engines(self, shape: LoopShape) -> Loop:
        if self._how.experts == "whole-step":
            step = self._engine(step_network(shape.modalities, shape.boosted), shape.batch)
            return loop_of_step(shape, step, self._device, graphs=self._graphs)
        if self._how.experts == "stacked" and len(shape.modalities) > 1:
            check_alike(self._bundle.manifest, shape.modalities)
            stack = self._engine(stack_network(shape.modalities), shape.batch)
            tokens = {modality.name: modality.context_tokens for modality in self._bundle.manifest.modalities}
            lengths = [tokens[name] for name in shape.modalities]
            return loop_of_stack(shape, stack, lengths, self._device, graphs=self._graphs)
        experts = [self._engine(f"expert.{name}", shape.batch) for name in shape.modalities]
        return loop_of_experts(shape, experts, self._device, graphs=self._graphs)

    def _stage(self, loop: Loop, run: Run) -> None:
        """All that the steps will read and the host has, into the loop's buffers."""
        b, rows, steps = loop.buffers, loop.buffers.per_step.rows, len(run.table.timesteps)
        for m, (modality, value) in enumerate(zip(run.modalities, run.inputs, strict=True)):
            if run.contexts:
                upload(run.contexts[m], b.contexts[m])
            else:
                b.contexts[m].copy_(self._outputs(f"condition.{modality.name}", {"inputs": value})["context"])
            projections = self._outputs(f"time.{modality.name}", {"t": run.table.timesteps})["projections"]
            of_steps = rows[f"projections.{modality.name}"][:steps]
            of_steps.copy_(projections.view_as(of_steps))
        upload(pack(run.table, run.adjust), rows["numbers"][:steps])
        if run.adjust.controls is not None:
            upload(run.adjust.controls, rows["controls"][:steps])
        elif "controls" in rows:  # of an engine that takes them in any case
            for row, nothing_asked in enumerate(NEUTRAL):
                rows["controls"][:steps, row] = nothing_asked
        if b.free is not None and run.known:
            upload(1 - run.known.keep, b.free)
        loop.restart(run.start)


def _of_step(run: Run, i: int) -> dict[str, np.ndarray]:
    """What a step's alone is and takes long to draw, by the names of `PerStep`."""
    drawn = {"noise": run.noise(i)}
    if run.known:
        drawn["known"] = run.known.noisy(i, run.table.alpha_bars[i]) * run.known.keep
    return drawn


def _stage_step(loop: Loop, drawn: Callable[[int], dict[str, np.ndarray]], i: int) -> None:
    rows = loop.buffers.per_step.rows
    for name, value in drawn(i).items():
        if name in rows:  # a loop without noise has no room for it
            upload(value, rows[name][i])


def _stream(device: torch.device) -> torch.cuda.Stream:
    """Raises BadEnvironment where PyTorch does not reach the GPU."""
    try:
        return torch.cuda.Stream(device)
    except (RuntimeError, AssertionError) as error:  # PyTorch's own, for an old driver and for a build without CUDA
        reason = " ".join(str(error).split())[:200]
        remedy = "install a PyTorch with a CUDA that the driver knows (docs/gpu.md), or choose a backend for the CPU"
        raise BadEnvironment("torch", reason, remedy) from error


def _watched(loop: Loop, run: Run, i: int) -> StepState:
    """Does step i and tells what happened."""
    b, row, present = loop.buffers, run.table.coefficients[i].astype(np.float32), run.adjust.present[i]
    assert loop.outs is not None
    loop.begin()
    before = _host(b.x)
    loop.advance(True, loop.called(present))
    weights, outs = _host(b.weights), _host(loop.outs)
    outs[present == 0] = 0  # as on the CPU; what is there may be of another step
    x0 = row[E_X] * before + row[E_OUT] * (weights * outs).sum(0)
    return StepState(i, int(run.table.timesteps[i]), _host(b.x), x0, loop.shape.modalities, weights, outs)


def _host(value: Tensor) -> np.ndarray:
    """A copy in fp32 that later work leaves as it is."""
    return value.detach().float().cpu().clone().numpy()
