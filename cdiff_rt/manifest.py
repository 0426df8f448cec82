"""The manifest of a bundle: what its networks are, what they take and give, and the hash of every file.

`Bundle.open` is the only way in. It trusts nothing: every file is named here, lies in the folder, and has its hash,
or the bundle is refused before any of its bytes reach a library. `docs/bundle.md` describes the format.
"""

import hashlib
import json
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from cdiff_rt.errors import BadArtefact
from cdiff_rt.schedule import Schedule

FORMAT = 1
NAME = "manifest.json"
LARGEST_MANIFEST = 4 * 2**20  # bytes
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


@dataclass(frozen=True)
class Modality:
    """One condition: how a user's value is read (`kind`, see modalities.py) and how its influence is adjusted."""

    name: str
    kind: str
    decays: bool  # its influence fades towards the image
    anchor: bool  # it takes the influence that decaying modalities give up
    size: int = 0  # labels: pixels per side of the map that the encoder reads
    classes: int = 0  # labels: how many
    tokens: int = 0  # words: length of the sequence
    vocabulary: str = ""  # words: the file of word pieces


@dataclass(frozen=True)
class Influence:
    """Default adjustment at inference; the reference's are "cosine" and 2."""

    decay: str = "cosine"
    factor: float = 2.0


@dataclass(frozen=True)
class Manifest:
    name: str
    image_size: int  # pixels per side
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
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Raises BadArtefact for anything but a manifest of this format."""
        try:
            data = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise BadArtefact(NAME, f"not valid JSON ({error})", REBUILD) from None
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise BadArtefact(NAME, f"format {found!r}", f"this cdiff-rt reads format {FORMAT}; {REBUILD}")
        try:
            return cls(
                **data
                | {
                    "latent_shape": tuple(data["latent_shape"]),
                    "schedule": Schedule(**data["schedule"]),
                    "influence": Influence(**data["influence"]),
                    "modalities": tuple(Modality(**modality) for modality in data["modalities"]),
                    "networks": {name: _network(network) for name, network in data["networks"].items()},
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BadArtefact(NAME, f"a field is missing or surplus ({error})", REBUILD) from None


def _unique(pairs: list[tuple[str, object]]) -> dict:
    names = [name for name, _ in pairs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{min(twice)!r} stands twice")
    return dict(pairs)


def _network(data: dict) -> NetworkSpec:
    def tensors(rows: list[dict]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(row["name"], tuple(row["shape"]), row["dtype"]) for row in rows)

    return NetworkSpec(data["file"], tensors(data["inputs"]), tensors(data["outputs"]))


@dataclass(frozen=True, eq=False)
class Bundle:
    """A folder that was checked against its manifest."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Raises BadArtefact if a file is missing, altered, surplus, not a plain file, or outside the folder."""
        manifest = Manifest.from_json(_read_manifest(folder))
        for name in (*(network.file for network in manifest.networks.values()), manifest.weights):
            if name not in manifest.files:
                raise BadArtefact(f"bundle {folder.name}", f"{name!r} is used but has no hash in {NAME}", REBUILD)
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


def _read_manifest(folder: Path) -> str:
    path = folder / NAME
    if not path.is_file():
        raise BadArtefact(f"bundle {folder}", f"it has no {NAME}", "give the folder that `cdiff-rt export` wrote")
    if path.stat().st_size > LARGEST_MANIFEST:
        raise BadArtefact(NAME, f"{path.stat().st_size} bytes", f"a manifest has at most {LARGEST_MANIFEST}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadArtefact(NAME, "not UTF-8 text", REBUILD) from None


def check_file(folder: Path, name: str, expected: str) -> None:
    """Raises BadArtefact unless `name` is a plain file of `folder` with this sha256."""
    what = f"bundle {folder.name}"
    if not name or name != Path(name).name or "\0" in name or "\\" in name:
        raise BadArtefact(what, f"{name!r} in {NAME} is outside its folder", "do not use this bundle")
    try:
        mode = (folder / name).lstat().st_mode
    except OSError:
        raise BadArtefact(what, f"{name} is missing", f"copy the whole folder again or {REBUILD}") from None
    if not stat.S_ISREG(mode):
        raise BadArtefact(what, f"{name} is not a plain file", "replace the link by the file itself")
    actual = sha256(folder / name)
    if actual != expected:
        raise BadArtefact(
            what,
            f"{name} was altered: sha256 {actual[:12]}..., expected {str(expected)[:12]}...",
            f"copy it again or {REBUILD}",
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
