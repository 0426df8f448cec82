"""A bundle with other weights in the same networks: bytes of its safetensors file, overwritten in their place.

Its ONNX graphs point into that file with offsets, so every backend runs the new weights without a new export; engines
that were built from the old ones are those of another bundle, by its hash.
"""

import json
import shutil
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cdiff_rt.manifest import NAME, Bundle, sha256
from cdiff_rt.outputs.files import all_or_nothing

DTYPES = {"F16": torch.float16, "F32": torch.float32}


def refit(bundle: Bundle, weights: Mapping[str, Tensor], folder: Path, provenance: dict) -> Bundle:
    """Writes `folder`, which is replaced if it is there. `provenance` is added to what the manifest says of that."""
    manifest = bundle.manifest
    with all_or_nothing(folder.parent, str(folder)) as hidden:
        new = hidden / folder.name
        new.mkdir()
        for name in manifest.files:
            shutil.copyfile(bundle.path(name), new / name)
        overwrite(new / manifest.weights, weights)
        files = manifest.files | {manifest.weights: sha256(new / manifest.weights)}
        tuned = replace(manifest, files=files, provenance=manifest.provenance | provenance)
        (new / NAME).write_text(tuned.to_json(), encoding="utf-8")
    return Bundle.open(folder)


def overwrite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Tensors of a safetensors file, in the type that they have there."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for name, tensor in weights.items():
            row = header[name]
            assert tuple(row["shape"]) == tuple(tensor.shape), f"{name} has another shape there"
            value = tensor.detach().to(DTYPES[row["dtype"]]).contiguous()
            file.seek(8 + length + row["data_offsets"][0])
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)
