import argparse
import collections
import hashlib
import os
import pickle
import random
import re
import struct
import sys
import types
import weakref
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.tensors import open_tensors, write_tensors
from tests.export.flips import FORMS, outcomes, specs_of, weights
from tests.pickles import FLOATS, bare, beside, refused, storage, tensor, value, zipped

FOREIGN = {"pytorch_lightning.callbacks.model_checkpoint": "ModelCheckpoint", "omegaconf.dictconfig": "DictConfig"}


@pytest.fixture
def foreign(monkeypatch):
    """Classes of libraries that exist while the test runs."""
    classes = []
    for place, name in FOREIGN.items():
        parts = place.split(".")
        for whole in (".".join(parts[: end + 1]) for end in range(len(parts))):
            monkeypatch.setitem(sys.modules, whole, types.ModuleType(whole))
        classes.append(type(name, (), {"__module__": place}))
        setattr(sys.modules[place], name, classes[-1])
    return classes


def lightning(callback, config):
    """Like a file of PyTorch-Lightning 1.4.2, with what its users put in."""
    settings = config()
    settings.__dict__.update(lr=np.float64(1e-4), kind=dict, parts=collections.defaultdict(list, a=[1]))
    callbacks = {callback: {"best": torch.tensor(0.5), "path": Path("/x"), "score": np.float32(2), "c": callback()}}
    return {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": collections.OrderedDict(weights()),
        "callbacks": callbacks,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.randn(3)}}, "param_groups": [{"betas": (0.9, 0.99)}]}],
        "lr_schedulers": [{"last": np.arange(3), "seen": {1, 2}, "raw": b"\xff"}],
        "hyper_parameters": {"config": settings, "args": argparse.Namespace(a=1), "dtype": torch.float32},
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, weight in expected.items():
        assert found.shapes[name] == tuple(weight.shape)
        assert f"torch.{found.dtypes[name]}" == str(weight.dtype) == str(found[name].dtype)
        assert found[name].is_contiguous()
        assert torch.equal(found[name], weight)


@pytest.mark.parametrize("new", [True, False])
def test_a_lightning_file_gives_its_state_dict_and_imports_nothing(foreign, monkeypatch, tmp_path, new):
    path = tmp_path / "model.ckpt"
    torch.save(lightning(*foreign), path, _use_new_zipfile_serialization=new)
    for name in list(sys.modules):
        if name.split(".")[0] in ("pytorch_lightning", "omegaconf"):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert_same(open_tensors(path), weights())


@pytest.mark.parametrize("new", [True, False])
def test_a_bare_state_dict_reads_as_torch_reads_it(tmp_path, new):
    path = tmp_path / "model.ckpt"
    torch.save(weights(), path, _use_new_zipfile_serialization=new)
    assert_same(open_tensors(path), torch.load(path, weights_only=True))
    path = path.rename(path.with_suffix(".safetensors"))  # names don't matter
    assert_same(open_tensors(path), weights())


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("new", [True, False])
def test_every_protocol_of_pickle_is_read(tmp_path, new, protocol):
    path = tmp_path / "model.pt"
    torch.save({"state_dict": weights()}, path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    assert_same(open_tensors(path), weights())


def test_numbers_of_a_big_endian_machine_come_right(tmp_path):
    zipped(tmp_path / "model.pt", beside(b"N"), order=b"big", data=struct.pack(">ff", 1, 2))
    assert open_tensors(tmp_path / "model.pt")["w"].tolist() == [1, 2]


def test_negated_views_come_right(tmp_path):
    torch.save({"w": torch._neg_view(torch.arange(3.0))}, tmp_path / "model.pt")
    write_tensors(tmp_path / "out", {"w": ("float32", (3,))}, open_tensors(tmp_path / "model.pt").items(), {})
    assert load_file(tmp_path / "out")["w"].tolist() == [0, -1, -2]


def test_a_module_s_state_dict_has_metadata_that_are_ignored(tmp_path):
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    torch.save(state, tmp_path / "model.pt")
    assert_same(open_tensors(tmp_path / "model.pt"), state)


def test_safetensors_read_alike(tmp_path):
    expected = {name: weight.detach().clone().contiguous() for name, weight in weights().items()}
    save_file(expected, tmp_path / "model.ckpt")
    found = open_tensors(tmp_path / "model.ckpt")
    assert_same(found, {name: expected[name] for name in found})
    assert found.shapes.keys() == expected.keys()


@pytest.mark.parametrize("new", [True, False])
def test_every_reading_gives_a_tensor_of_its_own(tmp_path, new):
    path = tmp_path / "model.pt"
    torch.save(weights(), path, _use_new_zipfile_serialization=new)
    whole, found = path.read_bytes(), open_tensors(path)
    for name, weight in weights().items():
        found[name].zero_()
        assert torch.equal(found[name], weight) and not found[name].requires_grad
    assert path.read_bytes() == whole
    assert "single" in found and "other" not in found and len(found) == len(weights())
    with pytest.raises(KeyError):
        found["other"]


def own_memory():
    """Bytes that no file backs."""
    (line,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tensors_are_read_when_asked_for_and_not_kept(tmp_path):
    size, count = 8 << 20, 16
    torch.save({str(i): torch.full((size // 4,), float(i)) for i in range(count)}, tmp_path / "model.pt")
    before = own_memory()
    found = open_tensors(tmp_path / "model.pt")
    used = [own_memory()] + [own_memory() for weight in found.values() if weight[-1] >= 0]
    assert len(used) == count + 1
    assert max(used) - before < size * count / 2


def test_written_tensors_come_back_in_the_order_of_the_specs(tmp_path):
    path = tmp_path / "out.safetensors"
    write_tensors(path, specs_of(weights()), weights().items(), {"who": "ä"})
    again = load_file(path)
    assert again.keys() == weights().keys()
    assert open_tensors(path).metadata == {"who": "ä"}
    assert all(torch.equal(again[name], weight) for name, weight in weights().items())
    header = path.read_bytes()[8:]
    assert sorted(weights(), key=lambda name: header.index(f'"{name}"'.encode())) == list(weights())


@pytest.mark.parametrize("metadata", [{}, {"key": 'va"l\n'}])
def test_a_written_file_is_the_library_s_byte_for_byte(tmp_path, metadata):
    tensors = {"a.b": torch.randn(3, 5), "a.c": torch.randn(2), "z": torch.randn(3).half()}
    save_file(tensors, tmp_path / "theirs", metadata=metadata or None)
    write_tensors(tmp_path / "ours", specs_of(tensors), tensors.items(), metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_one_tensor_is_held_while_writing(tmp_path):
    def made():
        last = lambda: None
        for name in "abc":
            assert last() is None
            weight = torch.randn(4)
            last = weakref.ref(weight)
            yield name, weight
            del weight

    write_tensors(tmp_path / "out", dict.fromkeys("abc", ("float32", (4,))), made(), {})


@pytest.mark.parametrize(
    "given",
    [{"a": torch.zeros(2)}, {"b": torch.zeros(3)}, {"a": torch.zeros(3).half()}, {}]
    + [{"a": torch.zeros(3), "b": torch.zeros(3)}],
)
def test_tensors_that_do_not_fit_the_specs_are_not_written(tmp_path, given):
    with pytest.raises(AssertionError):
        write_tensors(tmp_path / "out", {"a": ("float32", (3,))}, given.items(), {})


def content(text):
    return lambda path: path.write_bytes(text)


def saved(thing):
    return lambda path: torch.save(thing, path)


def packed(pickled, **how):
    return lambda path: zipped(path, pickled, **how)


def many_records(path):
    """A zip file whose index is too large, of one record named many times."""
    zipped(path, b"N.")
    whole = path.read_bytes()
    begin, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    index = whole[begin:end] * 40_000
    path.write_bytes(whole[:begin] + index + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, len(index), begin, 0))


def overlapping(path):
    """Twenty thousand records of the same bytes: a checksum of each is one of 20 GB."""
    zipped(path, GOOD, data=bytes(1 << 20))
    whole = path.read_bytes()
    begin, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    last = whole[whole.rindex(b"PK\1\2") : end]
    index = whole[begin:end] + b"".join(last.replace(b"archive/data/0", b"archive/%06d" % i) for i in range(20_000))
    path.write_bytes(whole[:begin] + index + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, len(index), begin, 0))


GOOD = beside(b"N")
BEYOND = "nothing that torch.save writes"
OUTSIDE, LENGTH = "of fewer stored elements", "the data of w have another length"
BAD = {
    "missing": (lambda _: None, "no such file"),
    "folder": (Path.mkdir, "a folder or a device"),
    "pipe": (os.mkfifo, "a folder or a device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a folder or a device"),
    "empty": (Path.touch, "it is empty; download it again"),
    "web page": (content(b"\xef\xbb\xbf\n<!DOCTYPE html><html>"), "HTML page"),
    "pointer": (content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "Git LFS pointer"),
    "random": (content(random.Random(0).randbytes(500)), "neither a safetensors file nor a torch checkpoint"),
    "text pickle": (content(b"cos\nsystem\n(S'true'\ntR."), "neither a safetensors file nor a torch checkpoint"),
    "other pickle": (content(pickle.dumps({"a": 1})), "torch.save did not write"),
    "script": (
        lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(str(path)),
        "a TorchScript program; save the state_dict()",
    ),
    "arrays": (lambda path: np.savez(path.open("wb"), a=np.zeros(3)), "a zip file without data.pkl, of a.npy"),
    "module": (saved(torch.nn.Linear(2, 2)), "an object of the class torch.nn.modules.linear.Linear"),
    "long header": (content((17 << 20).to_bytes(8, "little") + b"{" + b" " * (18 << 20)), "its header has 17825792"),
    "overlapping records": (overlapping, "its records overlap"),
    "many records": (many_records, "more than 8388608 bytes at once"),
    "large pickle": (packed(b"\x80\2" + b"N" * (64 << 20) + b"."), "the pickle has 67108867 bytes"),
    "long pickle": (packed(b"\x80\2" + b"N0" * 500_001 + b"N."), "more than 1000000 steps"),
    "other zip": (packed(GOOD, replaced=[(b"data.pkl", b"dato.pkl")]), "a zip file without data.pkl, of dato.pkl"),
    "compressed": (packed(GOOD, compression=zipfile.ZIP_DEFLATED), "compressed, encrypted or doubled"),
    "encrypted": (
        packed(GOOD, replaced=[(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1")]),
        "compressed, encrypted or doubled",
    ),
    "same name twice": (packed(GOOD, keys="01", replaced=[(b"data/1", b"data/0")]), "compressed, encrypted or doubled"),
    "spoiled pickle": (packed(GOOD, replaced=[(b"callbacks", b"callbackz")]), "damaged or cut short"),
    "unfinished pickle": (packed(GOOD[:-1]), BEYOND),
    "no state dict": (saved({"epoch": 3}), "no tensors inside"),
    "empty state dict": (saved({"state_dict": {}}), "no tensors inside"),
    "a list": (saved([torch.zeros(2)]), "no tensors inside"),
    "optimizer only": (saved({"optimizer_states": {"w": torch.zeros(2)}}), "no tensors inside"),
    "expanded": (saved({"w": torch.zeros(1).expand(10**9)}), "w has shape [1000000000] and stride [0]"),
    "offset outside": (packed(bare(tensor(offset=1))), OUTSIDE),
    "stride outside": (packed(bare(tensor(stride=(2,)))), OUTSIDE),
    "negative offset": (packed(bare(tensor(offset=-1))), BEYOND),
    "negative stride": (packed(bare(tensor(offset=1, stride=(-1,)))), OUTSIDE),
    "axes and strides": (packed(bare(tensor(size=(1, 2)))), BEYOND),
    "size is no tuple": (packed(bare(tensor(size=2))), BEYOND),
    "forged storage": (packed(bare(tensor(stored=value(("float32", "0", 2))))), BEYOND),
    "missing storage": (packed(GOOD, keys="1"), "the data of w are missing"),
    "storage beyond the end": (packed(bare(tensor(size=(999,), stored=storage(FLOATS, elements=999)))), LENGTH),
    "storage of no length": (packed(bare(tensor(stored=storage(FLOATS, elements=-1)))), LENGTH),
    "sparse": (saved({"w": torch.eye(2).to_sparse()}), "w is no plain tensor of a CPU"),
    "without data": (saved({"w": torch.zeros(2, device="meta")}), "w is no plain tensor of a CPU"),
    "complex": (saved({"w": torch.zeros(2, dtype=torch.complex64)}), "unknown type complex64"),
    "unsigned": (saved({"w": torch.zeros(2, dtype=torch.uint16)}), "unknown type uint16"),
    "nested": (
        lambda path: torch.save({"w": torch.nested.nested_tensor([torch.zeros(2)])}, path),
        "no plain tensor of a CPU",
    ),
    "name in two lines": (packed(bare(tensor(), "a\nb")), "no short plain text"),
    "name that is no text": (saved({1: torch.zeros(2)}), "no short plain text"),
    "empty safetensors": (lambda path: save_file({}, path), "no tensors inside"),
    "safetensors of fp8": (lambda path: save_file({"w": torch.zeros(2).to(torch.float8_e5m2)}, path), "type F8_E5M2"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path, make, words):
    make(tmp_path / "model.pt")
    assert words in refused(tmp_path / "model.pt")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The same tensors in each format."""
    folder = tmp_path_factory.mktemp("written")
    torch.save(weights(), folder / "zip")
    torch.save(weights(), folder / "legacy", _use_new_zipfile_serialization=False)
    write_tensors(folder / "safetensors", specs_of(weights()), weights().items(), {})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("form", "times"), [("zip", 25), ("legacy", 25), ("safetensors", 200)])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, written, form, times):
    whole, path = written[form], tmp_path / "model.pt"
    for length in (*random.Random(1).sample(range(len(whole)), times), 1, 8, 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert re.search("cut short|neither a safetensors|torch.save did not write", refused(path))


def flipped(whole, bit):
    spoiled = bytearray(whole)
    spoiled[bit // 8] ^= 1 << bit % 8
    return bytes(spoiled)


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path, written):
    path, chosen = tmp_path / "model.pt", random.Random(2)
    for weight in weights().values():
        data = weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for _ in range(30 if len(data) > 8 and data in written["zip"] else 0):
            bit = 8 * written["zip"].index(data) + chosen.randrange(8 * len(data))
            path.write_bytes(flipped(written["zip"], bit))
            assert re.search(r"it is damaged or cut short \(\w+/data/\d+\); download it again", refused(path))


def test_so_is_one_whose_writer_gave_some_records_no_checksum(tmp_path, caplog):
    unknown = zlib.crc32(bytes(8)).to_bytes(4, "little"), bytes(4)
    zipped(tmp_path / "model.pt", GOOD, replaced=[unknown])
    with caplog.at_level("INFO", logger="cdiff_rt"):
        assert open_tensors(tmp_path / "model.pt")["w"].tolist() == [0, 0]
    assert caplog.messages[0].startswith("model.pt: 1 records were written without checksums")


def test_a_file_without_checksums_is_read_with_a_note(tmp_path, caplog):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights(), tmp_path / "bare.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(weights(), tmp_path / "usual.pt")
    with caplog.at_level("INFO", logger="cdiff_rt"):
        for name in ("bare.pt", "usual.pt"):
            assert_same(open_tensors(tmp_path / name), weights())
    (note,) = caplog.messages
    assert re.match(r"bare.pt: \d+ records were written without checksums", note)
    whole = (tmp_path / "bare.pt").read_bytes()
    (tmp_path / "bare.pt").write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refused(tmp_path / "bare.pt")


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("form", FORMS)
def test_damage_is_refused_or_shown_by_the_hash(tmp_path, form, count):
    found = outcomes(form, tmp_path, seed=count, count=count)
    assert found["refused"] + found["as it was"] + found["other weights"] == count
    assert found["refused"] and (found["as it was"] or found["other weights"])
    if form in ("zip", "zip of protocol 4"):  # of the others, only the hash tells
        assert not found["other weights"]


def test_another_hash_than_asked_for_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(weights(), path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert open_tensors(path).sha256 == open_tensors(path, right.upper()).sha256 == right
    with pytest.raises(BadArtefact, match=f"its sha256 is {right}, not {'0' * 64}; download it again"):
        open_tensors(path, "0" * 64)
    path.write_bytes(b"<html>")  # damage is named by the hash, if there is one
    with pytest.raises(BadArtefact, match="its sha256 is"):
        open_tensors(path, right)


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 700), lambda path: path.write_bytes(b"x" * 9999)])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_somebody_changes_meanwhile_is_refused(tmp_path, form, change):
    FORMS[form](tmp_path / "model.pt")
    found = open_tensors(tmp_path / "model.pt")
    change(tmp_path / "model.pt")
    with pytest.raises(BadArtefact, match="somebody wrote to it while it was read"):
        found["single"]


def test_a_name_of_safetensors_reaches_no_terminal(tmp_path):
    save_file({"\x1b[31mred": torch.zeros(1)}, tmp_path / "model.pt")
    assert "x1b[31mred', the name of a tensor, is no short plain text" in refused(tmp_path / "model.pt")


WRAPPED = {
    "model": lambda sd: {"model": sd, "epoch": 3},
    "ema": lambda sd: {"ema": sd, "step": torch.tensor(3)},
    "state dict of a model": lambda sd: {"state_dict": {"model": sd}},
    "deep": lambda sd: {"module": {"state_dict": {"net": sd}}},
    "beside settings of that name": lambda sd: {"params": {"lr": 1, "a": [torch.zeros(2)]}, "model": sd},
    "settings alone of that name": lambda sd: sd | {"params": {"lr": 1}, "model": {}},
    "beside numbers": lambda sd: sd | {"epoch": 3, "args": {"a": torch.zeros(2)}},
}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_where_files_keep_them(tmp_path, wrap, new):
    torch.save(wrap(weights()), tmp_path / "model.pt", _use_new_zipfile_serialization=new)
    assert_same(open_tensors(tmp_path / "model.pt"), weights())


def test_which_of_several_weights_are_read_is_told(tmp_path, caplog):
    torch.save({"ema": {"w": torch.zeros(2)}, "model": {"w": torch.ones(2)}}, tmp_path / "model.pt")
    with caplog.at_level("INFO", logger="cdiff_rt"):
        assert open_tensors(tmp_path / "model.pt")["w"].tolist() == [1, 1]
    assert caplog.messages == ["model.pt: the weights of 'model' are read; 'ema' beside it are not"]
