"""A data set as its makers write it, of which the run is killed again and again.

`python -m tests.test_data_set FOLDER ROWS KILLS [OPTION ...]` does it on the embedded model, and prints figures.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.jobs.results import DATASET, name_of

ROOT = Path(__file__).parents[1]
CAPTIONS = (
    "This man has a beard.",
    "She is in her thirties, and she is smiling.",
    'A woman with "long" hair',
    "He wears glasses.\nHe has no beard.",
)
RESULTS = name_of(1, 1)


def write_table(folder: Path, rows: int, masks: list[np.ndarray]) -> Path:
    """Ids, masks in folders, captions, and columns of one's own; some have a mask or a seed, and some have none."""
    for n in range(rows):
        path = folder / "masks" / f"part{n % 7}" / f"{n:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(masks[n % len(masks)], n // len(masks), 1)).save(path)
    table = folder / "faces.csv"
    with table.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["id", "mask", "text", "seed", "meta.split", "meta.age"])
        for n in range(rows):
            mask = f"masks/part{n % 7}/{n:05d}.png" if n % 10 else ""
            seed = 10**6 + n if n % 13 == 0 else ""
            writer.writerow([f"face-{n:05d}", mask, CAPTIONS[n % 4], seed, ("train", "test")[n % 9 == 0], n % 80])
    return table


def lines_of(out: Path) -> list[bytes]:
    return (out / RESULTS).read_bytes().splitlines() if (out / RESULTS).exists() else []


def kill_on_the_way(command: list[str], out: Path, at: int, later: float) -> int:
    """Runs a command until so many lines of results are there, and some seconds more; how many there are then."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(lines_of(out)) < at:
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(later)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return len(lines_of(out))


def told(line: bytes) -> dict:
    return {name: value for name, value in json.loads(line).items() if name != "seconds"}


def check(folder: Path, rows: int, kills: int, masks: list[np.ndarray], options: list[str]) -> str:
    """What the folder comes to is what an unbroken run makes, file by file; figures."""
    table, whole, out = write_table(folder, rows, masks), folder / "whole", folder / "killed"
    command = [sys.executable, "-m", "cdiff_rt", "generate", "--jobs", str(table), *options, "--resume", "--out"]
    began = time.monotonic()
    subprocess.run([*command, str(whole)], cwd=ROOT, check=True, capture_output=True)
    unbroken, rng = time.monotonic() - began, random.Random(0)
    marks = sorted(rng.sample(range(1, rows * 9 // 10), kills))
    seen = [kill_on_the_way([*command, str(out)], out, at, rng.random() / 10) for at in marks]
    done = subprocess.run([*command, str(out)], cwd=ROOT, check=True, capture_output=True, text=True)
    content = [{path.name: path.read_bytes() for path in of.iterdir() if path.name != RESULTS} for of in (whole, out)]
    assert content[0] == content[1] and len(content[0]) == rows + 1 and DATASET in content[0]
    results = [sorted(map(told, lines_of(of)), key=lambda line: line["id"]) for of in (whole, out)]
    assert results[0] == results[1] and set(Counter(line["id"] for line in results[1]).values()) == {1}
    assert len(results[1]) == rows and len({line["sha256"] for line in results[1]}) == rows
    figures = (
        f"{rows} rows in {unbroken:.0f} s unbroken; killed at {', '.join(map(str, seen))} lines, then {done.stdout}"
    )
    return (
        figures
        + f"{len(content[1]) - 1} images and {DATASET} equal to the byte, {len(results[1])} lines, one for each row"
    )


@pytest.mark.long
def test_a_set_that_is_killed_five_times_is_that_of_an_unbroken_run(tiny_bundle, mask, tmp_path):
    masks = [mask % 5, mask.T % 5]
    check(tmp_path, 60, 5, masks, ["--model", str(tiny_bundle), "--steps", "8"])


if __name__ == "__main__":
    folder, rows, kills, *options = sys.argv[1:]
    print(
        check(
            Path(folder),
            int(rows),
            int(kills),
            [np.array(Image.open(ROOT / f"examples/{n}.png")) for n in (1, 2, 3)],
            options,
        )
    )
