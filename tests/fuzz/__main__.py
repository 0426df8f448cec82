"""`python -m tests.fuzz NAME --seconds 30 --runs N`: a target with atheris, or without it by seeded mutations."""

import argparse
import hashlib
import importlib
import logging
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cdiff_rt.process import cores
from tests.fuzz.mutations import mutated


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("name", help="a target of tests/fuzz/targets.py, or all of them")
    parser.add_argument("--seconds", type=int, default=30, help="for how long, for each target")
    parser.add_argument("--runs", type=int, default=-1, help="at most how often; -1 is no limit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    asked = parser.parse_args()
    if asked.name == "all":
        sys.exit(all_of_them(asked))
    logging.getLogger("cdiff_rt").addHandler(logging.NullHandler())
    atheris = None if asked.plain else atheris_or_none()
    if atheris:
        with_atheris(atheris, asked)
    plainly(importlib.import_module("tests.fuzz.targets"), asked.name, asked)


def all_of_them(asked: argparse.Namespace) -> int:
    """Each target in a process of its own, as many at a time as there are cores; the first exit code that isn't 0."""
    targets = importlib.import_module("tests.fuzz.targets")
    limits = ["--seconds", str(asked.seconds), "--runs", str(asked.runs), "--seed", str(asked.seed)]

    def run(name: str) -> int:
        command = [sys.executable, "-m", "tests.fuzz", name, *limits, *(["--plain"] if asked.plain else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        told = lines[-20:] if done.returncode else [line for line in lines if " runs in " in line][-1:]
        print(f"{name}:", *(line.removeprefix(f"{name}: ") for line in told), sep="\n  ", flush=True)
        return done.returncode

    with ThreadPoolExecutor(cores()) as pool:
        return max(map(abs, pool.map(run, targets.TARGETS)))


def atheris_or_none() -> Any:
    try:
        return importlib.import_module("atheris")
    except ImportError:
        print("atheris is not installed: mutations by a seed, without looking at what they reach", file=sys.stderr)
        return None


def with_atheris(atheris: Any, asked: argparse.Namespace) -> None:
    """Ends the process; what raised something else than CdiffError is left as crash-*."""
    with atheris.instrument_imports(include=["cdiff_rt", "PIL.PngImagePlugin", "PIL.JpegImagePlugin"]):
        targets = importlib.import_module("tests.fuzz.targets")
        importlib.import_module("cdiff_rt.export.tensors")  # which targets import as they run
    target, rng = targets.TARGETS[asked.name], random.Random(asked.seed)
    seeds = list(targets.corpus(asked.name))

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng.seed(seed)
        made = mutated(data, rng, seeds) if rng.random() < 0.5 else atheris.Mutate(data, len(data) or 1)
        return (target.repair(made) if rng.random() < 0.7 else made)[:most]

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds):
            Path(folder, str(number)).write_bytes(seed)
        limits = [f"-max_total_time={asked.seconds}", f"-runs={asked.runs}", f"-seed={asked.seed}"]
        more = ["-timeout=20", "-rss_limit_mb=4096", f"-max_len={2 * max(map(len, seeds))}"]
        atheris.Setup([sys.argv[0], *limits, *more, folder], target, custom_mutator=mutate)
        atheris.Fuzz()


def plainly(targets: Any, name: str, asked: argparse.Namespace) -> None:
    target, seeds, runs = targets.TARGETS[name], list(targets.corpus(name)), 0
    rng, began = random.Random(asked.seed), time.monotonic()
    while time.monotonic() - began < asked.seconds and runs != asked.runs:
        data = mutated(rng.choice(seeds), rng, seeds)
        data = target.repair(data) if rng.random() < 0.5 else data
        try:
            target(data)
        except BaseException:
            path = Path(f"crash-{name}-{hashlib.sha256(data).hexdigest()[:12]}")
            path.write_bytes(data)
            print(f"{name}: run {runs} raised, for the bytes in {path}", file=sys.stderr)
            raise
        runs += 1
    print(f"{name}: {runs} runs in {time.monotonic() - began:.0f} s, no traceback")


if __name__ == "__main__":
    main()
