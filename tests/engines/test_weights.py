import json

import numpy as np
import pytest

from cdiff_rt.engines.weights import fp32, places


def file_of(entries, data=bytes(64)):
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype="F16", shape=(2, 3), offsets=(4, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(("code", "kind"), [("F16", np.float16), ("F32", np.float32)])
def test_a_tensor_is_a_copy_in_fp32(code, kind):
    values = np.arange(6, dtype=kind).reshape(2, 3)
    offsets = 4, 4 + values.nbytes
    content = file_of({"a": entry(code, offsets=offsets), "__metadata__": {}}, bytes(4) + values.tobytes())
    read = fp32(content, places(content)["a"])
    np.testing.assert_array_equal(read, values)
    assert read.dtype == np.float32 and read.flags.writeable


@pytest.mark.parametrize(
    "entries",
    [
        *(b"", b"[]", b"{", b"null", b"[" * 100_000, b'{"a": 1}', b'{"a": {"dtype": "F16"}}', b"\xff\xff"),
        *(
            {"a": entry(**odd)}
            for odd in ({"dtype": "F8"}, {"shape": (2, 4)}, {"shape": (-2, -3)}, {"shape": (2.0, 3)})
        ),
        *({"a": entry(offsets=odd)} for odd in ((-4, 8), (60, 72), (16, 4), (4, 2**70), (4,), ("4", "16"))),
        {"a": entry(shape=(2**40, 2**40), offsets=(0, 2**81))},
    ],
    ids=lambda entries: repr(entries)[:50],
)
def test_a_header_that_does_not_fit_its_file_is_refused(entries):
    with pytest.raises(ValueError, match="the weights"):
        places(file_of(entries))


def test_a_type_that_no_bundle_has_is_refused():
    content = file_of({"a": entry("BF16")})
    with pytest.raises(ValueError, match="of type BF16"):
        fp32(content, places(content)["a"])
