"""PyTorch, eagerly, from the same weights as the bundle's ONNX graphs: the baseline and the check of the others."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cdiff_rt import schema
from cdiff_rt.engines.base import (
    DTYPES,
    MORE_MEMORY,
    Placement,
    Precision,
    check_inputs,
    check_outputs,
    device_spec,
    failure,
    precision_of,
)
from cdiff_rt.engines.stacked import check_alike, network_spec, stack_network, stacked_modalities
from cdiff_rt.engines.weights import fp32, part_of, places
from cdiff_rt.errors import BadArtefact, OutOfResource, ran_out
from cdiff_rt.manifest import REBUILD, Bundle, Manifest, NetworkSpec, digest
from cdiff_rt.nets.collaborative import ModelConfig, build_part, part_functions
from cdiff_rt.nets.stacked import Stacked
from cdiff_rt.notes import log
from cdiff_rt.process import forked_with, startable_once

# (weights, what they make, part of it, device, type) -> the module, as long as an engine uses it: a modality's networks
# share their weights.
_loaded: WeakValueDictionary[tuple[str, str, str, str, torch.dtype], nn.Module] = WeakValueDictionary()


class EagerEngine:
    """Of the networks that run at each step, in bf16 by autocast, or compiled. The others stay as they are: there bf16
    is slower, and compiling takes longer than they ever do. Arrays are fp32 in either precision.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        network: str,
        module: nn.Module,
        precision: Precision = "fp32",
        compiled: bool = False,
        threads: int = 1,
    ) -> None:
        self.spec, self._module, self._threads = spec, module, threads
        function, each_step = part_functions(part_of(network), module)[network], network.startswith("expert.")
        self._function = torch.compile(function, dynamic=False) if compiled and each_step else function
        self._autocast = precision == "bf16" and each_step

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        check_inputs(self.spec, inputs)
        use_threads(self._threads)  # as sums depend on it, and each thread that calls has a number of its own
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            try:
                outputs = self._function(*(torch.from_numpy(inputs[tensor.name]) for tensor in self.spec.inputs))
            except (RuntimeError, IndexError, MemoryError) as error:
                raise failure(self.spec, "torch", error, inputs) from error
        arrays = {t.name: value.float().numpy() for t, value in zip(self.spec.outputs, outputs, strict=True)}
        check_outputs(self.spec, arrays)
        return arrays

    def close(self) -> None:
        del self._function, self._module


class EagerDeviceEngine:
    """Eager PyTorch on a device. Its allocations go to the pool of the graph that captures it."""

    capturable = True

    def __init__(self, spec: NetworkSpec, network: str, module: nn.Module, compiled: bool = False) -> None:
        self.spec, self._module = spec, module
        function = module.forward if isinstance(module, Stacked) else part_functions(part_of(network), module)[network]
        self._function = torch.compile(function, dynamic=False) if compiled else function
        self._dtype = next(module.parameters()).dtype

    def bind(self, tensors: dict[str, Tensor]) -> Callable[[], None]:
        inputs = [tensors[tensor.name] for tensor in self.spec.inputs]
        outputs = [tensors[tensor.name] for tensor in self.spec.outputs]

        def enqueue() -> None:
            given = [value.to(self._dtype) if value.is_floating_point() else value for value in inputs]
            for output, value in zip(outputs, self._function(*given), strict=True):
                output.copy_(value)

        return enqueue

    def close(self) -> None:
        del self._function, self._module


def load_part(bundle: Bundle, part: str) -> nn.Module:
    """A part of the bundle's model in fp32, its weights read one by one. Raises BadArtefact, OutOfResource."""
    return _filled(bundle, part, [part], lambda config: build_part(config, part))


def load_stack(bundle: Bundle, modalities: Sequence[str]) -> nn.Module:
    """These experts as one network. Raises as `load_part` does, and BadRequest unless they have one shape."""
    check_alike(bundle.manifest, modalities)
    parts = [f"experts.{name}" for name in modalities]
    return _filled(
        bundle, stack_network(modalities), parts, lambda config: build_stack(config, bundle.manifest, modalities)
    )


def build_stack(config: ModelConfig, manifest: Manifest, modalities: Sequence[str]) -> Stacked:
    tokens = {modality.name: modality.input_shape[0] for modality in manifest.modalities}
    return Stacked([config.experts[name] for name in modalities], [tokens[name] for name in modalities])


def _filled(bundle: Bundle, what: str, parts: Sequence[str], build: Callable[[ModelConfig], nn.Module]) -> nn.Module:
    """What is built, with the weights of these parts, one behind the other where they are several."""
    content, config = bundle.content[bundle.manifest.weights], bundle.manifest.source
    try:
        of_parts = tuple(f"{part}." for part in parts)
        stored = {name: place for name, place in places(content).items() if name.startswith(of_parts)}
        with torch.device("meta"), at_most(len(stored)):
            module = build(schema.from_json(ModelConfig, config, "source"))

        def weight(name: str) -> Tensor:
            own = [torch.from_numpy(fp32(content, stored[f"{part}.{name}"])) for part in parts]
            return own[0] if len(own) == 1 else torch.cat(own)

        module.load_state_dict({name: weight(name) for name in module.state_dict()}, assign=True)
    except Exception as error:  # of the description and of torch: no base class but this
        reason = " ".join(str(error).split())[:200]
        if ran_out(error):
            raise OutOfResource(f"loading {what}", reason or "no memory", MORE_MEMORY) from error
        raise BadArtefact(
            f"bundle {bundle.folder.name}", f"its weights do not make its model ({reason})", REBUILD
        ) from error
    return module.eval().requires_grad_(False)


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Raises ValueError when modules get more parameters: a description may ask for a billion layers."""
    thread, left = threading.get_ident(), [count]

    def seen(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        left[0] -= threading.get_ident() == thread
        if left[0] < 0:
            raise ValueError(f"the model has more than these {count} weights")

    hook = register_module_parameter_registration_hook(seen)
    try:
        yield
    finally:
        hook.remove()


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


def load(bundle: Bundle, network: str, placement: Placement, compiled: bool = False) -> EagerEngine:
    use_threads(placement.threads)  # reading weights takes them too
    module = _module(bundle, network, "cpu", torch.float32)
    return EagerEngine(
        bundle.manifest.networks[network], network, module, placement.precision, compiled, placement.threads
    )


def load_compiled(bundle: Bundle, network: str, placement: Placement) -> EagerEngine:
    return load(bundle, network, placement, compiled=True)


def load_device_compiled(bundle: Bundle, network: str, placement: Placement) -> EagerDeviceEngine:
    return load_device(bundle, network, placement, compiled=True)


def load_device(bundle: Bundle, network: str, placement: Placement, compiled: bool = False) -> EagerDeviceEngine:
    spec = device_spec(network_spec(bundle.manifest, network), network, placement)
    dtype = getattr(torch, DTYPES[precision_of(network, placement)])
    return EagerDeviceEngine(spec, network, _module(bundle, network, placement.device, dtype), compiled)


def _module(bundle: Bundle, network: str, device: str, dtype: torch.dtype) -> nn.Module:
    """The part of the model that a network is of; networks of one part and place share it."""
    manifest, part = bundle.manifest, part_of(network)
    key = manifest.files[manifest.weights], digest(manifest.source), part, device, dtype
    module = _loaded.get(key)
    if module is None:
        stacked = stacked_modalities(network)
        loaded = load_stack(bundle, stacked) if stacked else load_part(bundle, part)
        module = _loaded[key] = loaded.to(device, dtype)
    return module
