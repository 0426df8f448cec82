"""What a server lets others have of it. Options of the command are some of these; the rest hold for everyone."""

from dataclasses import dataclass

MEGABYTE = 2**20
MOST_FIELDS = 100  # of a multipart body
MOST_PARTIAL = 50  # previews of a run
DEADLINES = (0.1, 86400.0)  # seconds that a request may wait at most
HEAD_SECONDS, BODY_SECONDS, READ_SECONDS = 10.0, 30.0, 30.0  # of clients that are slow to ask, to send, and to read
MOST_CONNECTIONS = 1024
DRAIN_SECONDS = 30.0  # that a server which ends waits for results of jobs to be fetched
KEPT_BYTES = 256 * MEGABYTE  # of results that wait to be fetched


@dataclass(frozen=True)
class Limits:
    queue: int = 32  # requests that wait, beside the one that runs
    keep: float = 600.0  # seconds that a job's result stays
    body: int = 16 * MEGABYTE
