import threading

import numpy as np
import pytest
import torch

from cdiff_rt.engines import eager
from cdiff_rt.engines.arithmetic import multiplying, timing_convolutions
from cdiff_rt.engines.base import DTYPES, Placement, device_spec
from cdiff_rt.engines.eager import EagerDeviceEngine, EagerEngine
from cdiff_rt.gpu.buffers import tensors_of

BACKENDS = torch.backends
PLACES = {
    "cuda": (BACKENDS.cudnn.conv, BACKENDS.cuda.matmul),
    "cpu": (BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul),
}
IEEE, TF32 = {"ieee"}, {"tf32"}  # what "none" means is IEEE's too


def told():
    """All that PyTorch tells of its settings; where old and new ones disagree it raises."""

    def older(get):
        try:
            return get()
        except RuntimeError:
            return "disagrees"

    newer = [operation.fp32_precision for operations in PLACES.values() for operation in operations]
    getters = torch.get_float32_matmul_precision, lambda: BACKENDS.cudnn.allow_tf32
    return newer, [older(get) for get in getters], BACKENDS.cudnn.benchmark


def as_multiplied(device):
    return {operation.fp32_precision.replace("none", "ieee") for operation in PLACES[device]}


USERS = {
    "nothing": lambda: None,
    "matrices high": lambda: torch.set_float32_matmul_precision("high"),
    "matrices medium": lambda: torch.set_float32_matmul_precision("medium"),
    "no tf32": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "matrices tf32": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "convolutions ieee": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "all tf32": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "bf16 on the CPU": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
}


@pytest.fixture(params=USERS)
def users_settings(request):
    USERS[request.param]()
    yield told()
    BACKENDS.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for operation in (*PLACES["cuda"], *PLACES["cpu"]):
        operation.fp32_precision = "tf32" if operation is BACKENDS.cudnn.conv else "none"


@pytest.mark.parametrize(
    ("device", "precision", "found"), [("cuda:0", "fp32", IEEE), ("cuda", "tf32", TF32), ("cpu", "fp32", IEEE)]
)
def test_it_is_as_asked_whatever_the_user_set_and_then_as_it_was(device, precision, found, users_settings):
    with pytest.raises(ZeroDivisionError), multiplying(device, precision):
        assert as_multiplied(device.split(":")[0]) == found
        if "disagrees" not in users_settings[1]:
            torch.get_float32_matmul_precision()  # as Inductor asks, and it raises where old and new ones disagree
        raise ZeroDivisionError
    assert told() == users_settings


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_halves_leave_all_as_it_is(precision, users_settings):
    with multiplying("cuda", precision):
        assert told() == users_settings


def test_two_threads_do_not_meet_in_each_others_settings():
    before, entered = told(), threading.Event()

    def work():
        with multiplying("cuda", "tf32"):
            entered.set()

    other = threading.Thread(target=work)
    with multiplying("cuda", "fp32"):
        other.start()
        assert not entered.wait(0.2) and as_multiplied("cuda") == IEEE
    other.join()
    assert entered.is_set() and told() == before


def test_convolutions_are_timed_within_and_not_after():
    with timing_convolutions():
        assert BACKENDS.cudnn.benchmark
    assert not BACKENDS.cudnn.benchmark


def observed(monkeypatch, spec, seen):
    """The network's function is one that tells the settings that it meets."""

    def function(*inputs):
        seen.append((as_multiplied("cuda"), as_multiplied("cpu"), BACKENDS.cudnn.benchmark))
        return [torch.zeros([1 if isinstance(d, str) else d for d in tensor.shape]) for tensor in spec.outputs]

    monkeypatch.setattr(eager, "function_of", lambda network, module: function)
    monkeypatch.setattr(eager, "compiled", lambda function: function)


MODULES = ("expert.mask", "time.mask", "condition.mask", "vae.decode")


@pytest.mark.parametrize(
    ("network", "precision", "found"),
    [
        ("expert.mask", "fp32", IEEE),
        ("vae.decode", "fp32", IEEE),
        ("expert.mask", "tf32", TF32),
        ("time.mask", "tf32", IEEE),
        ("time.mask", "fp16", IEEE),
        ("condition.mask", "bf16", IEEE),
    ],
)
@pytest.mark.parametrize("compiles", [False, True])
def test_on_a_gpu_fp32_is_fp32_and_convolutions_are_timed_once(
    network, precision, found, compiles, bundle, monkeypatch
):
    place, seen, before = Placement("cuda:0", precision), [], told()
    spec = device_spec(bundle.manifest.networks[network], network, place)
    observed(monkeypatch, spec, seen)
    engine = EagerDeviceEngine(spec, network, torch.nn.Identity(), place, compiles)
    enqueue = engine.bind(tensors_of(spec, {"steps": 1}, torch.device("cpu")))
    for _ in range(3):
        enqueue()
    assert [multiplied for multiplied, _, _ in seen] == [found] * 3
    assert [timed for _, _, timed in seen] == [compiles, False, False]
    assert told() == before and DTYPES["tf32"] == "float32"


@pytest.mark.parametrize("network", ["expert.mask", "vae.decode"])
def test_on_the_cpu_too(network, bundle, monkeypatch):
    seen, spec = [], bundle.manifest.networks[network]
    observed(monkeypatch, spec, seen)
    inputs = {t.name: np.zeros([1 if isinstance(d, str) else d for d in t.shape], t.dtype) for t in spec.inputs}
    torch.set_float32_matmul_precision("medium")
    try:
        EagerEngine(spec, network, torch.nn.Identity())(**inputs)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert [multiplied for _, multiplied, _ in seen] == [IEEE]
