"""Networks of diffusers as denoisers and decoders: what their configurations say, and how each is called."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cdiff_rt.errors import BadArtefact, BadRequest, check_type
from cdiff_rt.extras import needed
from cdiff_rt.foreign.configs import CONFIG, loaded, read_config, why_no_folder
from cdiff_rt.foreign.modules import CALLED
from cdiff_rt.foreign.schedulers import SAY, form_of
from cdiff_rt.sampling.preconditioning import Parameterisation

SCHEDULER = "scheduler_config.json"
NETWORKS = ("unet", "transformer")  # folders of a pipeline as it is saved
WIDTHS = ("encoder_hid_dim", "caption_channels", "joint_attention_dim", "text_dim", "cross_attention_dim")
VECTORS = ("projection", "simple_projection")  # classes that are rows of numbers


@dataclass(frozen=True)
class Brought:
    """What an expert is made of."""

    denoise: "Called"
    form: Parameterisation
    condition: tuple[int, ...] | None
    latent_shape: tuple[int, ...] | None


class Called(nn.Module):
    """A network of diffusers as denoisers are called: (x, time, condition). Of several conditions, one behind the other."""

    def __init__(self, net: nn.Module, parts: dict[str, tuple[int, ...]], channels: int) -> None:
        super().__init__()
        self.net, self.parts, self.channels = net, parts, channels

    @property
    def condition(self) -> tuple[int, ...] | None:
        shapes = list(self.parts.values())
        if len(shapes) < 2:
            return shapes[0] if shapes else None
        return (sum(map(math.prod, shapes)),)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        given: dict[str, Any] = self._parts_of(condition) if condition is not None else {}
        if "text_embeds" in given:
            given["added_cond_kwargs"] = {name: given.pop(name) for name in ("text_embeds", "time_ids")}
        out = self.net(x, timestep=time, **given, return_dict=False)[0]
        return out[:, : self.channels]  # others are of a variance that was learned

    def _parts_of(self, condition: Tensor) -> dict[str, Tensor]:
        sizes = [math.prod(shape) for shape in self.parts.values()]
        pieces = condition.flatten(1).split(sizes, 1) if condition.dim() > 1 else (condition[:, None],)
        found = {
            name: piece.reshape(-1, *shape) for (name, shape), piece in zip(self.parts.items(), pieces, strict=True)
        }
        if self.parts.get("class_labels") == ():
            found["class_labels"] = found["class_labels"].round().long()
        return found


class Decoder(nn.Module):
    """An autoencoder's decoder, of latents as denoisers see them."""

    def __init__(self, vae: nn.Module, scale: float, shift: float, factor: int, channels: int | None) -> None:
        super().__init__()
        self.vae, self.scale, self.shift, self.factor, self.channels = vae, scale, shift, factor, channels

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z / self.scale + self.shift, return_dict=False)[0]  # type: ignore[operator]

    def image_encoder(self) -> "ImageEncoder | None":
        return ImageEncoder(self.vae, self.scale, self.shift) if hasattr(self.vae, "encode") else None


class ImageEncoder(nn.Module):
    """An autoencoder's encoder, to latents as denoisers see them: the mean of what it gives."""

    def __init__(self, vae: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.vae, self.scale, self.shift = vae, scale, shift

    def forward(self, image: Tensor) -> Tensor:
        found = self.vae.encode(image, return_dict=False)[0]  # type: ignore[operator]
        return ((found if isinstance(found, Tensor) else found.mean) - self.shift) * self.scale


def bring(
    model: "str | Path | nn.Module",
    form: Parameterisation | None,
    tokens: int | None,
    time_ids: int,
) -> Brought:
    """A network, or the folder of one or of a whole pipeline, with its weights. Raises BadRequest, BadArtefact."""
    check_type("model", model, str | Path | nn.Module, "give a folder, or a pipeline's unet or transformer")
    folder = None if isinstance(model, nn.Module) else network_folder(Path(model))
    net = model if isinstance(model, nn.Module) else load(folder)
    config = getattr(net, "config", None)
    if not isinstance(config, Mapping):
        raise BadRequest("diffusers", f"a {type(net).__name__} has no config", CALLED)
    if form is None:
        form = form_of(scheduler_beside(folder))
    channels = config.get("in_channels", 0)
    called = Called(net.eval(), parts_of(net, config, tokens or _tokens_beside(folder), time_ids), channels)
    return Brought(called, form, called.condition, _latent_shape(type(net).__name__, config, channels))


def bring_decoder(model: "str | Path | nn.Module") -> Decoder:
    """AutoencoderKL, AutoencoderTiny and their like. Raises BadRequest, BadArtefact."""
    vae = model if isinstance(model, nn.Module) else load(network_folder(Path(model), ("vae",)))
    config = getattr(vae, "config", {})
    if not hasattr(vae, "decode") or "scaling_factor" not in config:
        raise BadRequest("decode", f"a {type(vae).__name__} has no decoder and scaling_factor", "give an AutoencoderKL")
    channels: Any = config.get("block_out_channels") or config.get("decoder_block_out_channels") or ()
    factor = 2 ** max(len(channels) - 1, 0)
    return Decoder(
        vae.eval(), config["scaling_factor"], config.get("shift_factor") or 0.0, factor, config.get("latent_channels")
    )


def network_folder(folder: Path, names: tuple[str, ...] = NETWORKS) -> Path:
    """The folder of a network's configuration and weights: itself, or one of a pipeline. Raises BadArtefact."""
    for place in (folder, *(folder / name for name in names)):
        if (place / CONFIG).is_file():
            return place
    raise BadArtefact(f"model {folder}", *why_no_folder(folder, f"{CONFIG}, in it or in {' or '.join(names)} of it,"))


def load(folder: Path | None) -> nn.Module:
    """The network of a folder. Raises BadArtefact, BadEnvironment."""
    assert folder is not None
    config = read_config(folder / CONFIG)
    with needed(f"model {folder}", "compose"):
        import diffusers
    name = str(config.get("_class_name"))
    kind: Any = getattr(diffusers, name, None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)
    if not known:
        raise BadArtefact(f"model {folder}", f"diffusers {diffusers.__version__} has no network {name!r:.80}", CALLED)
    return loaded(kind, folder, "diffusers")


def scheduler_beside(folder: Path | None) -> Mapping[str, Any]:
    """The configuration of the scheduler in the folder, or in that of its pipeline. Raises BadRequest."""
    places = [folder, folder / "scheduler", folder.parent / "scheduler"] if folder else []
    found = next((place / SCHEDULER for place in places if (place / SCHEDULER).is_file()), None)
    if found is None:
        where = f"no {SCHEDULER} lies in {folder} or in scheduler beside it" if folder else "a network without a folder"
        raise BadRequest("form", f"nothing says what it predicts of which noise: {where}", SAY)
    return read_config(found)


def parts_of(
    net: nn.Module, config: Mapping[str, Any], tokens: int | None, time_ids: int
) -> dict[str, tuple[int, ...]]:
    """What a network takes beside x and time, by the argument's name, and of which shape. Raises BadRequest."""
    name, taken = type(net).__name__, inspect.signature(net.forward).parameters
    first = next(iter(taken), "")
    lacks = [p.name for p in taken.values() if p.default is p.empty and p.name not in (*KNOWN, first)]
    lacks = [each for each in lacks if taken[each].kind is not inspect.Parameter.VAR_KEYWORD]
    if first not in ("sample", "hidden_states") or "timestep" not in taken or lacks:
        raise BadRequest(f"diffusers' {name}", f"its forward takes {', '.join(lacks) or first}", CALLED)
    if config.get("out_channels", config.get("in_channels")) not in _outputs(config):
        seen = f"it takes {config.get('in_channels')} channels and gives {config.get('out_channels')}"
        raise BadRequest(f"diffusers' {name}", seen, CALLED)
    parts: dict[str, tuple[int, ...]] = {}
    if "encoder_hidden_states" in taken and (width := _width(config)):
        if tokens is None:
            raise BadRequest(
                "tokens", f"{name} takes {width} numbers for each token of a condition", "say how many tokens"
            )
        parts["encoder_hidden_states"] = (tokens, width)
    if "class_labels" in taken and (shape := _classes(name, config)) is not None:
        parts["class_labels"] = shape
    if "pooled_projections" in taken:
        parts["pooled_projections"] = (config["pooled_projection_dim"],)
    if kind := config.get("addition_embed_type"):
        if kind != "text_time":
            raise BadRequest(f"diffusers' {name}", f"its addition_embed_type is {kind!r:.80}", CALLED)
        pooled = config["projection_class_embeddings_input_dim"] - time_ids * config["addition_time_embed_dim"]
        parts |= {"text_embeds": (pooled,), "time_ids": (time_ids,)}
    return parts


KNOWN = ("timestep", "encoder_hidden_states", "class_labels", "pooled_projections")


def _outputs(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """Channels that a prediction may have: as many as x, or twice, where a variance was learned beside it."""
    channels = config.get("in_channels")
    return (channels, 2 * channels, None) if isinstance(channels, int) else (None,)


def _width(config: Mapping[str, Any]) -> int | None:
    for field in WIDTHS:
        width = config.get(field)
        width = width[0] if isinstance(width, tuple | list) and width else width
        if isinstance(width, int):
            return width
    return None


def _classes(name: str, config: Mapping[str, Any]) -> tuple[int, ...] | None:
    kind = config.get("class_embed_type")
    if kind in VECTORS:
        return (config["projection_class_embeddings_input_dim"],)
    if kind not in (None, "timestep"):
        raise BadRequest(f"diffusers' {name}", f"its class_embed_type is {kind!r:.80}", CALLED)
    counted = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    return () if counted or kind == "timestep" else None


def _latent_shape(name: str, config: Mapping[str, Any], channels: int) -> tuple[int, ...] | None:
    """As it was trained, as far as it says; convolutions take others too."""
    size = config.get("sample_size")
    if size is None or not channels or "3D" in name:  # of which it does not say the frames
        return None
    axes = 1 if "1D" in name else 2
    return (channels, *(size if isinstance(size, tuple | list) else [size] * axes))


def _tokens_beside(folder: Path | None) -> int | None:
    """Of the tokenizer of its pipeline."""
    path = folder.parent / "tokenizer" / "tokenizer_config.json" if folder else None
    length = read_config(path).get("model_max_length") if path and path.is_file() else None
    return length if isinstance(length, int) and 0 < length < 2**16 else None
