"""Painted portraits on disk: paint them once, read them in every training stage.

python -m recipes.faces.data --count 16000 --out data
"""

import json
import multiprocessing
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from cdiff_rt.inputs.wordpiece import WordPiece
from recipes.faces.config import IMAGE_SIZE, TOKENS, VOCABULARY
from recipes.faces.painter import portrait

HELD_OUT = 512  # the last portraits of a data set are for evaluation only


@dataclass(frozen=True)
class Portraits:
    images: np.ndarray  # [N, 128, 128, 3] uint8
    labels: np.ndarray  # [N, 128, 128] uint8, classes 0-18
    captions: list[str]
    attributes: list[dict]
    first_seed: int

    @property
    def train_count(self) -> int:
        return len(self.captions) - HELD_OUT

    @classmethod
    def load(cls, folder: Path) -> "Portraits":
        rows = [json.loads(line) for line in (folder / "portraits.jsonl").read_text().splitlines()]
        images, labels = (np.load(folder / name, mmap_mode="r") for name in ("images.npy", "labels.npy"))
        assert len(images) == len(labels) == len(rows), f"{folder} is not what this program painted"
        return cls(
            images, labels, [row["caption"] for row in rows], [row["attributes"] for row in rows], rows[0]["seed"]
        )

    @property
    def name(self) -> str:
        """Which portraits these are."""
        return f"{len(self.captions)} portraits from seed {self.first_seed}"


def token_ids(captions: list[str]) -> np.ndarray:
    """[N, TOKENS] int64."""
    tokenizer = WordPiece(VOCABULARY)
    encoded = {caption: tokenizer.encode(caption, TOKENS) for caption in set(captions)}
    for caption, tokens in encoded.items():
        assert not tokens.unknown and not tokens.dropped, f"the vocabulary must cover its own captions: {caption}"
    return np.array([encoded[caption].ids for caption in captions], dtype=np.int64)


def _paint(seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    painted = portrait(seed, IMAGE_SIZE)
    row = {"seed": seed, "caption": painted.caption, "attributes": asdict(painted.attributes)}
    return painted.image, painted.labels, json.dumps(row)


@click.command()
@click.option("--count", default=16_000, show_default=True, type=click.IntRange(min=HELD_OUT + 1))
@click.option("--first-seed", default=0, show_default=True, help="Portrait i has the seed first-seed + i.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
def main(count: int, first_seed: int, out: Path) -> None:
    """Paint COUNT portraits into OUT, which must not exist yet."""
    if out.exists():
        raise click.UsageError(f"{out} exists; choose another folder or remove it")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    paint_all(range(first_seed, first_seed + count), partial)
    partial.rename(out)


def paint_all(seeds: range, folder: Path) -> None:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (len(seeds), *size, 3))
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.uint8, (len(seeds), *size))
    with multiprocessing.Pool() as pool, (folder / "portraits.jsonl").open("w") as rows:
        painted = pool.imap(_paint, seeds, chunksize=32)
        with click.progressbar(painted, length=len(seeds), label="painting") as bar:
            for i, (image, mask, row) in enumerate(bar):
                images[i], labels[i] = image, mask
                rows.write(row + "\n")


if __name__ == "__main__":
    main()
