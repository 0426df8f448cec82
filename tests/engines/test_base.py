import numpy as np
import pytest

from cdiff_rt.engines.base import check_outputs, check_signature, failure
from cdiff_rt.errors import BadArtefact, OutOfResource
from cdiff_rt.manifest import NetworkSpec, TensorSpec

SPEC = NetworkSpec(
    "some.onnx",
    (TensorSpec("x", ("batch", 3, 8), "float32"), TensorSpec("t", ("steps",), "int64")),
    (TensorSpec("out", ("batch", 3), "float32"),),
)
FOUND = {"x": ("float32", (None, 3, 8)), "t": ("int64", (None,)), "out": ("float32", (None, 3))}


@pytest.mark.parametrize("change", [{}, {"out": ("float32", None)}, {"x": ("float32", (None, None, 8))}])
def test_a_network_that_is_the_manifests_passes(change):
    check_signature(SPEC, FOUND | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": ("float32", ())}, "its inputs and outputs are out, t, x, y"),
        ({"x": ("float64", (None, 3, 8))}, "x is float64"),
        ({"x": ("float32", (None, 3))}, r"x is float32 \['\?', 3\], not float32 \['batch', 3, 8\]"),
        ({"x": ("float32", (None, 4, 8))}, "x is float32 .'.', 4, 8."),
        ({"x": ("float32", (1, 3, 8))}, "x is float32 .1, 3, 8."),
        ({"t": ("float32", (None,))}, "t is float32"),
        ({"out": ("float32", (None, 3, 1))}, "out is float32"),
    ],
)
def test_names_types_ranks_and_sizes_are_the_manifests(change, words):
    with pytest.raises(BadArtefact, match=f"^network some.onnx: {words}"):
        check_signature(SPEC, FOUND | change)


@pytest.mark.parametrize("shape", [(2,), (2, 4), (2, 3, 1), ()])
def test_outputs_of_another_shape_are_the_networks_fault(shape):
    check_outputs(SPEC, {"out": np.zeros((7, 3))})
    with pytest.raises(BadArtefact, match="it gives out"):
        check_outputs(SPEC, {"out": np.zeros(shape)})


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        RuntimeError("Exception during initialization: std::bad_alloc"),
        RuntimeError("BFCArena::Extend Failed to allocate memory for requested buffer of size 8796093022208"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("bad array new length"),
    ],
)
def test_want_of_memory_is_no_fault_of_the_bundle(error, running):
    found = failure(SPEC, "some library", error, {"x": np.zeros((2, 3, 8), np.float32)} if running else None)
    assert isinstance(found, OutOfResource)
    assert found.remedy.startswith("choose a smaller batch" if running else "close other programs")


@pytest.mark.parametrize(("running", "words"), [(True, "cannot run it"), (False, "refuses it")])
@pytest.mark.parametrize("said", ["Gather: indices element out of data bounds", "", "Load model from memory failed"])
def test_all_else_is(said, running, words):
    found = failure(
        SPEC, "some library", RuntimeError(said), {"x": np.zeros((2, 3, 8), np.float32)} if running else None
    )
    assert isinstance(found, BadArtefact) and words in str(found)
