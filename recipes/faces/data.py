"""Painted portraits on disk: paint them once, read them in every training stage.

python -m recipes.faces.data --count 16000 --out data
"""

import json
import multiprocessing
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from recipes.faces.config import IMAGE_SIZE, MASK_SIZE, TOKENS, VOCABULARY
from recipes.faces.painter import portrait

HELD_OUT = 512  # the last portraits of a data set are for evaluation only


@dataclass(frozen=True)
class Portraits:
    images: np.ndarray  # [N, 128, 128, 3] uint8
    labels: np.ndarray  # [N, 128, 128] uint8, classes 0-18
    captions: list[str]
    attributes: list[dict]

    @property
    def train_count(self) -> int:
        return len(self.captions) - HELD_OUT

    @classmethod
    def load(cls, folder: Path) -> "Portraits":
        rows = [json.loads(line) for line in (folder / "portraits.jsonl").read_text().splitlines()]
        return cls(
            np.load(folder / "images.npy", mmap_mode="r"),
            np.load(folder / "labels.npy", mmap_mode="r"),
            [row["caption"] for row in rows],
            [row["attributes"] for row in rows],
        )


def small_masks(labels: np.ndarray) -> np.ndarray:
    """[N, H, W] -> [N, MASK_SIZE, MASK_SIZE] by the nearest pixel, as the runtime reads masks."""
    centres = ((np.arange(MASK_SIZE) + 0.5) * labels.shape[1] / MASK_SIZE).astype(int)
    return labels[:, centres[:, None], centres]


def token_ids(captions: list[str]) -> np.ndarray:
    """[N, TOKENS] int64."""
    from cdiff_rt.wordpiece import WordPiece

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
    """Paint COUNT portraits into OUT."""
    out.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(out / "images.npy", "w+", np.uint8, (count, IMAGE_SIZE, IMAGE_SIZE, 3))
    labels = np.lib.format.open_memmap(out / "labels.npy", "w+", np.uint8, (count, IMAGE_SIZE, IMAGE_SIZE))
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.Pool() as pool, (out / "portraits.jsonl").open("w") as rows:
        painted = pool.imap(_paint, range(first_seed, first_seed + count), chunksize=32)
        with click.progressbar(painted, length=count, label="painting") as bar:
            for i, (image, mask, row) in enumerate(bar):
                images[i], labels[i] = image, mask
                rows.write(row + "\n")


if __name__ == "__main__":
    main()
