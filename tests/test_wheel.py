import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKED = ("pyproject.toml", "README.md", "LICENSE", "cdiff_rt", "cli.py")
SIGNPOSTS = ("engines", "export", "bench")


def setuptools_is_new_enough():
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a wheel and an sdist, built from a copy as a forge's zip or Windows leaves it: a link is a text."""
    copy, dist = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in PACKED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    for name in SIGNPOSTS:
        (copy / name).write_text(str((ROOT / name).readlink()))
    isolation = ["--no-isolation"] if setuptools_is_new_enough() else []
    build = [sys.executable, "-m", "build", *isolation, "--outdir", str(dist), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=dist, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dist


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def files_of_the_checkout():
    """Every file of the package."""
    found = {path.relative_to(ROOT) for path in (ROOT / "cdiff_rt").rglob("*") if path.is_file()}
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_wheel_holds_the_package_and_nothing_else(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files_of_the_checkout()


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "__main__.py",
        "engines/ort.py",
        "exams/faces-128/judge.onnx",
        "export/bundle.py",
        "bench/worker.py",
        "nets/unet.py",
    ]
    + [
        f"models/faces-128/{file}" for file in ("manifest.json", "weights.safetensors", "vocab.txt", "expert.mask.onnx")
    ],
)
def test_wheel_holds(wheel, name):
    assert wheel.getinfo(f"cdiff_rt/{name}").file_size == (ROOT / "cdiff_rt" / name).stat().st_size


def test_wheel_installs_the_command(wheel):
    (entry,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert "cdiff-rt = cdiff_rt.__main__:main" in wheel.read(entry).decode()


def test_wheel_needs_only_what_the_runtime_imports(wheel):
    (entry,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    needed = [
        line.removeprefix("Requires-Dist: ")
        for line in wheel.read(entry).decode().splitlines()
        if line.startswith("Requires-Dist")
    ]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [line for line in needed if "extra ==" not in line] == declared


def test_sdist_holds_all_that_a_wheel_is_built_of(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of_the_checkout() <= names and {"pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.mark.slow
def test_a_type_checker_finds_the_package_from_another_folder(tmp_path):
    """By the path that the set-up's editable install left; a wheel leaves files."""
    code = "from cdiff_rt import Pipeline, Settings\nfrom cdiff_rt.export.bundle import export_checkpoint\n"
    code += "made = Pipeline.from_pretrained().generate(Settings(seed=7), text='a man')\nreveal_type(made)\n"
    (tmp_path / "mine.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "mine.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert 'Revealed type is "cdiff_rt.outputs.generated.Generated"' in done.stdout and done.returncode == 0, (
        done.stdout
    )
