"""Files that nobody but their user may have written, replaced whole or not at all."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdiff_rt.errors import BadArtefact, BadEnvironment, OutOfResource
from cdiff_rt.notes import log


def cache_folder() -> Path:
    """Of this user, for what can be made again. Raises BadEnvironment if there is no home."""
    from platformdirs import user_cache_path

    try:
        folder = user_cache_path("cdiff-rt")
        if not folder.is_absolute():
            raise BadEnvironment("cache folder", f"{str(folder)!r} is no absolute path", "set XDG_CACHE_HOME to one")
        return folder
    except RuntimeError:
        raise BadEnvironment("cache folder", "this user has no home", "set XDG_CACHE_HOME") from None


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadEnvironment(f"folder {folder}", error.strerror or str(error), "name another folder") from None


def check_folder(folder: Path) -> None:
    """Raises BadArtefact unless it is a folder that belongs to this user and that nobody else may write into."""
    if not hasattr(os, "geteuid"):
        raise BadEnvironment(f"folder {folder}", "this system doesn't say whose it is", "use Linux")
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode):
        raise BadArtefact(f"folder {folder}", "it is a link or no folder", "remove it")
    if state.st_uid != os.geteuid():
        raise BadArtefact(f"folder {folder}", f"it belongs to user {state.st_uid}", "remove it or name another")
    if state.st_mode & 0o022:
        raise BadArtefact(f"folder {folder}", "others may write into it", f"empty it and run `chmod 700 {folder}`")


def read_file(path: Path, largest: int) -> bytes:
    """Of a folder that was checked. Raises FileNotFoundError, and BadArtefact for all but plain files of that size."""
    state = path.lstat()
    if not stat.S_ISREG(state.st_mode) or state.st_size > largest:
        raise BadArtefact(path.name, f"it is no plain file of at most {largest} bytes", f"remove {path}")
    return path.read_bytes()


def write_file(path: Path, data: bytes) -> None:
    """All of it or nothing, even if the machine stops. The caller holds a lock: there is one writer at a time.

    What a writer that was killed left behind is overwritten by the next.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutOfResource(f"writing {path}", error.strerror or str(error), "free some space") from error


@contextmanager
def locked_now(path: Path) -> Iterator[bool]:
    """Whether nobody else has it locked; if so, it is for as long as the block lasts."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, mode=0o600, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """One process at a time; the kernel lets go of the lock of one that dies. `waiting` is logged if it has to wait."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, mode=0o600, fallback_to_soft=False)  # the soft lock of one that dies would stay
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if waiting:
                log.info(waiting)
            lock.acquire()
    except OSError as error:
        raise BadEnvironment(f"lock {path}", error.strerror or str(error), "name a folder on a local disk") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, which goes when the block ends."""
    shutil.rmtree(folder, ignore_errors=True)  # of a builder that was killed
    make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
