"""A machine with an NVIDIA GPU, as far as processes that are started can tell: a stand-in for the driver, compiled from
`standin_driver.c`, and one for PyTorch, which says what it was built for and then does what a test wants."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKING = """
class _Sum:
    def add_(self, other): return self
    def item(self): return 2.0
def ones(*size, device): return _Sum()
class cuda:
    init = staticmethod(lambda: None)
    get_arch_list = staticmethod(lambda: ["sm_75", "sm_80", "sm_90", "sm_120"])
"""


def machine(folder: Path, *, torch: str | None = None, body: str = WORKING, **driver: object) -> dict[str, str]:
    """The environment of a process on such a machine. `driver` is what the stand-in answers, by the names in its source;
    `torch` the CUDA that PyTorch is built for, such as "'13.0'" or "None", and `body` the rest of it."""
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("needs Linux and a C compiler")
    library, source = folder / "driver" / "libcuda.so.1", Path(__file__).with_suffix(".c")
    library.parent.mkdir()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    path = [str(ROOT)]
    if torch:
        package = folder / "libraries" / "torch"
        package.mkdir(parents=True)
        (package / "version.py").write_text(f"__version__ = '2.11.0'\ncuda: Optional[str] = {torch}\nhip = None\n")
        (package / "__init__.py").write_text(body)
        path.insert(0, str(package.parent))
    answers = {f"STANDIN_{name.upper()}": str(value) for name, value in driver.items()}
    usual = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return usual | answers | {"LD_LIBRARY_PATH": str(library.parent), "PYTHONPATH": os.pathsep.join(path)}


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python with these arguments on that machine."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
