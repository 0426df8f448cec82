"""The weights and logs of a bundle as the files of the stages, so that training can go on from them.

python -m recipes.faces.unpack --bundle cdiff_rt/models/faces-128 --out trained
"""

import json
from pathlib import Path

import click
from safetensors.torch import load

from cdiff_rt.manifest import Bundle
from cdiff_rt.nets.collaborative import CollaborativeModel
from recipes.faces.config import FACES_128
from recipes.faces.weights import all_parts, save_weights


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
def main(bundle: Path, out: Path) -> None:
    """Write the weights of BUNDLE, a `faces-128`, into OUT."""
    if out.exists():
        raise click.UsageError(f"{out} exists; choose another folder or remove it")
    opened = Bundle.open(bundle)
    model = CollaborativeModel(FACES_128)
    weights = load(opened.content[opened.manifest.weights])
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    out.mkdir(parents=True)
    for part in all_parts():
        save_weights(model, out, part)
    for stage, reports in opened.manifest.provenance["training"].items():
        rows = [
            row for report in reports for row in ({"step": 0}, report)
        ]  # each run of a log begins at its first step
        (out / f"{stage}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    main()
