"""Who may import whom. Imports point one way, heavy libraries stay in their places, and the links hold."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("engines", "export", "bench", "cli.py")
HEAVY = {"torch", "onnx", "onnxruntime", "onnxscript", "openvino", "safetensors", "skimage"}
HEAVY |= {"tensorrt", "triton", "polygraphy", "ray", "filelock", "platformdirs"}
HOMES = {
    "onnxruntime": {"engines/ort.py"},
    "openvino": {"engines/vino.py"},
    "onnx": {"export/to_onnx.py", "export/typed.py", "export/fused.py", "export/cpu_graph.py"},
    "onnxscript": {"export/to_onnx.py"},
    "skimage": {"bench/faces.py"},
    "ray": {"cdiff_rt/on_ray.py"},
    "filelock": {"engines/user_files.py"},
    "platformdirs": {"engines/user_files.py"},
}
LIGHT = {"array_api_compat", "click", "numpy", "PIL"}
LARGEST_FILE, LARGEST_CLI = 300, 400  # lines; options are a list, not something to follow
OF_THE_WHOLE = {"conformance", "examples"}  # folders of tests

# room -> the rooms that its files may import; "core" is cdiff_rt itself
MAY_IMPORT = {
    "core": {"core", "engines", "gpu"},
    "gpu": {"core", "engines", "gpu"},
    "nets": {"nets"},
    "engines": {"core", "engines", "nets"},
    "export": {"core", "engines", "export", "nets"},
    "bench": {"core", "engines", "export", "nets", "bench"},
    "cli": {"core", "engines", "export", "bench"},
    "recipes": {"core", "engines", "export", "bench", "nets", "recipes"},
    "examples": {"core", "engines", "export", "nets", "recipes", "examples"},
}
FOLDERS = {"core": "cdiff_rt", "nets": "cdiff_rt/nets", "gpu": "cdiff_rt/gpu"} | {
    room: room for room in ("engines", "export", "bench")
}


def sources() -> dict[str, str]:
    """path -> room, for every source file; links are not followed."""
    found = {p: room for room, folder in FOLDERS.items() for p in (ROOT / folder).glob("*.py") if not p.is_symlink()}
    found |= {path: room for room in ("recipes", "examples") for path in (ROOT / room).rglob("*.py")}
    return {str(p.relative_to(ROOT)): room for p, room in sorted(found.items())} | {"cli.py": "cli"}


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
        first, *rest = self.module.split(".")
        if first != "cdiff_rt":
            return first if first in MAY_IMPORT else None
        return rest[0] if rest and rest[0] in MAY_IMPORT else "core"


def imports(source: str) -> Iterator[Import]:
    """Every import of a file. `from cdiff_rt import engines` counts as one of cdiff_rt.engines."""

    def walk(node: ast.AST, when_loaded: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, when_loaded) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, "imports are absolute"
                whole = child.module == "cdiff_rt"
                yield from (
                    Import(f"cdiff_rt.{a.name}" if whole else str(child.module), when_loaded) for a in child.names
                )
            elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, when_loaded and not inside)

    return walk(ast.parse(source), True)


def violations(source: str, room: str) -> list[str]:
    """What a file of a room imports against the rules."""
    found = []
    for entry in imports(source):
        if entry.room and entry.room not in MAY_IMPORT[room]:
            found.append(f"{entry.module} belongs to {entry.room}")
        if room == "core" and entry.library in HEAVY - {"ray"}:  # it spreads the runtime and computes nothing
            found.append(f"{entry.module} is heavy; the runtime reaches it through an engine")
        if room == "nets" and not entry.room and entry.library not in {"torch", *sys.stdlib_module_names}:
            found.append(f"{entry.module} is neither torch nor the standard library")
        if room == "cli" and entry.when_loaded and entry.library not in {"click", *sys.stdlib_module_names}:
            found += [] if entry.module in CLI_AT_ONCE else [f"{entry.module} belongs inside a command"]
        if entry.library not in {"cdiff_rt", "recipes", "examples", *HEAVY, *LIGHT, *sys.stdlib_module_names}:
            found.append(f"{entry.module} is no dependency of this project")
    return found


CLI_AT_ONCE = {"cdiff_rt.__version__", "cdiff_rt.errors", "cdiff_rt.options", "cdiff_rt.terminal"}


@pytest.mark.parametrize(("path", "room"), SOURCES.items())
def test_imports_point_one_way(path, room):
    assert violations((ROOT / path).read_text(), room) == []


@pytest.mark.parametrize(
    ("room", "planted"),
    [
        ("core", "import torch"),
        ("core", "def f():\n    import onnxruntime"),
        ("core", "from cdiff_rt.nets.unet import UNet"),
        ("core", "from cdiff_rt import export"),
        ("core", "import cdiff_rt.bench.latency"),
        ("nets", "import numpy"),
        ("nets", "from cdiff_rt.manifest import Bundle"),
        ("engines", "from cdiff_rt.export.bundle import export_checkpoint"),
        ("engines", "from cdiff_rt.commands import main"),
        ("export", "from cdiff_rt import cli"),
        ("export", "def f():\n    from cdiff_rt.bench import latency"),
        ("bench", "from recipes.faces import judge"),
        ("bench", "from recipes.faces import painter"),
        ("cli", "from recipes.faces import painter"),
        ("cli", "from cdiff_rt.pipeline import Pipeline"),
        ("cli", "try:\n    import torch\nexcept ImportError:\n    pass"),
        ("recipes", "from cdiff_rt.commands import main"),
        ("engines", "import requests"),
    ],
)
def test_a_forbidden_import_is_found(room, planted):
    innocent = (ROOT / "cdiff_rt" / "errors.py").read_text()
    assert violations(innocent, room) == []
    assert len(violations(f"{innocent}\n{planted}\n", room)) >= 1


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("core", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("core", "from cdiff_rt import engines"),
        ("cli", "def command():\n    from cdiff_rt.pipeline import Pipeline"),
        ("nets", "import math\nfrom torch import nn\nfrom cdiff_rt.nets.attention import Attention"),
    ],
)
def test_an_allowed_import_is_not(room, allowed):
    assert violations(allowed, room) == []


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_a_heavy_library_is_imported_where_it_belongs(library, homes):
    users = {path for path in SOURCES for entry in imports((ROOT / path).read_text()) if entry.library == library}
    assert users == homes


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_and_only_at_the_moment_of_use(library, homes):
    found = [entry for path in homes for entry in imports((ROOT / path).read_text()) if entry.library == library]
    assert found and not any(entry.when_loaded for entry in found)


@pytest.mark.parametrize("name", LINKED)
def test_rooms_are_linked_into_the_package(name):
    link = ROOT / "cdiff_rt" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("path", SOURCES)
def test_files_are_short_enough_to_read_at_once(path):
    assert len((ROOT / path).read_text().splitlines()) <= (LARGEST_CLI if path == "cli.py" else LARGEST_FILE)


@pytest.mark.parametrize("path", [path for path in SOURCES if not path.endswith("__init__.py")])
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse((ROOT / path).read_text()))


def test_tests_mirror_the_source():
    """tests/R/test_x.py belongs to R/x.py, or to R itself if that is its name. Others belong to the whole."""
    folders = FOLDERS | {"cdiff_rt": "cdiff_rt", "recipes": "recipes/faces"}
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        room, name = path.parent.name, path.name.removeprefix("test_")
        if room not in OF_THE_WHOLE:
            source = ROOT / folders[room] / ("__init__.py" if name == f"{room}.py" else name)
            assert source.exists(), f"{path.name} has no source {source}"
