"""A bundle from checkpoints: networks as ONNX, one file of weights, and the manifest that names every file."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cdiff_rt.engines.backends import check_backend
from cdiff_rt.engines.base import DTYPES
from cdiff_rt.errors import BadArtefact, BadRequest
from cdiff_rt.export.checkpoint import (
    Checkpoint,
    Description,
    describes_itself,
    finite,
    model_shapes,
    read_checkpoint,
    write_checkpoint,
)
from cdiff_rt.export.cpu_graph import write_cpu_graph
from cdiff_rt.export.padding import pad_weight, padded_config
from cdiff_rt.export.published import import_published
from cdiff_rt.export.tensors import write_tensors
from cdiff_rt.export.to_onnx import export_network
from cdiff_rt.export.verify import compare_networks
from cdiff_rt.export.watch import Watch, counted, unwatched
from cdiff_rt.manifest import NAME, Bundle, Manifest, NetworkSpec, TensorSpec, sha256
from cdiff_rt.nets.collaborative import Expert, ModelConfig, build_part, part_functions, parts_of
from cdiff_rt.nets.freeu import FreeUConfig
from cdiff_rt.outputs.files import check_folder, check_free, check_names, new_file_or_folder

WEIGHTS = "weights.safetensors"
Shape = tuple[int | str, ...]
Precision = Literal["fp16", "fp32"]


def export_checkpoint(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    sha256: Sequence[str] = (),
    precision: Precision = "fp16",
    diffuser_input: Literal["x_t", "prediction"] | None = None,
    freeu: dict[str, FreeUConfig] | None = None,
    head_multiple: int = 1,
    watch: Watch = unwatched,
) -> dict[str, float]:
    """Writes the bundle `out` and returns each network's relative error, ONNX Runtime against PyTorch.

    `checkpoints` is one file that describes itself, or published ones (`import_published`); `sha256`, if given, are
    their hashes, and a file with another is refused. Weights are kept in
    `precision`; `diffuser_input` and `freeu`, by modality, change the networks; `head_multiple` pads attention's heads to
    a multiple of that width (padding.py). If `out` ends with .safetensors, one
    checkpoint that describes itself is written instead, and nothing compared. `watch` counts what takes long. Raises
    BadRequest, BadArtefact, BadEnvironment, OutOfResource.
    """
    check_free(out)
    check_names(out)
    check_folder(out.parent)
    if out.suffix != ".safetensors":
        check_backend("onnxruntime")  # which every network is compared on
    loaded, report = adapt(load(checkpoints, sha256), diffuser_input, freeu or {}), {}
    with new_file_or_folder(out) as partial:
        if out.suffix == ".safetensors":
            write_checkpoint(partial, loaded)
        else:
            partial.mkdir()
            write_bundle(loaded, partial, precision, head_multiple, watch)
            report = compare_networks(Bundle.open(partial), watch)
    return report


def load(checkpoints: Sequence[Path], sha256: Sequence[str] = ()) -> Checkpoint:
    """One that describes itself, or published ones that go together."""
    own = [path for path in checkpoints if path.is_file() and describes_itself(path)]
    if own and len(checkpoints) > 1:
        raise BadRequest("checkpoint", f"{own[0].name} is a whole model", "give it alone")
    if sha256 and len(sha256) != len(checkpoints):
        seen = f"{len(sha256)} for {len(checkpoints)} checkpoints"
        raise BadRequest("sha256", seen, "give one for each checkpoint, in their order")
    for text in sha256:
        if not re.fullmatch("[0-9a-fA-F]{64}", text):
            raise BadRequest("sha256", repr(text), "give 64 hexadecimal digits, as sha256sum prints them")
    return read_checkpoint(own[0], *sha256) if own else import_published(checkpoints, sha256=sha256)


def read_freeu(given: Sequence[str]) -> dict[str, FreeUConfig]:
    """ "text=1.1,1.2,0.9,0.2" -> the settings by modality. Raises BadRequest."""
    settings = {}
    for entry in given:
        name, _, numbers = entry.partition("=")
        try:
            factors = [float(number) for number in numbers.split(",")]
        except ValueError:
            factors = []
        if len(factors) != 4 or not all(map(math.isfinite, factors)):
            raise BadRequest("freeu", repr(entry), "write NAME=B1,B2,S1,S2, e.g. text=1.1,1.2,0.9,0.2")
        settings[name] = FreeUConfig(*factors)
    return settings


def adapt(
    checkpoint: Checkpoint, diffuser_input: Literal["x_t", "prediction"] | None, freeu: dict[str, FreeUConfig]
) -> Checkpoint:
    """The same weights in networks with other settings."""
    experts = dict(checkpoint.description.config.experts)
    strange = sorted(set(freeu) - set(experts))
    if strange:
        raise BadRequest("freeu", f"{strange[0]!r}", f"this model has {', '.join(experts)}")
    for name, settings in freeu.items():
        unet = dataclasses.replace(experts[name].unet, freeu=settings)
        experts[name] = dataclasses.replace(experts[name], unet=unet)
    if diffuser_input:
        experts = {name: dataclasses.replace(e, diffuser_input=diffuser_input) for name, e in experts.items()}
    config = dataclasses.replace(checkpoint.description.config, experts=experts)
    return dataclasses.replace(checkpoint, description=dataclasses.replace(checkpoint.description, config=config))


def write_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Precision = "fp16",
    head_multiple: int = 1,
    watch: Watch = unwatched,
    graphs: bool = True,
) -> None:
    """Fills the empty `folder`, holding one weight at a time. Without `graphs`, which take onnx, PyTorch alone runs it."""
    described = checkpoint.description
    config = padded_config(described.config, head_multiple)
    stored = {name: (DTYPES[precision], shape) for name, shape in model_shapes(config).items()}
    with watch(len(stored), "weights") as done:
        weights = counted(stored_weights(checkpoint, config, precision), done)
        write_tensors(folder / WEIGHTS, stored, weights, {})
    for file, pieces in described.vocabularies.items():
        (folder / file).write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    specs: dict[str, NetworkSpec] = {}
    with watch(len(parts_of(config)), "graphs") as done:
        for part in counted(parts_of(config), done):
            with torch.device("meta"):
                module = build_part(config, part)
            specs |= part_specs(described, part, module)
            for network, function in part_functions(part, module).items():
                if not graphs:
                    (folder / specs[network].file).write_bytes(b"")
                    continue
                export_network(module, f"{part}.", function, specs[network], folder, WEIGHTS)
                if network.startswith("expert."):  # what runs at each step
                    specs[network] = write_cpu_graph(specs[network], folder)
    (folder / WEIGHTS).chmod(0o644)
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    manifest = Manifest(
        name=described.name,
        image_size=described.image_size,
        latent_shape=described.latent_shape,
        latent_scale=described.latent_scale,
        schedule=described.schedule,
        influence=described.influence,
        modalities=described.modalities,
        networks=specs,
        weights=WEIGHTS,
        source=dataclasses.asdict(config),
        provenance=described.provenance | {"torch": torch.__version__},
        licence=described.licence,
        files=files,
        space=described.space,
    )
    (folder / NAME).write_text(manifest.to_json(), encoding="utf-8")


def stored_weights(checkpoint: Checkpoint, config: ModelConfig, precision: Precision) -> Iterator[tuple[str, Tensor]]:
    """The weights in the order of the padded model, as they are kept. Raises BadArtefact if one isn't finite."""
    for name in model_shapes(config):
        kept = pad_weight(name, finite(checkpoint, name), config).to(getattr(torch, DTYPES[precision])).contiguous()
        if not torch.isfinite(kept).all():
            what = f"checkpoint of {checkpoint.description.name}"
            raise BadArtefact(what, f"{name} holds values too large for fp16", "export with --precision fp32")
        yield name, kept


def part_specs(described: Description, part: str, module: torch.nn.Module) -> dict[str, NetworkSpec]:
    """The one place where shapes are written down. `docs/bundle.md` says what each network is for."""
    latent: Shape = ("batch", *described.latent_shape)
    if not isinstance(module, Expert):
        image: Shape = ("batch", 3, described.image_size, described.image_size)
        return {
            "vae.encode": network_spec("vae.encode", {"image": image}, {"mean": latent, "logvar": latent}),
            "vae.decode": network_spec("vae.decode", {"z": latent}, {"image": image}),
        }
    (modality,) = (modality for modality in described.modalities if part == f"experts.{modality.name}")
    logit: Shape = ("batch", 1, *described.latent_shape[1:])
    inputs: Shape = ("batch", *modality.input_shape)
    context: Shape = ("batch", modality.context_tokens, module.context_width)
    condition, time, step = (f"{network}.{modality.name}" for network in ("condition", "time", "expert"))
    kind = "int64" if modality.kind == "words" else "float32"
    return {
        condition: network_spec(condition, {"inputs": inputs}, {"context": context}, kind),
        time: network_spec(time, {"t": ("steps",)}, {"projections": ("steps", module.projection_width)}, "int64"),
        step: network_spec(
            step,
            {"x": latent, "projections": (1, module.projection_width), "context": context},
            {"out": latent, "logit": logit},
        ),
    }


def network_spec(
    network: str, inputs: dict[str, Shape], outputs: dict[str, Shape], kind: str = "float32"
) -> NetworkSpec:
    """`kind` is the inputs' type; outputs are float32."""
    return NetworkSpec(
        f"{network}.onnx",
        tuple(TensorSpec(name, shape, kind) for name, shape in inputs.items()),
        tuple(TensorSpec(name, shape, "float32") for name, shape in outputs.items()),
    )
