"""Asking the driver, with a stand-in for it."""

import ctypes

import pytest

from cdiff_rt.engines import cuda


class Driver:
    """Answers as libcuda does: 0 is success, results go where the pointers point."""

    def __init__(self, devices=1, broken=0):
        self._devices, self._broken = devices, broken

    def cuInit(self, flags):
        return self._broken

    def cuDeviceGetCount(self, count):
        count._obj.value = self._devices
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0

    def cuDeviceGetName(self, name, length, device):
        ctypes.memmove(name, b"NVIDIA H100\0", 12)
        return 0


@pytest.fixture
def driver(monkeypatch):
    def install(driver):
        monkeypatch.setattr(cuda, "_driver", lambda: driver)
        cuda.why_no_device.cache_clear()

    yield install
    cuda.why_no_device.cache_clear()


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "no NVIDIA driver is installed"),
        (Driver(devices=0), "the NVIDIA driver finds no GPU"),
        (Driver(broken=100), "the NVIDIA driver finds no GPU"),
        (Driver(), None),
    ],
)
def test_it_says_what_is_missing(found, reason, driver):
    driver(found)
    assert cuda.why_no_device() == reason


def test_a_device_has_a_capability_and_a_name(driver):
    driver(Driver())
    assert cuda.compute_capability() == "9.0" and cuda.device_name() == "NVIDIA H100"
