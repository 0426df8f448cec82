"""The inputs of a picture, found again: inside the file, or by their hash beside it, in this folder, or where told."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cdiff_rt.errors import BadArtefact, BadInput, BadRequest, CdiffError
from cdiff_rt.inputs.images import read_file
from cdiff_rt.inputs.modalities import KINDS, Condition, asked
from cdiff_rt.inputs.traces import File, Trace, named, trace_of
from cdiff_rt.intact import read_whole
from cdiff_rt.joined import WITH, Added
from cdiff_rt.manifest import LARGEST_MANIFEST, MODELS, NAME, Manifest, find_model, is_plain_name
from cdiff_rt.records.read import DAMAGED, READ, Record

MOST_FILES = 200_000  # that are looked at below the folders to search
REMEDY = "give its folder by --search, or make pictures with --embed-inputs"


def check_search(search: Sequence[Path]) -> None:
    for folder in search:
        if not folder.is_dir():
            raise BadRequest("search", f"there is no folder {str(folder)!r:.80}", "give a folder")


def inputs_of(record: Record, manifest: Manifest, beside: Path, search: Sequence[Path]) -> dict[str, Any]:
    """By role, each as it was given, or as it was read. Raises BadInput for one that is not there."""
    check_search(search)
    folders = list(dict.fromkeys((beside, Path())))
    if record.format == 1:
        return _by_name(record, manifest, [*folders, *search])
    embedded, found = record.embedded(), dict[str, Any]()
    for role, trace in record.inputs.items():
        if "text" in trace:
            found[role] = trace["text"]
        elif role in embedded:
            name = role.rpartition(".")[2]
            found[role] = asked({name: embedded[role]}, manifest, given=False)[name]
        elif not role.startswith(READ):  # which can be read again
            found[role] = _file_of(record, role, trace, folders, search)
    return found


def bundles_of(record: Record, beside: Path, search: Sequence[Path], given: Added) -> dict[str, Path]:
    """The folders of the bundles whose experts took part, by name: as given, or found by the hash of their manifests.

    Raises BadInput for one that is not there, BadArtefact for one given that is another.
    """
    found = {}
    for name, guest in record.guests.items():
        folder, wanted = guest["folder"], guest["model_hash"]
        if name in given:
            found[name] = find_model(given[name])
            if _manifest_hash(found[name]) != wanted:
                seen = f"that of {found[name]} is another than {wanted:.12}..., which {record.name} was made with"
                raise BadArtefact(f"{WITH} {name}, sha256 of its manifest", seen, f"give that one by --{WITH}")
        else:
            there = (path for path in _folders(folder, [beside, Path()], search) if _manifest_hash(path) == wanted)
            if (path := next(there, None)) is None:
                seen = (
                    f"no bundle with the sha256 {wanted:.12}... of its manifest ({folder!r:.80}) is beside it or here"
                )
                remedy = f"give it by --{WITH} {name}=FOLDER, or a folder above it by --search"
                raise BadInput(f"{WITH} {name} of {record.name}", seen, remedy)
            found[name] = path
    return found


def _manifest_hash(folder: Path) -> str:
    with suppress(CdiffError):
        return hashlib.sha256(read_whole(folder / NAME, "", "", largest=LARGEST_MANIFEST)).hexdigest()
    return ""


def _folders(name: str, folders: Sequence[Path], search: Sequence[Path]) -> Iterator[Path]:
    """Those that may be a bundle, the likeliest first."""
    if is_plain_name(name):
        yield from (top / name for top in (*folders, MODELS))
    for top in folders:
        with suppress(OSError):
            yield from (Path(entry.path) for entry in os.scandir(top) if entry.is_dir())
    for top in search:
        yield from (path.parent for path in _below(top) if path.name == NAME)


def _by_name(record: Record, manifest: Manifest, folders: Sequence[Path]) -> dict[str, Condition]:
    """Of a record without hashes."""
    kinds = {modality.name: KINDS[modality.kind] for modality in manifest.modalities}
    found: dict[str, Condition] = {}
    for name, value in record.told("conditions", dict, {}).items():
        if name not in kinds or not isinstance(value, str):
            raise BadInput(f"record of {record.name}", f"the condition {name!r:.40} is {value!r:.80}", DAMAGED)
        for folder in folders:
            with suppress(CdiffError):
                found.setdefault(name, kinds[name].find(value, name, folder))
        if name not in found or (isinstance(found[name], Path) and not is_plain_name(value)):
            raise BadInput(f"{name} of {record.name}", f"there is no file {value!r:.80} beside it or here", REMEDY)
    return found


def _file_of(record: Record, role: str, trace: Trace, folders: Sequence[Path], search: Sequence[Path]) -> File:
    name, size, digest = trace.get("file"), trace.get("bytes"), trace.get("sha256")
    what, form = f"{role} of {record.name}", next(iter(f"{key} {value}" for key, value in trace.items()), "nothing")
    if size is None:
        remedy = "give it again in Python, or make pictures with --embed-inputs (embed=True)"
        raise BadInput(what, f"it was no file but {form:.80}, of which there is only the sha256 {digest}", remedy)
    if not isinstance(size, int) or not isinstance(digest, str):
        raise BadInput(f"record of {record.name}", f"{role} is {trace!r:.80}", DAMAGED)
    for path in _candidates(str(name or ""), folders, search):
        with suppress(CdiffError, OSError):
            if path.stat().st_size == size and trace_of(content := read_file(path, role))["sha256"] == digest:
                return named(content, str(name or path.name))
    places = "inside it, beside it, in the current folder" + (" or where it was searched" if search else "")
    seen = f"no file of {size} bytes with the sha256 {digest} ({name or 'of no name'!s:.80}) is {places}"
    raise BadInput(what, seen, REMEDY)


def _candidates(name: str, folders: Sequence[Path], search: Sequence[Path]) -> Iterator[Path]:
    """Files that may be it, the likeliest first."""
    if is_plain_name(name):
        yield from (folder / name for folder in folders)
    for folder in folders:
        with suppress(OSError):
            yield from (Path(entry.path) for entry in os.scandir(folder) if entry.is_file())
    for top in search:
        yield from _below(top)


def _below(top: Path) -> Iterator[Path]:
    """Every file there. Raises BadRequest if they are too many."""
    left = MOST_FILES
    for folder, _, files in os.walk(top):
        yield from (Path(folder, file) for file in files[:left])
        left -= len(files)
        if left <= 0:
            remedy = "name a folder nearer to it"
            raise BadRequest("search", f"{str(top)!r:.80} has more than {MOST_FILES} files", remedy)
