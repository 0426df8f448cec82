"""`cdiff-rt export`: checkpoints become a bundle, and a bundle's networks engines for GPUs."""

from pathlib import Path
from typing import Any, Literal

import click

from cdiff_rt.commands.options import ARRANGEMENTS, MODEL, PATH, STORED, GroupedCommand, given, option
from cdiff_rt.commands.terminal import Progress, say

BUNDLE, ENGINES = "A bundle from checkpoints", "Engines for GPUs"
OF_ENGINES = ("compute_capability", "engine_precision", "engine_batch", "experts")
OF_BUNDLE = ("sha256", "precision", "diffuser_input", "freeu", "head_multiple")


@click.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  cdiff-rt export --checkpoint 512_codiff_mask_text.ckpt --out collaborative-512/
  cdiff-rt export --checkpoint 512_codiff_mask_text.ckpt --checkpoint my_512_text.ckpt --out mine/
  cdiff-rt export --model faces-128 --target tensorrt-rtx""",
)
@option(
    BUNDLE,
    "--checkpoint",
    "checkpoints",
    "Read this checkpoint; may be repeated: each replaces the branches it holds.",
    type=PATH,
    multiple=True,
)
@option(
    BUNDLE,
    "--sha256",
    "Refuse a checkpoint that has another sha256; of several, give one for each, in their order.",
    metavar="HASH",
    multiple=True,
)
@option(
    BUNDLE,
    "--out",
    "Write the bundle to this new folder, or the weights to this .safetensors file; needed with --checkpoint.",
    type=PATH,
)
@option(
    BUNDLE, "--precision", "Store the weights in this precision.", type=click.Choice(("fp16", "fp32")), default="fp16"
)
@option(
    BUNDLE,
    "--diffuser-input",
    "Feed the dynamic diffusers x_t or their branch's prediction. Default: as trained.",
    type=click.Choice(("x_t", "prediction")),
)
@option(
    BUNDLE,
    "--freeu",
    "Apply FreeU (arXiv 2309.11497) to one branch, e.g. text=1.1,1.2,0.9,0.2; may be repeated.",
    metavar="NAME=B1,B2,S1,S2",
    multiple=True,
)
@option(
    BUNDLE,
    "--head-multiple",
    "Pad attention heads to a multiple of this width. Default: 16 with --target, else 1.",
    type=click.IntRange(1, 64),
)
@option(MODEL, "--model", "Build engines from this existing bundle (name or folder); needs --target.")
@option(
    ENGINES,
    "--target",
    "Build TensorRT engines of this kind into your cache (docs/gpu.md).",
    type=click.Choice(("tensorrt", "tensorrt-rtx")),
)
@option(
    ENGINES,
    "--compute-capability",
    "Build for GPUs of these compute capabilities. Default: this GPU's; for tensorrt-rtx 8.6,8.9,12.0.",
    metavar="8.6,8.9",
)
@option(
    ENGINES,
    "--engine-precision",
    "Let the engines compute in this precision.",
    type=click.Choice(STORED),
    default="fp16",
)
@option(
    ENGINES,
    "--engine-batch",
    "Build an engine for this batch size; may be repeated.",
    type=click.IntRange(1),
    multiple=True,
    default=(1,),
)
@option(
    ENGINES,
    "--experts",
    "Also build the engine that generate runs with this --experts; may be repeated.",
    type=click.Choice(ARRANGEMENTS),
    multiple=True,
)
def export(
    checkpoints: tuple[Path, ...],
    out: Path | None,
    freeu: tuple[str, ...],
    head_multiple: int | None,
    model: str | None,
    target: str | None,
    compute_capability: str | None,
    engine_precision: Literal["fp16", "bf16", "fp32"],
    engine_batch: tuple[int, ...],
    experts: tuple[str, ...],
    **settings: Any,
) -> None:
    """Make a bundle from checkpoints, or GPU engines from a bundle.

    A bundle holds ONNX networks, their weights and a manifest. TensorRT engines are built from one.
    """
    check_export(bool(checkpoints), out, model, target)
    from cdiff_rt.extras import needed
    from cdiff_rt.manifest import Bundle, find_model

    with needed("export", target or "export"):
        from cdiff_rt.export.bundle import export_checkpoint, read_freeu
        from cdiff_rt.export.gpu_engines import build_engines

    if out:
        multiple = head_multiple or (16 if target else 1)
        report = export_checkpoint(
            checkpoints, out, freeu=read_freeu(freeu), head_multiple=multiple, watch=Progress, **settings
        )
        for network, difference in report.items():
            say(f"{network:20} onnxruntime against torch: relative error {difference:.1e}")
        say(out)
    if target:
        bundle, capabilities = Bundle.open(find_model(model or str(out))), (compute_capability or "").split(",")
        how = {"precision": engine_precision, "batches": engine_batch, "experts": experts}
        for line in build_engines(bundle, target, [c for c in capabilities if c], **how):  # type: ignore[arg-type]
            say(line)


def check_export(checkpoints: bool, out: Path | None, model: str | None, target: str | None) -> None:
    """Options that contradict each other, or would be ignored in silence."""
    if not (checkpoints and out and not model or model and target and not checkpoints and not out):
        raise click.UsageError("give --checkpoint and --out, or --model and --target")
    if out and out.suffix == ".safetensors" and target:
        raise click.UsageError("--target needs a bundle: name a folder as --out")
    if not target and (stray := given(OF_ENGINES)):
        raise click.UsageError(f"{stray} goes with --target")
    if model and (stray := given(OF_BUNDLE)):
        raise click.UsageError(f"{stray} goes with --checkpoint")
