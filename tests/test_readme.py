"""What the documents tell a reader to type works, and what they point at exists."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cdiff_rt.commands import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "recipes/*/*.md", "examples/*/*.md") for path in ROOT.glob(pattern)
)


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of a sh block, continued lines joined, comments and prompts left out."""
    text = "\n".join(block for document in DOCUMENTS for block in blocks(document, "sh")).replace("\\\n", " ")
    lines = (line.strip().removeprefix("$ ") for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def starting_with(*words: str) -> list[str]:
    split = {
        line: [Path(part).name if i == 0 else part for i, part in enumerate(shlex.split(line, comments=True))]
        for line in commands()
    }
    return [line for line, parts in split.items() if parts[: len(words)] == list(words)]


def parse(line: str) -> None:
    """Raises UsageError unless click takes the line's options and values; runs nothing."""
    arguments = shlex.split(line, comments=True)[1:]
    place = next((i for i, part in enumerate(arguments) if not part.startswith("-")), len(arguments))
    known = {option for parameter in main.params for option in parameter.opts} | {"--help", "-h"}
    if not set(arguments[:place]) <= known:
        raise click.UsageError(f"{line}: unknown option before the command")
    if place < len(arguments):
        _, command, rest = main.resolve_command(click.Context(main), arguments[place:])
        assert command is not None
        command.make_context(arguments[place], rest)


def test_the_readme_shows_how_to_start():
    assert README.exists()
    assert starting_with("make", "demo")
    assert starting_with("cdiff-rt", "generate")


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
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in shlex.split(line, comments=True)[1:] if "=" not in word and word not in targets] == []


@pytest.mark.parametrize("line", [line for line in starting_with("python", "-m") if "recipes." in line])
def test_recipes_have_the_options_shown(line):
    _, _, module, *arguments = shlex.split(line, comments=True)
    command = importlib.import_module(module).main
    if isinstance(command, click.Group):
        command = command.commands[arguments[0]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {part.split("=")[0] for part in arguments if part.startswith("--")} <= known


@pytest.mark.parametrize("code", [block for document in DOCUMENTS for block in blocks(document, "python")])
def test_python_of_the_documents_runs(code, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text()) + re.findall(r'src="([^"]+)"', document.read_text())
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (document.parent / target).exists()] == []
