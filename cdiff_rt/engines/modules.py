"""A bundle's networks as PyTorch's modules, their weights read one by one."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cdiff_rt import schema
from cdiff_rt.engines.base import MORE_MEMORY, is_composed
from cdiff_rt.engines.stacked import check_alike, stacked_modalities
from cdiff_rt.engines.weights import fp32, part_of, places
from cdiff_rt.errors import BadArtefact, BadEnvironment, BadRequest, OutOfResource, ran_out
from cdiff_rt.manifest import REBUILD, Bundle, Manifest, digest
from cdiff_rt.nets.collaborative import Function, ModelConfig, build_part, part_functions, reads
from cdiff_rt.nets.stacked import Stacked

Build = Callable[[ModelConfig], nn.Module]
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the axes of a weight
Prepare = Callable[[nn.Module], None]  # changes how a module computes, in place


def as_it_is(module: nn.Module) -> None:
    pass


# (weights, what they make, network, device, type, preparation, layout) -> the module, as long as an engine uses it:
# engines for other sizes share their weights.
_loaded: WeakValueDictionary[tuple[str, str, str, str, torch.dtype, Prepare, bool], nn.Module] = WeakValueDictionary()


def load_part(bundle: Bundle, part: str) -> nn.Module:
    """A part of the bundle's model in fp32, whole. Raises BadArtefact, OutOfResource."""
    return _filled(bundle, [part], lambda config: build_part(config, part), lambda weight: True, lambda value: value)


def load_network(
    bundle: Bundle,
    network: str,
    device: str,
    dtype: torch.dtype,
    prepare: Prepare = as_it_is,
    *,
    channels_last: bool = False,
) -> nn.Module:
    """The part that a network is of, or a stack; with the weights that this network reads, the others have no numbers.

    With `channels_last`, convolutions' weights lie in memory as kernels for that layout read them.
    """

    def placed(value: Tensor) -> Tensor:
        layout = _CHANNELS_LAST.get(value.dim()) if channels_last else None
        return value.to(device, dtype, memory_format=layout or torch.preserve_format)

    manifest = bundle.manifest
    if is_composed(manifest):
        seen = f"{manifest.name} was composed of others' networks, which are graphs alone here"
        raise BadEnvironment(
            "PyTorch", seen, "take backend onnxruntime or openvino, on a GPU onnxruntime-cuda or tensorrt-rtx"
        )
    key = manifest.files[manifest.weights], digest(manifest.source), network, device, dtype, prepare, channels_last
    module = _loaded.get(key)
    if module is None:
        parts, build = _parts_of(manifest, network)
        module = _loaded[key] = _filled(bundle, parts, build, lambda weight: reads(network, weight), placed)
        prepare(module)
    return module


def function_of(network: str, module: nn.Module) -> Function:
    """That network as a function of its inputs, of the module that `load_network` made."""
    return module.forward if isinstance(module, Stacked) else part_functions(part_of(network), module)[network]


def build_stack(config: ModelConfig, manifest: Manifest, modalities: Sequence[str]) -> Stacked:
    """Without weights. Raises BadRequest unless these experts have one shape."""
    check_alike(manifest, modalities)
    tokens = {modality.name: modality.context_tokens for modality in manifest.modalities}
    return Stacked([config.experts[name] for name in modalities], [tokens[name] for name in modalities])


def _parts_of(manifest: Manifest, network: str) -> tuple[list[str], Build]:
    """Whose weights make a network, and what builds it."""
    modalities = stacked_modalities(network)
    if modalities:
        return [f"experts.{name}" for name in modalities], lambda config: build_stack(config, manifest, modalities)
    part = part_of(network)
    return [part], lambda config: build_part(config, part)


def _filled(
    bundle: Bundle,
    parts: Sequence[str],
    build: Build,
    wanted: Callable[[str], bool],
    placed: Callable[[Tensor], Tensor],
) -> nn.Module:
    """What is built, with those weights of the parts that are wanted, one behind the other where there are several."""
    content = bundle.content[bundle.manifest.weights]
    try:
        of_parts = tuple(f"{part}." for part in parts)
        stored = {name: place for name, place in places(content).items() if name.startswith(of_parts)}
        with torch.device("meta"), at_most(len(stored)):
            module = build(schema.from_json(ModelConfig, bundle.manifest.source, "source"))
        found = {name: [stored[f"{part}.{name}"] for part in parts] for name in module.state_dict()}
        for name, value in module.state_dict().items():  # of all: who loads another network would find it later
            shape = (value.shape[0] // len(parts), *value.shape[1:])
            for place in found[name]:
                if place.shape != shape:
                    raise ValueError(f"{name} is {list(place.shape)}, not {list(shape)}")

        def weight(name: str) -> Tensor:
            own = [torch.from_numpy(fp32(content, place)) for place in found[name]]
            return placed(own[0] if len(own) == 1 else torch.cat(own))

        module.load_state_dict({name: weight(name) for name in filter(wanted, found)}, strict=False, assign=True)
    except BadRequest:  # of experts that do not stack
        raise
    except Exception as error:  # of the description and of torch: no base class but this
        reason = " ".join(str(error).split())[:200]
        if ran_out(error):
            raise OutOfResource(f"loading {', '.join(parts)}", reason or "no memory", MORE_MEMORY) from error
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
