"""How many threads this process may have; on trees of control groups as kernels and containers show them."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cdiff_rt import process
from cdiff_rt.process import cores, quotas, startable, usual_threads

V2 = "26 1 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup rw"
V1 = "33 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "34 25 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
DISK = "36 35 98:0 / / rw,noatime master:1 - ext4 /dev/root rw,errors=continue"
GROUP, OUTER = "sys/fs/cgroup/a.slice/b.scope", "sys/fs/cgroup/a.slice"
CPU = "sys/fs/cgroup/cpu,cpuacct"


def tree(root: Path, own: str, mounts: list[str], files: dict[str, str]) -> Path:
    files = {"proc/self/cgroup": own, "proc/self/mountinfo": "\n".join(mounts), **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def of_v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": str(period)}


@pytest.mark.parametrize(
    ("own", "mounts", "files", "expected"),
    [
        ("0::/a.slice/b.scope", [DISK, V2], {f"{GROUP}/cpu.max": "200000 100000"}, [2.0]),
        ("0::/a.slice/b.scope", [V2], {f"{GROUP}/cpu.max": "max 100000"}, []),
        ("0::/a.slice/b.scope", [V2], {f"{GROUP}/cpu.max": "max 100000", f"{OUTER}/cpu.max": "50000 100000"}, [0.5]),
        (
            "0::/a.slice/b.scope",
            [V2],
            {f"{GROUP}/cpu.max": "400000 100000", f"{OUTER}/cpu.max": "150000 50000"},
            [4, 3],
        ),
        ("0::/", [V2], {"sys/fs/cgroup/cpu.max": "150000 100000"}, [1.5]),
        ("0::/../../b.scope", [V2], {"sys/fs/cgroup/cpu.max": "150000 100000"}, [1.5]),
        (
            "2:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc",
            [V1_MEMORY, V1],
            of_v1(f"{CPU}/docker/abc", 200_000),
            [2.0],
        ),
        ("2:cpu,cpuacct:/docker/abc", [V1.replace(" / /", " /docker/abc /")], of_v1(CPU, 300_000), [3.0]),
        ("2:cpu,cpuacct:/elsewhere", [V1.replace(" / /", " /docker/abc /")], of_v1(CPU, 300_000), [3.0]),
        ("2:cpu,cpuacct:/docker/abc", [V1], of_v1(f"{CPU}/docker", 100_000) | of_v1(CPU, -1), [1.0]),
        ("2:cpuset:/x\n0::/a.slice/b.scope", [V2.replace("/cgroup rw", "/cgroup/unified rw")], {}, []),
        ("2:cpu,cpuacct:/docker/abc", [V1], of_v1(f"{CPU}/docker/abc", 200_000, 0), []),
        ("0::/a.slice/b.scope", [V2], {f"{GROUP}/cpu.max": "nonsense"}, []),
        ("", [], {}, []),
    ],
    ids=[
        *(
            "v2",
            "v2 without",
            "v2 around",
            "v2 nested",
            "v2 namespace",
            "v2 outside",
            "v1",
            "v1 docker",
            "v1 elsewhere",
        ),
        *("v1 around", "hybrid", "v1 no period", "nonsense", "none"),
    ],
)
def test_quotas_are_those_of_the_own_group_and_of_those_around_it(own, mounts, files, expected, tmp_path):
    assert list(quotas(tree(tmp_path, own, mounts, files))) == expected


def test_where_there_are_no_control_groups_there_is_no_quota(tmp_path):
    assert list(quotas(tmp_path)) == []


MEMORY, MEMINFO = "sys/fs/cgroup/memory", "MemTotal: 900 kB\nMemAvailable: 700 kB\nSwapFree: 200 kB\nHugePages_Total: 0"


@pytest.mark.parametrize(
    ("own", "mounts", "files", "expected"),
    [
        ("0::/a.slice/b.scope", [DISK, V2], {f"{GROUP}/memory.max": "5000", f"{OUTER}/memory.max": "max"}, [5000]),
        ("0::/a.slice/b.scope", [V2], {f"{GROUP}/memory.max": "5000", f"{OUTER}/memory.max": "3000"}, [5000, 3000]),
        ("0::/", [V2], {"sys/fs/cgroup/memory.max": "7000"}, [7000]),
        ("3:memory:/d", [V1, V1_MEMORY], {f"{MEMORY}/d/memory.limit_in_bytes": "9"}, [9]),
        ("2:cpu,cpuacct:/d", [V1, V1_MEMORY], {f"{MEMORY}/d/memory.limit_in_bytes": "9"}, []),
        ("", [], {"proc/meminfo": MEMINFO, "proc/self/statm": "9 2 1"}, [900 * 1024 + 2 * os.sysconf("SC_PAGE_SIZE")]),
        ("", [], {"proc/meminfo": "MemFree: 1 kB", "proc/self/statm": "9 2 1"}, []),
    ],
    ids=["v2", "v2 around", "v2 namespace", "v1", "v1 of another", "machine", "old kernel"],
)
def test_memory_is_limited_by_groups_and_by_what_is_free(own, mounts, files, expected, tmp_path):
    assert [allowed for allowed, _, _ in process.memory_limits(tree(tmp_path, own, mounts, files))] == expected


@pytest.mark.parametrize(("limit", "option"), process.LIMITS.items())
def test_and_by_the_limits_of_the_user(limit, option, tmp_path, monkeypatch):
    unlimited = process.resource.RLIM_INFINITY
    monkeypatch.setattr(process.resource, "getrlimit", lambda of: (4096 if of == limit else unlimited, unlimited))
    assert list(process.memory_limits(tmp_path)) == [(4096, f"`ulimit -{option}` allows", "raise that")]


@pytest.mark.parametrize(
    ("may", "limits", "expected", "usual"),
    [(64, [], 64, 32), (64, [2.0], 2, 2), (64, [1.5, 8.0], 2, 2), (4, [0.5], 1, 1), (4, [100.0], 4, 4), (1, [], 1, 1)],
    ids=str,
)
def test_a_run_takes_what_it_may_and_no_more_than_helps(may, limits, expected, usual, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(may)))
    monkeypatch.setattr(process, "quotas", lambda: iter(limits))
    assert (cores(), usual_threads()) == (expected, usual)


@pytest.mark.parametrize(("left", "found"), [(0, 1), (1, 1), (2, 2), (13, 7), (31, 16), (32, 16), (100, 16)])
def test_only_so_many_threads_are_asked_for_as_can_be_started(left, found, monkeypatch, caplog):
    started, real = [], threading.Thread.start

    def start(thread):
        if len(started) >= left:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    process._tell_of_limit.cache_clear()
    assert startable(16) == found and startable(1) == 1
    assert [thread for thread in started if thread.is_alive()] == []
    assert len(caplog.messages) == (found < 16) and all("ulimit -u" in message for message in caplog.messages)


LIMITED = """
import os, sys, numpy as np
os.sched_getaffinity = lambda pid: set(range(64))
from cdiff_rt import Pipeline
made = Pipeline.from_pretrained(backend=sys.argv[1]).generate(text="a man", mask=np.eye(64, dtype="uint8"), steps=2)
print(made.warnings[-1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="becomes a user who has no other processes")
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_64_processors_and_20_threads_make_an_image(backend, root):
    """As root is not limited, and other users' processes count: some user that nobody is, who may read all files."""
    may = ["--inh-caps", "+dac_override,+dac_read_search", "--ambient-caps", "+dac_override,+dac_read_search"]
    command = ["setpriv", "--reuid", "54321", "--clear-groups", *may, "bash", "-c", 'ulimit -u 20; exec "$@"', "bash"]
    done = subprocess.run(
        [*command, sys.executable, "-c", LIMITED, backend],
        cwd=root, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout.startswith("threads: a limit")) == (0, True), done.stderr
