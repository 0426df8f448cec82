"""Compiles a launch for a GPU that isn't there, as Triton's own launcher would, and counts what the machine code does."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Absent:
    """All that Triton asks a driver before it compiles."""

    capability: int

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@contextmanager
def absent(capability: int) -> Iterator[None]:
    driver.set_active(Absent(capability))
    try:
        yield
    finally:
        driver.set_active(None)  # the real one, when it is asked for


def compiled(jitted: Any, capability: int, grid: tuple[int, int], args: tuple, options: dict[str, Any]) -> Any:
    """What `jitted[grid](*args, **options)` would launch: types, alignments and constants as found in the arguments."""
    with absent(capability):
        return jitted.warmup(*args, grid=grid, **options)


@dataclass(frozen=True)
class Usage:
    """What a kernel takes of the machine."""

    registers: int
    stack: int
    shared: int
    local: int
    opcodes: Counter[str]  # "LDG.E.128" -> how many

    def count(self, *opcodes: str) -> int:
        """Of the opcode and all its variants."""
        return sum(n for found, n in self.opcodes.items() if found.startswith(opcodes))


def usage(cubin: bytes) -> Usage:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        resources = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", tool("cuobjdump", "-res-usage", str(path))))
        code = tool("nvdisasm", str(path))
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]+)", code)
    assert opcodes, "nvdisasm has printed no instruction"
    registers, stack, shared, local = (int(resources[name]) for name in ("REG", "STACK", "SHARED", "LOCAL"))
    return Usage(registers, stack, shared, local, Counter(opcodes))


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout
