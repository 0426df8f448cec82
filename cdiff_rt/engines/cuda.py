"""Is there an NVIDIA GPU here, and can what is installed use it? Asked of the driver itself and of libraries' files, so
that no library has to be loaded to find out; `why_torch_fails` alone loads one."""

import ctypes
import importlib.util
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from cdiff_rt.errors import BadEnvironment
from cdiff_rt.extras import version_of

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
NO_DEVICE = 100
REMEDIES = {  # cuInit's answer -> what mends it
    34: "that library is the stub of CUDA's toolkit; take its folder out of LD_LIBRARY_PATH",
    802: "start nvidia-fabricmanager",
    803: "its library and its kernel module are of different versions; restart the machine",
    804: "this GPU takes no newer CUDA than its driver's; take cuda-compat out of LD_LIBRARY_PATH",
}
DRIVERS = {11: 450, 12: 525, 13: 580}  # CUDA's major version -> the first driver that knows it
KERNEL_MODULE = Path("/proc/driver/nvidia/gpus")  # of Linux: a folder for each GPU, whoever may use it
# Where a library's files say for which CUDA they were built, and what only a build for CUDA has.
BUILT_FOR = {"torch": "version.py", "onnxruntime": "capi/build_and_package_info.py"}
ONLY_WITH_CUDA = {"onnxruntime": "capi/*onnxruntime_providers_cuda.*"}
_CUDA = re.compile(r"^cuda(?:_version)?\b[^=\n]*=\s*[\"']?([\d.]+|None)", re.MULTILINE)
_BINARY = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


@cache
def _driver() -> ctypes.CDLL | str | None:
    """NVIDIA's library; or why it does not load; or None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        absent = isinstance(error, FileNotFoundError) or "No such file" in str(error)
        return None if absent else f"the NVIDIA driver's library does not load ({error})"


@cache
def why_no_device() -> str | None:
    """What keeps CUDA from working here, or None."""
    driver, count = _driver(), ctypes.c_int()
    if driver is None or isinstance(driver, str):
        return driver or "no NVIDIA driver is installed"
    try:
        failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except AttributeError as error:
        return f"libcuda.so.1 is not the NVIDIA driver's ({error})"
    if failed and failed != NO_DEVICE:
        remedy = f"; {REMEDIES[failed]}" if failed in REMEDIES else ""
        return f"the NVIDIA driver does not start ({_said(failed)}){remedy}"
    return None if count.value else f"the NVIDIA driver finds no GPU{_hidden()}"


def _said(error: int) -> str:
    """An answer of the driver's in its own words, where it has any."""
    name = ctypes.c_char_p()
    ask = getattr(_driver(), "cuGetErrorName", None)
    known = ask is not None and not ask(error, ctypes.byref(name)) and name.value
    return f"error {error}, {known.decode(errors='replace')}" if known else f"error {error}"


def _hidden() -> str:
    """What may keep a GPU that is in the machine from this process."""
    shown, there = os.environ.get("CUDA_VISIBLE_DEVICES"), len([*KERNEL_MODULE.glob("*")])
    chosen = "" if shown is None else f", and CUDA_VISIBLE_DEVICES is {shown!r}"
    return chosen + (f"; {there} in the machine: hidden from here, or in MIG mode without an instance" if there else "")


def _asked(what: str, *arguments: Any) -> None:
    """Calls a function of a driver that is there. Raises BadEnvironment for any answer but success."""
    reason = why_no_device()
    failed = 0 if reason else getattr(_driver(), what)(*arguments)
    if reason or failed:
        raise BadEnvironment("GPU", reason or f"{what}: {_said(failed)}", "see what `nvidia-smi` says of it")


def compute_capability(device: int = 0) -> str:
    """Such as "9.0". Raises BadEnvironment if the driver does not tell."""
    parts = ctypes.c_int(), ctypes.c_int()
    for part, attribute in zip(parts, (MAJOR, MINOR), strict=True):
        _asked("cuDeviceGetAttribute", ctypes.byref(part), attribute, device)
    return ".".join(str(part.value) for part in parts)


def device_count() -> int:
    """GPUs that this process may use. Raises BadEnvironment if the driver does not tell."""
    count = ctypes.c_int()
    _asked("cuDeviceGetCount", ctypes.byref(count))
    return count.value


def device_name(device: int = 0) -> str:
    """Such as "NVIDIA H100 80GB HBM3". Raises BadEnvironment if the driver does not tell."""
    name = ctypes.create_string_buffer(256)
    _asked("cuDeviceGetName", name, len(name), device)
    return name.value.decode(errors="replace")


def driver_cuda() -> str:
    """The newest CUDA that the driver knows, such as "12.4". Raises BadEnvironment if it does not tell."""
    version = ctypes.c_int()
    _asked("cuDriverGetVersion", ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


# --- what is installed -----------------------------------------------------------------------------------------------


def built_for(library: str) -> str | None:
    """The CUDA that an installed library is built for, such as "13.0", or "" for a CPU; None if its files don't say."""
    spec = importlib.util.find_spec(library)
    if library not in BUILT_FOR:  # TensorRT's: their packages have it in their names
        name = library.replace("_", "-")
        return next((f"{n}.0" for n in DRIVERS if version_of(f"{name}-cu{n}") != "not installed"), None)
    for folder in map(Path, spec.submodule_search_locations or () if spec else ()):
        if (only := ONLY_WITH_CUDA.get(library)) and not [*folder.glob(only)]:
            return ""
        try:
            found = _CUDA.search((folder / BUILT_FOR[library]).read_text(errors="replace"))
        except OSError:
            return None
        return (found[1] if found[1] != "None" else "") if found else None
    return None


def why_unusable(library: str) -> str | None:
    """What keeps an installed library from this GPU, as far as its files and the driver tell, or None."""
    needed = built_for(library)
    if needed == "":
        return f"this {library} is a build for the CPU"
    if not needed or int(needed.split(".")[0]) <= int((known := driver_cuda()).split(".")[0]):
        return None  # CUDA promises that a driver runs whatever was built for its major version
    first = DRIVERS.get(int(needed.split(".")[0]), max(DRIVERS.values()))
    return f"this {library} needs CUDA {needed}, so driver {first} or later, and the one here knows CUDA {known}"


@cache
def why_torch_fails() -> str | None:
    """What keeps PyTorch from computing on this GPU, or None: it is loaded, and tried."""
    try:
        import torch

        torch.cuda.init()
        here, built = compute_capability(), torch.cuda.get_arch_list()
        if built and not any(runs_on(binary, here) for binary in built):
            return f"this torch has no kernels for compute capability {here}, only for {', '.join(built)}"
        torch.ones(1, device="cuda").add_(1).item()
    except Exception as error:  # noqa: BLE001 - of torch's, of the driver's, or of whatever else it loads
        return f"torch does not start on it ({' '.join(str(error).split())[:200] or type(error).__name__})"
    return None


def runs_on(binary: str, capability: str) -> bool:
    """Whether code for "sm_86" or "compute_90" runs on a GPU of a capability such as "8.9"."""
    found = _BINARY.fullmatch(binary)
    if found is None:
        return True  # of a kind that nobody knew when this was written: it is tried
    kind, major, minor, bound = found.groups()
    needed, here = (int(major), int(minor)), tuple(map(int, capability.split(".")))
    if bound == "a":
        return here == needed
    return here >= needed and (here[0] == needed[0] or kind == "compute" and not bound)
