"""Hostile checkpoints. `tests/pickles.py` makes them; the child that reads them is reached through `open_tensors`."""

import pickle
import re
import struct
import sys
from contextlib import suppress

import pytest

from cdiff_rt.export import tensors as module
from cdiff_rt.export.tensors import open_tensors
from tests.pickles import FLOATS, bare, beside, call, named, refused, running, storage, tensor, value, within, zipped

# Refused for the name alone.
NAMED = [
    *("subprocess.Popen", "subprocess.getoutput", "nt.system", "pty.spawn", "importlib.import_module", "pickle.loads"),
    *("ctypes.CDLL", "functools.partial", "_io.open", "operator.attrgetter", "copyreg.add_extension", "sys.settrace"),
    *("collections.namedtuple", "typing.get_type_hints", "pathlib.os", "__builtin__.execfile", "builtins.type"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "torch.storage._load_from_bytes", "torch.serialization.load"),
    *("numpy.load", "numpy.testing._private.utils.runstring", "numpy.f2py.crackfortran.myeval", "omegaconf2.x"),
    *("__main__.main", "pip.main", "torch.optimus.x", "torch._utils._rebuild_sparse_tensor"),
]
REBUILD = named("torch._utils", "_rebuild_tensor_v2")
TRAPS = {
    "persistent id of code": (storage(named("os", "system")), "would run os.system"),
    "persistent id of an inert class": (storage(named("ldm", "x")), "described wrongly"),
    "persistent id without a key": (storage(FLOATS, key=None), "described wrongly"),
    "persistent id that is a string": (b"Pos.system\n", "no storage"),
    "persistent id of a module": (value(("module", "os", "x.py", "import os")) + b"Q", "no storage"),
    "another storage of that key": (storage(FLOATS, elements=3), "described twice"),
    "NEWOBJ": (named("subprocess", "Popen") + value(("touch x",)) + b"\x81", "would run subprocess.Popen"),
    "dotted in a known package": (value("ldm") + value("os.system") + b"\x93", "unknown type ldm.os.system"),
    "attributes of a class": (REBUILD + b"N}" + value("size") + b"]s\x86b", "damaged"),
    "extension": (b"\x82\x01", "damaged"),
    "memory by a high memo index": (b"Nr\xff\xff\xff\x07", "takes more than 1024 MiB"),
    "memory by a length": (b"\x8e" + struct.pack("<Q", 1 << 40), "takes more than 1024 MiB"),
    "negative length": (b"\x8b\xff\xff\xff\xff", "damaged"),
    "huge decimal": (b"I" + b"9" * 5000 + b"\n", "damaged"),
    "deep nesting as a key": (b"})" + b"\x85" * 1_000_000 + b"Ns", "ended by SIGSEGV"),
    "unknown type": (named("my.models", "Net") + b")\x81", "unknown type my.models.Net"),
    "unknown type over two lines": (value("my") + value("a\nb") + b"\x93", r"unknown type my.a\nb"),
}


@pytest.mark.parametrize("name", running(""))
@pytest.mark.parametrize("place", [beside, within])
def test_nothing_of_a_file_is_run(tmp_path, name, place):
    path, marker = tmp_path / "model.pt", tmp_path / "marker"
    zipped(path, place(running(marker)[name]))
    assert re.search(r"would run (\w+\.)+\w+; nothing of it was run", refused(path))
    assert not marker.exists()


@pytest.mark.parametrize("name", running(""))
def test_which_the_usual_way_runs(tmp_path, name):
    marker = tmp_path / "marker"
    with suppress(Exception):
        pickle.loads(b"\x80\x04" + running(marker)[name] + b".")
    assert marker.exists()


@pytest.mark.parametrize("protected", [True, False])
def test_what_came_through_would_still_be_stopped(tmp_path, monkeypatch, protected):
    path, marker, child = tmp_path / "model.pt", tmp_path / "marker", tmp_path / "child.py"
    hole = "        if name == 'system': return os.system\n"
    source = module._CHILD.read_text().replace("        whole = ", f"{hole}        whole = ")
    child.write_text(source if protected else source.replace("            sys.addaudithook", "            # "))
    monkeypatch.setattr(module, "_CHILD", child)
    zipped(path, beside(running(marker)["REDUCE"]))
    if protected:
        assert "would run os.system" in refused(path)
    else:
        open_tensors(path)
    assert marker.exists() != protected


@pytest.mark.parametrize("name", NAMED)
def test_what_weights_do_not_need_is_refused_by_name(tmp_path, name):
    zipped(tmp_path / "model.pt", beside(named(*name.rsplit(".", 1)), "hyper_parameters"))
    assert f" {name}; nothing of it was run" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize(("fragment", "words"), TRAPS.values(), ids=TRAPS)
def test_traps_are_refused(tmp_path, fragment, words):
    zipped(tmp_path / "model.pt", beside(fragment))
    assert words in refused(tmp_path / "model.pt")


def test_a_legacy_file_runs_nothing_either(tmp_path):
    path, marker = tmp_path / "model.pt", tmp_path / "marker"
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {})]
    for count in range(5):
        path.write_bytes(b"".join(parts[:count]) + b"\x80\x02" + running(marker)["REDUCE"] + b".")
        assert "would run os.system" in refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("fragment", [b"N", named("omegaconf", "X") + b")\x81}b", call("torch.optim.adam", "Adam", 1)])
def test_but_what_does_no_harm_is_ignored(tmp_path, fragment):
    for place in (beside, within):
        zipped(tmp_path / "model.pt", place(fragment))
        assert [(name, weight.tolist()) for name, weight in open_tensors(tmp_path / "model.pt").items()] == [
            ("w", [0, 0])
        ]


def test_attributes_given_to_the_state_dict_are_ignored(tmp_path):
    filled = named("collections", "OrderedDict") + b")R(" + value("w") + tensor() + b"u"
    zipped(tmp_path / "model.pt", bare(filled + b"}" + value("items") + named("ldm", "x") + b"sb", "state_dict"))
    assert list(open_tensors(tmp_path / "model.pt")) == ["w"]


def test_a_file_that_takes_forever_is_given_up(tmp_path, monkeypatch):
    collisions = [(n * sys.hash_info.modulus).to_bytes(10, "little") for n in range(40_000)]  # they share one hash
    zipped(tmp_path / "model.pt", beside(b"}(" + b"".join(b"\x8a\x0a" + key + b"N" for key in collisions) + b"u"))
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    assert "after 0.5 seconds without an answer" in refused(tmp_path / "model.pt")


def test_a_table_without_end_is_not_read(tmp_path, monkeypatch):
    zipped(tmp_path / "model.pt", beside(b"N"))
    monkeypatch.setattr(module, "_LARGEST_TABLE", 100)
    assert "too long" in refused(tmp_path / "model.pt")
