"""Files appear whole or not at all, and a disk that fails is told in one line."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdiff_rt.errors import BadInput, OutOfResource


def check_folder(folder: Path) -> None:
    """Raises BadInput unless files can be written into `folder`, which need not exist yet; leaves nothing behind."""
    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".cdiff-rt-"):
            pass
    except OSError as error:
        raise BadInput(f"output folder {folder}", error.strerror or str(error), "choose one you may write to") from None


@contextmanager
def all_or_nothing(folder: Path, what: str) -> Iterator[Path]:
    """A hidden folder: what was put into it moves into `folder` at the end of the block, or is gone if it fails."""
    with disk_errors(f"writing {what}"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".cdiff-rt-") as hidden:
            new, old = Path(hidden, "new"), Path(hidden, "old")
            new.mkdir()  # with the permissions that the user's folders have; the hidden one is its owner's alone
            old.mkdir()
            yield new
            for path in sorted(new.iterdir()):
                target = folder / path.name
                if target.is_dir():
                    os.replace(target, old / path.name)
                os.replace(path, target)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "free some space or choose another folder"
        raise OutOfResource(doing, error.strerror or str(error), remedy) from None
