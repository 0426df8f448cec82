"""A picture's record, read back: what a PNG's texts or an .npz say of how it was made. Nothing in a file is trusted."""

import base64
import binascii
import io
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cdiff_rt import schema
from cdiff_rt.controls import CALIBRATED
from cdiff_rt.errors import BadInput, CdiffError
from cdiff_rt.inputs.containers import LARGEST_TEXT, texts_of
from cdiff_rt.inputs.images import LARGEST_FILE, name_of, opened, read_array, read_file
from cdiff_rt.joined import WITH
from cdiff_rt.outputs.formats import GALLERY, INPUTS, RECORD
from cdiff_rt.settings import INFLUENCES, SETTINGS, Settings
from cdiff_rt.told import CALIBRATION

NEEDED = (*("seed", "first", "batch", "image", "solver", "steps", "eta", "temperature"), "prompt", "size", "version")
LARGEST = 2**20  # characters of a record
# What zipfile raises for a damaged archive, and containers.py.
UNREADABLE = (ValueError, OSError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
KEEP = "give the .png or .npz as cdiff-rt wrote it; other formats and many programs lose its texts"
READ = "read."  # so begins the role of what was read off a photo
DAMAGED = "its record is damaged, or of another version of cdiff-rt"
Kind = TypeVar("Kind")


@dataclass(frozen=True, eq=False)
class Record:
    """What a file says of how it was made."""

    name: str  # of the file
    content: bytes = field(repr=False)  # of the file
    parameters: dict[str, Any]  # as `Generated.parameters`; empty for a picture of another program
    texts: dict[str, str] = field(default_factory=dict, repr=False)  # all of a PNG

    @property
    def is_picture(self) -> bool:
        return not self.content.startswith(b"PK")

    @property
    def format(self) -> int:
        """That of the record: 1 has no hashes of inputs, 0 is a picture of another program."""
        return self.told("record", int, 1) if self.parameters else 0

    @property
    def command(self) -> str:
        return self.told("command", str, "edit" if "edit" in self.parameters else "generate")

    @property
    def edit(self) -> dict[str, Any]:
        return self.told("edit", dict, {})

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """By role, what each input was."""
        found = self.told("inputs", dict, {})
        if not all(isinstance(trace, dict) for trace in found.values()):
            raise BadInput(f"record of {self.name}", f"inputs {found!r:.80}", DAMAGED)
        return found

    @property
    def guests(self) -> dict[str, dict[str, str]]:
        """The experts of other bundles that took part, by name: each bundle's folder and the hash of its manifest."""
        found = self.told(WITH, dict, {})
        for guest in found.values():
            if not (
                isinstance(guest, dict) and all(isinstance(guest.get(key), str) for key in ("folder", "model_hash"))
            ):
                raise BadInput(f"record of {self.name}", f"{WITH} {found!r:.80}", DAMAGED)
        return found

    def told(self, key: str, kind: type[Kind], default: Kind) -> Kind:
        """What stands behind a key. Raises BadInput if it is of another type."""
        value = self.parameters.get(key, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BadInput(f"record of {self.name}", f"{key} is {value!r:.80}", DAMAGED)
        return value

    def request(self) -> dict[str, Any]:
        """The settings of the request, each as it was resolved; an edit's of_steps are its steps. Raises BadInput."""
        of_edit = {"steps": self.edit.get("of_steps", self.parameters.get("steps")), "batch": None}
        told = self.parameters | (of_edit if self.command == "edit" else {})
        found = {name: told[name] for name in SETTINGS if told.get(name) is not None and name != "tier"}
        if isinstance(found.get("influence"), dict):  # as records of the first format have it
            old = found.pop("influence")
            found |= {name: old[name] for name in INFLUENCES if old.get(name) is not None}
        if lost := [name for name in NEEDED if self.parameters.get(name) is None]:
            raise BadInput(f"record of {self.name}", f"it does not tell {', '.join(lost)}", DAMAGED)
        return found

    def settings(self) -> Settings:
        """But for a calibration, which is an input. Raises BadInput."""
        asked = self.request()
        if CALIBRATION in self.inputs and isinstance(asked.get("influence"), list):
            asked["influence"] = [each for each in asked["influence"] if not str(each).endswith(CALIBRATED)]
        try:
            return Settings(**asked)
        except CdiffError as error:
            raise BadInput(f"record of {self.name}: {error.what}", error.seen, DAMAGED) from None

    def embedded(self) -> dict[str, np.ndarray]:
        """The inputs that the file holds, by role. Raises BadInput."""
        found = {}
        for role, text in _json(self.name, self.texts.get(INPUTS, "{}"), LARGEST_TEXT).items():
            try:
                content = base64.b64decode(text, validate=True)
            except (binascii.Error, TypeError, ValueError):
                raise BadInput(f"inputs in {self.name}", f"{role!r:.40} cannot be read", DAMAGED) from None
            found[role] = array_of(content, f"input {role:.40} in {self.name}")
        return found


def array_of(content: bytes, name: str) -> np.ndarray:
    """What a PNG or .npy holds: labels, pixels, or numbers. Raises BadInput."""
    if content.startswith(b"\x93NUMPY"):
        return read_array(content, name)
    with opened(content, name, DAMAGED) as image:
        return np.asarray(image)


def read_record(path: str | Path | bytes) -> Record:
    """Of a .png or .npz that cdiff-rt wrote, or of another program's PNG. Raises BadInput if it holds none."""
    name, content = name_of(path), read_file(path, "picture")
    texts = _texts(name, content)
    if RECORD not in texts and GALLERY not in texts:
        seen = f"; its texts are {', '.join(sorted(map(repr, texts)))[:80]}" if texts else ""
        raise BadInput(f"picture {name}", f"it has no record of how it was made{seen}", KEEP)
    return Record(name, content, _json(name, texts[RECORD]) if RECORD in texts else {}, texts)


def _texts(name: str, content: bytes) -> dict[str, str]:
    try:
        if content.startswith(b"PK"):
            return _texts_of_npz(content)
        return texts_of(content)
    except UNREADABLE as error:
        raise BadInput(f"picture {name}", f"it cannot be read ({error})", KEEP) from None


def _texts_of_npz(content: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        keys = {"parameters": RECORD, "inputs": INPUTS}
        there = {key: f"{member}.npy" for member, key in keys.items() if f"{member}.npy" in archive.namelist()}
        return {key: _text_in(archive, member) for key, member in there.items()}


def _text_in(archive: zipfile.ZipFile, member: str) -> str:
    with archive.open(member) as file:
        data = file.read(LARGEST_TEXT + 1)
    if len(data) > LARGEST_TEXT:
        raise ValueError(f"{member} has more than {LARGEST_TEXT} bytes")
    stream = io.BytesIO(data)
    try:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # noqa: BLE001 - its header is a Python expression, and numpy says little of what it raises
        raise ValueError(f"{member} is no array ({error})") from None
    rest = data[stream.tell() :]
    if dtype.kind != "U" or shape != () or dtype.itemsize != len(rest):
        raise ValueError(f"{member} is no text")
    return rest.decode("utf-32-be" if dtype.byteorder == ">" else "utf-32-le").rstrip("\0")


def latent_of(record: Record) -> np.ndarray:
    """The latent in an .npz. Raises BadInput."""
    try:
        with zipfile.ZipFile(io.BytesIO(record.content)) as archive, archive.open("latent.npy") as file:
            return read_array(file.read(LARGEST_FILE), f"latent of {record.name}")
    except UNREADABLE as error:
        raise BadInput(f"latent of {record.name}", f"it cannot be read ({error})", KEEP) from None


def _json(name: str, text: str, most: int = LARGEST) -> dict[str, Any]:
    try:
        found = schema.parse(text) if len(text) <= most else None
    except ValueError as error:
        raise BadInput(f"record of {name}", f"it is not valid JSON ({error})", DAMAGED) from None
    if not isinstance(found, dict):
        raise BadInput(f"record of {name}", f"{len(text)} characters that are no object", DAMAGED)
    return found
