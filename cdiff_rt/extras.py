"""What is installed beside the runtime, and what to run for the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from cdiff_rt.errors import BadEnvironment

# Two packages of one name overwrite each other's files: extra -> what it must not meet.
BRINGS_ONNXRUNTIME = ("cpu", "quality", "export", "compose", "train", "tensorrt", "tensorrt-rtx", "test")
BREAKS = dict.fromkeys(BRINGS_ONNXRUNTIME, "onnxruntime-gpu") | {"gpu": "onnxruntime"}


def version_of(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def install(extra: str) -> str:
    """The command that brings an extra, and where to run it."""
    broken = BREAKS.get(extra)
    if broken is None or version_of(broken) == "not installed":
        return f"`pip install '.[{extra}]'` in the checkout"
    return f"`pip install '.[{extra}]'` in a new environment, as it breaks the {broken} of this one"


@contextmanager
def needed(what: str, extra: str) -> Iterator[None]:
    """Raises BadEnvironment for a library that is missing or broken; the extra brings it."""
    try:
        yield
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name
        library = str(error.name).split(".")[0]
        seen = f"{library} is not installed" if absent else f"a library does not load ({error})"
        raise BadEnvironment(what, seen, f"run {install(extra)}") from None
