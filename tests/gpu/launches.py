"""Launches of Triton kernels without a GPU: recorded, compiled, executed as PTX; and kernels with planted faults."""

import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.gpu import ptx, sass


@dataclass
class Launch:
    """Stands in for a jitted kernel and keeps what it was launched with."""

    grid: tuple = ()
    args: tuple = ()
    options: dict = field(default_factory=dict)

    def __getitem__(self, grid):
        def record(*args, **options):
            self.grid, self.args, self.options = grid, args, options

        return record


def recorded(module: ModuleType, kernel: str, run: Callable[[], Any]) -> Launch:
    """What `run` launches of that kernel of the module."""
    wanted = Launch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, kernel, wanted)
        run()
    assert wanted.args, f"{kernel} was not launched"
    return wanted


def build(jitted: Any, wanted: Launch, capability: int) -> Any:
    return sass.compiled(jitted, capability, wanted.grid, wanted.args, wanted.options)


def simulate(jitted: Any, wanted: Launch, capability: int = 90) -> tuple[ptx.Memory, Counter[str]]:
    """Executes the compiled PTX on the launch's own tensors; what it went through, and how often it did what."""
    built = build(jitted, wanted, capability)
    memory = ptx.Memory()
    parameters = []
    for (name, kind), value in zip(built.src.signature.items(), wanted.args, strict=False):
        if isinstance(value, torch.Tensor):
            storage = torch.tensor([], dtype=torch.uint8).set_(value.untyped_storage()).numpy()
            parameters.append(memory.place(name, storage) + value.storage_offset() * value.element_size())
        elif kind != "constexpr":  # None and 1 are
            parameters.append(bits(value))
    return memory, ptx.execute(built.asm["ptx"], wanted.grid, parameters, memory, built.metadata.shared)


def bits(value: float) -> int:
    """As a kernel's parameter holds it."""
    if isinstance(value, int):
        return value
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))


def mutant(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """The module with one place changed."""
    source = Path(str(module.__file__)).read_text()
    assert source.count(old) == 1, f"{old!r} is there {source.count(old)} times"
    path = folder / "mutant.py"  # Triton reads a kernel's source from its file
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("mutant", path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
