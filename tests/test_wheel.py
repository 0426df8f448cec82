import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKED = ("pyproject.toml", "README.md", "LICENSE", "cdiff_rt", "engines", "export", "bench", "cli.py")


def setuptools_is_new_enough():
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder is left in the checkout."""
    copy, dist = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in PACKED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    isolation = ["--no-isolation"] if setuptools_is_new_enough() else []
    build = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(dist), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=dist, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def files_of_the_checkout():
    """Every file of the package, with the rooms as folders of it."""
    package = ROOT / "cdiff_rt"
    found = {path.relative_to(ROOT) for path in package.rglob("*") if path.is_file()}
    for link in (path for path in package.iterdir() if path.is_symlink() and path.is_dir()):
        room = link.resolve()
        found |= {Path("cdiff_rt", link.name, path.relative_to(room)) for path in room.rglob("*") if path.is_file()}
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_wheel_holds_the_package_and_nothing_else(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files_of_the_checkout()


@pytest.mark.parametrize(
    "name",
    ["py.typed", "cli.py", "engines/ort.py", "export/bundle.py", "bench/worker.py", "nets/unet.py"]
    + [
        f"models/faces-128/{file}" for file in ("manifest.json", "weights.safetensors", "vocab.txt", "expert.mask.onnx")
    ],
)
def test_wheel_holds(wheel, name):
    assert wheel.getinfo(f"cdiff_rt/{name}").file_size == (ROOT / "cdiff_rt" / name).stat().st_size


def test_wheel_installs_the_command(wheel):
    (entry,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert "cdiff-rt = cdiff_rt.commands:main" in wheel.read(entry).decode()


def test_wheel_needs_only_what_the_runtime_imports(wheel):
    (entry,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    needed = [
        line.removeprefix("Requires-Dist: ")
        for line in wheel.read(entry).decode().splitlines()
        if line.startswith("Requires-Dist")
    ]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [line for line in needed if "extra ==" not in line] == declared
