"""Is there an NVIDIA GPU here? Asked of the driver itself, so that no library has to be loaded to find out."""

import ctypes
import os
import sys
from functools import cache

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@cache
def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


@cache
def why_no_device() -> str | None:
    """What keeps CUDA from working here, or None."""
    driver = _driver()
    if driver is None:
        return "no NVIDIA driver is installed"
    count, shown = ctypes.c_int(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver finds no GPU" + ("" if shown is None else f", and CUDA_VISIBLE_DEVICES is {shown!r}")
    return None


def compute_capability(device: int = 0) -> str:
    """Such as "9.0"; of a device that is there."""
    driver, parts = _driver(), []
    assert driver is not None and why_no_device() is None
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        failed = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        assert not failed
        parts.append(str(value.value))
    return ".".join(parts)


def device_name(device: int = 0) -> str:
    """Such as "NVIDIA H100 80GB HBM3"; of a device that is there."""
    driver, name = _driver(), ctypes.create_string_buffer(256)
    assert driver is not None and why_no_device() is None
    failed = driver.cuDeviceGetName(name, len(name), device)
    assert not failed
    return name.value.decode()
