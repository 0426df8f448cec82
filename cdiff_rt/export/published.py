"""The released Collaborative Diffusion checkpoints: what they contain, what it is called here, and their import.

A "codiff" file holds everything; uni-modal files hold a branch, its encoder and the autoencoder; a vae file that alone.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.checkpoint import Checkpoint, Description, check_types, model_shapes
from cdiff_rt.export.source import Source, check_schedule, open_source
from cdiff_rt.export.tensors import tell
from cdiff_rt.manifest import Modality
from cdiff_rt.nets.autoencoder import AutoencoderConfig
from cdiff_rt.nets.collaborative import EncoderConfig, ExpertConfig, ModelConfig
from cdiff_rt.nets.mask_encoder import MaskEncoderConfig
from cdiff_rt.nets.text_encoder import TextEncoderConfig
from cdiff_rt.nets.unet import UNetConfig
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import Influence

VOCABULARY = "bert-base-uncased.txt"
CLASSES, MASK_SIDE = 19, 32


@dataclass(frozen=True)
class Published:
    """A released size of the model."""

    name: str
    image_size: int
    latent_scale: float
    model: ModelConfig
    modalities: tuple[Modality, ...]  # how conditions are read, and how the reference adjusts their influence


def published(
    name: str,
    vae_levels: tuple[int, ...],
    latent_scale: float,
    *,
    latent: int = 64,
    context: int = 640,
    channels: int = 192,
    text_layers: int = 32,
    vae_channels: int = 128,
    modalities: tuple[str, ...] = ("mask", "text"),
) -> Published:
    """The defaults are the released sizes; tests use small ones."""
    linear = MaskEncoderConfig(pixels=MASK_SIDE**2, width=context)
    words = TextEncoderConfig(30522, tokens=77, width=context, layers=text_layers, heads=8, head_width=64)
    rows: dict[str, tuple[EncoderConfig, Modality]] = {
        "mask": (linear, Modality("mask", "labels", decays=True, anchor=False, size=MASK_SIDE, classes=CLASSES)),
        "text": (words, Modality("text", "words", decays=False, anchor=True, tokens=77, vocabulary=VOCABULARY)),
        "sketch": (linear, Modality("sketch", "numbers", decays=True, anchor=False, tokens=1, width=MASK_SIDE**2)),
    }

    def unet(width: int, out_channels: int) -> UNetConfig:
        return UNetConfig(
            in_channels=3,
            out_channels=out_channels,
            model_channels=width,
            channel_mult=(1, 2, 3, 5),
            num_res_blocks=2,
            attention_resolutions=(8, 4, 2),
            num_heads=32,
            context_dim=context,
        )

    experts = {m: ExpertConfig(rows[m][0], unet(channels, 3), unet(32, 1)) for m in modalities}
    vae = AutoencoderConfig(vae_channels, vae_levels, num_res_blocks=2, z_channels=3)
    model = ModelConfig(experts, vae)
    return Published(name, latent * vae.factor, latent_scale, model, tuple(rows[m][1] for m in modalities))


PUBLISHED = (published("512", (1, 2, 4, 4), 0.141), published("256", (1, 2, 4), 0.058))


# --- which size it fits ----------------------------------------------------------------------------------------------


def expected(config: Published, kind: str) -> dict[str, tuple[int, ...]]:
    """What a file of this kind has to hold, by our names."""
    shapes = model_shapes(config.model)
    if kind == "codiff":
        return shapes
    wanted = ("vae.",) if kind == "vae" else ("vae.", f"experts.{kind}.unet.", f"experts.{kind}.encoder.")
    return {name: shape for name, shape in shapes.items() if name.startswith(wanted)}


def differences(source: Source, config: Published) -> list[str]:
    """In words, what keeps a file from being of this size."""
    shapes, wanted = source.shapes, expected(config, source.kind)
    missing = [f"{name} is missing" for name in wanted if name not in shapes]
    surplus = [f"{source.keys[name]} is surplus" for name in shapes if name not in wanted]
    other = [
        f"{source.keys[name]} is {list(shape)}, expected {list(wanted[name])}"
        for name, shape in shapes.items()
        if name in wanted and shape != wanted[name]
    ]
    return missing + surplus + other


def recognise(source: Source, sizes: Sequence[Published]) -> Published:
    """The size that a file fits. Raises BadArtefact that tells what keeps it from the nearest."""
    found = {size.name: differences(source, size) for size in sizes}
    nearest = min(sizes, key=lambda size: len(found[size.name]))
    wrong = found[nearest.name]
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        seen = f"a {source.kind} file that is nearest to the {nearest.name} model, but {shown}"
        raise BadArtefact(f"checkpoint {source.path.name}", seen, "get the published file again")
    return nearest


# --- the model of several files --------------------------------------------------------------------------------------


class Renamed(Mapping[str, Tensor]):
    """Weights of several files by our names, read when asked for."""

    def __init__(self, places: dict[str, Source]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> Tensor:
        source = self._places[name]
        return source.tensors[source.keys[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def import_published(
    paths: Sequence[Path], sizes: Sequence[Published] = PUBLISHED, sha256: Sequence[str] = ()
) -> Checkpoint:
    """One model of published files. A later file replaces what an earlier one has of its branch.

    So a fine-tuned branch comes under the trained dynamic diffusers; a branch alone has none. The autoencoder is the
    first file's, unless there is a vae file. Raises BadArtefact.
    """
    sources = [open_source(path, wanted) for path, wanted in zip(paths, sha256 or [""] * len(paths), strict=True)]
    fits = [recognise(source, sizes) for source in sources]
    for source, size in zip(sources, fits, strict=True):
        check_types(source.path.name, {key: source.tensors.dtypes[key] for key in source.keys.values()})
        check_schedule(source)
        if size != fits[0]:
            seen = f"it is of the {size.name} model, {sources[0].path.name} of the {fits[0].name} model"
            raise BadArtefact(f"checkpoint {source.path.name}", seen, "give files of one model")
    places: dict[str, Source] = {}
    for source in sources:
        replaced = source.shapes if source.kind == "vae" else [n for n in source.keys if n not in places or _own(n)]
        places |= dict.fromkeys(replaced, source)
    config = _present(fits[0].model, places)
    if not config.experts:
        raise BadArtefact(f"checkpoint {sources[0].path.name}", "an autoencoder alone", "add one with a branch")
    shapes = {name: source.shapes[name] for name, source in places.items()}
    for source in sources:
        tell(source.path, source.tensors)
    origin = {"checkpoints": [{"file": s.path.name, "sha256": s.tensors.sha256} for s in sources]}
    return Checkpoint(describe(fits[0], config, origin), Renamed(places), shapes)


def _own(name: str) -> bool:
    """Whether a file of a branch brings this to replace what is there; its autoencoder it only brings along."""
    return not name.startswith("vae.")


def _present(config: ModelConfig, places: Mapping[str, object]) -> ModelConfig:
    """The experts there are weights of; a dynamic diffuser only with weights."""
    having = {tuple(name.split(".")[1:3]) for name in places if name.startswith("experts.")}
    return dataclasses.replace(
        config,
        experts={
            name: expert if (name, "diffuser") in having else dataclasses.replace(expert, diffuser=None)
            for name, expert in config.experts.items()
            if (name, "unet") in having
        },
    )


def describe(size: Published, config: ModelConfig, provenance: dict) -> Description:
    """Of the released model of a size, or of some of its experts."""
    vae = config.vae
    assert vae is not None
    side = size.image_size // vae.factor
    modalities = tuple(modality for modality in size.modalities if modality.name in config.experts)
    vocabulary = Path(__file__).with_name(VOCABULARY).read_text(encoding="utf-8").splitlines()
    return Description(
        name=f"collaborative-diffusion-{size.name}",
        image_size=size.image_size,
        latent_shape=(vae.z_channels, side, side),
        latent_scale=size.latent_scale,
        config=config,
        schedule=Schedule(),
        influence=Influence(),
        modalities=modalities,
        vocabularies={VOCABULARY: vocabulary} if any(m.vocabulary for m in modalities) else {},
        provenance=provenance,
        licence="S-Lab License 1.0, non-commercial: that of the published checkpoints",
    )
