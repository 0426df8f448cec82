"""The commands. Each parses, calls one function of the library and prints."""

import logging
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Self

import click

from cdiff_rt import __version__
from cdiff_rt.errors import BadEnvironment, CdiffError

PATH = click.Path(path_type=Path)
DECAYS, ROUNDINGS, PRECISIONS = ("none", "linear", "cosine"), ("truncate", "nearest"), ("fp16", "fp32")
BACKEND_HELP = "onnxruntime or torch; `cdiff-rt doctor` says which work here."


class Commands(click.Group):
    """Prints every error as one line and ends with its exit code; `--debug` shows the traceback instead."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = super().main(*args, **kwargs | {"standalone_mode": False})
        except CdiffError as error:
            fail(str(error), error.exit_code)
        except MemoryError:
            fail("memory: it ran out; choose a smaller batch", 6)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "cdiff-rt"
            fail(f"{error.format_message().rstrip('.')}; see `{path} --help`", 2)
        except (KeyboardInterrupt, click.Abort):
            fail("interrupted", 130)
        sys.exit(result if isinstance(result, int) else 0)


def fail(message: str, code: int) -> NoReturn:
    if "--debug" in sys.argv:
        logging.getLogger("cdiff_rt").exception("the error came from")
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(code)


class OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        kind = "warning" if record.levelno >= logging.WARNING else "note"
        return f"{kind}: {' '.join(super().formatMessage(record).split())}"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cdiff-rt")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
@click.option("--quiet", "-q", is_flag=True, help="Only warnings, errors and results.")
def main(debug: bool, quiet: bool) -> None:
    """Collaborative diffusion, fast: faces that follow a mask and a sentence."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    log = logging.getLogger("cdiff_rt")
    log.handlers[:] = [handler]
    log.setLevel(logging.WARNING if quiet else logging.INFO)


@main.command(
    epilog="""\b
Examples:
  cdiff-rt generate --mask examples/1.png --text "This man has a long beard." --out man.png
  cdiff-rt generate --mask examples/1.png --batch 4 --seed 7 --out faces/
  cdiff-rt generate --text "The woman is in her seventies." --out woman.png --save-influence"""
)
@click.option("--mask", type=PATH, help="Where what is: a PNG of labels 0-18 or of the CelebAMask-HQ colours.")
@click.option("--text", help="What it looks like: age, beard, hair, glasses, smile.")
@click.option("--condition", "others", metavar="NAME=VALUE", multiple=True, help="For a model's other modalities.")
@click.option("--without", metavar="NAME", multiple=True, help="Leave a modality out of the run.")
@click.option("--out", type=PATH, default="out", show_default=True, help="A folder, or one image's .png file.")
@click.option("--seed", type=int, default=0, show_default=True, help="Equal seeds give equal images.")
@click.option("--batch", type=int, default=1, show_default=True, help="How many images of the seed.")
@click.option("--first", type=int, default=0, show_default=True, help="Number of the first of them.")
@click.option("--steps", type=int, default=50, show_default=True, help="Denoising steps.")
@click.option(
    "--eta", type=float, default=1.0, show_default=True, help="DDIM's eta: 1 adds noise at each step, 0 none."
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the noise that steps add.")
@click.option("--decay", type=click.Choice(DECAYS), help="How the mask's influence fades. Default: the model's.")
@click.option("--factor", type=float, help="Then multiplies the mask's influence. Default: the model's.")
@click.option("--sharpness", type=float, help="Of the softmax over modalities. Default: the model's.")
@click.option("--boost", type=float, help="Of a second softmax over the influence. Default: the model's.")
@click.option("--inpaint", type=PATH, help="A photo of which --keep is kept.")
@click.option("--keep", type=PATH, help="A black and white PNG: white is kept.")
@click.option("--rounding", type=click.Choice(ROUNDINGS), default="truncate", show_default=True, help="Of pixels.")
@click.option("--backend", default="onnxruntime", show_default=True, help=BACKEND_HELP)
@click.option("--model", default="faces-128", show_default=True, help="An embedded model's name or a bundle's folder.")
@click.option("--save-influence", is_flag=True, help="Also write each condition's influence, step by step.")
@click.option("--save-steps", is_flag=True, help="Also write x_t, the predicted image and each branch, step by step.")
@click.option("--save-latent", is_flag=True, help="Also write the latent, as .npz.")
@click.option("--save-overlay", is_flag=True, help="Also write the image with the mask laid over it.")
@click.option("--force", is_flag=True, help="Overwrite images that exist.")
def generate(
    mask: Path | None,
    text: str | None,
    others: tuple[str, ...],
    out: Path,
    inpaint: Path | None,
    keep: Path | None,
    backend: str,
    model: str,
    force: bool,
    **options: Any,
) -> None:
    """Make faces from a mask, a sentence, or both."""
    from cdiff_rt.influence import InfluenceRecorder
    from cdiff_rt.inpainting import Inpainting
    from cdiff_rt.outputs import check_free, output_paths
    from cdiff_rt.pipeline import Pipeline, check_numbers
    from cdiff_rt.recorder import Recorder
    from cdiff_rt.sampler import StepState
    from cdiff_rt.steps import StepsRecorder

    saving = {name: options.pop(f"save_{name}") for name in ("influence", "steps", "latent", "overlay")}
    changed = {name: options.pop(name) for name in ("decay", "factor", "sharpness", "boost")}
    conditions = all_conditions({"mask": mask, "text": text}, others)
    if (inpaint is None) != (keep is None):
        raise click.UsageError("--inpaint and --keep go together")
    numbers = check_numbers(options["seed"], options["first"], options["batch"])
    kinds = [kind for kind in (InfluenceRecorder, StepsRecorder) if saving.pop(kind.suffix[1:])]
    if out.suffix != ".npz":  # before the model loads; what it writes, unless its latents are the data
        check_free(output_paths(out, options["seed"], numbers), recorders=kinds, force=force, **saving)
    pipeline = Pipeline.from_pretrained(model, backend=backend)
    given = {name: value for name, value in changed.items() if value is not None}
    with ExitStack() as stack:
        recorders: list[Recorder] = [stack.enter_context(kind(out, pipeline.decode)) for kind in kinds]
        with Progress(options["steps"], "denoising") as progress:

            def after_step(state: StepState) -> None:
                progress()
                for recorder in recorders:
                    recorder(state)

            result = pipeline.generate(
                influence=replace(pipeline.manifest.influence, **given) if given else None,
                inpaint=Inpainting(inpaint, keep) if inpaint and keep else None,
                callback_on_step_end=after_step,
                **options,
                **conditions,
            )
        for path in result.save(out, recorders=recorders, force=force, **saving):
            click.echo(click.format_filename(path))
            for recorder in recorders:
                click.echo(click.format_filename(recorder.folder_of(path)))


def all_conditions(named: dict[str, Any], others: tuple[str, ...]) -> dict[str, Any]:
    """The conditions by name; `others` are written NAME=VALUE."""
    conditions = {name: value for name, value in named.items() if value is not None}
    for other in others:
        name, equals, value = other.partition("=")
        if not equals or not name.isidentifier():
            raise click.UsageError(f"--condition {other!r}: write NAME=VALUE")
        if name in conditions:
            raise click.UsageError(f"--condition {name}: it is given twice")
        conditions[name] = value
    return conditions


class Progress:
    """A bar on a terminal from the first step on, nothing elsewhere."""

    def __init__(self, length: int, label: str) -> None:
        hidden = not sys.stderr.isatty() or not logging.getLogger("cdiff_rt").isEnabledFor(logging.INFO)
        self._bar = click.progressbar(length=max(length, 1), label=label, file=sys.stderr, hidden=hidden)
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __call__(self) -> None:
        """One more is done."""
        if not self._begun:
            self._begun = bool(self._bar.__enter__())
        self._bar.update(1)

    def __exit__(self, *error: object) -> None:
        if self._begun:
            self._bar.render_finish()


@main.command(
    epilog="""\b
Examples:
  cdiff-rt export --checkpoint 512_codiff_mask_text.ckpt --out collaborative-512/
  cdiff-rt export --checkpoint 512_codiff_mask_text.ckpt --checkpoint my_512_text.ckpt --out mine/"""
)
@click.option(
    "--checkpoint",
    "checkpoints",
    type=PATH,
    multiple=True,
    required=True,
    help="A published checkpoint, or a recipe's. A later one replaces the branch of an earlier one.",
)
@click.option(
    "--out", type=PATH, required=True, help="The bundle's folder, or a .safetensors file; must not exist yet."
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp16", show_default=True, help="Of the weights.")
@click.option("--diffuser-input", type=click.Choice(("x_t", "prediction")), help="What dynamic diffusers look at.")
@click.option(
    "--freeu", metavar="NAME=B1,B2,S1,S2", multiple=True, help="FreeU on a branch, e.g. text=1.1,1.2,0.9,0.2."
)
@click.option(
    "--head-multiple", type=click.IntRange(1, 64), default=1, help="Pad heads for fused attention, e.g. to 8."
)
def export(checkpoints: tuple[Path, ...], out: Path, freeu: tuple[str, ...], **settings: Any) -> None:
    """Turn trained weights into a bundle: ONNX networks, weights, manifest."""
    try:
        from cdiff_rt.export.bundle import export_checkpoint, read_freeu
    except ModuleNotFoundError as error:
        remedy = "run `pip install '.[export]'` in the checkout"
        raise BadEnvironment("export", f"{error.name} is not installed", remedy) from None

    report = export_checkpoint(checkpoints, out, freeu=read_freeu(freeu), **settings)
    for network, difference in report.items():
        click.echo(f"{network:20} onnxruntime against torch: relative error {difference:.1e}")
    click.echo(out)


@main.command(
    epilog="""\b
Examples:
  cdiff-rt bench --repeats 20 --json bench.json
  cdiff-rt bench --quality --pairs 20 --images judged/"""
)
@click.option("--model", default="faces-128", show_default=True, help="An embedded model's name or a bundle's folder.")
@click.option("--backend", "backends", multiple=True, help="Default: all that work here; for quality onnxruntime.")
@click.option("--steps", type=int, default=50, show_default=True, help="Denoising steps of an image.")
@click.option("--batch", type=int, default=1, show_default=True, help="Images at a time.")
@click.option(
    "--repeats", type=click.IntRange(min=3), default=10, show_default=True, help="Counted runs of each backend."
)
@click.option("--quality", is_flag=True, help="Measure how well images follow their conditions, not the time.")
@click.option("--pairs", type=click.IntRange(min=2), default=200, show_default=True, help="For quality: how many.")
@click.option("--images", type=PATH, help="For quality: also write all images into this folder.")
@click.option("--json", "json_file", type=PATH, help="Also write all figures to this file.")
def bench(
    model: str,
    backends: tuple[str, ...],
    steps: int,
    batch: int,
    repeats: int,
    quality: bool,
    pairs: int,
    images: Path | None,
    json_file: Path | None,
) -> None:
    """Time the backends against eager PyTorch, or judge how well images follow their conditions."""
    from cdiff_rt.bench.latency import compare
    from cdiff_rt.bench.quality import examine
    from cdiff_rt.bench.report import quality_table, table, write_json, write_quality
    from cdiff_rt.images import check_folder

    check_fits(quality, ("batch", "repeats"), ("pairs", "images"))
    if json_file:
        check_folder(json_file.parent)
    if quality:
        examination = examine(model, backends, steps=steps, pairs=pairs, images=images)
        click.echo(quality_table(examination))
        if json_file:
            write_quality(examination, json_file)
        return
    result = compare(model, backends, steps=steps, batch=batch, repeats=repeats)
    click.echo(table(result))
    if json_file:
        write_json(result, json_file)


def check_fits(quality: bool, for_time: tuple[str, ...], for_quality: tuple[str, ...]) -> None:
    """Options of the other measurement would be ignored in silence."""
    context = click.get_current_context()
    for name in for_time if quality else for_quality:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} {'does not go' if quality else 'goes'} with --quality")


@main.command()
def doctor() -> None:
    """Say what is installed, which backends work, and why others don't."""
    from cdiff_rt.doctor import examine

    rows, healthy = examine()
    for row in rows:
        click.echo(row)
    if not healthy:
        sys.exit(5)


if __name__ == "__main__":
    main()
