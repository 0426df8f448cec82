"""How long a step takes at least on a GPU that is named: per layer, from what it must do and from public peaks.

A layer reads its weights once, multiplies and takes exponentials. A GPU does these side by side, so whichever takes
longest is the layer's floor. Activations count as nothing, for they can stay in the caches, and so do launches, whose
time nobody publishes: bench/budget.py counts them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cdiff_rt.errors import BadRequest

if TYPE_CHECKING:
    from cdiff_rt.nets.collaborative import ModelConfig

BYTES = 2  # of a weight in fp16
SPECIAL = (
    16  # exponentials per multiprocessor and clock, of 8.0 to 9.0 (CUDA C++ Programming Guide, arithmetic throughput)
)
EXPONENTIALS = {
    "_softmax",
    "_safe_softmax",
    "exp",
    "gelu",
    "sigmoid",
    "silu",
}  # operations that take one for each number


@dataclass(frozen=True)
class Gpu:
    """Peaks of NVIDIA's data sheets and white papers."""

    bandwidth: float  # bytes per second
    arithmetic: float  # fp16 operations per second on tensor cores, dense, summed in fp32; a multiply-add is two
    multiprocessors: int
    clock: float  # Hz, of that arithmetic

    @property
    def exponentials(self) -> float:
        """Per second."""
        return SPECIAL * self.multiprocessors * self.clock


GPUS = {
    "H200": Gpu(4.8e12, 989.4e12, 132, 1.83e9),
    "H100": Gpu(3.35e12, 989.4e12, 132, 1.83e9),
    "A100": Gpu(2.039e12, 312e12, 108, 1.41e9),
    "4090": Gpu(1.008e12, 165.2e12, 128, 2.52e9),
    "L4": Gpu(0.3e12, 121e12, 58, 2.04e9),
}


def find_gpu(name: str) -> Gpu:
    if name not in GPUS:
        raise BadRequest("gpu", repr(name), f"choose one of {', '.join(GPUS)}")
    return GPUS[name]


@dataclass(frozen=True)
class Work:
    """What a layer does in a step at batch 1."""

    weights: int = 0  # bytes
    flops: int = 0
    exponentials: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.weights + other.weights, self.flops + other.flops, self.exponentials + other.exponentials)

    def seconds(self, gpu: Gpu) -> float:
        return max(self.weights / gpu.bandwidth, self.flops / gpu.arithmetic, self.exponentials / gpu.exponentials)


@dataclass(frozen=True)
class Floor:
    """The layers of a step in the order of their first call."""

    layers: dict[str, Work] = field(default_factory=dict)  # by name, such as "mask.unet.out.2"
    kinds: dict[str, str] = field(default_factory=dict)  # name -> its class, such as "Conv2d"

    def add(self, name: str, kind: str, work: Work) -> None:
        self.layers[name] = self.layers.get(name, Work()) + work
        self.kinds[name] = kind

    @property
    def total(self) -> Work:
        return sum(self.layers.values(), Work())

    def groups(self) -> dict[str, list[Work]]:
        """Network and kind, such as "mask.unet, Conv2d" -> its layers that do anything that counts."""
        found: dict[str, list[Work]] = {}
        for name, work in self.layers.items():
            if work != Work():
                found.setdefault(f"{'.'.join(name.split('.')[:2])}, {self.kinds[name]}", []).append(work)
        return found


@contextmanager
def counted(root: Any) -> Iterator[Floor]:
    """What is called within the block of the modules in `root`, and on tensors without data."""
    from torch.nn import Parameter
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    names, floor = {module: name for name, module in root.named_modules()}, Floor()
    running, read = [root], set[int]()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs, packet = kwargs or {}, operation._overloadpacket
            if packet not in flop_registry:
                with self:  # into operations that are counted
                    parts = operation.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            result = operation(*args, **kwargs)
            given = [
                leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Parameter) and id(leaf) not in read
            ]
            read.update(map(id, given))
            flops = flop_registry[packet](*args, **kwargs, out_val=result) if packet in flop_registry else 0
            exponentials = result.numel() if packet.__name__ in EXPONENTIALS else 0
            weights = BYTES * sum(weight.numel() for weight in given)
            floor.add(names[running[-1]], type(running[-1]).__name__, Work(weights, flops, exponentials))
            return result

    hooks = [
        register_module_forward_pre_hook(lambda module, given: running.append(module)),
        register_module_forward_hook(lambda module, given, result: running.pop() and None),
    ]
    try:
        with Counting():
            yield floor
    finally:
        for hook in hooks:
            hook.remove()


def count_floor(config: "ModelConfig", latent_shape: tuple[int, ...], tokens: Mapping[str, int]) -> Floor:
    """Of what stays in the loop: every expert's call on x_t, with so many tokens of its condition."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from cdiff_rt.nets.collaborative import CollaborativeModel

    with torch.device("meta"), torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        model, x = CollaborativeModel(config).eval(), torch.zeros(1, *latent_shape)
        with counted(model.experts) as floor:
            for name, count in tokens.items():
                expert = model.expert(name)
                expert(x, torch.zeros(1, expert.projection_width), torch.zeros(1, count, expert.context_width))
    return floor
