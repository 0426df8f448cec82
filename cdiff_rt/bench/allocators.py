"""Allocators of memory that keep what is freed, for a process of PyTorch's: with the usual one it waits for pages.

Every step frees hundreds of megabytes and asks for them again, and the kernel has to clear each page anew.
"""

import ctypes.util
import os
import platform
from dataclasses import dataclass, field

from cdiff_rt.errors import BadEnvironment


@dataclass(frozen=True)
class Allocator:
    library: str | None  # as the linker knows it, to be loaded before all others; None: glibc's own
    settings: dict[str, str] = field(default_factory=dict)  # of the environment


ALLOCATORS = {
    "tcmalloc": Allocator("tcmalloc_minimal", {"TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": str(2**40)}),
    "jemalloc": Allocator(  # as PyTorch's own guide to tuning sets it
        "jemalloc",
        {"MALLOC_CONF": "oversize_threshold:1,background_thread:true,dirty_decay_ms:-1,muzzy_decay_ms:-1"},
    ),
    "glibc keeping pages": Allocator(  # nothing is mapped apart, so that nothing is unmapped, and the heap never shrinks
        None,
        {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**28)},
    ),
}


def tuned() -> str | None:
    """The first allocator that is here; None where there is none."""
    return next((name for name in ALLOCATORS if is_here(name)), None)


def is_here(name: str) -> bool:
    if platform.system() != "Linux":
        return False
    library = ALLOCATORS[name].library
    return bool(ctypes.util.find_library(library)) if library else platform.libc_ver()[0] == "glibc"


def environment(name: str | None) -> dict[str, str]:
    """Of a process that is to have it; None for that which every process has. Raises BadEnvironment if it isn't here."""
    if name is None:
        return dict(os.environ)
    if name not in ALLOCATORS or not is_here(name):
        raise BadEnvironment(f"allocator {name}", "it is not installed", "install it, or leave its cases out")
    library = ALLOCATORS[name].library
    preload = {"LD_PRELOAD": str(ctypes.util.find_library(library))} if library else {}
    return os.environ | ALLOCATORS[name].settings | preload


def check_loaded(name: str | None) -> None:
    """Raises BadEnvironment if this process, that was to have it, has another: the linker goes on without."""
    library = ALLOCATORS[name].library if name else None
    if not library:
        return
    with open("/proc/self/maps") as maps:
        if not any(library in line for line in maps):
            raise BadEnvironment(f"allocator {name}", "the linker did not load it", "see its message above")
