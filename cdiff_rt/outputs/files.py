"""Files appear whole or not at all, whatever ends their process, and a disk that fails is told in one line.

What a process writes lies in a folder of its own below `PLACE`, beside where it is to appear, and is locked as long as
the process lives. There, renaming `new` to `whole` decides: what is whole is moved to its place, by the next process
that writes there if this one is killed, and all else is swept by that one.
"""

import errno
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cdiff_rt.errors import OF_THE_MACHINE, BadInput, BadRequest, CdiffError, OutOfResource, is_address

if sys.platform != "win32":
    import fcntl

PLACE = f".cdiff-rt-{os.getuid() if hasattr(os, 'getuid') else 0}"  # hidden, and each user's own
OWNER, NEW, OLD, WHOLE = "owner", "new", "old", "whole"  # below a process's folder
PATIENCE, TURN = 1.0, 600.0  # seconds, for a folder that another process may just be sweeping, or saving in
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes; the path leaves room for what is written below `PLACE`

_OF_THE_PATH = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY}  # other paths go
_SPACE, _RIGHTS = "free some space or choose another folder", "choose one you may write to"
_REMEDIES = {errno.ENOSPC: _SPACE, errno.EDQUOT: _SPACE, errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS}
_REMEDIES |= {errno.EROFS: _RIGHTS, errno.EFBIG: "raise the limit of a file's size, `ulimit -f`"}
_REMEDIES |= {errno.EIO: "check the disk, or choose another folder"}
_REMEDIES |= dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files, `ulimit -n`")


def remedy_for(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, "choose another folder")


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Raises OutOfResource for what a disk refuses, and BadInput if only this path is to blame."""
    try:
        yield
    except OSError as error:
        kind: type[CdiffError] = BadInput if error.errno in _OF_THE_PATH else OutOfResource
        raise kind(doing, error.strerror or str(error), remedy_for(error)) from None


def check_folder(folder: Path) -> None:
    """Raises BadInput unless files can be written into `folder`, which need not exist yet, or OutOfResource.

    Leaves nothing behind, not even what other processes left that were killed.
    """
    _check_place(folder)
    try:
        existing = _existing(folder)
        sweep(existing)
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        kind: type[CdiffError] = OutOfResource if error.errno in OF_THE_MACHINE else BadInput
        raise kind(f"output folder {folder}", error.strerror or str(error), remedy_for(error)) from None


def _check_place(path: Path) -> None:
    if is_address(path) and not Path(path.parts[0]).exists():
        raise BadRequest("out", f"{str(path)!r:.80} is an address, and nothing is sent to any", "give a path")


def check_names(*paths: Path) -> None:
    """Raises BadRequest for a path that no file can have, before anything is written."""
    for path in paths:
        try:
            names = [os.fsencode(part) for part in path.absolute().parts]
        except UnicodeEncodeError:
            names = [b"\0"]
        if any(b"\0" in name for name in names):
            raise BadRequest("out", f"{str(path)!r:.80} is no file's name", "choose another name")
        _check_place(path)
        longest, whole = max(map(len, names)), sum(map(len, names)) + len(names)
        if longest > LONGEST_NAME or whole > LONGEST_PATH:
            seen = f"the name of {path.name:.40}... has {longest} bytes, its path {whole}"
            raise BadRequest("out", seen, f"choose one of at most {LONGEST_NAME} and {LONGEST_PATH}")


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


@contextmanager
def all_or_nothing(path: Path) -> Iterator[Path]:
    """A hidden folder: what was put into it moves beside `path` at the end of the block, or is gone if it fails.

    `path` itself comes last: where it is new, everything is.
    """
    with disk_errors(f"writing {path}"), own_folder(path.parent) as mine:
        new = mine / NEW
        new.mkdir()
        yield new
        names = sorted(os.listdir(new), key=lambda name: (name == path.name, name))
        _to_disk(new)
        try:
            new.rename(mine / WHOLE)
            _move(mine, path.parent, names)
        except BaseException:
            _move_back(mine, path.parent, names)
            raise


@contextmanager
def new_file_or_folder(path: Path) -> Iterator[Path]:
    """What is written under the path given appears as `path` at the end of the block.

    Raises BadRequest if something is there, and at once if a living process is writing it already.
    """
    with disk_errors(f"writing {path}"), own_folder(path.parent, path.name) as mine:
        check_free(path)
        partial = mine / NEW / path.name
        partial.parent.mkdir()
        yield partial
        _to_disk(partial.parent)
        check_free(path)
        partial.rename(path)


def check_free(path: Path) -> None:
    if os.path.lexists(path):
        raise BadRequest("out", f"{path} exists", "choose another name or remove it")


@contextmanager
def own_folder(folder: Path, name: str = "", patience: float = PATIENCE) -> Iterator[Path]:
    """A folder below `folder` that is this process's as long as it lives, and is gone after the block.

    Raises BadRequest if a living process has the one of that `name`.
    """
    mine = folder / PLACE / (name or secrets.token_hex(8))
    lock = _claim(mine, patience, ours=not name)
    try:
        yield mine
    finally:
        if not (mine / WHOLE).exists():  # else something is half in its place, and the next process ends what was begun
            _remove(mine)
        os.close(lock)


def _claim(mine: Path, patience: float, *, ours: bool) -> int:
    """Makes the folder, and locks it. `ours` is one whose name nobody else can have thought of."""
    until = time.monotonic() + patience
    while True:
        sweep(mine.parents[1])
        try:
            mine.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mine.mkdir()
            ours = True
            return _lock(mine)
        except FileExistsError:
            if time.monotonic() > until:
                remedy = f"wait for it; if there is none, remove {mine}"
                raise BadRequest("out", f"another run is writing {mine.name}", remedy) from None
            time.sleep(PATIENCE / 10)
        except BaseException as error:
            swept = isinstance(error, FileNotFoundError | BlockingIOError)  # before it was locked
            if not swept or time.monotonic() > until:
                _remove(mine, also=ours)
                raise


def _remove(mine: Path, *, also: bool = True) -> None:
    """It, if `also`, and the place if nobody is there. If something comes in between, an interrupt say, once more."""
    try:
        shutil.rmtree(mine, ignore_errors=True) if also else None
    finally:
        shutil.rmtree(mine, ignore_errors=True) if also else None
        for _ in range(2):
            with suppress(OSError):
                mine.parent.rmdir()


def _lock(mine: Path, *, surely: bool = False) -> int:
    """A descriptor that holds a folder until it is closed, or its process ends.

    Raises BlockingIOError if another process has it, FileNotFoundError if it is gone; on a disk without locks OSError,
    but only if it has to be locked `surely`.
    """
    lock = os.open(mine / OWNER, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take(lock, surely)
        if not os.path.samestat(os.fstat(lock), os.stat(mine / OWNER)):
            raise FileNotFoundError
    except BaseException:
        os.close(lock)
        raise
    return lock


def _take(lock: int, surely: bool) -> None:
    try:
        if sys.platform == "win32":
            raise OSError("no locks that a process's end lets go of")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        if surely:
            raise


def sweep(folder: Path) -> None:
    """Ends what processes began in `folder` that are no more: what is whole appears, and the rest is removed."""
    place = folder / PLACE
    if place.is_symlink() or not place.is_dir():
        return
    for left in place.iterdir():
        with suppress(OSError):
            lock = _lock(left, surely=True)
            try:
                if (left / WHOLE).is_dir():
                    _move(left, folder, sorted(os.listdir(left / WHOLE)))
                shutil.rmtree(left)
            finally:
                os.close(lock)
    with suppress(OSError):
        place.rmdir()


def _move(mine: Path, folder: Path, names: list[str]) -> None:
    """From `whole` into `folder`; what they take the place of goes to `old`."""
    (mine / OLD).mkdir(exist_ok=True)
    for name in names:
        target, kept = folder / name, mine / OLD / name
        if target.is_dir() and not target.is_symlink():
            target.rename(kept)
        elif os.path.lexists(target) and not os.path.lexists(kept):
            _keep(target, kept)
        os.replace(mine / WHOLE / name, target)
    (mine / WHOLE).rmdir()


def _keep(target: Path, kept: Path) -> None:
    try:
        os.link(target, kept, follow_symlinks=False)
    except OSError:  # a disk without hard links
        target.rename(kept)


def _move_back(mine: Path, folder: Path, names: list[str]) -> None:
    """As it was before, of which `_move` may have done any part."""
    if (mine / NEW).exists():
        return
    (mine / WHOLE).mkdir(exist_ok=True)
    for name in names:
        target, kept, whole = folder / name, mine / OLD / name, mine / WHOLE / name
        if not os.path.lexists(whole) and (target.is_dir() or not os.path.lexists(kept)):
            target.rename(whole)
        if os.path.lexists(kept):
            os.replace(kept, target)
    (mine / WHOLE).rename(mine / NEW)


def _to_disk(folder: Path) -> None:
    """Every file of it, so that no name appears before its content, even if the machine stops."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
