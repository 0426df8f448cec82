"""Files that are read once, hashed and kept: what was checked is what runs, whatever becomes of the files afterwards.

Links are followed, for a hash says what a file is, wherever it lies: package managers, model hubs and mounted volumes
lay files out as links. Nothing is mapped into memory, since whoever cuts a mapped file kills the process.
"""

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from cdiff_rt.errors import BadArtefact, OutOfResource


def read_intact(folder: Path, hashes: Mapping[str, str], what: str, again: str) -> dict[str, bytes]:
    """Content by name. Raises BadArtefact unless each is a file with this sha256; `again` is what to do then."""
    content: dict[str, bytes] = {}
    for name, expected in hashes.items():
        content[name] = read_whole(folder / name, what, again, taken=sum(map(len, content.values())))
        actual = hashlib.sha256(content[name]).hexdigest()
        if actual != expected:
            seen = f"{name} was altered: sha256 {actual[:12]}..., expected {expected[:12]}..."
            raise BadArtefact(what, seen, f"copy it again or {again}")
    return content


def read_whole(path: Path, what: str, again: str, *, largest: int | None = None, taken: int = 0) -> bytes:
    """A regular file's bytes, through links, beside `taken` that are kept already. Raises BadArtefact, OutOfResource."""
    size = 0
    try:
        with open(path, "rb", opener=_at_once) as file:
            about = os.fstat(file.fileno())
            size = about.st_size
            if not stat.S_ISREG(about.st_mode):
                raise BadArtefact(what, f"{path.name} is not a plain file", f"put the file itself there, or {again}")
            if largest is not None and size > largest:
                raise BadArtefact(what, f"{path.name} has {size} bytes", f"it can have {largest} at most; {again}")
            _check_room(taken + size)
            return file.read(size)
    except FileNotFoundError:
        seen = "is a link to nothing" if path.is_symlink() else "is missing"
        raise BadArtefact(what, f"{path.name} {seen}", f"copy the whole folder again or {again}") from None
    except (OSError, ValueError) as error:  # the latter of a path that can't be
        reason = getattr(error, "strerror", None) or str(error)
        raise BadArtefact(what, f"{path.name} cannot be read ({reason})", f"mend that, or {again}") from None
    except (MemoryError, OverflowError):
        seen = f"there is no memory for {path.name} ({size / 1e9:.1f} GB)"
        raise OutOfResource(what, seen, "close other programs, or use a machine with more memory") from None


def _at_once(path: str, flags: int) -> int:
    """A pipe is opened without waiting for somebody who writes into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_room(size: int) -> None:
    """Raises MemoryError for what can't fit: a system that promises more than it has would kill the process."""
    if hasattr(os, "sysconf") and size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise MemoryError
