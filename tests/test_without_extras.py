"""What is left when no optional library is installed: everything imports, and `doctor` says what is missing."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cdiff_rt.engines.backends import BACKENDS
from tests.test_layout import HEAVY, NO_TORCH, SOURCES

ROOT = Path(__file__).parents[1]
NVIDIAS = ("nvidia", "cuda", "tensorrt", "triton", "onnxruntime-gpu")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
HIDE = f"""
import sys
hidden = {sorted(HEAVY | {"tensorrt_rtx", "scipy"})}
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in hidden else real(name, package)
"""


def without_libraries(code):
    done = subprocess.run([sys.executable, "-c", HIDE + code], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stdout, done.stderr


def module_of(path):
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def test_the_runtime_imports_and_so_do_benchmarks_and_commands():
    needs_torch = {"cdiff_rt/engines/eager.py", "cdiff_rt/editing/imagic.py"}
    rooms = {*NO_TORCH, "engines", "editing", "bench", "commands", "cli"}
    modules = [module_of(path) for path, room in SOURCES.items() if room in rooms and path not in needs_torch]
    code = f"import importlib\nfor name in {modules}: importlib.import_module(name)\nprint('all')"
    assert len(modules) > 60 and without_libraries(code) == (0, "all\n", "")


def test_doctor_says_what_is_missing_and_what_it_is_for():
    status, told, _ = without_libraries("from cdiff_rt.commands import main\nmain(['doctor'])")
    assert status == 5
    for name, backend in BACKENDS.items():
        (row,) = [line for line in told.splitlines() if line.startswith(f"backend {name} ")]
        assert "not installed" in row and backend.requires[0] in row and f"[{backend.extra}]" in row


@pytest.mark.parametrize("command", ["generate --text x --out y.png", "export --checkpoint x --out y", "bench time"])
def test_commands_name_the_extra_that_they_want(command):
    status, _, told = without_libraries(f"from cdiff_rt.commands import main\nmain({command.split()})")
    *notes, error = told.splitlines()
    assert status == 5 and error.startswith("error: ") and all(note.startswith("note: ") for note in notes)
    assert "pip install '.[" in told or "doctor" in told


def needed_by(extra):
    """Every requirement of an extra, with those of the extras that it names."""
    for text in EXTRAS[extra]:
        requirement = Requirement(text)
        if requirement.name == "cdiff-rt":
            for inner in requirement.extras:
                yield from needed_by(inner)
        else:
            yield requirement.name


@pytest.mark.parametrize("extra", ["cpu", "quality"])
def test_who_wants_the_cpu_gets_nothing_of_nvidias(extra):
    names = {*needed_by(extra), *(Requirement(text).name for text in PROJECT["project"]["dependencies"])}
    assert "onnxruntime" in names and not [name for name in names if name.startswith(NVIDIAS) or name == "torch"]


def test_each_backends_extra_brings_its_libraries():
    brings = {"onnxruntime": {"onnxruntime", "onnxruntime-gpu"}, "tensorrt": {"tensorrt-cu13"}}
    brings |= {"tensorrt_rtx": {"tensorrt-rtx-cu13"}}
    for backend in BACKENDS.values():
        names = set(needed_by(backend.extra))
        for library in backend.requires:
            assert brings.get(library, {library}) & names, f"[{backend.extra}] lacks {library}"


def test_extras_that_break_each_other_are_told_to_tools_that_install_all():
    told = {frozenset(row["extra"] for row in rows) for rows in PROJECT["tool"]["uv"]["conflicts"]}
    with_cpu = {extra for extra in EXTRAS if "onnxruntime" in needed_by(extra)}
    with_gpu = {extra for extra in EXTRAS if "onnxruntime-gpu" in needed_by(extra)}
    assert with_gpu == {"gpu"} and told == {frozenset((cpu, "gpu")) for cpu in with_cpu}
