import json
import shlex

import pytest

from cdiff_rt.outputs.formats import png_bytes
from cdiff_rt.records.read import read_record
from cdiff_rt.records.show import command_line
from tests.command_line import check_refused, libraries_of, run
from tests.records.test_read import PIXELS, TOLD

LINE = "She smiles.\nSteps: 20, Sampler: Euler a, Seed: 1, Model: other"


@pytest.fixture
def file(tmp_path):
    def write(name, **texts):
        (tmp_path / name).write_bytes(png_bytes(PIXELS, texts))
        return tmp_path / name

    return write


def record(**more):
    return read_record(png_bytes(PIXELS, {"cdiff_rt": json.dumps(TOLD | {"record": 2, "command": "generate"} | more)}))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "--solver ddim --steps 4 --eta 1.0 --temperature 1.0 --seed 7"),
        ({"steps": 50}, "--seed 7"),
        ({"steps": 10, "solver": "dpmpp-2m-sde"}, "--tier turbo --seed 7"),
        ({"steps": 50, "seed": 0, "snap": True, "without": ["a", "b"]}, "--snap --without a --without b"),
        ({"steps": 50, "seed": 0, "backend": "torch", "threads": 3}, "--backend torch --threads 3"),
        ({"steps": 50, "seed": 0, "precision": "bf16", "model": "my faces"}, "--model 'my faces' --precision bf16"),
    ],
    ids=["own", "exact", "tier", "flags and lists", "backend", "model"],
)
def test_the_command_has_what_is_unusual(more, words):
    assert command_line(record(**more)) == f"cdiff-rt generate {words} --out again.png"


@pytest.mark.parametrize("value", ["a 'b' \"c\"", "$HOME `x` ; rm -rf /", "-rf", "", "ä\n\tö", "--out=x"])
def test_whatever_stands_in_a_record_is_quoted_for_a_shell(value):
    file = {"file": value, "bytes": 1, "sha256": "0"}
    words = shlex.split(command_line(record(inputs={"mask": file, "text": {"text": value}, "sketch": {"text": value}})))
    assert words[:8] == ["cdiff-rt", "generate", "--mask", value, "--text", value, "--condition", f"sketch={value}"]


def test_a_line_of_a_gallery_is_shown_and_what_it_lacks(file):
    path = file("a.png", parameters=LINE)
    shown = run("show", path)
    assert shown.exit_code == 0 and all(line in shown.stdout for line in LINE.split("\n"))
    assert "only the line that galleries read" in shown.stdout
    check_refused(run("show", path, "--json"), 3, "a.png", "no record of cdiff-rt's own")
    check_refused(run("reproduce", path), 3, "a.png", "another program made it")


def test_without_a_record_there_is_one_line(file):
    check_refused(run("show", file("a.png")), 3, "picture a.png", "no record")
    check_refused(run("show", file("b.png", workflow="{}")), 3, "its texts are 'workflow'")
    check_refused(run("show", "nowhere.png"), 3, "nowhere.png")


def test_several_are_shown_and_the_bad_ones_told_in_the_end(file):
    good, bad = file("a.png", cdiff_rt=json.dumps(TOLD)), file("b.png")
    result = run("show", good, bad, good)
    assert result.stdout.count("a.png\n  command") == 2 and result.exit_code == 3
    assert "1 of 3 pictures, the first: picture b.png" in result.stderr


def test_the_record_itself_is_printed_as_it_stands(file):
    path = file("a.png", cdiff_rt=json.dumps(TOLD))
    result = run("show", path, path, "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [TOLD, TOLD]


def test_a_record_cannot_write_to_the_terminal_what_it_obeys(file):
    path = file("a.png", cdiff_rt=json.dumps(TOLD | {"model": "\x1b[2J\u202e"}), parameters="x")
    assert "\x1b" not in run("show", path).stdout and "\u202e" not in run("show", path).stdout
    other = file("b.png", parameters="\x1b[2J")
    assert "\x1b" not in run("show", other).stdout


def test_it_loads_no_engine(file, root):
    path = file("a.png", cdiff_rt=json.dumps(TOLD))
    assert not {"onnxruntime", "openvino", "torch"} & libraries_of(root, "show", path)
