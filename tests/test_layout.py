"""Who may import whom. Imports point one way, nothing goes round in a circle, heavy libraries stay in their places."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cdiff_rt"
SIGNPOSTS = ("engines", "export", "bench")  # links at the root to folders of the package
HEAVY = {"torch", "onnx", "onnxruntime", "onnxscript", "openvino", "safetensors", "scipy", "skimage", "anny"}
HEAVY |= {
    "diffusers",
    "tokenizers",
    "transformers",
    "tensorrt",
    "triton",
    "polygraphy",
    "ray",
    "filelock",
    "platformdirs",
}
HOMES = {
    "onnxruntime": {"cdiff_rt/engines/ort.py"},
    "openvino": {"cdiff_rt/engines/vino.py"},
    "onnx": {
        f"cdiff_rt/export/{name}.py" for name in ("islands", "to_onnx", "typed", "whole_step", "wrapped", "cpu_graph")
    },
    "onnxscript": {f"cdiff_rt/export/{name}.py" for name in ("brought", "to_onnx", "wrapped")},
    "diffusers": {"cdiff_rt/foreign/from_diffusers.py"},
    "transformers": {"cdiff_rt/foreign/encoders.py"},
    "tokenizers": {"cdiff_rt/inputs/subwords.py"},
    "skimage": {"cdiff_rt/bench/faces.py", "examples/bodies/volumes.py"},
    "scipy": {f"examples/bodies/{name}.py" for name in ("volumes", "judge", "draw")},
    "anny": {"examples/bodies/people.py"},
    "ray": {"cdiff_rt/jobs/on_ray.py"},
    "filelock": {"cdiff_rt/engines/user_files.py"},
    "platformdirs": {"cdiff_rt/engines/user_files.py"},
}
SERVERS = {"prometheus_client", "starlette", "uvicorn"}  # of one room alone
LIGHT = {"array_api_compat", "click", "numpy", "PIL"}
LARGEST_FILE = 300  # lines
OF_THE_WHOLE = {"conformance", "examples", "fuzz"}  # folders of tests

# room -> the rooms that its files may import. A file of cdiff_rt itself is a room of its own, by its name.
MAY_IMPORT: dict[str, set[str]] = {
    "version": set(),
    "notes": set(),
    "process": {"notes"},
    "turns": {"errors"},
    "extras": {"errors"},
    "errors": set(),
    "schema": set(),
    "intact": {"errors"},
    "controls": {"errors", "inputs", "sampling"},
    "settings": {"controls", "errors", "inputs", "sampling"},
    "sampling": {"controls", "errors", "schema", "settings", "notes"},
    "manifest": {"errors", "intact", "schema", "sampling", "settings"},
    "joined": {"engines", "errors", "manifest", "notes", "settings"},
    "memory": {"engines", "errors", "manifest", "process"},
    "nets": set(),
    "engines": {"errors", "extras", "schema", "manifest", "nets", "notes", "process", "version"},
    "inputs": {"errors", "extras", "manifest", "notes"},
    "run": {"controls", "engines", "errors", "inputs", "manifest", "sampling", "settings"},
    "runners": {"engines", "errors", "manifest", "process", "run", "sampling", "gpu"},
    "gpu": {"engines", "errors", "manifest", "nets", "process", "run", "sampling", "notes"},
    "outputs": {"errors", "manifest", "notes", "sampling"},
    "told": {"engines", "inputs", "manifest", "process", "run", "sampling", "settings"},
    "exam": {"engines", "errors", "intact", "manifest", "schema"},
    "export": {
        *("engines", "errors", "inputs", "manifest", "nets", "notes", "outputs", "process", "sampling", "schema"),
        "settings",
    },
    "editing": {
        *("engines", "errors", "exam", "export", "inputs", "manifest", "nets", "notes", "outputs", "run", "sampling"),
        "settings",
    },
    "pipeline": {
        *("editing", "engines", "errors", "inputs", "joined", "manifest", "memory", "notes", "outputs", "run"),
        *("runners", "sampling", "settings", "told", "turns", "version"),
    },
    "tuned": {
        *("editing", "engines", "errors", "inputs", "joined", "outputs", "pipeline", "process", "run", "sampling"),
        *("settings", "told"),
    },
    "records": {
        *("editing", "engines", "errors", "extras", "inputs", "manifest", "notes", "outputs", "pipeline", "sampling"),
        *("controls", "intact", "joined", "schema", "settings", "told", "tuned", "version"),
    },
    "foreign": {"engines", "errors", "extras", "inputs", "process", "sampling"},
    "composing": {
        *("engines", "errors", "export", "extras", "foreign", "inputs", "joined", "manifest", "outputs", "pipeline"),
        *("process", "runners", "sampling", "settings"),
    },
    "learning": {
        *("editing", "engines", "errors", "export", "extras", "foreign", "inputs", "manifest", "nets", "notes"),
        *("outputs", "pipeline", "process", "run", "sampling", "schema", "settings"),
    },
    "serve": {
        *("controls", "editing", "errors", "inputs", "jobs", "manifest", "notes", "outputs", "pipeline", "sampling"),
        *("schema", "settings", "version"),
    },
    "doctor": {"engines", "errors", "extras", "manifest", "process", "runners", "version"},
    "jobs": {
        "controls",
        "engines",
        "errors",
        "extras",
        "inputs",
        "manifest",
        "notes",
        "outputs",
        "pipeline",
        "run",
        "sampling",
        "schema",
        "settings",
    },
}
RUNTIME = {*MAY_IMPORT}
MAY_IMPORT |= {
    "bench": RUNTIME,
    "commands": {*RUNTIME, "bench"},
    "__main__": {"commands"},
    "cli": {"__main__"},
    "recipes": {*RUNTIME, "bench", "__init__"},
    "examples": {*RUNTIME, "recipes", "__init__"},
    "__init__": RUNTIME,
}
NO_TORCH = {
    "joined",
    "intact",
    "settings",
    "sampling",
    "manifest",
    "inputs",
    "run",
    "runners",
    "outputs",
    "pipeline",
    "told",
    "records",
    "doctor",
    "jobs",
    "serve",
    "exam",
}


def room_of(parts: tuple[str, ...]) -> str:
    """Of a file's or module's path below the root."""
    if parts[0] != "cdiff_rt":
        return parts[0].removesuffix(".py")
    return parts[1].removesuffix(".py") if len(parts) > 1 else "__init__"


def sources() -> dict[str, str]:
    """path -> room, for every source file; links are not followed."""
    folders = [PACKAGE, ROOT / "recipes", ROOT / "examples"]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): room_of(path.relative_to(ROOT).parts) for path in paths}
    return found | {"cli.py": "cli"}


SOURCES = sources()


@dataclass(frozen=True)
class Import:
    module: str
    when_loaded: bool  # at module level, so on import of the file

    @property
    def library(self) -> str:
        return self.module.split(".")[0]

    @property
    def room(self) -> str | None:
        ours = self.library in ("cdiff_rt", "recipes", "examples", "cli")
        return room_of(tuple(self.module.split("."))) if ours else None


def imports(source: str, *, with_types: bool = False) -> Iterator[Import]:
    """Every import of a file, in functions too; `with_types` also those for annotations alone."""

    def walk(node: ast.AST, when_loaded: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, when_loaded) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, "imports are absolute"
                for alias in child.names:
                    below = f"{child.module}.{alias.name}"
                    yield Import(below if file_of(below) else str(child.module), when_loaded)
            elif with_types or not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, when_loaded and not inside)

    return walk(ast.parse(source), True)


def file_of(module: str) -> str | None:
    """The path of one of our modules, below the root."""
    path = ROOT.joinpath(*module.split("."))
    found = next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)
    return str(found.relative_to(ROOT)) if found else None


def violations(source: str, room: str) -> list[str]:
    """What a file of a room imports against the rules."""
    found = []
    for entry in imports(source):
        if entry.room and entry.room not in MAY_IMPORT[room] | {room}:
            found.append(f"{entry.module} belongs to {entry.room}")
        if room in NO_TORCH and entry.library in HEAVY - {"ray", "tokenizers"}:  # which compute nothing
            found.append(f"{entry.module} is heavy; the runtime reaches it through an engine")
        if room == "nets" and not entry.room and entry.library not in {"torch", *sys.stdlib_module_names}:
            found.append(f"{entry.module} is neither torch nor the standard library")
        if room == "commands" and entry.when_loaded and (entry.room or entry.library) not in QUICK:
            found.append(f"{entry.module} belongs inside a command")
        ours = {"cdiff_rt", "recipes", "examples", *HEAVY, *LIGHT, *(SERVERS if room == "serve" else ())}
        if entry.library not in {*ours, *sys.stdlib_module_names}:
            found.append(f"{entry.module} is no dependency of this project")
    return found


QUICK = {"click", "commands", "errors", "notes", "settings", "version", *sys.stdlib_module_names}


@pytest.mark.parametrize(("path", "room"), SOURCES.items())
def test_imports_point_one_way(path, room):
    assert violations((ROOT / path).read_text(), room) == []


@pytest.mark.parametrize(
    ("room", "planted"),
    [
        ("sampling", "import torch"),
        ("inputs", "def f():\n    import onnxruntime"),
        ("sampling", "from cdiff_rt.nets.unet import UNet"),
        ("pipeline", "from cdiff_rt import export"),
        ("outputs", "import cdiff_rt.bench.latency"),
        ("nets", "import numpy"),
        ("nets", "from cdiff_rt.manifest import Bundle"),
        ("engines", "from cdiff_rt.export.bundle import export_checkpoint"),
        ("engines", "from cdiff_rt.commands import main"),
        ("export", "from cdiff_rt import commands"),
        ("export", "def f():\n    from cdiff_rt.bench import latency"),
        ("bench", "from recipes.faces import judge"),
        ("commands", "from recipes.faces import painter"),
        ("commands", "from cdiff_rt.pipeline import Pipeline"),
        ("commands", "try:\n    import torch\nexcept ImportError:\n    pass"),
        ("recipes", "from cdiff_rt.commands import main"),
        ("engines", "import requests"),
        ("jobs", "import starlette"),
        ("serve", "def f():\n    import torch"),
    ],
)
def test_a_forbidden_import_is_found(room, planted):
    innocent = (PACKAGE / "errors.py").read_text()
    assert violations(innocent, room) == []
    assert len(violations(f"{innocent}\n{planted}\n", room)) >= 1


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("sampling", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("pipeline", "from cdiff_rt.engines import backends"),
        ("commands", "def command():\n    from cdiff_rt.pipeline import Pipeline"),
        ("nets", "import math\nfrom torch import nn\nfrom cdiff_rt.nets.attention import Attention"),
    ],
)
def test_an_allowed_import_is_not(room, allowed):
    assert violations(allowed, room) == []


# --- circles ---------------------------------------------------------------------------------------------------------


def circle(edges: dict[str, set[str]]) -> list[str]:
    """A way from somewhere back to itself, or nothing."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for following in sorted(edges.get(node, ())):
                if found := visit(following, [*path, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(edges) if (found := visit(node, []))), [])


def module_edges() -> dict[str, set[str]]:
    """file -> the files of ours that it imports, in functions and for annotations too."""
    return {
        path: {file for entry in imports((ROOT / path).read_text(), with_types=True) if (file := file_of(entry.module))}
        - {path}
        for path in SOURCES
    }


def test_no_module_imports_itself_by_way_of_others_not_even_within_functions():
    assert circle(module_edges()) == []


def test_a_planted_circle_is_found():
    edges = module_edges()
    edges["cdiff_rt/errors.py"] = {"cdiff_rt/pipeline.py"}
    assert circle(edges)[0] == circle(edges)[-1]


def test_rooms_form_no_circle_but_for_the_names_that_settings_look_up():
    rooms = {room: needed - {room} for room, needed in MAY_IMPORT.items()}
    rooms["settings"] -= {"sampling", "inputs"}  # in functions: names of solvers, tiers, labels
    rooms["controls"] -= {"inputs", "sampling"}  # in functions: a picture's name, a file of weights
    assert circle(rooms) == []


# --- libraries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_a_heavy_library_is_imported_where_it_belongs(library, homes):
    users = {path for path in SOURCES for entry in imports((ROOT / path).read_text()) if entry.library == library}
    assert users == homes


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_and_only_at_the_moment_of_use(library, homes):
    found = [entry for path in homes for entry in imports((ROOT / path).read_text()) if entry.library == library]
    assert found and not any(entry.when_loaded for entry in found)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIGNPOSTS)
def test_rooms_that_are_found_at_the_root_lie_in_the_package(name):
    assert (ROOT / name).is_symlink() and (ROOT / name).readlink() == Path("cdiff_rt", name)
    assert (PACKAGE / name).is_dir() and not (PACKAGE / name).is_symlink()


@pytest.mark.parametrize("path", SOURCES)
def test_files_are_short_enough_to_read_at_once(path):
    assert len((ROOT / path).read_text().splitlines()) <= LARGEST_FILE


@pytest.mark.parametrize("path", SOURCES)
def test_every_module_says_what_it_is(path):
    empty = path.startswith(("recipes", "examples")) and path.endswith("__init__.py")
    assert empty or ast.get_docstring(ast.parse((ROOT / path).read_text()))


def test_tests_mirror_the_source():
    """tests/R/test_x.py belongs to R/x.py, or to R itself if that is its name. Others belong to the whole."""
    folders = {"cdiff_rt": "cdiff_rt", "recipes": "recipes/faces"}
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        room, name = path.parent.name, path.name.removeprefix("test_")
        if room not in OF_THE_WHOLE:
            folder = ROOT / folders.get(room, f"cdiff_rt/{room}")
            assert (folder / ("__init__.py" if name == f"{room}.py" else name)).exists(), f"{path} has no source"
