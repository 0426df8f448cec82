"""CUDA graphs of work on CPU tensors: what is launched during a capture is kept and leaves no trace, a replay does it again.

Each operation keeps its arguments and gets them again, numbers and tensors, as a graph's nodes do. So a step's number
that the host knew while it was recorded stays as it was.
"""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def storage(tensor):
    return tensor.untyped_storage()._cdata


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Graph(TorchDispatchMode):
    def __init__(self, standin):
        super().__init__()
        self._standin = standin
        self.nodes, self._before, self._own = [], {}, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tensors_in((args, kwargs))
        for tensor in given:
            if storage(tensor) not in self._own:
                self._before.setdefault(storage(tensor), (tensor.untyped_storage(), tensor.untyped_storage().clone()))
        result = operation(*args, **kwargs)
        made = [t for t in tensors_in(result) if storage(t) not in map(storage, given)]
        self._own |= set(map(storage, made))
        if made or any(argument.is_write for argument in operation._schema.arguments):
            self.nodes.append((operation, args, kwargs, made))
        return result

    def undo(self):
        for place, content in self._before.values():
            place.copy_(content)
        self._before.clear()

    def instantiate(self):
        if self._standin.uninstantiable:
            raise self._standin.uninstantiable

    def replay(self):
        self._standin.replayed.append(self)
        for operation, args, kwargs, made in self.nodes:
            again = tensors_in(operation(*args, **kwargs))
            for old, new in zip(made, again[-len(made) :] if made else (), strict=True):
                old.copy_(new)


class Standin:
    """In place of torch.cuda. `breaks` is an error of a capture's end, after which torch forgets to end the allocation."""

    def __init__(self, patch):
        self.recorded, self.replayed, self.allocating, self.pools, self.modes = [], [], [], [], []
        self.breaks = self.uninstantiable = None
        handles = iter(range(1, 1000))
        patch.setattr(torch.cuda, "CUDAGraph", lambda keep_graph: Graph(self))
        patch.setattr(torch.cuda, "graph", self.capture)
        patch.setattr(torch.cuda, "current_stream", lambda: "stream")
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(handles)))
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocation, raising=False)
        patch.setattr("cdiff_rt.gpu.graph.nodes_of", lambda graph: len(graph.nodes))

    @contextmanager
    def capture(self, graph, pool, stream, capture_error_mode):
        assert stream == "stream" and not self.allocating, "the allocator is still recording"
        self.pools.append(pool)
        self.modes.append(capture_error_mode)
        self.allocating.append(pool)
        try:
            with graph:
                yield
        finally:
            graph.undo()
            if self.breaks:
                raise self.breaks
            self.allocating.remove(pool)
        self.recorded.append(graph)

    def end_allocation(self, device, pool):
        if pool not in self.allocating:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocating.remove(pool)
