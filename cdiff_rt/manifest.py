"""The manifest of a bundle: what its networks are, what they take and give, and the hash of every file.

`Bundle.open` is the only way in. It trusts nothing: every file is named here, lies in the folder, and has its hash,
or the bundle is refused before any of its bytes reach a library. `docs/bundle.md` describes the format.
"""

import hashlib
import json
import os
import stat
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from cdiff_rt import schema
from cdiff_rt.errors import BadArtefact, BadRequest, check_type
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import RESERVED, Influence

FORMAT = 2
NAME, DIGEST = "manifest.json", "digest"
LARGEST_MANIFEST = 4 * 2**20  # bytes
MODELS = Path(__file__).parent / "models"  # those that come with cdiff-rt
DEFAULT_MODEL = "faces-128"
REBUILD = "export it again with `cdiff-rt export`"


@dataclass(frozen=True)
class TensorSpec:
    """`shape` holds numbers and names; equal names are equal sizes, e.g. ("batch", 16, 16, 16)."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class NetworkSpec:
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cpu_file: str = ""  # the same function as onnxruntime runs it faster on CPUs, if there is one

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.file, self.cpu_file)))


@dataclass(frozen=True)
class Modality:
    """One condition: how a user's value is read (`kind`, see modalities.py) and how its influence is adjusted."""

    name: str
    kind: Literal["labels", "words", "numbers"]
    decays: bool  # its influence fades towards the image
    anchor: bool  # it takes the influence that decaying modalities give up
    size: int = 0  # labels: pixels per side of the map that the encoder reads
    classes: int = 0  # labels: how many
    tokens: int = 0  # words: length of the sequence; numbers: how many rows
    width: int = 0  # numbers: how many in a row
    vocabulary: str = ""  # words: the file of word pieces
    synonyms: dict[str, str] = field(default_factory=dict, hash=False)  # words: one it does not know -> what to say

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what its encoder takes, without the batch. Each entry of the first axis becomes one context token."""
        shapes = {
            "labels": (self.classes, self.size**2),
            "words": (self.tokens,),
            "numbers": (self.tokens, self.width),
        }
        return shapes[self.kind]


@dataclass(frozen=True)
class Manifest:
    name: str
    image_size: int  # pixels per side; 0 if the latents are the data and there is no autoencoder
    latent_shape: tuple[int, ...]  # channels first, without the batch
    latent_scale: float  # latents of the loop = scale * latents of the autoencoder
    schedule: Schedule
    influence: Influence
    modalities: tuple[Modality, ...]
    networks: dict[str, NetworkSpec]
    weights: str  # the safetensors file that holds all weights, read by the ONNX graphs and by PyTorch alike
    source: dict  # the PyTorch configuration, see nets/collaborative.py
    provenance: dict
    licence: str
    files: dict[str, str]  # file name -> sha256
    format: int = FORMAT

    def to_json(self) -> str:
        data = asdict(self)
        return json.dumps(data | {DIGEST: digest(data)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Raises BadArtefact for anything but a manifest of this format."""
        try:
            data = json.loads(text, object_pairs_hook=unique, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise BadArtefact(NAME, f"not valid JSON ({error})", REBUILD) from None
        found = data.get("format") if isinstance(data, dict) else None
        if type(found) is not int or found != FORMAT:
            raise BadArtefact(NAME, f"format {found!r}", f"this cdiff-rt reads format {FORMAT}; {REBUILD}")
        try:
            signed = data.pop(DIGEST)
            manifest = schema.from_json(cls, data, "manifest")
            for name in ("latent_shape", "modalities", "networks"):
                if not getattr(manifest, name):
                    raise TypeError(f"{name} is empty")
        except (KeyError, TypeError, BadRequest) as error:
            raise BadArtefact(NAME, f"a field is missing, surplus or of another type ({error})", REBUILD) from None
        if signed != digest(data):
            raise BadArtefact(
                NAME, f"it was altered: its {DIGEST} is that of other content", f"copy it again or {REBUILD}"
            )
        return manifest


def digest(data: dict) -> str:
    """sha256 of a manifest's fields, whatever their order and spacing. It finds damage, not intent."""
    text = json.dumps({name: value for name, value in data.items() if name != DIGEST}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def unique(pairs: list[tuple[str, object]]) -> dict:
    """The `object_pairs_hook` of json that takes no key twice. Raises ValueError."""
    name, count = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 0)
    if count > 1:
        raise ValueError(f"{name!r} stands twice")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A folder that was checked against its manifest."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Raises BadArtefact if a file is missing, altered, surplus, not a plain file, or outside the folder."""
        try:
            return cls._open(folder)
        except OSError as error:
            raise BadArtefact(f"bundle {folder}", f"it cannot be read ({error.strerror})", REBUILD) from None

    @classmethod
    def _open(cls, folder: Path) -> "Bundle":
        manifest = Manifest.from_json(_read_manifest(folder))
        _check_complete(manifest, f"bundle {folder.name}")
        for name, expected in manifest.files.items():
            check_file(folder, name, expected)
        surplus = sorted({path.name for path in folder.iterdir()} - set(manifest.files) - {NAME})
        if surplus:
            raise BadArtefact(
                f"bundle {folder.name}", f"{surplus[0]!r} is not in its {NAME}", f"remove it or {REBUILD}"
            )
        return cls(folder, manifest)

    def path(self, file: str) -> Path:
        return self.folder / file


def find_model(model: str | Path) -> Path:
    """The folder of an embedded model's name or of a path."""
    check_type("model", model, str | Path, "give an embedded model's name or a bundle's folder")
    embedded = {path.name: path for path in MODELS.glob("*/")}
    if str(model) in embedded:
        return embedded[str(model)]
    if not os.path.isdir(model):
        known = ", ".join(sorted(embedded)) or "none"
        raise BadArtefact("model", f"there is no bundle {str(model)!r}", f"give a bundle's folder or one of: {known}")
    return Path(model)


def _check_complete(manifest: Manifest, what: str) -> None:
    """Raises BadArtefact unless the manifest names all that a run needs, and hashes all that it names."""
    needed = {f"{part}.{m.name}" for part in ("condition", "time", "expert") for m in manifest.modalities}
    needed |= {"vae.decode"} if manifest.image_size else set()
    lacking = sorted(needed - set(manifest.networks))
    if lacking:
        raise BadArtefact(what, f"it has no network {lacking[0]}", REBUILD)
    vocabularies = [modality.vocabulary for modality in manifest.modalities if modality.kind == "words"]
    graphs = [file for network in manifest.networks.values() for file in network.files]
    for name in (*graphs, manifest.weights, *vocabularies):
        if name not in manifest.files:
            raise BadArtefact(what, f"{name!r} is used but has no hash in {NAME}", REBUILD)
    if not manifest.latent_scale > 0:
        raise BadArtefact(what, f"latent_scale {manifest.latent_scale}", REBUILD)
    for modality in manifest.modalities:
        if modality.name in RESERVED:
            remedy = f"export it again with another name than {', '.join(sorted(RESERVED))}"
            raise BadArtefact(what, f"a modality has the name {modality.name!r}, which is that of a setting", remedy)
        taken = {f"condition.{modality.name}": modality.input_shape, f"expert.{modality.name}": manifest.latent_shape}
        for network, shape in taken.items():
            if manifest.networks[network].inputs[0].shape[1:] != shape:
                raise BadArtefact(what, f"{network} does not take {shape}, as the rest of {NAME} says", REBUILD)


def _read_manifest(folder: Path) -> str:
    path = folder / NAME
    if not path.is_file() or path.is_symlink():
        raise BadArtefact(f"bundle {folder}", f"it has no {NAME}", "give the folder that `cdiff-rt export` wrote")
    if path.stat().st_size > LARGEST_MANIFEST:
        raise BadArtefact(NAME, f"{path.stat().st_size} bytes", f"a manifest has at most {LARGEST_MANIFEST}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadArtefact(NAME, "not UTF-8 text", REBUILD) from None


def is_plain_name(name: str) -> bool:
    """Whether `name` can only be a file of the folder itself."""
    return bool(name) and name == Path(name).name and "\0" not in name and "\\" not in name


def check_file(folder: Path, name: str, expected: str, what: str = "", again: str = REBUILD) -> None:
    """Raises BadArtefact unless `name` is a plain file of `folder` with this sha256."""
    what = what or f"bundle {folder.name}"
    if not is_plain_name(name):
        raise BadArtefact(what, f"{name!r} in {NAME} is outside its folder", "do not use this bundle")
    try:
        mode = (folder / name).lstat().st_mode
    except (OSError, ValueError):
        raise BadArtefact(what, f"{name} is missing", f"copy the whole folder again or {again}") from None
    if not stat.S_ISREG(mode):
        raise BadArtefact(what, f"{name} is not a plain file", "replace the link by the file itself")
    actual = sha256(folder / name)
    if actual != expected:
        raise BadArtefact(
            what,
            f"{name} was altered: sha256 {actual[:12]}..., expected {str(expected)[:12]}...",
            f"copy it again or {again}",
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
