"""What the documents tell a reader to type works, in order, and what they point at exists.

A block under `<!-- not run: why -->` needs what a test has not got (a GPU, a network, hours, somebody's weights); the
options in it are checked all the same.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from cdiff_rt.commands import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "recipes/*/*.md", "examples/*/*.md") for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINES, WORDS = 120, 1200  # of the README, at most


@dataclass(frozen=True)
class Block:
    run: bool
    language: str
    code: str


def blocks(document: Path) -> list[Block]:
    return [Block(not mark, language, code) for mark, language, code in BLOCK.findall(document.read_text())]


def run(document: Path, folder: Path) -> str:
    """Runs the document's blocks one after the other as a reader with a checkout would; the first fault, or ""."""
    programs = folder / "bin"
    programs.mkdir()
    for name, arguments in (("python", ""), ("cdiff-rt", "-m cdiff_rt")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    desk = folder / "desk"
    desk.mkdir()
    (desk / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    interpreters = {"sh": ("bash", "-ec"), "python": (sys.executable, "-c")}
    for block in blocks(document):
        if block.run:
            command = [*interpreters[block.language], block.code]
            done = subprocess.run(
                command, cwd=desk, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
            if done.returncode:
                return f"{block.code}\n{done.stdout}{done.stderr}"
    return ""


def commands() -> list[str]:
    """Every line of a sh block, continued lines joined, comments left out."""
    text = "\n".join(block.code for document in DOCUMENTS for block in blocks(document) if block.language == "sh")
    lines = (line.strip() for line in text.replace("\\\n", " ").splitlines())
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def starting_with(*words: str) -> list[str]:
    return [line for line in commands() if shlex.split(line, comments=True)[: len(words)] == list(words)]


def parse(line: str) -> None:
    """Raises UsageError unless click takes the line's options and values; runs nothing."""
    command: click.Command = main
    arguments = shlex.split(line.removesuffix("&"), comments=True)[1:]
    while isinstance(command, click.Group):
        place = next((i for i, part in enumerate(arguments) if not part.startswith("-")), len(arguments))
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        if not set(arguments[:place]) <= known:
            raise click.UsageError(f"{line}: unknown option before the command")
        if place == len(arguments):
            return
        _, found, rest = command.resolve_command(click.Context(command), arguments[place:])
        assert found is not None
        command, arguments = found, rest
    command.make_context(command.name, arguments)


TYPED = [
    pytest.param(
        document, id=document.name, marks=[] if document.name in ("README.md", "python.md") else pytest.mark.slow
    )
    for document in DOCUMENTS
    if any(block.run for block in blocks(document))
]


@pytest.mark.parametrize("document", TYPED)
def test_what_is_typed_works(document, tmp_path):
    if fault := run(document, tmp_path):
        pytest.fail(fault, pytrace=False)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```sh\ncdiff-rt --version\necho 1 > one\n```\n```python\nimport cdiff_rt\nopen('one')\n```\n", False),
        ("```sh\ncdiff-rt generate --mask nowhere.png\ncdiff-rt --version\n```\n", True),
        ("```python\nimport cdiff_rt.nothing\n```\n", True),
        ("<!-- not run: a reason -->\n```sh\nfalse\n```\n", False),
        ("<!-- not run: a reason -->\n\n```sh\nfalse\n```\n", True),  # the mark is just above its block
    ],
)
def test_a_planted_fault_is_seen(text, wrong, tmp_path):
    document = tmp_path / "planted.md"
    document.write_text(text)
    assert bool(run(document, tmp_path)) == wrong


def test_the_readme_is_short_and_shows_how_to_start():
    text = README.read_text()
    assert len(text.splitlines()) <= LINES
    assert len(text.split()) <= WORDS
    assert {"make demo", "make test"} <= {" ".join(line.split()[:2]) for line in starting_with("make")}


@pytest.mark.parametrize("line", starting_with("cdiff-rt"))
def test_commands_of_the_documents_parse(line):
    parse(line)


@pytest.mark.parametrize(
    "planted",
    ["cdiff-rt generate --colour red", "cdiff-rt paint", "cdiff-rt --fast generate", "cdiff-rt generate --steps many"],
)
def test_a_wrong_command_does_not(planted):
    with pytest.raises(click.UsageError):
        parse(planted)


@pytest.mark.parametrize("line", starting_with("make"))
def test_make_targets_exist(line):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in shlex.split(line, comments=True)[1:] if "=" not in word and word not in targets] == []


@pytest.mark.parametrize("line", [line for line in starting_with("python", "-m") if "recipes." in line])
def test_recipes_have_the_options_shown(line):
    _, _, module, *arguments = shlex.split(line, comments=True)
    command = importlib.import_module(module).main
    if isinstance(command, click.Group):
        command = command.commands[arguments[0]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {part.split("=")[0] for part in arguments if part.startswith("--")} <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_lead_somewhere(document):
    text = document.read_text()
    targets = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (document.parent / target).exists()] == []
    named = re.findall(r"`((?:cdiff_rt|recipes|examples|tests|docs)/[\w./-]+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []
