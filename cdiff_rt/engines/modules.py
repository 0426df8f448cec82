"""A bundle's networks as PyTorch's modules, their weights read one by one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cdiff_rt import schema
from cdiff_rt.engines.base import MORE_MEMORY
from cdiff_rt.engines.weights import fp32, part_of, places
from cdiff_rt.errors import BadArtefact, OutOfResource, ran_out
from cdiff_rt.manifest import REBUILD, Bundle, digest
from cdiff_rt.nets.collaborative import ModelConfig, build_part, reads

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the axes of a weight
# (weights, what they make, network, device, type, layout) -> the module, as long as an engine uses it: engines for
# other sizes share their weights.
_loaded: WeakValueDictionary[tuple[str, str, str, str, torch.dtype, bool], nn.Module] = WeakValueDictionary()


def load_part(bundle: Bundle, part: str) -> nn.Module:
    """A part of the bundle's model in fp32, whole. Raises BadArtefact, OutOfResource."""
    return _filled(bundle, part, lambda weight: True, lambda value: value)


def load_network(
    bundle: Bundle, network: str, device: str, dtype: torch.dtype, *, channels_last: bool = False
) -> nn.Module:
    """The part that a network is of, with the weights that this network reads; the others have no numbers.

    With `channels_last`, convolutions' weights lie in memory as kernels for that layout read them.
    """

    def placed(value: Tensor) -> Tensor:
        layout = _CHANNELS_LAST.get(value.dim()) if channels_last else None
        return value.to(device, dtype, memory_format=layout or torch.preserve_format)

    manifest = bundle.manifest
    key = manifest.files[manifest.weights], digest(manifest.source), network, device, dtype, channels_last
    module = _loaded.get(key)
    if module is None:
        module = _loaded[key] = _filled(bundle, part_of(network), lambda weight: reads(network, weight), placed)
    return module


def _filled(bundle: Bundle, part: str, wanted: Callable[[str], bool], placed: Callable[[Tensor], Tensor]) -> nn.Module:
    content = bundle.content[bundle.manifest.weights]
    try:
        stored = {name: place for name, place in places(content).items() if name.startswith(f"{part}.")}
        with torch.device("meta"), at_most(len(stored)):
            module = build_part(schema.from_json(ModelConfig, bundle.manifest.source, "source"), part)
        found = {name: stored[f"{part}.{name}"] for name in module.state_dict()}
        for name, value in module.state_dict().items():  # of all: who loads another network would find it later
            if found[name].shape != value.shape:
                raise ValueError(f"{name} is {list(found[name].shape)}, not {list(value.shape)}")
        weights = {name: placed(torch.from_numpy(fp32(content, found[name]))) for name in filter(wanted, found)}
        module.load_state_dict(weights, strict=False, assign=True)
    except Exception as error:  # of the description and of torch: no base class but this
        reason = " ".join(str(error).split())[:200]
        if ran_out(error):
            raise OutOfResource(f"loading {part}", reason or "no memory", MORE_MEMORY) from error
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
