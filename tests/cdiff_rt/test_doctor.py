from importlib import metadata

import pytest

from cdiff_rt import doctor
from cdiff_rt.engines.backends import BACKENDS, Backend
from cdiff_rt.version import __version__


def test_it_tells_the_versions_and_that_the_embedded_model_works():
    rows, healthy = doctor.examine()
    assert healthy and rows[0].startswith(f"cdiff-rt {__version__}, Python ")
    assert [row.split() for row in rows if "numpy" in row] == [["library", "numpy", metadata.version("numpy")]]
    assert ["model", "faces-128", "intact"] in [row.split() for row in rows]
    assert ["backend", "onnxruntime", "works"] in [row.split() for row in rows]


def test_a_missing_library_is_named_and_nothing_works_without_any(monkeypatch):
    for name in BACKENDS:
        monkeypatch.setitem(BACKENDS, name, Backend("no_such_module:load", ("no_such_library",), "cpu"))
    rows, healthy = doctor.examine()
    assert not healthy
    assert [row.split(None, 2)[2] for row in rows if row.startswith("backend")] == [
        "no_such_library not installed: `pip install '.[cpu]'` in the checkout"
    ] * len(BACKENDS)


@pytest.mark.parametrize(
    ("file", "words"), [("vocab.txt", "vocab.txt was altered"), ("manifest.json", "not valid JSON")]
)
def test_an_altered_model_is_told_and_not_tried(file, words, bundle_copy, monkeypatch):
    bundle_copy.rename(bundle_copy.with_name("faces-128"))
    monkeypatch.setattr(doctor, "MODELS", bundle_copy.parent)
    (bundle_copy.with_name("faces-128") / file).write_text("x")
    rows, healthy = doctor.examine()
    assert not healthy
    assert [row for row in rows if row.startswith("model") and words in row]
    assert [row for row in rows if row.startswith("backend") and "no intact model" in row]
