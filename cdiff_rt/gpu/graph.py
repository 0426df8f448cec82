"""What is enqueued on a device, recorded once as a CUDA graph and replayed; where that can't be, enqueued each time."""

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch

from cdiff_rt.notes import log

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as Pool

Enqueue = Callable[[], None]


class Graphs:
    """Records CUDA graphs that share their memory: no two run at a time, and what they leave lies in others' buffers."""

    def __init__(self) -> None:
        self._alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool: Pool | None = None

    def record(self, enqueue: Enqueue, name: str) -> torch.cuda.CUDAGraph | None:
        """The work as a graph; it has been enqueued before, so that libraries have allocated and chosen their kernels.

        None where CUDA does not record it, which is then said. Raises what an engine refuses with.
        """
        graph, pool, here = torch.cuda.CUDAGraph(keep_graph=True), self._shared(), torch.cuda.current_stream()
        refused: BaseException | None = None
        try:
            # thread_local: other threads may allocate meanwhile, such as those of the user's program.
            with torch.cuda.graph(graph, pool=pool, stream=here, capture_error_mode="thread_local"):
                try:
                    enqueue()
                except BaseException as error:  # noqa: BLE001 - of which none may cross the end of a capture
                    refused = error
            if refused is None:
                graph.instantiate()
        except RuntimeError as error:  # torch's, for whatever CUDA doesn't record
            refused = refused or error
            self._pool = None  # what is left in it is torch's affair
            end_allocation(pool)
        if refused is not None:
            if not isinstance(refused, RuntimeError):  # an engine's, or an interrupt
                raise refused
            reason = (str(refused).splitlines() or [type(refused).__name__])[0]
            log.warning("%s: no CUDA graph was recorded (%s); it is launched each time", name, reason)
            return None
        self._alive.add(graph)
        return graph

    def _shared(self) -> "Pool":
        if self._pool is None or not self._alive:  # torch gives a pool up when its last graph goes
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool


def end_allocation(pool: "Pool") -> None:
    """Torch's allocator works as usual again, after a capture whose end CUDA has refused.

    Before 2.12, torch went on as if it were recording: from then on `empty_cache` failed, also the one when memory is
    short (pytorch/pytorch#180395).
    """
    with suppress(RuntimeError, AttributeError):  # it is no longer recording, or has another name for it
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)


def nodes_of(graph: torch.cuda.CUDAGraph) -> int | None:
    """How many launches, copies and so on it holds; None if the driver doesn't say."""
    count = ctypes.c_size_t()
    with suppress(OSError, AttributeError):
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if not driver.cuGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count)):
            return count.value
    return None


class Captured:
    """Replays the same work on buffers that stay in place, which the caller keeps.

    The first call launches it, the second records it, if there is `graphs`, and from then on it is replayed: what comes
    only once is not recorded.
    """

    def __init__(self, name: str, graphs: Graphs | None) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self.nodes: int | None = None  # of the graph, where the driver says
        self._name, self._graphs, self._again = name, graphs, False

    def __call__(self, enqueue: Enqueue) -> None:
        graphs = self._graphs if self._again else None
        if graphs:
            self._graphs = None  # it is tried once
            self.graph = graphs.record(enqueue, self._name)
            self.nodes = nodes_of(self.graph) if self.graph else None
        self._again = True
        if self.graph:
            self.graph.replay()
        else:
            enqueue()


def side_by_side(calls: Sequence[Enqueue], streams: Sequence["torch.cuda.Stream"]) -> None:
    """Each call on its own stream, beside the others; what comes later on this stream waits for all of them.

    Without streams, one after the other.
    """
    if not streams:
        for enqueue in calls:
            enqueue()
        return
    here = torch.cuda.current_stream()
    for enqueue, stream in zip(calls, streams, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            enqueue()
    for stream in streams:
        here.wait_stream(stream)
