import io
import json
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cdiff_rt.errors import BadInput
from cdiff_rt.outputs.formats import inputs_text, npz_bytes, parameters_text, png_bytes
from cdiff_rt.records.read import LARGEST, latent_of, read_record
from tests.bad_files import SIGNATURE, png_chunk
from tests.fuzz.targets import saved

PIXELS, LATENT = np.zeros((8, 8, 3), np.uint8), np.arange(6, dtype=np.float32).reshape(2, 3)
TOLD = {"solver": "ddim", "steps": 4, "eta": 1.0, "temperature": 1.0, "seed": 7, "first": 0, "batch": 1, "image": 0}
TOLD |= {"size": 8, "model": "faces-128", "model_hash": "0" * 64, "version": "0.1.0", "prompt": "Café — 日本 “x”"}
ARRAYS = {
    "mask": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "image": np.arange(36, dtype=np.uint8).reshape(3, 4, 3),
    "sketch": np.linspace(0, 1, 5),
    "odd": np.zeros((2, 2, 2), np.uint8),
    "empty": np.zeros((0, 2), np.uint8),
}


@pytest.mark.parametrize("write", [lambda texts: png_bytes(PIXELS, texts), lambda texts: npz_bytes(LATENT, texts)])
def test_what_was_told_and_given_is_read_back(write):
    record = read_record(write(parameters_text(TOLD) | inputs_text(ARRAYS)))
    assert record.parameters == TOLD and record.format == 1
    embedded = record.embedded()
    assert list(embedded) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert embedded[name].dtype == array.dtype
        np.testing.assert_array_equal(embedded[name], array)


def test_an_npz_is_the_same_at_any_time_and_numpy_reads_it(monkeypatch):
    texts = parameters_text(TOLD)
    first = npz_bytes(LATENT, texts)
    monkeypatch.setattr("time.localtime", lambda *now: (2031, 2, 3, 4, 5, 6, 0, 34, 0))
    assert npz_bytes(LATENT, texts) == first
    np.testing.assert_array_equal(latent_of(read_record(first)), LATENT)
    with np.load(io.BytesIO(first)) as arrays:
        assert json.loads(str(arrays["parameters"])) == TOLD
    older = io.BytesIO()
    np.savez(older, latent=LATENT, parameters=json.dumps(TOLD))
    assert read_record(older.getvalue()).parameters == TOLD


def png_with(*texts):
    header = b"\0\0\0\1\0\0\0\1\x08\0\0\0\0"
    chunks = [(b"IHDR", header), *texts, (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")]
    return SIGNATURE + b"".join(png_chunk(kind, data) for kind, data in chunks)


def zip_with(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(value):
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


JSON = {
    "no JSON": "{",
    "a list": "[]",
    "a key twice": '{"seed": 1, "seed": 2}',
    "deep": "[" * 100_000,
    "not finite": '{"eta": NaN}',
    "a long number": '{"seed": ' + "9" * 5000 + "}",
    "too long": json.dumps({"x": "y" * LARGEST}),
}
BOMB = zlib.compress(bytes(17 * 2**20))
FILES = {
    "nothing": b"",
    "no picture": b"words",
    "without texts": png_bytes(PIXELS, {}),
    "other texts": png_bytes(PIXELS, {"workflow": "{}"}),
    "a zTXt bomb": png_with((b"zTXt", b"cdiff_rt\0\0" + BOMB)),
    "an iTXt bomb": png_with((b"iTXt", b"cdiff_rt\0\1\0\0\0" + BOMB)),
    "cut": png_bytes(PIXELS, {"cdiff_rt": "{}"})[:-9],
    "no archive": b"PK\3\4" + bytes(50),
    "an archive of others": zip_with(latent=npy(LATENT)),
    "no text inside": zip_with(parameters=npy(LATENT)),
    "an object inside": zip_with(parameters=b"\x93NUMPY\1\0v\0" + b"{'descr': '|O', 'fortran_order': False, 'shape': ()}"),
    "a packed bomb": zip_with(parameters=bytes(2**26)),
    "numbers of another length": zip_with(parameters=npy("{}")[:-2]),
    "JPEG": saved(Image.fromarray(PIXELS), "JPEG"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_a_record_is_refused(name):
    with pytest.raises(BadInput, match=r"^pict.*; give"):
        read_record(FILES[name])


@pytest.mark.parametrize("name", JSON)
def test_a_record_that_is_none_is_refused(name):
    with pytest.raises(BadInput, match="damaged, or of another version"):
        read_record(png_bytes(PIXELS, {"cdiff_rt": JSON[name]}))


@pytest.mark.parametrize("inside", ['{"mask": 3}', '{"mask": "%"}', '{"mask": "eA=="}', '{"mask": ""}', "[]", "3"])
def test_inputs_that_are_none_are_refused(inside):
    record = read_record(png_bytes(PIXELS, {"cdiff_rt": json.dumps(TOLD), "cdiff_rt_inputs": inside}))
    with pytest.raises(BadInput, match=r"mask|no object"):
        record.embedded()


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "packed iTXt"])
def test_every_kind_of_text_is_read(kind):
    info, text = PngImagePlugin.PngInfo(), json.dumps(TOLD, ensure_ascii=kind in ("tEXt", "zTXt"))
    if "i" in kind:
        info.add_itxt("cdiff_rt", text, zip="packed" in kind)
    else:
        info.add_text("cdiff_rt", text, zip=kind == "zTXt")
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", pnginfo=info)
    assert read_record(file.getvalue()).parameters == TOLD


@pytest.mark.parametrize("lost", ["seed", "steps", "solver", "batch"])
def test_no_setting_is_guessed(lost):
    told = {name: value for name, value in TOLD.items() if name != lost}
    record = read_record(png_bytes(PIXELS, {"cdiff_rt": json.dumps(told)}))
    with pytest.raises(BadInput, match=f"does not tell {lost}"):
        record.settings()
