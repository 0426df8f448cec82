"""Folders that diffusers and transformers wrote: configurations, and the models that these describe."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cdiff_rt.errors import BadArtefact, OutOfResource, is_address, ran_out

CONFIG = "config.json"
LARGEST_CONFIG = 2**20  # bytes


def read_config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise BadArtefact(f"{path}", f"it cannot be read as JSON ({error!s:.80})", "save it again") from None
    if not isinstance(config, dict):
        raise BadArtefact(f"{path}", "it holds no fields", "save it again")
    return config


def why_no_folder(folder: Path, wanted: str) -> tuple[str, str]:
    """What is seen where no folder with `wanted` is, and the remedy."""
    remedy = "give a folder that save_pretrained wrote"
    if folder.is_file():
        return "it is a file", remedy
    if folder.is_dir():
        return f"{wanted} is not there", remedy
    named = len(folder.parts) == 2 and not folder.is_absolute() and not folder.parent.exists()  # as a hub's owner/name
    if is_address(folder) or named:
        return "there is no such folder, and nothing is downloaded", f"download it, e.g. by `hf download`, and {remedy}"
    return "there is no such folder", f"check the path, and {remedy}"


def loaded(kind: Any, folder: Path, library: str, **how: Any) -> Any:
    """What `kind.from_pretrained` makes of a folder, all of whose weights are there. Raises BadArtefact."""
    half = not any(folder.glob("*model.*")) and any(folder.glob("*.fp16.*"))
    sparing = (
        find_spec("accelerate") is not None
    )  # which diffusers needs to read weights one by one, and warns otherwise
    how |= {"low_cpu_mem_usage": sparing} if library == "diffusers" else {}
    with reading(folder, library):
        model, info = kind.from_pretrained(
            folder, local_files_only=True, variant="fp16" if half else None, output_loading_info=True, **how
        )
    for what in ("missing", "mismatched"):
        if found := sorted(map(str, info.get(f"{what}_keys", ()))):
            raise _odd(folder, f"{len(found)} of its weights are {what}, e.g. {found[0]:.80}")
    return model


@contextmanager
def reading(folder: Path, library: str) -> Iterator[None]:
    """Raises BadArtefact for a folder that the library refuses within the block."""
    try:
        yield
    except Exception as error:  # of the library and of those it reads with: no base class but this
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if ran_out(error):
            raise OutOfResource(f"model {folder}", reason, "use a machine with more memory") from error
        raise _odd(folder, f"{library} cannot load it ({reason})") from error


def _odd(folder: Path, seen: str) -> BadArtefact:
    return BadArtefact(f"model {folder}", seen, "save or download it again")
