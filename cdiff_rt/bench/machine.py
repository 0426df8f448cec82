"""What something was measured on: processor, memory, versions, and what is set in the environment that changes times."""

import os
import platform
from pathlib import Path

from cdiff_rt.doctor import LIBRARIES
from cdiff_rt.engines.cuda import compute_capability, device_name, why_no_device
from cdiff_rt.extras import version_of
from cdiff_rt.process import cores
from cdiff_rt.version import __version__

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is Arm's
PROC = Path("/proc")
TELLING = ("LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES", "OMP_", "KMP_", "MKL_", "ONEDNN_")  # what names begin with


def machine() -> dict[str, str]:
    versions = {name: version_of(name) for name in LIBRARIES}
    settings = {name: value for name, value in sorted(os.environ.items()) if name.startswith(TELLING)}
    return {
        "cdiff-rt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _of_proc("cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": str(cores()),
        "memory": _of_proc("meminfo", "MemTotal") or "unknown",
        "bf16": "yes" if multiplies_bf16() else "no",
        **settings,
        **({} if why_no_device() else {"gpu": device_name(), "compute capability": compute_capability()}),
        **{name: version for name, version in versions.items() if version != "not installed"},
    }


def multiplies_bf16() -> bool:
    """Whether the processor says that it does; only Linux is asked."""
    said = _of_proc("cpuinfo", "flags") or _of_proc("cpuinfo", "Features") or ""
    return not BF16_FLAGS.isdisjoint(said.split())


def _of_proc(file: str, name: str) -> str | None:
    """The first value of that name in one of its files."""
    try:
        with (PROC / file).open() as lines:
            return next(line.split(":")[1].strip() for line in lines if line.split(":")[0].strip() == name)
    except (OSError, StopIteration):
        return None
