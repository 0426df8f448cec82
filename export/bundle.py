"""A bundle from a checkpoint: networks as ONNX, one file of fp16 weights, and the manifest that names every file."""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from cdiff_rt.errors import BadRequest, OutOfResource
from cdiff_rt.export.checkpoint import Checkpoint, Description, read_checkpoint
from cdiff_rt.export.padding import pad_heads
from cdiff_rt.export.to_onnx import export_network
from cdiff_rt.export.verify import compare_networks
from cdiff_rt.images import check_folder
from cdiff_rt.manifest import NAME, Bundle, Manifest, NetworkSpec, TensorSpec, sha256
from cdiff_rt.nets.collaborative import CollaborativeModel, network_functions

WEIGHTS = "weights.safetensors"
HEAD_MULTIPLE = 8
Shape = tuple[int | str, ...]


def export_checkpoint(checkpoint: Path, out: Path) -> dict[str, float]:
    """Writes the bundle `out` and returns each network's relative error, ONNX Runtime against PyTorch."""
    if out.exists():
        raise BadRequest("out", f"{out} exists", "choose another folder or remove it")
    check_folder(out.parent)
    loaded = read_checkpoint(checkpoint)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".cdiff-rt-") as partial:
            folder = Path(partial) / out.name
            folder.mkdir()
            write_bundle(loaded, folder)
            report = compare_networks(Bundle.open(folder))
            shutil.move(folder, out)
    except OSError as error:
        raise OutOfResource(f"writing {out}", error.strerror or str(error), "free some space") from error
    return report


def write_bundle(checkpoint: Checkpoint, folder: Path) -> None:
    """Fills the empty `folder`."""
    described = checkpoint.description
    config, padded = pad_heads(described.config, checkpoint.weights, HEAD_MULTIPLE)
    weights = {name: weight.half().contiguous() for name, weight in padded.items()}
    save_file(weights, folder / WEIGHTS)
    for file, pieces in described.vocabularies.items():
        (folder / file).write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    model = CollaborativeModel(config).eval()
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    specs = network_specs(described, model)
    for network, function in network_functions(model).items():
        export_network(model, function, specs[network], folder, WEIGHTS)
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
        source=asdict(config),
        provenance=described.provenance | {"torch": torch.__version__},
        licence=described.licence,
        files=files,
    )
    (folder / NAME).write_text(manifest.to_json(), encoding="utf-8")


def network_specs(described: Description, model: CollaborativeModel) -> dict[str, NetworkSpec]:
    """The one place where shapes are written down. `docs/bundle.md` says what each network is for."""
    latent: Shape = ("batch", *described.latent_shape)
    logit: Shape = ("batch", 1, *described.latent_shape[1:])
    image: Shape = ("batch", 3, described.image_size, described.image_size)
    specs = {
        "vae.encode": _spec("vae.encode", {"image": image}, {"mean": latent, "logvar": latent}),
        "vae.decode": _spec("vae.decode", {"z": latent}, {"image": image}),
    }
    for modality in described.modalities:
        expert = model.expert(modality.name)
        words = modality.kind == "words"
        count = modality.tokens if words else modality.classes
        context: Shape = ("batch", count, expert.unet.context_width + expert.diffuser.context_width)
        width = expert.unet.row_width + expert.diffuser.row_width
        inputs: Shape = ("batch", count) if words else ("batch", count, modality.size**2)
        condition, time, step = (f"{part}.{modality.name}" for part in ("condition", "time", "expert"))
        kind = "int64" if words else "float32"
        specs[condition] = _spec(condition, {"inputs": inputs}, {"context": context}, kind)
        specs[time] = _spec(time, {"t": ("steps",)}, {"rows": ("steps", width)}, "int64")
        specs[step] = _spec(
            step, {"x": latent, "rows": (1, width), "context": context}, {"out": latent, "logit": logit}
        )
    return specs


def _spec(network: str, inputs: dict[str, Shape], outputs: dict[str, Shape], kind: str = "float32") -> NetworkSpec:
    """`kind` is the inputs' type; outputs are float32."""
    return NetworkSpec(
        f"{network}.onnx",
        tuple(TensorSpec(name, shape, kind) for name, shape in inputs.items()),
        tuple(TensorSpec(name, shape, "float32") for name, shape in outputs.items()),
    )
