import hashlib
import pickle

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.images import name_of
from cdiff_rt.inputs.traces import loaded, named, trace_of

ARRAY = np.arange(6, dtype=np.int16).reshape(2, 3)


def sha(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"abc", {"bytes": 3, "sha256": sha(b"abc")}),
        (named(b"abc", "m.png"), {"file": "m.png", "bytes": 3, "sha256": sha(b"abc")}),
        (ARRAY, {"array": "int16 2x3", "sha256": sha(ARRAY.tobytes())}),
        (np.asfortranarray(ARRAY), {"array": "int16 2x3", "sha256": sha(ARRAY.tobytes())}),
        (Image.new("L", (3, 2), 7), {"image": "L 3x2", "sha256": sha(b"\7" * 6)}),
    ],
    ids=["bytes", "file", "array", "order", "image"],
)
def test_an_input_is_told_by_its_form_and_hash(given, expected):
    assert trace_of(given) == expected


def test_a_file_is_read_once_and_keeps_its_name(tmp_path):
    path = tmp_path / "m.png"
    path.write_bytes(b"abc")
    content = loaded(path, "mask")
    path.write_bytes(b"other")
    assert content == b"abc" and name_of(content) == "m.png" and name_of(b"abc") == "3 bytes"
    assert trace_of(content) == {"file": "m.png", "bytes": 3, "sha256": sha(b"abc")}
    assert name_of(pickle.loads(pickle.dumps(content))) == "m.png"
    with pytest.raises(BadInput, match="mask .*nowhere"):
        loaded(tmp_path / "nowhere", "mask")
