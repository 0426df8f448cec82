"""Networks of ONNX files: whatever lies beside such a file comes into the bundle."""

import pytest

from cdiff_rt.export import brought
from cdiff_rt.export.brought import Given, read_file
from tests.brought import onnx_file

TAKES = {"x": Given("sample", "float32", (3, 16, 16)), "time": Given("timestep", "float32", ())}


@pytest.mark.parametrize(("largest", "stored"), [(1024, {"a.w1", "a.w2"}), (10_000, set())])
def test_small_weights_outside_a_file_are_inside_the_graph(largest, stored, tmp_path, monkeypatch):
    """As torch.onnx.export writes them: all beside the file, whatever their size."""
    from onnxscript import ir

    monkeypatch.setattr(brought, "LARGEST_INLINE", largest)
    network = read_file(onnx_file(tmp_path / "theirs.onnx", condition=None, outside=True), TAKES, "pred", "a.")
    assert set(network.stored.values()) == stored
    outside = {n for n, v in network.model.graph.initializers.items() if isinstance(v.const_value, ir.ExternalTensor)}
    assert {f"a.{name}" for name in outside} == stored
