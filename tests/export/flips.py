"""Damaged files of weights: seeded flips of bits and bytes, cuts, and swapped or doubled parts, of each format.

`python -m tests.export.flips zip 100000 7` makes as many as one likes, with a seed.
"""

import hashlib
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.tensors import open_tensors, write_tensors


def weights():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    return {
        "single": torch.randn(3, 5, generator=generator),
        "half": torch.randn(7, generator=generator).half(),
        "bfloat": torch.randn(2, 2, generator=generator).bfloat16(),
        "double": torch.randn(3, generator=generator).double(),
        "long": torch.arange(5),
        "truth": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "shared": base,
        "transposed": base.t(),
        "part": base[1:3, ::2],
        "parameter": torch.nn.Parameter(torch.randn(2, generator=generator)),
    }


def specs_of(tensors):
    return {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()}


def _unchecked(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights(), path)
    finally:
        torch.serialization.set_crc32_options(True)


FORMS = {
    "zip": lambda path: torch.save(weights(), path),
    "zip of protocol 4": lambda path: torch.save({"state_dict": weights()}, path, pickle_protocol=4),
    "zip without checksums": _unchecked,
    "legacy": lambda path: torch.save(weights(), path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path: write_tensors(path, specs_of(weights()), weights().items(), {"a": "b"}),
}


def damaged(whole: bytes, seed: int, count: int) -> Iterator[bytes]:
    chosen = random.Random(seed)
    for _ in range(count):
        spoiled, kind = bytearray(whole), chosen.randrange(8)
        begin, end = sorted(chosen.randrange(len(whole)) for _ in range(2))
        if kind < 4:
            spoiled[begin] ^= 1 << chosen.randrange(8)
        elif kind < 6:
            spoiled[begin] = chosen.choice((0, 0x7F, 0x80, 0xFF, chosen.randrange(256)))
        elif kind == 6:
            del spoiled[begin:]
        else:
            spoiled[begin : begin + 8] = whole[end : end + 8] if chosen.random() < 0.5 else b""
        yield bytes(spoiled)


def outcomes(form: str, folder: Path, seed: int, count: int) -> Counter[str]:
    """How many were refused, read as they are, and read as other weights. Anything else is raised.

    What was read without an error has the hash of the file that was given.
    """
    path, found = folder / "model.pt", Counter[str]()
    FORMS[form](path)
    whole = path.read_bytes()
    for spoiled in damaged(whole, seed, count):
        path.write_bytes(spoiled)
        try:
            read = open_tensors(path)
            values = dict(read)
        except BadArtefact as error:
            assert "\n" not in str(error) and str(error).isprintable()
            found["refused"] += 1
            continue
        assert read.sha256 == hashlib.sha256(spoiled).hexdigest()
        same = values.keys() == weights().keys() and all(torch.equal(values[k], w) for k, w in weights().items())
        found["as it was" if same else "other weights"] += 1
    return found


if __name__ == "__main__":
    form, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        print(form, dict(outcomes(form, Path(folder), seed, count)))
