import subprocess
import sys

import pytest

from cdiff_rt.bench import allocators as module
from cdiff_rt.bench.allocators import ALLOCATORS, Allocator, check_loaded, environment, tuned
from cdiff_rt.errors import BadEnvironment

# Maps of memory come and go with every array of 32 MB, unless the allocator keeps what is freed.
FAULTS = """
import resource
import numpy as np
np.ones(4_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(4_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(allocator):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment(allocator), capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="allocators are tuned on Linux")
def test_a_tuned_allocator_keeps_its_pages():
    assert faults(tuned()) < 0.1 * faults(None)


def test_a_process_has_the_library_that_its_case_names(monkeypatch):
    monkeypatch.setattr(module.ctypes.util, "find_library", lambda name: f"lib{name}.so.2")
    assert environment("jemalloc")["LD_PRELOAD"] == "libjemalloc.so.2"
    assert "dirty_decay_ms:-1" in environment("jemalloc")["MALLOC_CONF"]
    assert "LD_PRELOAD" not in environment("glibc keeping pages") or "LD_PRELOAD" in module.os.environ
    assert tuned() == next(iter(ALLOCATORS))


def test_one_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(module.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(BadEnvironment, match="allocator jemalloc: it is not installed"):
        environment("jemalloc")
    with pytest.raises(BadEnvironment, match="allocator none-such: it is not installed"):
        environment("none-such")


def test_a_library_that_the_linker_left_out_is_found(monkeypatch):
    monkeypatch.setitem(ALLOCATORS, "loaded", Allocator("libc"))
    monkeypatch.setitem(ALLOCATORS, "missing", Allocator("no_such_library"))
    for name in (None, "loaded", "glibc keeping pages"):
        check_loaded(name)
    with pytest.raises(BadEnvironment, match="allocator missing: the linker did not load it"):
        check_loaded("missing")
