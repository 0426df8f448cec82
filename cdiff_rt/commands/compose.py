"""`cdiff-rt compose`: a bundle of models that others made, which then make one image together."""

from pathlib import Path
from typing import Literal

import click

from cdiff_rt.commands.options import NAMED, OUTPUT, PATH, GroupedCommand, all_conditions, option
from cdiff_rt.commands.terminal import Progress, say

EXPERTS, TOGETHER = "Experts, by the name of their condition", "What they have in common"


@click.command(
    cls=GroupedCommand,
    epilog="""\b
Examples:
  cdiff-rt compose --expert text=runs/text --expert depth=runs/depth --decoder runs/text --out bundle/
  cdiff-rt compose --expert text=runs/text --encoder text=runs/text --decoder runs/text --out bundle/
  cdiff-rt compose --expert a=a.onnx --predicts a=eps --betas a=linear:0.0001:0.02:1000 --pixels --out bundle/""",
)
@option(
    EXPERTS, "--expert", "experts", "Take this diffusers folder or ONNX file; may be repeated, as all here.", **NAMED
)
@option(EXPERTS, "--predicts", "It predicts eps, v, x0, flow or edm. Default: what its scheduler says.", **NAMED)
@option(EXPERTS, "--scheduler", "Read its scheduler_config.json in this folder. Default: the one beside it.", **NAMED)
@option(
    EXPERTS, "--betas", "Its schedule of noise, KIND:START:END:STEPS, e.g. scaled_linear:0.00085:0.012:1000.", **NAMED
)
@option(EXPERTS, "--space", "It is vp, flow or sigma that its noise is mixed in. Default: as such models are.", **NAMED)
@option(EXPERTS, "--time-scale", "Multiply the time of flow or sigma by this.", **NAMED)
@option(EXPERTS, "--whole-timesteps", "whole", "Round its timesteps to whole numbers.", metavar="NAME", multiple=True)
@option(EXPERTS, "--tokens", "Its condition has so many tokens. Default: those of the tokenizer beside it.", **NAMED)
@option(EXPERTS, "--time-ids", "It takes so many time ids, as SDXL does. Default: 6.", **NAMED)
@option(EXPERTS, "--encoder", "Its condition is what this folder's text encoder or ONNX file makes of one.", **NAMED)
@option(EXPERTS, "--tokenizer", "Sentences are read by this tokenizer.json. Default: that beside the encoder.", **NAMED)
@option(EXPERTS, "--fixed", "Its condition is always this .npy file or sentence, so none is asked for.", **NAMED)
@option(EXPERTS, "--names", "Its inputs are called so, e.g. depth=x:sample,time:timestep,condition:cond.", **NAMED)
@option(
    TOGETHER,
    "--latents",
    "Their latents have this shape, e.g. 4x64x64. Default: as they were trained.",
    metavar="SHAPE",
)
@option(TOGETHER, "--decoder", "Decode latents by the autoencoder in this diffusers folder.", type=PATH)
@option(TOGETHER, "--influence", "Weigh them by this file of calibrate's, unless a run asks for another.", type=PATH)
@option(TOGETHER, "--learned", "Let the networks in this folder, which train left, tell their influence.", type=PATH)
@option(TOGETHER, "--pixels", "Latents are the pixels of images.", is_flag=True)
@option(OUTPUT, "--out", "Write the bundle to this new folder.", type=PATH, required=True)
@option(
    OUTPUT,
    "--precision",
    "Keep the weights in this precision. Default: as they are.",
    type=click.Choice(("fp16", "fp32")),
)
def compose(
    experts: tuple[str, ...],
    latents: str | None,
    decoder: Path | None,
    influence: Path | None,
    learned: Path | None,
    pixels: bool,
    out: Path,
    precision: Literal["fp16", "fp32"] | None,
    whole: tuple[str, ...],
    **per_expert: tuple[str, ...],
) -> None:
    """Compose models that were trained alone into a bundle.

    Each predicts in its own terms, from its own condition; at every step their predictions are summed with weights
    (docs/own-models.md).
    """
    named = all_conditions({}, experts, "--expert")
    told = {option: all_conditions({}, given, f"--{option.replace('_', '-')}") for option, given in per_expert.items()}
    told["whole_timesteps"] = dict.fromkeys(whole, True)
    for option_, values in told.items():
        if strange := sorted(set(values) - set(named)):
            raise click.UsageError(f"--{option_.replace('_', '-')} {strange[0]}: there is no --expert of this name")
    if not named:
        raise click.UsageError("give --expert NAME=FOLDER or NAME=FILE.onnx, once or more")
    if decoder and pixels:
        raise click.UsageError("--pixels needs no --decoder")
    from cdiff_rt.extras import needed

    with needed("compose", "compose"):
        from cdiff_rt.composing.bundle import export_composition
        from cdiff_rt.composing.composition import compose as composed
        from cdiff_rt.composing.expert import agreed_shape
        from cdiff_rt.composing.told import read_expert, read_shape
        from cdiff_rt.learning.learned import Learned

    brought = {n: read_expert(n, path, {o: of[n] for o, of in told.items() if n in of}) for n, path in named.items()}
    shape = agreed_shape(brought, read_shape(latents) if latents else None)
    weighed = Learned(learned).over(brought) if learned else brought
    size = shape[-1] if pixels else 0
    pipeline = composed(weighed, shape, image_size=size, decode=decoder, influence=influence)
    for network, difference in export_composition(pipeline, out, precision=precision, watch=Progress).items():
        say(f"{network:20} onnxruntime against what was composed: relative error {difference:.1e}")
    say(out)
