"""Files that nobody but their user may have written, replaced whole or not at all."""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdiff_rt.errors import BadArtefact, BadEnvironment, OutOfResource

KEY_BYTES = 32
log = logging.getLogger("cdiff_rt")


def at_home(path: Path) -> Path:
    """`path` with its ~ replaced. Raises BadEnvironment if there is no home."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise BadEnvironment(str(path), "this user has no home", "name another folder") from None


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
    """Raises FileNotFoundError, and BadArtefact unless it is a plain file of at most `largest` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:  # among others that of a link
        raise BadArtefact(path.name, f"it is no plain file ({error.strerror})", f"remove {path}") from None
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or state.st_size > largest:
        os.close(descriptor)
        raise BadArtefact(path.name, f"it is no plain file of at most {largest} bytes", f"remove {path}")
    with open(descriptor, "rb") as file:
        return file.read()


def write_file(path: Path, data: bytes) -> None:
    """All of it or nothing, even if the machine stops. The caller holds a lock: there is one writer at a time.

    What a writer that was killed left behind is overwritten by the next.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutOfResource(f"writing {path}", error.strerror or str(error), "free some space") from error


def _sync(folder: Path) -> None:
    """A replacement is on disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """One process at a time; the kernel lets go of the lock of one that dies. `waiting` is logged if it has to wait."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise BadEnvironment(f"lock {path}", error.strerror or str(error), "name another folder") from None
    try:
        _lock(descriptor, path, waiting)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, waiting: str) -> None:
    import fcntl  # which not every system has

    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                log.info(waiting)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise BadEnvironment(f"lock {path}", error.strerror or str(error), "name a folder on a local disk") from error


def user_key(path: Path) -> bytes:
    """The user's secret. Raises FileNotFoundError if none was made, BadArtefact if others may have read it."""
    data = read_file(path, KEY_BYTES)
    state = path.lstat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o077 or len(data) != KEY_BYTES:
        raise BadArtefact(f"key {path}", "it is not this user's alone", "remove it and build the engines again")
    return data


def make_user_key(path: Path) -> bytes:
    """The user's secret, made if there is none."""
    try:
        return user_key(path)
    except FileNotFoundError:
        make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    write_file(partial, os.urandom(KEY_BYTES))
    try:
        os.link(partial, path)  # unlike a replacement it keeps the key of somebody who was faster
    except FileExistsError:
        pass
    finally:
        partial.unlink()
    return user_key(path)
