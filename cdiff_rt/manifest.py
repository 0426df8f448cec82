"""The manifest of a bundle: what its networks are, what they take and give, and the hash of every file.

`Bundle.open` is the only way in. It trusts nothing: every file is named here, lies in the folder, and has its hash,
or the bundle is refused before any of its bytes reach a library. What was read then is what runs: the folder may change
afterwards. `docs/bundle.md` describes the format.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from cdiff_rt import schema
from cdiff_rt.errors import BadArtefact, BadRequest, check_type, is_address
from cdiff_rt.intact import read_intact, read_whole
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import RESERVED, Influence

FORMAT, NAME, DIGEST = 2, "manifest.json", "digest"
LARGEST_MANIFEST, LARGEST_TENSOR = 4 * 2**20, 2**26  # bytes; numbers for one image: 4096 x 4096 pixels are 2**25.6
LONGEST_SCHEDULE, LONGEST_SENTENCE = 10_000, 2**16  # timesteps; word pieces
LARGEST_RANK, MOST_CLASSES, MOST_MODALITIES, MOST_FILES, LARGEST_SCALE = 8, 256, 64, 1000, 1e6
MODELS = Path(__file__).parent / "models"  # those that come with cdiff-rt
DEFAULT_MODEL, REBUILD = "faces-128", "export it again with `cdiff-rt export`"


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
    exact: tuple[str, ...] = ()  # inputs that stay fp32 in engines of half precision

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.file, self.cpu_file)))


@dataclass(frozen=True)
class Modality:
    """One condition: how a user's value is read (`kind`, see modalities.py) and how its influence is adjusted."""

    name: str
    kind: Literal["labels", "words", "numbers", "picture", "nothing"]  # the last has no condition, and always runs
    decays: bool  # its influence fades towards the image
    anchor: bool  # it takes the influence that decaying modalities give up
    size: int = 0  # labels and picture: pixels per side of what the encoder reads
    classes: int = 0  # labels: how many
    tokens: int = 0  # words: length of the sequence; numbers: how many rows; picture: how many its encoder makes
    width: int = 0  # numbers: how many in a row
    vocabulary: str = ""  # words: the file of word pieces, or a tokenizer.json
    synonyms: dict[str, str] = field(default_factory=dict, hash=False)  # words: one it does not know -> a|b to say

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what its encoder takes, without the batch."""
        return {
            "labels": (self.classes, self.size**2),
            "words": (self.tokens,),
            "numbers": (self.tokens, self.width),
            "picture": (1, self.size, self.size),
            "nothing": (1, 1),
        }[self.kind]

    @property
    def context_tokens(self) -> int:
        """How many its encoder makes: of a picture as many as it says, and else of each entry of the first axis one."""
        return self.tokens if self.kind == "picture" else self.input_shape[0]


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
    space: str = ""  # without an autoencoder: whose latents these are, as `space_of` in joined.py says of its bundle
    format: int = FORMAT
    calibrated: str = ""  # the file of weights that decide unless a run says otherwise, see sampling/calibrated.py

    def to_json(self) -> str:
        data = asdict(self)
        return json.dumps(data | {DIGEST: digest(data)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Raises BadArtefact for anything but a manifest of this format."""
        try:
            data = schema.parse(text)
        except ValueError as error:
            raise BadArtefact(NAME, f"not valid JSON ({error})", REBUILD) from None
        found = data.get("format") if isinstance(data, dict) else None
        if type(found) is not int or found != FORMAT:
            raise BadArtefact(NAME, f"format {found!r:.80}", f"this cdiff-rt reads format {FORMAT}; {REBUILD}")
        try:
            signed = data.pop(DIGEST)
            manifest = schema.from_json(cls, data, "manifest")
            if empty := [name for name in ("latent_shape", "modalities", "networks") if not getattr(manifest, name)]:
                raise TypeError(f"{empty[0]} is empty")
        except (KeyError, TypeError, BadRequest) as error:
            raise BadArtefact(NAME, f"a field is missing, surplus or of another type ({error})", REBUILD) from None
        if signed != digest(data):
            seen = f"it was altered: its {DIGEST} is that of other content"
            raise BadArtefact(NAME, seen, f"copy it again or {REBUILD}")
        return manifest


def digest(data: dict) -> str:
    """sha256 of a manifest's fields, whatever their order and spacing. It finds damage, not intent."""
    text = json.dumps({name: value for name, value in data.items() if name != DIGEST}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Bundle:
    """A folder's files as they were when they were checked against its manifest; nothing reads the folder again."""

    folder: Path  # where it came from
    manifest: Manifest
    manifest_hash: str  # sha256 of the manifest's file
    content: Mapping[str, bytes] = field(repr=False)  # of every file that the manifest names
    homes: Mapping[str, tuple["Bundle", str]] = field(default_factory=dict, repr=False)  # see joined.py

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Raises BadArtefact if a file is missing, altered or no plain file, or the manifest names what cannot be."""
        what = f"bundle {folder.name}"
        if not os.path.lexists(folder / NAME):
            raise BadArtefact(f"bundle {folder}", f"it has no {NAME}", "give the folder that `cdiff-rt export` wrote")
        text = read_whole(folder / NAME, what, REBUILD, largest=LARGEST_MANIFEST)
        try:
            manifest = Manifest.from_json(text.decode())
        except UnicodeDecodeError:
            raise BadArtefact(NAME, "not UTF-8 text", REBUILD) from None
        for fault in faults(manifest):
            raise BadArtefact(what, fault, REBUILD)
        return cls.of(folder, manifest, hashlib.sha256(text).hexdigest())

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, manifest_hash: str = "") -> "Bundle":
        """With the files that the manifest names, and their hashes. Raises BadArtefact."""
        content = read_intact(folder, manifest.files, f"bundle {folder.name}", REBUILD)
        return cls(folder, manifest, manifest_hash, content)

    def path(self, file: str) -> Path:
        """Where the file lay when it was read."""
        return self.folder / file

    def home(self, network: str) -> tuple["Bundle", str]:
        """The bundle whose files a network is of, and its name there."""
        return self.homes.get(network, (self, network))


def find_model(model: str | Path) -> Path:
    """The folder of an embedded model's name or of a path."""
    check_type("model", model, str | Path, "give an embedded model's name or a bundle's folder")
    embedded = {path.name: path for path in MODELS.glob("*/")}
    if str(model) in embedded:
        return embedded[str(model)]
    if not os.path.isdir(model):
        first = "download it, and " if is_address(model) else ""
        remedy = f"{first}give a bundle's folder or one of: {', '.join(sorted(embedded)) or 'none'}"
        raise BadArtefact("model", f"there is no bundle {str(model)!r}", remedy)
    return Path(model)


def faults(manifest: Manifest) -> Iterator[str]:
    """What a run would stumble over or never come to the end of, in words: sizes, names, networks that don't fit."""
    yield from odd(manifest)
    needed = {f"{part}.{m.name}" for part in ("condition", "time", "expert") for m in manifest.modalities}
    needed |= {"vae.decode"} if manifest.image_size else set()
    if lacking := sorted(needed - set(manifest.networks)):
        yield f"it has no network {lacking[0]}"
        return
    for network, (inputs, outputs) in _signatures(manifest).items():
        spec = manifest.networks.get(network)
        for tensors, verb, expected in ((spec.inputs, "take", inputs), (spec.outputs, "give", outputs)) if spec else ():
            if set(tensors) != set(expected):
                shapes = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in expected)
                yield f"{network} does not {verb} {shapes}, as the rest of {NAME} says"


def odd(manifest: Manifest) -> Iterator[str]:
    """The part of it that networks have nothing to do with."""
    yield from _odd_names(manifest)
    yield from _odd_numbers(manifest)


def _odd_names(manifest: Manifest) -> Iterator[str]:
    names = [modality.name for modality in manifest.modalities]
    counted = ((len(names), "modalities", MOST_MODALITIES), (len(manifest.files), "files", MOST_FILES))
    for count, what, most in counted:
        if count > most:
            yield f"{NAME} names {count} {what}, more than {most}"
    for name in (manifest.name, *names):
        if not name or not name.isprintable():
            yield f"{name!a:.80} cannot be a name"
    for name in names:
        if name in RESERVED:
            yield f"a modality has the name {name!r}, which is that of a setting"
        if names.count(name) > 1:
            yield f"two modalities have the name {name!r}"
    for name in (name for name in manifest.files if not is_plain_name(name)):
        yield f"{name!a:.80} in {NAME} is outside its folder"
    vocabularies = [modality.vocabulary for modality in manifest.modalities if modality.kind == "words"]
    graphs = [file for network in manifest.networks.values() for file in network.files]
    for name in (*graphs, manifest.weights, *vocabularies, *filter(None, [manifest.calibrated])):
        if name not in manifest.files:
            yield f"{name!r:.80} is used but has no hash in {NAME}"


def _odd_numbers(manifest: Manifest) -> Iterator[str]:
    schedule = manifest.schedule
    if not 1 / LARGEST_SCALE < manifest.latent_scale < LARGEST_SCALE:
        yield f"latent_scale {manifest.latent_scale}"
    yield from _odd_size(TensorSpec("latent_shape", manifest.latent_shape, ""))
    if manifest.image_size < 0:
        yield f"image_size {manifest.image_size}"
    if not 2 <= schedule.train_steps <= LONGEST_SCHEDULE:
        yield f"a schedule has 2 to {LONGEST_SCHEDULE} timesteps, this one {schedule.train_steps}"
    elif not (0 < schedule.beta_start < 1 and 0 < schedule.beta_end < 1 and schedule.alpha_bars()[-1] > 0):
        yield f"no schedule leads from beta {schedule.beta_start} to {schedule.beta_end}"
    for modality in manifest.modalities:
        yield from _odd_size(TensorSpec(f"modality {modality.name}", modality.input_shape, ""))
        if modality.kind == "words" and not 2 <= modality.tokens <= LONGEST_SENTENCE:
            yield f"a sentence of {modality.name} has {modality.tokens} word pieces"
        if modality.kind == "labels" and (modality.classes > MOST_CLASSES or modality.size < 1):
            yield f"{modality.name} has {modality.classes} classes in {modality.size} x {modality.size} pixels"
    for network in manifest.networks.values():
        for tensor in (*network.inputs, *network.outputs):
            yield from _odd_size(tensor)


def _odd_size(tensor: TensorSpec) -> Iterator[str]:
    sizes = [size for size in tensor.shape if isinstance(size, int)]
    if len(sizes) > LARGEST_RANK or min(sizes, default=1) < 1 or math.prod(sizes) > LARGEST_TENSOR:
        yield f"{tensor.name!r:.80} has the shape {list(tensor.shape)!s:.80}"


def _signatures(manifest: Manifest) -> dict[str, tuple[list[TensorSpec], list[TensorSpec]]]:
    """What networks have to take and give, as far as manifest and runtime know them."""
    size, (channels, *axes) = manifest.image_size, manifest.latent_shape
    x, out, z, mean, logvar = (_tensor(name, "batch", channels, *axes) for name in ("x", "out", "z", "mean", "logvar"))
    found = {}
    if size:
        image = _tensor("image", "batch", 3, size, size)
        found = {"vae.decode": ([z], [image]), "vae.encode": ([image], [mean, logvar])}
    for m in manifest.modalities:
        inputs = TensorSpec("inputs", ("batch", *m.input_shape), "int64" if m.kind == "words" else "float32")
        width, packed = (_width(manifest.networks[f"{part}.{m.name}"]) for part in ("time", "condition"))
        t, projections = TensorSpec("t", ("steps",), "int64"), _tensor("projections", "steps", width)
        context, logit = _tensor("context", "batch", m.context_tokens, packed), _tensor("logit", "batch", 1, *axes)
        found[f"condition.{m.name}"] = [inputs], [context]
        found[f"time.{m.name}"] = [t], [projections]
        found[f"expert.{m.name}"] = [x, _tensor("projections", 1, width), context], [out, logit]
    return found


def _tensor(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, shape, "float32")


def _width(network: NetworkSpec) -> int:
    """The last size of its first output."""
    size = network.outputs[0].shape[-1] if network.outputs and network.outputs[0].shape else 0
    return size if isinstance(size, int) else 0


def is_plain_name(name: str) -> bool:
    """Whether `name` can only be a file of the folder itself."""
    return bool(name) and name == Path(name).name and "\0" not in name and "\\" not in name and name.isprintable()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
