"""Checkpoints as torch.save writes them, made opcode by opcode, so that they can be wrong or do harm."""

import pickle
import zipfile

import pytest

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.tensors import open_tensors


def zipped(path, pickled, keys="0", order=b"little", data=b"\0" * 8, compression=zipfile.ZIP_STORED, replaced=()):
    """Writes a checkpoint in torch's zip format, with storages of 8 bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {"data.pkl": pickled, "byteorder": order, "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", content)
        for key in keys:
            archive.writestr(f"archive/data/{key}", data)
    for old, new in replaced:
        path.write_bytes(path.read_bytes().replace(old, new))


def value(thing):
    return pickle.dumps(thing, 2)[2:-1]


def named(place, name):
    return f"c{place}\n{name}\n".encode()


def call(place, name, *args):
    return named(place, name) + value(args) + b"R"


def storage(kind, key="0", elements=2):
    return b"(" + value("storage") + kind + value(key) + value("cpu") + value(elements) + b"tQ"


FLOATS = named("torch", "FloatStorage")
STORED = storage(FLOATS)


def tensor(offset=0, size=(2,), stride=(1,), stored=STORED):
    rest = b"".join(map(value, (offset, size, stride, False))) + named("collections", "OrderedDict") + b")R"
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + stored + rest + b"tR"


def bare(fragment, name="w"):
    return b"\x80\x02}" + value(name) + fragment + b"s."


def beside(fragment, key="callbacks"):
    """A pickle of a state dict with a good tensor, and of `fragment` as another entry of the file."""
    return b"\x80\x02}(" + value("state_dict") + b"}" + value("w") + tensor() + b"s" + value(key) + fragment + b"u."


def within(fragment):
    """A pickle of a state dict with a good tensor and `fragment`."""
    return bare(b"}(" + value("w") + tensor() + value("x") + fragment + b"u", "state_dict")


def running(marker):
    """Fragments of pickles that make the file `marker` when they are unpickled the usual way."""
    shell, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    system, run = named("os", "system"), value((shell,)) + b"R"
    imported = call("builtins", "__import__", "os")
    return {
        "REDUCE": system + run,
        "posix": call("posix", "system", shell),
        "INST": b"(" + value(shell) + b"ios\nsystem\n",
        "OBJ": b"(" + system + value(shell) + b"o",
        "STACK_GLOBAL": value("os") + value("system") + b"\x93" + run,
        "dotted": value("os") + value("path.os.system") + b"\x93" + run,
        "dotted in a known module": value("collections") + value("_sys.modules") + b"\x930" + system + run,
        "BUILD": named("types", "SimpleNamespace")
        + b")R}"
        + value("__setstate__")
        + system
        + b"sb"
        + value(shell)
        + b"b",
        "getattr": named("builtins", "getattr") + b"(" + imported + value("system") + b"tR" + run,
        "in a list": b"]" + system + run + b"a",
        "as a key": b"}" + system + run + b"Ns",
        "exec": call("builtins", "exec", code),
        "eval": call("builtins", "eval", code),
        "runpy": call("runpy", "_run_code", code, {}),
        "cProfile": call("cProfile", "run", code),
        "subprocess": call("subprocess", "call", ["touch", str(marker)]),
    }


def refused(path):
    """The error's text after trying to read all of a file."""
    with pytest.raises(BadArtefact) as caught:
        dict(open_tensors(path))
    text = str(caught.value)
    assert "\n" not in text
    assert "weights_only" not in text
    assert path.name in text
    return text
