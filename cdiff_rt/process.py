"""What this process may do: threads and memory that it may have, whether it was forked, and that its libraries report
to nobody."""

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

if sys.platform != "win32":
    import resource

# Libraries read these when they are imported. Whoever has set one of them is left with it.
SILENT = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
MOST_THREADS = 32  # the operators of a step are too small for more; who asks for more gets them
LIMITS = {} if sys.platform == "win32" else {resource.RLIMIT_AS: "v", resource.RLIMIT_DATA: "d"}
POOLS = 2  # of threads, that PyTorch has; with others, the second half is left for those that come later

forked_with: set[str] = set()  # libraries that a parent had imported when it forked this process


def report_to_nobody() -> None:
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)


def remember_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: forked_with.update(sys.modules))


def cores() -> int:
    """Processors that this process may use at a time."""
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([given, *map(math.ceil, quotas())]))


def usual_threads() -> int:
    """Of a run that is not told how many."""
    return min(cores(), MOST_THREADS)


def startable(wanted: int) -> int:
    """Of so many threads for a library, this one among them, as many as the system allows now; at least this one.

    Limits of users and of containers count what others run too, so it is tried. A library that is refused a thread
    waits for it for ever, or ends the process.
    """
    found = min(wanted, 1 + _started(POOLS * wanted if wanted > 1 else 0) // POOLS)
    if found < wanted:
        _tell_of_limit()
    return found


@cache
def startable_once(wanted: int) -> int:
    """The same, for libraries whose threads are this process's and stay."""
    return startable(wanted)


@cache  # so once a process
def _tell_of_limit() -> None:
    from cdiff_rt.notes import log

    log.warning("threads: a limit of this user or container leaves few, so images take longer; see `ulimit -u`")


def _started(wanted: int) -> int:
    """How many threads could be started, all of which have ended."""
    end, started = threading.Event(), list[threading.Thread]()
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        time.sleep(0.05)  # until the system has let go of those that end now
    finally:
        end.set()
        for thread in started:
            thread.join()
    return len(started)


# --- control groups --------------------------------------------------------------------------------------------------


def quotas(root: Path = Path("/")) -> Iterator[float]:
    """Processors at a time, of each limit that a container or service sets: on its own group or on one around it."""
    for folder in _groups(root, "cpu"):
        try:
            files = ("cpu.max",) if (folder / "cpu.max").exists() else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
        except (OSError, ValueError):  # there is no limit: no such file, or "max"
            continue
        if quota > 0 and period > 0:
            yield quota / period


def memory_limits(root: Path = Path("/")) -> Iterator[tuple[int, str, str]]:
    """Bytes that this process may have, by each limit there is: how it is told, and how it is raised."""
    for folder in _groups(root, "memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # there is no limit: no such file, or "max"
                yield (
                    int((folder / file).read_text()),
                    "this container or service may have",
                    "raise its limit of memory",
                )
    for limit, option in LIMITS.items():
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield most, f"`ulimit -{option}` allows", "raise that"
    with suppress(OSError, ValueError, LookupError):  # there is no /proc
        lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
        kilobytes = {name: int(number) for name, number, *_ in lines}
        ours = int((root / "proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        free = 1024 * (kilobytes["MemAvailable:"] + kilobytes["SwapFree:"])
        yield free + ours, "this machine has left", ""


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups, in either version, and of those around them as far as they are seen."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines() if " - " in line]
    except OSError:
        return
    names = {
        controllers: path for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1)
    }
    for _, _, _, shown, place, *more in mounts:
        kind, _, options = more[more.index("-") + 1 :][:3]
        ours = kind == "cgroup" and controller in options.split(",")
        wanted = "" if kind == "cgroup2" else controller if ours else None
        for controllers, group in names.items():
            if wanted in controllers.split(","):  # the second version has one group of all, without a name
                yield from _upwards(root / place.lstrip("/"), group, shown)


def _upwards(top: Path, group: str, shown: str) -> Iterator[Path]:
    """From a group to the top of what is mounted, which shows the tree below `shown`."""
    seen = Path(group).is_relative_to(shown) and ".." not in Path(group).parts
    inside = Path(group).relative_to(shown) if seen else Path()
    yield from (top / inside, *(top / outer for outer in inside.parents))
