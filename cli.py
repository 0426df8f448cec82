"""The commands. Each parses, calls one function of the library and prints."""

import logging
import sys
from pathlib import Path
from typing import Any

import click

from cdiff_rt import __version__
from cdiff_rt.errors import CdiffError

FOLDER = click.Path(path_type=Path)
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
        except BrokenPipeError:
            sys.exit(0)
        sys.exit(result if isinstance(result, int) else 0)


def fail(message: str, code: int) -> None:
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
  cdiff-rt generate --mask examples/1.png --text "This man has a long beard. He is in his fifties."
  cdiff-rt generate --mask examples/1.png --batch 4 --seed 7 --out faces/
  cdiff-rt generate --text "The woman is in her seventies." --out woman.png"""
)
@click.option("--mask", type=FOLDER, help="Where what is: a PNG of labels 0-18 or of the CelebAMask-HQ colours.")
@click.option("--text", help="What it looks like: age, beard, hair, glasses, smile.")
@click.option("--out", type=FOLDER, default="out", show_default=True, help="A folder, or one image's .png file.")
@click.option("--seed", type=int, default=0, show_default=True, help="Equal seeds give equal images.")
@click.option("--batch", type=int, default=1, show_default=True, help="How many images of the seed.")
@click.option("--steps", type=int, default=50, show_default=True, help="Denoising steps.")
@click.option(
    "--eta", type=float, default=1.0, show_default=True, help="DDIM's eta: 1 adds noise at each step, 0 none."
)
@click.option("--backend", default="onnxruntime", show_default=True, help=BACKEND_HELP)
@click.option("--model", default="faces-128", show_default=True, help="An embedded model's name or a bundle's folder.")
@click.option("--force", is_flag=True, help="Overwrite images that exist.")
def generate(
    mask: Path | None,
    text: str | None,
    out: Path,
    seed: int,
    batch: int,
    steps: int,
    eta: float,
    backend: str,
    model: str,
    force: bool,
) -> None:
    """Make faces from a mask, a sentence, or both."""
    from cdiff_rt.pipeline import Pipeline, image_paths, save_images

    paths = image_paths(out, seed, batch, force=force)
    pipeline = Pipeline.from_pretrained(model, backend=backend)
    with progress(steps, "denoising") as bar:
        result = pipeline.generate(
            mask=mask,
            text=text,
            steps=steps,
            seed=seed,
            batch=batch,
            eta=eta,
            callback_on_step_end=(lambda state: bar.update(1)) if bar else None,
        )
    save_images(result, paths)
    for path in paths:
        click.echo(path)


class _NoBar:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def progress(length: int, label: str) -> Any:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty() or logging.getLogger("cdiff_rt").level > logging.INFO:
        return _NoBar()
    return click.progressbar(length=max(length, 1), label=label, file=sys.stderr)


@main.command(
    epilog="""\b
Example:
  cdiff-rt export --checkpoint faces-128.safetensors --out my-bundle/"""
)
@click.option("--checkpoint", type=FOLDER, required=True, help="A safetensors file with a model description inside.")
@click.option("--out", type=FOLDER, required=True, help="The bundle's folder; must not exist yet.")
def export(checkpoint: Path, out: Path) -> None:
    """Turn trained weights into a bundle: ONNX networks, weights, manifest."""
    from cdiff_rt.export.bundle import export_checkpoint

    report = export_checkpoint(checkpoint, out)
    for network, error in report.items():
        click.echo(f"{network:20} onnxruntime against torch: relative error {error:.1e}")
    click.echo(out)


@main.command(
    epilog="""\b
Example:
  cdiff-rt bench --repeats 20 --json bench.json"""
)
@click.option("--model", default="faces-128", show_default=True, help="An embedded model's name or a bundle's folder.")
@click.option("--backend", "backends", multiple=True, help="Default: all that work here.")
@click.option("--steps", type=int, default=50, show_default=True)
@click.option("--batch", type=int, default=1, show_default=True)
@click.option(
    "--repeats", type=click.IntRange(min=3), default=10, show_default=True, help="Counted runs of each backend."
)
@click.option("--json", "json_file", type=FOLDER, help="Also write all figures to this file.")
def bench(model: str, backends: tuple[str, ...], steps: int, batch: int, repeats: int, json_file: Path | None) -> None:
    """Time the backends against eager PyTorch: interleaved, each in its own process."""
    from cdiff_rt.bench.latency import compare
    from cdiff_rt.bench.report import table, write_json

    result = compare(model, backends, steps=steps, batch=batch, repeats=repeats)
    if json_file:
        write_json(result, json_file)
    click.echo(table(result))


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
