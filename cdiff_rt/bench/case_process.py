"""A case in a process of its own, as the one that times it sees it; worker.py is the other side."""

import json
import subprocess
import sys
import time

from cdiff_rt.bench.allocators import environment
from cdiff_rt.bench.cases import Case
from cdiff_rt.bench.task import Task
from cdiff_rt.errors import BadEnvironment


class CaseProcess:
    """A child process that times one case."""

    def __init__(self, task: Task, case: Case) -> None:
        self.case, self._started = case, time.perf_counter()
        command = [sys.executable, "-m", "cdiff_rt.bench.worker", task.to_json(), case.to_json()]
        pipe, variables = subprocess.PIPE, environment(case.allocator)
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=variables)

    def first(self) -> dict:
        """What it tells of its first result, and the seconds since its start."""
        message = self._receive()
        return message | {"load_s": time.perf_counter() - self._started}

    def run(self) -> float:
        """One timed run, in ms."""
        return self._ask("run")["ms"]

    def after(self, steps: int) -> list[float]:
        """The latents of a run of so many steps."""
        return self._ask(f"after {steps}")["latents"]

    def finish(self) -> dict:
        """Ends the process; what it says at its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self._receive()

    def _ask(self, line: str) -> dict:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._receive()

    def _receive(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        message = json.loads(line)
        if "error" in message:
            raise BadEnvironment(self.case.name, message["error"], "see `cdiff-rt doctor`")
        return message

    def _ended(self) -> BadEnvironment:
        return BadEnvironment(self.case.name, "its process ended", "see the message above and `cdiff-rt doctor`")
