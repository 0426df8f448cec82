"""What is enqueued on a device, captured once as a CUDA graph and replayed; where that can't be, enqueued each time."""

from collections.abc import Callable, Sequence

import torch

from cdiff_rt.errors import CdiffError
from cdiff_rt.notes import log

Enqueue = Callable[[], None]


class Captured:
    """`enqueue` reads and writes buffers that stay in place and whose owner owns this. Calling it does the same."""

    def __init__(self, enqueue: Enqueue, device: torch.device, *, name: str, capture: bool | None) -> None:
        """`capture` is whether to capture; None means that this work can't be captured, which is then said."""
        self._enqueue = enqueue
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            return
        enqueue()  # warm-up: libraries allocate and choose their kernels now, not while it is captured
        torch.cuda.synchronize(device)
        if capture:
            self._capture(name)
        elif capture is None:
            log.info("%s: this backend's work cannot be captured as a CUDA graph; it is launched each time", name)

    def _capture(self, name: str) -> None:
        graph, refused = torch.cuda.CUDAGraph(), None
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                try:
                    self._enqueue()
                except CdiffError as error:  # raised below: an exception may not cross the end of a capture
                    refused = error
        except RuntimeError as error:  # torch's, for whatever CUDA doesn't capture
            if not refused:
                reason = str(error).splitlines()[0]
                log.warning("%s: the CUDA graph was not captured (%s); it is launched each time", name, reason)
                return
        if refused:
            raise refused
        self.graph = graph

    def __call__(self) -> None:
        if self.graph:
            self.graph.replay()
        else:
            self._enqueue()


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
