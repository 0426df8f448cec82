"""Nothing is told to anybody: no file in an empty home, no packet on its way out, whatever a command imports.

Each command runs in a network of its own that has no routes; the kernel counts what finds none, from whatever library.
"""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import cdiff_rt
from cdiff_rt import process

ROOT = Path(__file__).parents[1]
ALONE = ["unshare", "--user", "--map-root-user", "--net"]
UP = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
LONG = 16  # seconds; ONNX Runtime asks for its maker's address after some ten


def permitted() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*ALONE, "true"], check=False).returncode == 0


pytestmark = pytest.mark.skipif(not permitted(), reason="no network of one's own may be made here")


def loopback_up() -> None:
    """As on any machine; Ray's processes talk to each other through it."""
    with socket.socket() as asked:
        fcntl.ioctl(asked, 0x8914, struct.pack("16sh22x", b"lo", UP))  # SIOCSIFFLAGS


def unrouted() -> int:
    """Packets and connections of this network that had nowhere to go."""
    rows = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip:")]
    of_v4 = int(dict(zip(*rows, strict=True))["OutNoRoutes"])
    of_v6 = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return of_v4 + int(of_v6["Ip6OutNoRoutes"])


def alone(home: Path, code: str, **environment: str) -> tuple[list[str], int]:
    """Files that the code left in its home, and what it tried to send."""
    script = f"from tests import test_silence as here\nhere.loopback_up()\n{code}\nprint('unrouted', here.unrouted())"
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "OMP_NUM_THREADS", "TMPDIR")}
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", script],
        cwd=ROOT, env={**kept, "HOME": str(home), **environment}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("unrouted"))
    return sorted(str(path.relative_to(home)) for path in home.rglob("*")), int(last.split()[1])


def commands(*lines: str) -> str:
    """Commands one after the other, in processes of their own."""
    run = "import subprocess, sys\nfor line in {}:\n    subprocess.run([sys.executable, '-m', 'cdiff_rt', *line.split()], check=True)"
    return run.format(lines)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.slow
def test_an_image_on_each_library_leaves_nothing_and_asks_nobody(home, tmp_path):
    line = f"generate --text man --steps 1 --out {tmp_path}/a.png --force --backend"
    assert alone(home, commands(*(f"{line} {name}" for name in ("onnxruntime", "openvino", "torch")))) == ([], 0)


def test_what_a_library_tells_is_found(home):
    """The check sees what ONNX Runtime does when nobody forbids it."""
    import onnxruntime

    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32):
        pytest.skip("this ONNX Runtime reports to nobody")
    files, _ = alone(home, "import onnxruntime", ORT_DISABLE_TELEMETRY="0")
    assert any("Microsoft" in file for file in files)


def test_a_connection_is_found(home):
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 80))\nexcept OSError: pass"
    assert alone(home, code) == ([], 1)


@pytest.mark.long
def test_a_process_that_lives_long_asks_nobody_either(home):
    code = "import time, cdiff_rt\ncdiff_rt.Pipeline.from_pretrained().generate(text='a man', steps=1)"
    assert alone(home, f"{code}\ntime.sleep({LONG})") == ([], 0)


@pytest.mark.long
def test_export_and_benchmarks_leave_nothing_and_ask_nobody(home, tmp_path, tiny_export):
    checkpoint = tiny_export[0].parent / "tiny.safetensors"
    lines = (
        f"export --checkpoint {checkpoint} --out {tmp_path}/bundle",
        f"bench step --model {tmp_path}/bundle --backend onnxruntime --repeats 3",
        "bench start --repeats 3",
        "bench quality --pairs 2 --steps 2",
        "doctor",
    )
    assert alone(home, commands(*lines)) == ([], 0)


@pytest.mark.slow
def test_jobs_on_ray_ask_nobody_and_leave_its_key_alone(home, tmp_path):
    (tmp_path / "jobs.jsonl").write_text('{"text": "a man", "steps": 1}\n')
    line = f"generate --jobs {tmp_path}/jobs.jsonl --out {tmp_path}/out --ray 1"
    files, sent = alone(home, commands(line), RAY_TMPDIR="/tmp")
    # Ray looks for this machine's own address by connecting a UDP socket, which sends nothing and counts all the same.
    assert sent <= 4 and [file for file in files if not file.startswith(".ray")] == []


@pytest.mark.parametrize("name", process.SILENT)
def test_whoever_wants_to_report_may(name, monkeypatch):
    monkeypatch.setenv(name, "wanted")
    cdiff_rt.process.report_to_nobody()
    assert os.environ[name] == "wanted"
    monkeypatch.delenv(name)
    cdiff_rt.process.report_to_nobody()
    assert os.environ[name] == process.SILENT[name]
