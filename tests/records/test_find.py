"""Bundles whose experts took part in a picture are found again by the hash of their manifests."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cdiff_rt import read_record
from cdiff_rt.errors import BadArtefact, BadInput
from cdiff_rt.manifest import NAME
from cdiff_rt.outputs.formats import png_bytes
from cdiff_rt.records.find import bundles_of
from tests.command_line import check_refused, run
from tests.parts import part_of
from tests.records.test_again import check_shown
from tests.records.test_read import PIXELS, TOLD

HELLO = hashlib.sha256(b"hello").hexdigest()


def record(**told):
    guest = {"modality": "edges", "model_hash": HELLO, "folder": "edges-1"} | told
    return read_record(png_bytes(PIXELS, {"cdiff_rt": json.dumps(TOLD | {"record": 2, "with": {"sketch": guest}})}))


def bundle_at(folder: Path, content: bytes = b"hello") -> Path:
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("place", "search"),
    [("here/edges-1", []), ("edges-1", []), ("here/renamed", []), ("far/away/x", ["far"])],
    ids=["beside", "current", "renamed", "searched"],
)
def test_it_is_found_wherever_inputs_are(place, search, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for other in ("here/a", "a", "far/a"):
        bundle_at(tmp_path / other, b"other")
    bundle_at(tmp_path / place)
    found = bundles_of(record(), Path("here"), [Path(each) for each in search], {})
    assert found["sketch"].resolve() == tmp_path / place


def test_one_that_is_given_goes_first_and_has_to_be_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle_at(tmp_path / "edges-1")
    given, other = bundle_at(tmp_path / "given"), bundle_at(tmp_path / "other", b"other")
    assert bundles_of(record(), Path(), [], {"sketch": given}) == {"sketch": given}
    with pytest.raises(
        BadArtefact, match="with sketch, sha256 of its manifest: that of .*other is another than 2cf24d"
    ):
        bundles_of(record(), Path(), [], {"sketch": str(other)})


def test_one_that_is_nowhere_is_told_with_what_helps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="with sketch of .*2cf24dba5fb0.*'edges-1'.*--with sketch=FOLDER"):
        bundles_of(record(folder="edges-1"), Path(), [], {})
    with pytest.raises(BadInput, match="with sketch of "):
        bundles_of(record(folder="../../etc"), Path(), [], {})  # which no search goes out of its folders for


@pytest.mark.parametrize("told", [{"model_hash": 3}, {"folder": None}, {"folder": ["a"]}], ids=str)
def test_a_damaged_record_is_told(told):
    with pytest.raises(BadInput, match="its record is damaged"):
        bundles_of(record(**told), Path(), [], {})


@pytest.mark.slow
def test_a_picture_by_the_command_names_its_experts_and_is_made_again(parts, bundle, mask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(mask).save("m.png")
    shutil.copytree(parts.guests["text"], "more")
    asked = ["--mask", "m.png", "--condition", "words=A woman.", "--with", "words=more", "--steps", 2]
    assert run("generate", *asked, "--out", "a.png").exit_code == 0
    assert run("reproduce", "a.png").stdout == "a.png: the same to the byte\n"
    shown = run("show", "a.png").stdout
    assert "--with words=more" in shown and "with words    text of more, manifest sha256" in shown
    check_shown("a.png")
    Path("more").rename("elsewhere")
    part_of(bundle, "text", Path("other"), licence="other")
    assert run("reproduce", "a.png", "--with", "words=elsewhere").stdout == "a.png: the same to the byte\n"
    check_refused(run("--quiet", "reproduce", "a.png", "--with", "words=other"), 4, "with words", "is another than")
    shutil.rmtree("elsewhere")
    check_refused(run("--quiet", "reproduce", "a.png"), 3, "with words of a.png", "--with words=FOLDER")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--with", "sketch"], 2, "write NAME=VALUE"),
        (["--with", "sketch=nowhere"], 4, "there is no bundle 'nowhere'"),
        (["--with", "mask=faces-128"], 2, "has a condition 'mask' of its own"),
    ],
    ids=["no folder", "no bundle", "taken"],
)
def test_bad_ones_are_one_line(arguments, code, words, tmp_path):
    for command in (["generate", "--text", "a man"], ["edit", "--image", "a.png", "--text", "a man"]):
        check_refused(run(*command, *arguments, "--out", tmp_path / "z.png"), code, words)
