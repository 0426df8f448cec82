"""Hostile and unusual checkpoints. `tests/pickles.py` makes what no torch.save would write."""

import argparse
import collections
import datetime
import decimal
import enum
import functools
import pathlib
import pickle
import re
import sys
import types
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export import safe_loader, unpickled
from cdiff_rt.export.safe_loader import Inert, NoPlainTensor, content
from cdiff_rt.export.tensors import open_tensors
from tests.pickles import (
    FLOATS,
    STORED,
    bare,
    beside,
    call,
    named,
    refused,
    running,
    storage,
    tensor,
    value,
    within,
    zipped,
)

# Refused for the name alone.
NAMED = [
    *("subprocess.Popen", "subprocess.getoutput", "nt.system", "pty.spawn", "importlib.import_module", "pickle.loads"),
    *("ctypes.CDLL", "_io.open", "operator.attrgetter", "copyreg.add_extension", "sys.settrace", "posix.system"),
    *("collections.namedtuple", "typing.get_type_hints", "pathlib.os", "__builtin__.execfile", "types.FunctionType"),
    *("builtins.eval", "__builtin__.open", "shutil.rmtree", "socket.socket", "runpy.run_path", "code.interact"),
    *("webbrowser.open", "functools.reduce", "pathlib.os.system", "collections._sys.modules"),
]
# Of no library that is imported here: the name means nothing.
STRANGE = [
    *("torch.load", "torch.hub.load", "torch.jit.load", "torch.storage._load_from_bytes", "torch.serialization.load"),
    *("numpy.load", "numpy.testing._private.utils.runstring", "numpy.f2py.crackfortran.myeval", "omegaconf2.x"),
    *("__main__.main", "pip.main", "torch.optimus.x", "torch.nested._internal.nested_tensor.NestedTensor"),
]
REBUILD = named("torch._utils", "_rebuild_tensor_v2")
BEYOND = "nothing that torch.save writes"
TRAPS = {
    "persistent id of code": (storage(named("os", "system")), "would run os.system"),
    "NEWOBJ": (named("subprocess", "Popen") + value(("touch x",)) + b"\x81", "would run subprocess.Popen"),
    "NEWOBJ_EX": (named("subprocess", "Popen") + b")}\x92", "would run subprocess.Popen"),
    "extension": (b"\x82\x01", BEYOND),
    "length beyond the end": (b"X\xff\xff\xff\xff", BEYOND),
    "longer than an address": (b"\x8d" + b"\xff" * 8, BEYOND),
    "negative length": (b"\x8b\xff\xff\xff\xff", BEYOND),
    "huge decimal": (b"I" + b"9" * 5000 + b"\n", BEYOND),
    "name of a number": (value(1) + value("system") + b"\x93", BEYOND),
    "memo of nothing": (b"j\xff\xff\xff\x7f", BEYOND),
    "below a mark": (b"N(\x85", BEYOND),
    "no mark": (b"t", BEYOND),
    "an old way to make objects": (b"(ildm\nx\n", "Unsupported operand"),
    "out of band": (b"\x97", BEYOND),
    "persistent id without a key": (storage(FLOATS, key=None), BEYOND),
    "persistent id of a module": (value(("module", "os", "x.py", "import os")) + b"Q", BEYOND),
    "attributes of a function": (REBUILD + b"N}" + value("size") + b"]s\x86b", BEYOND),
    "attributes of a class": (named("ldm", "x") + b"N}" + value("__call__") + b"]s\x86b", BEYOND),
    "an inert object is called": (call("ldm", "x") + value((1,)) + b"R", BEYOND),
    "a subclass of list is filled": (call("my", "List") + b"(K\1K\2e", BEYOND),
    "a great many calls": (named("a", "b") + b")R" * 150_000, BEYOND),
    "doubled again and again": (b"N" + b"2\x86" * 50_000, BEYOND),
}
# What other readers stumble over, or take memory for. It is data beside the weights here.
ODD = {
    "persistent id of an inert class": storage(named("ldm", "x")),
    "persistent id that is a string": b"Pos.system\n",
    "dotted in a known package": value("ldm") + value("os.system") + b"\x93",
    "a set in a way of later protocols": b"\x8f(K\1\x90",
    "memory by a length": call("builtins", "bytearray", 1 << 45),
    "memory by a tensor": call("torch", "Tensor", 1 << 45),
    "memory by a storage": call("torch.storage", "UntypedStorage", 1 << 45),
    "a name in several lines": value("torch") + value("x\ncos\nsystem\n") + b"\x93",
    "a part of torch that is imported when named": named("torch", "_inductor"),
    "memory by a number": b"K\1r\xff\xff\xff\x7f",
    "a great many tuples": b")" + b"\x85" * 300_000,
    "a great many tuples as a key": b"})" + b"\x85" * 300_000 + b"Ns",
    "a great many lists": b"]" * 150_000 + b"a" * 149_999,
    "in itself": b"]q\x63h\x63a",
}

DEEP = b")" + b"\x85" * 150_000
# Where the depth of tuples would overflow the stack if somebody looked into them.
DEEP_IN = {
    "key": b"}" + DEEP + b"Ns",
    "keys": b"}(" + DEEP + b"N" + DEEP + b"Nu",
    "pairs": named("collections", "OrderedDict") + b"](](" + DEEP + b"Neea\x85R",
    "set": named("builtins", "set") + b"]" + DEEP + b"a\x85R",
    "set of protocol 4": b"\x8f(" + DEEP + b"\x90",
    "frozen set as a key": b"}(" + DEEP + b"\x91Ns",
    "shape": tensor(size=0).replace(value(0) + value((1,)), DEEP + value((1,))),
    "stride": REBUILD + b"(" + STORED + value(0) + value((2,)) + DEEP + b"\x89NtR",
    "flag": REBUILD + b"(" + STORED + value(0) + value((2,)) + value((1,)) + DEEP + b"NtR",
    "persistent id": DEEP + b"Q",
    "within a persistent id": b"(" + DEEP + b"tQ",
    "key of a storage": b"(" + value("storage") + FLOATS + DEEP + value("cpu") + value(2) + b"tQ",
    "elements": b"(" + value("storage") + FLOATS + value("0") + value("cpu") + DEEP + b"tQ",
    "called": DEEP + b")R",
    "arguments": named("builtins", "complex") + DEEP + b"R",
    "state": named("a", "b") + b")\x81" + DEEP + b"b",
    "state of a dict": named("collections", "OrderedDict") + b")R" + DEEP + b"b",
    "list": b"]" + DEEP + b"a",
    "filled": DEEP + value(1) + value(2) + b"s",
}


class Colour(enum.Enum):
    RED = 1


class Attributes(dict):
    """As Lightning's, which has attributes, too."""


class Slotted:
    __slots__ = ("a",)


class WithState:
    def __getstate__(self):
        return 1, [2]

    def __setstate__(self, _):
        raise AssertionError("it is run")


def filled(thing, **attributes):
    for name, given in attributes.items():
        setattr(thing, name, given)
    return thing


# What users' settings hold. None of it is made.
HARMLESS = {
    "path": Path("/x"),
    "class of paths": pathlib.PureWindowsPath("C:/x"),
    "partial": functools.partial(int, base=2),
    "partial of theirs": functools.partial(filled, a=1),
    "timezone": datetime.UTC,
    "time": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
    "uuid": uuid.UUID(int=1),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1, 2, 3], 4),
    "Counter": collections.Counter("aab"),
    "OrderedDict": collections.OrderedDict(a=1),
    "Namespace": argparse.Namespace(a=1, b=Path("x")),
    "SimpleNamespace": types.SimpleNamespace(a=1),
    "decimal": decimal.Decimal("1.5"),
    "pattern": re.compile("a+"),
    "enum": Colour.RED,
    "class": Colour,
    "dict with attributes": filled(Attributes(a=1, b={2: 3}), more=[1]),
    "slots": filled(Slotted(), a=1),
    "state": WithState(),
    "numpy scalar": np.float32(2),
    "numpy array": np.arange(3),
    "numpy strings": np.array(["a", "b"]),
    "numpy dtype": np.dtype("float64"),
    "sets and ranges": [{1, 2}, frozenset([3]), range(4), slice(1, 2), b"\xff", bytearray(b"x"), 1j, 1 << 80],
    "of torch": [torch.device("cuda"), torch.float16, torch.Size([1]), torch.zeros(2).to_sparse()],
    "module": torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()),
    "optimizer": torch.optim.Adam([torch.zeros(1)]).state_dict(),
}
DATA = {list, tuple, str, int, float, bool, type(None), Inert, NoPlainTensor, type(Inert), torch.Tensor, torch.dtype}
DATA |= {torch.serialization.StorageType, torch.TypedStorage, type(lambda: 0)}


@pytest.fixture
def made(monkeypatch):
    """What pickles were read as."""
    read = []

    def recorded(file):
        found = content(file)
        read.append(found[0])
        return found

    monkeypatch.setattr(unpickled, "content", recorded)
    return read


def parts(thing):
    yield thing
    if isinstance(thing, dict):
        thing = list(dict.items(thing))
    if isinstance(thing, list | tuple):
        for part in thing:
            yield from parts(part)


def assert_inert(read):
    assert {type(part) for part in parts(read)} <= DATA


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("harmless", HARMLESS.values(), ids=HARMLESS)
def test_what_does_no_harm_is_accepted_and_not_made(tmp_path, made, harmless, new):
    path, weights = tmp_path / "model.pt", {"w": torch.arange(3.0)}
    content = {"state_dict": weights | {"x": harmless}, "hyper_parameters": {"a": [harmless], "b": harmless}}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    if not new and isinstance(harmless, torch.nn.Module):  # which has its source code there
        assert BEYOND in refused(path)
        return
    assert open_tensors(path)["w"].tolist() == [0, 1, 2]
    assert made
    assert_inert(made)


@pytest.mark.parametrize(
    "fragment",
    [
        call("pathlib", "WindowsPath", "C:\\", "x"),
        call("pathlib._local", "PosixPath", "x"),
        named("builtins", "getattr") + b"(" + named("theirs", "Colour") + value("RED") + b"tR",
    ],
    ids=["path of Windows", "path of Python 3.13", "enum by name"],
)
def test_so_is_what_another_system_writes(tmp_path, made, fragment):
    zipped(tmp_path / "model.pt", beside(fragment))
    assert list(open_tensors(tmp_path / "model.pt")) == ["w"]
    assert_inert(made)


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_of_another_library_means_nothing(tmp_path, made, name):
    before = set(sys.modules)
    for place in (beside, within):
        zipped(tmp_path / "model.pt", place(call(*name.rsplit(".", 1), "x") + b"}b"))
        assert list(open_tensors(tmp_path / "model.pt")) == ["w"]
    assert set(sys.modules) == before
    assert_inert(made)


def legacy(path, pickled):
    """Writes what torch.save wrote before it wrote zip files, with a storage of 8 bytes."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    begin, end = b"".join(pickle.dumps(part, 2) for part in parts), pickle.dumps(["0"], 2)
    pickled = pickled.replace(STORED, STORED.removesuffix(b"tQ") + b"NtQ")  # it is no view of another
    path.write_bytes(begin + pickled + end + (2).to_bytes(8, "little") + b"\0" * 8)


@pytest.mark.parametrize("written", [zipped, legacy])
@pytest.mark.parametrize("name", running(""))
@pytest.mark.parametrize("place", [beside, within])
def test_nothing_of_a_file_is_run(tmp_path, name, place, written):
    path, marker = tmp_path / "model.pt", tmp_path / "marker"
    written(path, place(running(marker)[name]))
    assert "would run" in refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", running(""))
def test_which_the_usual_way_runs(tmp_path, name):
    marker = tmp_path / "marker"
    with suppress(Exception):
        pickle.loads(b"\x80\x04" + running(marker)[name] + b".")
    assert marker.exists()


class Everything:
    def __contains__(self, _):
        return True


@pytest.mark.parametrize("written", [zipped, legacy])
@pytest.mark.parametrize("name", running(""))
def test_what_is_not_refused_by_its_name_is_not_run_either(tmp_path, monkeypatch, made, name, written):
    path, marker = tmp_path / "model.pt", tmp_path / "marker"
    monkeypatch.setattr(safe_loader, "HARMLESS", Everything())
    written(path, beside(running(marker)[name]))
    with suppress(BadArtefact):
        open_tensors(path)
    assert not marker.exists()
    assert_inert(made)


@pytest.mark.parametrize("name", NAMED)
def test_what_weights_do_not_need_is_refused_by_name(tmp_path, name):
    found = f" {name.replace('__builtin__', 'builtins')}; nothing of it was run"
    for written in (zipped, legacy):
        written(tmp_path / "model.pt", beside(named(*name.rsplit(".", 1)), "hyper_parameters"))
        assert found in refused(tmp_path / "model.pt")


@pytest.mark.parametrize(("fragment", "words"), TRAPS.values(), ids=TRAPS)
def test_traps_are_refused(tmp_path, fragment, words):
    zipped(tmp_path / "model.pt", beside(fragment))
    assert words in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("fragment", ODD.values(), ids=ODD)
def test_odd_things_beside_the_weights_do_no_harm(tmp_path, fragment):
    zipped(tmp_path / "model.pt", beside(fragment))
    assert open_tensors(tmp_path / "model.pt")["w"].tolist() == [0, 0]


@pytest.mark.parametrize("fragment", DEEP_IN.values(), ids=DEEP_IN)
def test_tuples_in_one_another_end_no_process(tmp_path, fragment):
    """That this very process goes on is what is tested: an overflow of the stack would end it."""
    zipped(tmp_path / "model.pt", beside(fragment))
    with suppress(BadArtefact):
        assert open_tensors(tmp_path / "model.pt")["w"].tolist() == [0, 0]


def test_a_legacy_file_runs_nothing_in_any_of_its_pickles(tmp_path):
    path, marker = tmp_path / "model.pt", tmp_path / "marker"
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {})]
    for count in range(5):
        whole = [*parts, pickle.dumps([], 2)]
        whole[count] = b"\x80\x02" + running(marker)["REDUCE"] + b"."
        path.write_bytes(b"".join(whole))
        assert "would run os.system" in refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("fragment", [b"N", named("omegaconf", "X") + b")\x81}b", call("torch.optim.adam", "Adam", 1)])
def test_but_what_does_no_harm_is_ignored(tmp_path, fragment):
    for written in (zipped, legacy):
        for place in (beside, within):
            written(tmp_path / "model.pt", place(fragment))
            assert [(name, weight.tolist()) for name, weight in open_tensors(tmp_path / "model.pt").items()] == [
                ("w", [0, 0])
            ]


@pytest.mark.parametrize("name", ["items", "values", "get", "keys"])
def test_attributes_given_to_the_state_dict_are_ignored(tmp_path, name):
    attributes = b"}" + value(name) + named("ldm", "x") + b"sb"
    filled = named("collections", "OrderedDict") + b")R(" + value("w") + tensor() + b"u"
    for whole in (bare(filled + attributes, "state_dict"), b"\x80\x02" + filled + attributes + b"."):
        zipped(tmp_path / "model.pt", whole)
        assert list(open_tensors(tmp_path / "model.pt")) == ["w"]


@pytest.mark.parametrize("pairs", [b"](](U\1w%see\x85R.", b"]]q\1(U\1w%sea\x85q\2Rq\3."])
def test_a_state_dict_of_python_2_is_read(tmp_path, pairs):
    zipped(tmp_path / "model.pt", b"\x80\2" + named("collections", "OrderedDict") + pairs % tensor())
    assert open_tensors(tmp_path / "model.pt")["w"].tolist() == [0, 0]


def test_attributes_given_to_a_tensor_are_ignored(tmp_path):
    attributes = b"}(" + b"".join(value(name) + named("ldm", "x") for name in ("detach", "clone", "resolve_neg")) + b"u"
    arguments = b"(" + tensor().removeprefix(REBUILD).removeprefix(b"(").removesuffix(b"R")
    made = b"(" + REBUILD + named("torch", "Tensor") + arguments + attributes + b"t"
    zipped(tmp_path / "model.pt", bare(named("torch._tensor", "_rebuild_from_type_v2") + made + b"R"))
    assert open_tensors(tmp_path / "model.pt")["w"].tolist() == [0, 0]


def test_keys_of_storages_that_are_no_text_are_not_hashed(tmp_path):
    """To hash many tuples in one another would end the process."""
    legacy(tmp_path / "model.pt", beside(b"N"))
    whole, keys = (tmp_path / "model.pt").read_bytes(), pickle.dumps(["0"], 2)
    deep = b"\x80\2](" + b")" + b"\x85" * 300_000 + value("0") + b"e."
    (tmp_path / "model.pt").write_bytes(whole.replace(keys, deep))
    assert open_tensors(tmp_path / "model.pt")["w"].tolist() == [0, 0]


@pytest.mark.parametrize("elements", [1, 3, 4])
def test_a_storage_of_another_size_than_its_record_is_refused(tmp_path, elements):
    """torch itself would read on in the next record."""
    forged = tensor(stored=storage(FLOATS, elements=elements), size=(elements,))
    zipped(tmp_path / "a.ckpt", bare(forged), keys="01")
    with pytest.raises(BadArtefact, match="the data of w have another length"):
        open_tensors(tmp_path / "a.ckpt")
