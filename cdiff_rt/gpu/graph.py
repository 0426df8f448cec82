"""Work on a device, recorded once as a CUDA graph and replayed; where that can't be, done each time."""

import logging
from collections.abc import Callable, Sequence

import torch

from cdiff_rt.errors import CdiffError

Work = Callable[[], None]
log = logging.getLogger("cdiff_rt")


class Captured:
    """`work` reads and writes buffers that stay in place and whose owner owns this. Calling it does the work."""

    def __init__(self, work: Work, device: torch.device, *, name: str, record: bool | None) -> None:
        """`record` is whether to record; None means that this work can't be, which is then said."""
        self._work = work
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            return
        work()  # warm-up: libraries allocate and choose their kernels now, not while it is recorded
        torch.cuda.synchronize(device)
        if record:
            self._record(name)
        elif record is None:
            log.info("%s: this backend's work cannot be recorded as a CUDA graph; it is launched each time", name)

    def _record(self, name: str) -> None:
        graph, refused = torch.cuda.CUDAGraph(), None
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                try:
                    self._work()
                except CdiffError as error:  # raised below: an exception may not cross the end of a recording
                    refused = error
        except RuntimeError as error:  # torch's, for whatever CUDA doesn't record
            if not refused:
                reason = str(error).splitlines()[0]
                log.warning("%s: the CUDA graph was not recorded (%s); it is launched each time", name, reason)
                return
        if refused:
            raise refused
        self.graph = graph

    def __call__(self) -> None:
        if self.graph:
            self.graph.replay()
        else:
            self._work()


def side_by_side(works: Sequence[Work], streams: Sequence["torch.cuda.Stream"]) -> None:
    """Does each work on its own stream, beside the others; what comes later on this stream waits for all of them.

    Without streams, one after the other.
    """
    if not streams:
        for work in works:
            work()
        return
    here = torch.cuda.current_stream()
    for work, stream in zip(works, streams, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            work()
    for stream in streams:
        here.wait_stream(stream)
