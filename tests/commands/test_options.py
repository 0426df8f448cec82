import click
import pytest

from cdiff_rt.commands.options import all_conditions
from tests.command_line import check_refused, run


def test_conditions_are_those_given_by_name_or_as_a_pair():
    assert all_conditions({"mask": "m.png", "text": None}, ("sketch=a=b",), "--condition") == {
        "mask": "m.png",
        "sketch": "a=b",
    }


@pytest.mark.parametrize(
    ("others", "words"),
    [(("sketch",), "write NAME=VALUE"), (("=v",), "write NAME=VALUE"), (("mask=b",), "it is given twice")],
)
def test_others_are_refused(others, words):
    with pytest.raises(click.UsageError, match=f"--source.*{words}"):
        all_conditions({"mask": "a"}, others, "--source")


@pytest.mark.parametrize(
    "command",
    ["generate --seed", "generate --mask", "edit --alphas", "export --out", "palette --out", "bench time --batch"]
    + ["bench drift --pairs", "generate --frob", "bench step --frob", "generate --steps x", "doctor x"],
)
def test_a_usage_error_leads_to_the_help_of_its_command(command):
    *words, _ = command.removesuffix(" x").split() if " --" in command else (*command.split(),)
    check_refused(run(*command.split()), 2, f"; see `main {' '.join(words)} --help`")


@pytest.mark.parametrize("seed", ["1.5", "abc", "", "Random", "0x7", "1e3"])
def test_a_seed_is_a_number_or_random(seed):
    check_refused(run("generate", "--text", "man", "--seed", seed), 2, f"'{seed}' is neither a whole number nor random")


@pytest.mark.parametrize(
    "command",
    ["generate --mask", "edit --text man --image", "generate --jobs", "export --checkpoint", "bench time --json"]
    + ["generate --text man --out", "palette --out", "generate --text man --inpaint"],
)
def test_an_empty_path_is_not_the_current_folder(command):
    check_refused(run(*command.split(), ""), 2, f"Invalid value for '{command.split()[-1]}': it is empty")


def test_nor_is_a_condition_without_a_value():
    check_refused(run("generate", "--condition", "mask="), 3, "mask: its path is empty; give the path of a file")
    check_refused(run("generate", "--condition", "text="), 3, "text: it is empty")


ADDRESSES = ("https://x.org/a.png", "s3://bucket/a.png", "hf://a/b.png", "HTTP://X/a.png", "data:image/png;base64,AA")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("generate --mask", 3),
        ("generate --condition mask=", 3),
        ("edit --text man --image", 3),
        ("generate --text man --keep a.png --inpaint", 3),
        ("generate --jobs", 3),
        ("export --out b --checkpoint", 4),
        ("generate --text man --model", 4),
    ],
)
@pytest.mark.parametrize("address", ADDRESSES)
def test_of_an_address_it_is_said_that_nothing_is_fetched(command, code, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *words, last = command.split()
    values = [last + address] if last.endswith("=") else [last, address]
    check_refused(run(*words, *values), code, "download it, and give ")


@pytest.mark.parametrize("address", ["https://x.org/a.png", "s3://bucket/a", "gs://a.png"])
@pytest.mark.parametrize(
    "command", ["generate --text man", "palette", "edit --text man --image a.png", "export --checkpoint a"]
)
def test_and_that_nothing_is_sent_to_one(command, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused(run(*command.split(), "--out", address), 2, "is an address, and nothing is sent to any; give a path")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_called_so_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:").mkdir()
    assert run("palette", "--out", "run:/1").exit_code == 0 and (tmp_path / "run:" / "1" / "faces.gpl").exists()
    check_refused(run("generate", "--mask", "file:///x/a.png"), 3, "this is an address, not a path; leave out file://")
    check_refused(run("generate", "--mask", "C:/a.png"), 3, "there is no such file; check the path")
