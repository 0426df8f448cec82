"""What is left when no optional library is installed: everything imports, and `doctor` says what is missing."""

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

from cdiff_rt.engines.backends import BACKENDS
from cdiff_rt.engines.cuda import why_no_device
from cdiff_rt.extras import BREAKS, install
from tests.test_layout import HEAVY, NO_TORCH, SERVERS, SOURCES

ROOT = Path(__file__).parents[1]
NVIDIAS = ("nvidia", "cuda", "tensorrt", "triton", "onnxruntime-gpu")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
BROUGHT = {  # package -> its modules, of those that come with another name or with other packages
    "ray": {"ray", "pandas", "pyarrow", "filelock"},
    "scikit-image": {"skimage", "scipy"},
    "onnxruntime-gpu": {"onnxruntime"},
    "torch": {"torch", "filelock", "triton"},
    "tensorrt-cu13": {"tensorrt"},
    "tensorrt-rtx-cu13": {"tensorrt_rtx"},
}
OPTIONAL = HEAVY | SERVERS | {"tensorrt_rtx", "scipy", "pandas", "pyarrow"}
HIDE = """
import sys
hidden = {}
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in hidden else real(name, package)
"""


def without_libraries(code, hidden=OPTIONAL):
    program = HIDE.format(sorted(hidden)) + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stdout, done.stderr


def module_of(path):
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def test_the_runtime_imports_and_so_do_benchmarks_and_commands():
    with_torch = {f"cdiff_rt/engines/{name}.py" for name in ("arithmetic", "compiled", "eager", "modules")}
    needs_torch = {*with_torch, "cdiff_rt/editing/imagic.py", "cdiff_rt/learning/descent.py"}
    rooms = {*NO_TORCH - {"serve"}, "learning", "engines", "editing", "bench", "commands", "cli"}
    modules = [module_of(path) for path, room in SOURCES.items() if room in rooms and path not in needs_torch]
    code = f"import importlib\nfor name in {modules}: importlib.import_module(name)\nprint('all')"
    assert len(modules) > 60 and without_libraries(code) == (0, "all\n", "")


def test_the_server_without_its_libraries_names_its_extra():
    code = "from cdiff_rt.commands import main\nmain(['serve'])"
    status, told, notes = without_libraries(code)
    assert (status, told) == (5, "") and "serve: starlette is not installed; run `pip install '.[serve]'" in notes


def test_the_server_alone_needs_neither_pytorch_nor_a_backend():
    code = "import cdiff_rt.serve.server, sys\nprint({'torch', 'onnx', 'onnxruntime'} & sys.modules.keys())"
    assert without_libraries(code, HEAVY) == (0, "set()\n", "")


def test_training_without_pytorch_names_its_extra(tmp_path):
    code = f"""
import numpy as np, cdiff_rt
expert = cdiff_rt.Expert(lambda x, time, c: x, condition=(1,))
pairs = [(np.zeros((1, 4)), {{"a": [0.0], "b": [1.0]}})] * 20
pipeline = cdiff_rt.compose({{"a": expert, "b": expert}}, (1, 4))
cdiff_rt.calibrate(pipeline, pairs, levels=2)
try: cdiff_rt.train(pipeline, pairs, {str(tmp_path / "out")!r}, iterations=1)
except cdiff_rt.BadEnvironment as error: print(error)"""
    status, told, notes = without_libraries(code)
    assert status == 0, notes
    assert told.startswith("train: torch is not installed; run `pip install '.[train]'") and not any(tmp_path.iterdir())


def test_doctor_says_what_is_missing_and_what_it_is_for():
    status, told, _ = without_libraries("from cdiff_rt.commands import main\nmain(['doctor'])")
    assert status == 5
    for name, backend in BACKENDS.items():
        (row,) = [line for line in told.splitlines() if line.startswith(f"backend {name} ")]
        if backend.device == "cuda" and why_no_device():
            assert row.endswith(why_no_device())  # nobody should install gigabytes to learn that
        else:
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
    brings |= {"tensorrt_rtx": {"tensorrt-rtx-cu13"}, "triton": {"triton", "torch"}}  # as its builds with CUDA do
    for backend in BACKENDS.values():
        names = set(needed_by(backend.extra))
        for library in backend.requires:
            assert brings.get(library, {library}) & names, f"[{backend.extra}] lacks {library}"


@pytest.mark.parametrize("extra", ["tensorrt", "tensorrt-rtx"])
def test_who_builds_engines_can_export_and_verify_what_they_are_built_from(extra):
    assert set(needed_by("export")) <= set(needed_by(extra))


def test_releases_that_a_machine_with_a_gpu_has_are_admitted():
    """PyTorch says which Triton it wants, so none is asked for that would bring another PyTorch."""
    here = {"torch": "2.11.0", "triton": "3.6.0", "python": "3.12.3"}
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(here["python"])
    for requirement in map(Requirement, chain(*EXTRAS.values())):
        if requirement.name in here:
            assert requirement.specifier.contains(here[requirement.name]), requirement


@pytest.mark.parametrize("extra", ["torch", "gpu", "tensorrt", "tensorrt-rtx"])
def test_the_tests_of_a_gpu_go_with_whatever_runs_on_one(extra):
    brought = {*needed_by("test-gpu"), *needed_by(extra)}
    assert {"pytest", "hypothesis", "filelock", "torch"} <= brought
    assert not {"onnxruntime", "onnxruntime-gpu"} <= brought


BESIDE_TORCH = {"onnx", "onnxruntime", "onnxscript", "openvino", "skimage", "tensorrt", "tensorrt_rtx", "ray", "scipy"}
BESIDE_TORCH |= {"polygraphy", "pandas", "pyarrow", "onnx_graphsurgeon"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "hidden",
    [BESIDE_TORCH, BESIDE_TORCH - {"onnx", "onnxruntime", "onnxscript", "tensorrt"}, set()],
    ids=["torch only", "tensorrt only", "everything"],
)
def test_the_tests_of_a_gpu_are_collected_on_whatever_extra_is_there(hidden):
    how = ["-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    status, told, _ = without_libraries(f"import pytest\nsys.exit(pytest.main({how}))", hidden)
    assert status == 0 and "error" not in told.lower(), told[-2000:]
    assert "tests/test_gpu.py::" in told and "tests/gpu/test_kernel.py::" in told


@pytest.mark.slow
def test_but_a_library_that_is_missing_is_an_error_for_all_others(tmp_path):
    code = f"import pytest\nsys.exit(pytest.main(['--collect-only', '-q', {str(ROOT / 'tests/engines/test_graphs.py')!r}]))"
    status, told, _ = without_libraries(code, {"onnx"})
    assert status == 2 and "No module named 'onnx'" in told


def test_extras_that_break_each_other_are_told_to_tools_that_install_all():
    told = {frozenset(row["extra"] for row in rows) for rows in PROJECT["tool"]["uv"]["conflicts"]}
    with_cpu = {extra for extra in EXTRAS if "onnxruntime" in needed_by(extra)}
    with_gpu = {extra for extra in EXTRAS if "onnxruntime-gpu" in needed_by(extra)}
    assert with_gpu == {"gpu"} and told == {frozenset((cpu, "gpu")) for cpu in with_cpu}
    assert dict.fromkeys(with_cpu, "onnxruntime-gpu") | {"gpu": "onnxruntime"} == BREAKS


# --- every command on every extra alone ------------------------------------------------------------------------------

ALONE = {extra: set().union(*(BROUGHT.get(n, {n}) for n in needed_by(extra))) for extra in EXTRAS if extra != "test"}
BEST = {"openvino": "openvino", "torch": "torch", "test-gpu": "torch", "tensorrt": "torch", "tensorrt-rtx": "torch"}
COMMANDS = {
    "generate": "generate --backend {backend} --text man --steps 1 --out {out}/a.png",
    "generate by default": "generate --text man --steps 1 --out {out}/b.png",
    "generate auto": "generate --backend auto --text man --steps 1 --out {out}/c.png",
    "jobs": "generate --backend {backend} --jobs {out}/jobs.jsonl --out {out}/jobs",
    "jobs on ray": "generate --backend {backend} --jobs {out}/jobs.jsonl --out {out}/jobs --ray 1",
    "edit": "edit --backend {backend} --image {out}/photo.png --text man --tier turbo --out {out}/d.png",
    "imagic": "edit --backend {backend} --image {out}/photo.png --text man --method imagic --iterations 1 1 "
    "--steps 1 --out {out}/e.png",
    "export": "export --checkpoint {out}/none.ckpt --out {out}/bundle",
    "export to tensorrt": "export --model faces-128 --target tensorrt",
    "export to tensorrt-rtx": "export --model faces-128 --target tensorrt-rtx --compute-capability 1.0",
    "bench time": "bench time --backend {backend} --precision fp16",
    "bench step": "bench step --backend tensorrt",
    "bench quality": "bench quality --backend {backend} --pairs 2 --steps 1",
    "bench drift": "bench drift --backend {backend} --pairs 2 --tier none",
    "bench budget": "bench budget --model none",
    "bench budget of a model": "bench budget",
    "doctor": "doctor",
}
QUICK = {("edit", "openvino"), ("edit", "torch"), ("bench budget of a model", "cpu"), ("export to tensorrt", "torch")}
MAKES = {  # what works on an extra alone, of what takes the longest not to
    "edit": {
        "cpu",
        "gpu",
        "quality",
        "export",
        "train",
        "openvino",
        "tensorrt",
        "tensorrt-rtx",
    },  # others are told to say what the picture shows
    "bench budget of a model": {"tensorrt-rtx"},
    "imagic": {"torch", "test-gpu", "gpu", "export", "train", "tensorrt", "tensorrt-rtx"},
    "generate by default": {"cpu", "gpu", "quality", "export", "train", "tensorrt", "tensorrt-rtx"},
}


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        pytest.param(command, extra, marks=[] if (command, extra) in QUICK else pytest.mark.long)
        for command in COMMANDS
        for extra in ALONE
    ],
)
def test_a_command_on_one_extra_works_or_says_in_a_line_what_it_lacks(command, extra, tmp_path):
    (tmp_path / "jobs.jsonl").write_text('{"text": "man", "steps": 1}\n')
    Image.fromarray(np.zeros((128, 128, 3), np.uint8)).save(tmp_path / "photo.png")
    words = COMMANDS[command].format(backend=BEST.get(extra, "onnxruntime"), out=tmp_path).split()
    code = f"from cdiff_rt.commands import main\nmain({words})"
    status, told, notes = without_libraries(code, OPTIONAL - ALONE[extra])
    lines = [line for line in notes.splitlines() if not line.startswith(("note: ", "warning: "))]
    assert status in (0, 2, 3, 4, 5) and "Traceback" not in notes
    if status == 0:
        assert [line for line in lines if line.startswith("error")] == []
    else:
        (error,) = lines or [told]
        assert error.startswith("error: ") or command == "doctor"
        for wanted in re.findall(r"pip install '\.\[([a-z-]+)\]'", error):
            assert wanted in EXTRAS and wanted != extra
        assert status != 5 or re.search("not installed|neither .* is installed|No module named|no NVIDIA|no GPU", error)
    if command in MAKES and (command != "imagic" or status):
        assert (status == 0) == (extra in MAKES[command]), notes


def test_advice_breaks_nothing_that_is_installed(monkeypatch):
    here = {"onnxruntime": "1.32"}
    monkeypatch.setattr("cdiff_rt.extras.version_of", lambda name: here.get(name, "not installed"))
    assert install("cpu") == "`pip install '.[cpu]'` in the checkout"
    assert install("gpu").endswith("in a new environment, as it breaks the onnxruntime of this one")
    here = {"onnxruntime-gpu": "1.32"}
    assert install("gpu") == "`pip install '.[gpu]'` in the checkout"
    assert install("export").endswith("in a new environment, as it breaks the onnxruntime-gpu of this one")
