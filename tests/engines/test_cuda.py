"""Asking the driver, with a stand-in for it, and the files of what is installed."""

import ctypes

import pytest

from cdiff_rt.engines import cuda
from cdiff_rt.engines.cuda import runs_on
from cdiff_rt.errors import BadEnvironment
from tests.standin_driver import machine, run


class Driver:
    """Answers as libcuda does: 0 is success, results go where the pointers point."""

    def __init__(self, devices=1, broken=0, silent=0):
        self._devices, self._broken, self._silent = devices, broken, silent

    def cuInit(self, flags):
        return self._broken

    def cuDeviceGetCount(self, count):
        count._obj.value = self._devices
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = 12040
        return self._silent

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 9, 76: 0}[attribute]
        return self._silent

    def cuDeviceGetName(self, name, length, device):
        ctypes.memmove(name, b"NVIDIA H100\0", 12)
        return self._silent


class Stub:
    """A library of that name which is somebody else's."""


@pytest.fixture
def driver(monkeypatch):
    def install(driver):
        monkeypatch.setattr(cuda, "_driver", lambda: driver)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        cuda.why_no_device.cache_clear()

    yield install
    cuda.why_no_device.cache_clear()


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "no NVIDIA driver is installed"),
        ("the NVIDIA driver's library does not load (file too short)",) * 2,
        (Stub(), "libcuda.so.1 is not the NVIDIA driver's ('Stub' object has no attribute 'cuInit')"),
        (Driver(devices=0), "the NVIDIA driver finds no GPU"),
        (Driver(broken=100), "the NVIDIA driver finds no GPU"),
        (Driver(broken=999), "the NVIDIA driver does not start (error 999)"),
        (Driver(broken=802), "the NVIDIA driver does not start (error 802); start nvidia-fabricmanager"),
        (Driver(), None),
    ],
    ids=["none", "damaged", "foreign", "no device", "says no device", "unknown", "fabric", "works"],
)
def test_it_says_what_is_missing(found, reason, driver):
    driver(found)
    assert cuda.why_no_device() == reason


def test_gpus_that_are_hidden_are_told_of(driver, monkeypatch, tmp_path):
    driver(Driver(devices=0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setattr(cuda, "KERNEL_MODULE", tmp_path)
    (tmp_path / "0000:01:00.0").mkdir()
    assert cuda.why_no_device() == (
        "the NVIDIA driver finds no GPU, and CUDA_VISIBLE_DEVICES is '-1'; "
        "1 in the machine: hidden from here, or in MIG mode without an instance"
    )


def test_a_device_has_a_capability_and_a_name_and_its_driver_a_version(driver):
    driver(Driver())
    assert (cuda.compute_capability(), cuda.device_name(), cuda.driver_cuda()) == ("9.0", "NVIDIA H100", "12.4")


@pytest.mark.parametrize("ask", [cuda.compute_capability, cuda.device_name, cuda.driver_cuda])
@pytest.mark.parametrize(
    ("broken", "words"), [(Driver(silent=1), "error 1"), (None, "no NVIDIA driver")], ids=["silent", "absent"]
)
def test_a_driver_that_does_not_answer_is_an_error(ask, broken, words, driver):
    driver(broken)
    with pytest.raises(BadEnvironment, match=words):
        ask()


@pytest.mark.parametrize(
    ("binary", "capability", "runs"),
    [
        ("sm_80", "8.0", True), ("sm_80", "8.9", True), ("sm_86", "8.0", False), ("sm_90", "8.9", False),
        ("sm_90", "10.0", False), ("compute_90", "10.0", True), ("compute_90", "8.9", False), ("sm_90a", "9.0", True),
        ("sm_100a", "10.3", False), ("sm_100f", "10.3", True), ("compute_120f", "13.0", False), ("gfx90a", "9.0", True),
    ],
)  # fmt: skip
def test_which_code_runs_on_which_gpu(binary, capability, runs):
    assert runs_on(binary, capability) is runs


# --- whole machines --------------------------------------------------------------------------------------------------

ASK = "from cdiff_rt.engines.backends import *; n = 'torch-cuda'; print(why_not(n) or why_it_fails(n))"
NEEDS = "this torch needs CUDA {}, so driver {} or later, and the one here knows CUDA {}"
MACHINES = {
    "works": ({"torch": "'13.0'"}, "None"),
    "a driver of the same major version": ({"torch": "'12.8'", "version": 12000}, "None"),
    "no GPU": ({"torch": "'13.0'", "count": 0}, "the NVIDIA driver finds no GPU"),
    "a driver that does not start": (
        {"torch": "'13.0'", "init": 999},
        "the NVIDIA driver does not start (error 999, CUDA_ERROR_OF_STAND_IN)",
    ),
    "an old driver": ({"torch": "'13.0'", "version": 12080}, NEEDS.format("13.0", 580, "12.8")),
    "an older driver": ({"torch": "'12.8'", "version": 11070}, NEEDS.format("12.8", 525, "11.7")),
    "a build for the CPU": ({"torch": "None"}, "this torch is a build for the CPU"),
    "an old GPU": (
        {"torch": "'13.0'", "capability": 61},
        "this torch has no kernels for compute capability 6.1, only for sm_75, sm_80, sm_90, sm_120",
    ),
    "torch does not load": (
        {"torch": "'13.0'", "body": "raise OSError('libcudart.so.13: not found')"},
        "torch does not start on it (libcudart.so.13: not found)",
    ),
    "torch does not start": (
        {"torch": "'13.0'", "body": "class cuda:\n def init(): raise RuntimeError('no kernel image\\nis there')"},
        "torch does not start on it (no kernel image is there)",
    ),
    "a silent driver": ({"torch": "'13.0'", "attribute": 3}, "torch does not start on it (GPU: cuDeviceGetAttribute"),
}


@pytest.mark.parametrize("which", MACHINES)
def test_what_keeps_torch_from_a_gpu_that_is_there(which, tmp_path):
    settings, words = MACHINES[which]
    done = run(machine(tmp_path, **settings), "-c", ASK)
    assert (done.stdout.strip().startswith if words.endswith("Attribute") else done.stdout.strip().__eq__)(words), done


def test_a_build_of_onnxruntime_is_told_by_its_library_for_cuda_and_by_what_it_says(tmp_path, monkeypatch):
    capi = tmp_path / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    (capi / "build_and_package_info.py").write_text("package_name = 'onnxruntime-gpu'\ncuda_version = '12.8'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(cuda.sys.modules, "onnxruntime", raising=False)
    assert cuda.built_for("onnxruntime") == ""
    (capi / "libonnxruntime_providers_cuda.so").touch()
    assert cuda.built_for("onnxruntime") == "12.8"
    (capi / "build_and_package_info.py").unlink()
    assert cuda.built_for("onnxruntime") is None
