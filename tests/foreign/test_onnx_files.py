"""ONNX files as experts, by whatever names their inputs have."""

import numpy as np
import pytest
from onnx import TensorProto

from cdiff_rt import Expert, Parameterisation
from cdiff_rt.errors import BadArtefact, BadRequest
from cdiff_rt.foreign.onnx_files import open_onnx
from tests.brought import onnx_file

INT, HALF, SINGLE = TensorProto.INT64, TensorProto.FLOAT16, TensorProto.FLOAT
FLOW = Parameterisation("flow", "flow")


def call(path, **names):
    x, time, condition = np.ones((2, 3, 16, 16), np.float32), np.float32([3, 500]), np.ones((2, 5), np.float32)
    return open_onnx(path, names)(x, time, condition)


def test_usual_names_are_known_and_others_are_told(tmp_path):
    usual = call(onnx_file(tmp_path / "a.onnx"))
    odd = onnx_file(tmp_path / "b.onnx", names=("p", "q", "r", "s"))
    np.testing.assert_array_equal(call(odd, x="p", time="q"), usual)
    np.testing.assert_array_equal(call(odd, x="p", time="q", condition="r", out="s"), usual)
    expert = Expert.from_onnx(tmp_path / "a.onnx", FLOW)
    assert (expert.condition, expert.latent_shape) == ((5,), (3, 16, 16))
    assert Expert.from_onnx(onnx_file(tmp_path / "c.onnx", condition=None), FLOW).condition is None


@pytest.mark.parametrize(
    "how", [{"outside": True}, {"kinds": (SINGLE, INT, SINGLE)}, {"kinds": (SINGLE, TensorProto.INT32, INT)}], ids=str
)
def test_weights_beside_it_and_whole_numbers(how, tmp_path):
    usual, other = onnx_file(tmp_path / "a.onnx"), onnx_file(tmp_path / "b.onnx", **how)
    np.testing.assert_array_equal(call(other), call(usual))


@pytest.mark.parametrize("time", [(), (1,)])
def test_time_may_be_one_for_the_whole_batch(time, tmp_path):
    path = onnx_file(tmp_path / "a.onnx", time=time)
    whole = open_onnx(path, {})(np.ones((2, 3, 16, 16), np.float32), np.float32([7, 7]), np.ones((2, 5), np.float32))
    assert whole.shape == (2, 3, 16, 16) and np.array_equal(whole[0], whole[1])


@pytest.mark.parametrize(
    ("how", "names", "words"),
    [
        ({"x": ("batch", 3, "h", "w")}, {}, "sample has the dynamic shape ['batch', 3, 'h', 'w']; export it with fixed sizes"),
        ({"x": (1, 3, 16, 16)}, {}, "its sample has a fixed batch; export it"),
        ({"condition": ("batch", "tokens")}, {}, "cond has the dynamic shape"),
        ({"names": ("p", "q", "r", "s")}, {}, "none of its inputs p, q, r is called like x; name it: names={'x': ...}"),
        ({}, {"x": "nothing"}, "it has no input 'nothing'"),
        ({}, {"out": "nothing"}, "it gives no 'nothing'; name one of pred"),
        ({"kinds": (HALF, SINGLE, SINGLE)}, {}, "refuses it"),
        ({}, {"image": "cond"}, "names: 'image'; name x, time, condition or out"),
    ],
    ids=str,
)  # fmt: skip
def test_files_that_are_something_else_are_refused_in_one_line(how, names, words, tmp_path):
    with pytest.raises((BadRequest, BadArtefact)) as caught:
        open_onnx(onnx_file(tmp_path / "a.onnx", **how), names)
    assert words in str(caught.value)


def test_what_is_no_path_and_what_are_no_names(tmp_path):
    for path, names in ((5, None), (tmp_path / "a.onnx", "sample")):
        with pytest.raises(BadRequest, match="(path|names): a (int|str); give"):
            Expert.from_onnx(path, FLOW, names=names)


def test_a_file_that_is_none_or_is_not_there(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    for name, words in (("a.onnx", "file a.onnx: onnxruntime refuses it"), ("b.onnx", "there is no such file")):
        with pytest.raises(BadArtefact, match=words):
            open_onnx(tmp_path / name, {})
