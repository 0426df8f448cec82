"""PyTorch on the same weights as the bundle's ONNX graphs, eagerly or compiled: the baseline and the check of the others."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from cdiff_rt.engines.arithmetic import multiplying, timing_convolutions
from cdiff_rt.engines.base import (
    DTYPES,
    Placement,
    Precision,
    check_inputs,
    check_outputs,
    device_spec,
    failure,
    precision_of,
)
from cdiff_rt.engines.compiled import compiled, is_compiled
from cdiff_rt.engines.modules import function_of, load_network
from cdiff_rt.engines.recent import Recent
from cdiff_rt.engines.stacked import network_spec
from cdiff_rt.manifest import Bundle, NetworkSpec
from cdiff_rt.nets.collaborative import Function
from cdiff_rt.notes import log
from cdiff_rt.process import forked_with, startable_once

MOST_SIZES = 8  # that an engine on the CPU keeps compiled


class EagerEngine:
    """On the CPU. Networks that run at each step are in bf16 by autocast if that is the precision; for the others it is
    slower. Arrays are fp32 in either. What `compiles` is compiled for each size.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        network: str,
        module: nn.Module,
        precision: Precision = "fp32",
        compiles: bool = False,
        threads: int = 1,
    ) -> None:
        self.spec, self._module, self._threads = spec, module, threads
        self._function, self._compiles = function_of(network, module), compiles
        self._compiled = Recent[tuple[torch.Size, ...], Function](MOST_SIZES)
        self._precision: Precision = precision if network.startswith("expert.") else "fp32"

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        check_inputs(self.spec, inputs)
        use_threads(self._threads)  # as sums depend on it, and each thread that calls has a number of its own
        given = [torch.from_numpy(inputs[tensor.name]) for tensor in self.spec.inputs]
        halved = torch.autocast("cpu", torch.bfloat16, enabled=self._precision == "bf16")
        with torch.inference_mode(), halved, multiplying("cpu", self._precision):
            try:
                outputs = self._for(given)(*given)
            except (RuntimeError, IndexError, MemoryError) as error:
                raise failure(self.spec, "torch", error, inputs) from error
        arrays = {t.name: value.float().numpy() for t, value in zip(self.spec.outputs, outputs, strict=True)}
        check_outputs(self.spec, arrays)
        return arrays

    def _for(self, inputs: list[Tensor]) -> Function:
        if not self._compiles:
            return self._function
        return self._compiled.get(tuple(tensor.shape for tensor in inputs), lambda: compiled(self._function))

    def close(self) -> None:
        del self._function, self._module, self._compiled


class EagerDeviceEngine:
    """PyTorch on a device. Its allocations go to the pool of the graph that captures it."""

    capturable = True

    def __init__(
        self, spec: NetworkSpec, network: str, module: nn.Module, placement: Placement, compiles: bool = False
    ) -> None:
        self.spec, self._module, self._device = spec, module, placement.device
        self._precision, self._compiles = precision_of(network, placement), compiles
        function = function_of(network, module)
        self._function = compiled(function) if self._compiles else function

    def bind(self, tensors: dict[str, Tensor]) -> Callable[[], None]:
        inputs = [tensors[tensor.name] for tensor in self.spec.inputs]
        outputs = [tensors[tensor.name] for tensor in self.spec.outputs]
        dtype, warm = getattr(torch, DTYPES[self._precision]), False

        def enqueue() -> None:
            nonlocal warm
            given = [value.to(dtype) if value.is_floating_point() else value for value in inputs]
            with ExitStack() as settings:
                settings.enter_context(multiplying(self._device, self._precision))
                if self._compiles and not warm:
                    settings.enter_context(timing_convolutions())
                results = self._function(*given)
            for output, value in zip(outputs, results, strict=True):
                output.copy_(value)
            warm = True

        return enqueue

    def close(self) -> None:
        del self._function, self._module


def use_threads(wanted: int) -> None:
    """So many in this process. Of those that a parent had before it forked this one none are left, and PyTorch would
    wait for them for ever; then it is one."""
    if wanted > 1 and "torch" in forked_with:
        _tell_of_fork()
        wanted = 1
    torch.set_num_threads(startable_once(wanted))


@cache  # so once a process
def _tell_of_fork() -> None:
    log.warning("threads: this process was forked from one that used PyTorch, so it has one; use spawn for more")


def load(bundle: Bundle, network: str, placement: Placement, compiles: bool = False) -> EagerEngine:
    use_threads(placement.threads)  # reading weights takes them too
    module = load_network(bundle, network, "cpu", torch.float32, channels_last=compiles)
    spec = bundle.manifest.networks[network]
    return EagerEngine(spec, network, module, placement.precision, compiles, placement.threads)


def load_compiled(bundle: Bundle, network: str, placement: Placement) -> EagerEngine:
    return load(bundle, network, placement, compiles=network.startswith("expert."))


def load_device(bundle: Bundle, network: str, placement: Placement, compiles: bool = False) -> EagerDeviceEngine:
    spec = device_spec(network_spec(bundle.manifest, network), network, placement)
    dtype = getattr(torch, DTYPES[precision_of(network, placement)])
    module = load_network(bundle, network, placement.device, dtype, channels_last=compiles)
    return EagerDeviceEngine(spec, network, module, placement, compiles)


def load_device_compiled(bundle: Bundle, network: str, placement: Placement) -> EagerDeviceEngine:
    return load_device(bundle, network, placement, compiles=is_compiled(network))
