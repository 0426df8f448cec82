"""A bundle with other weights in the same networks: bytes of its safetensors file, overwritten in their place.

Its ONNX graphs point into that file with offsets, so every backend runs the new weights without a new export; engines
that were built from the old ones are those of another bundle, by its hash.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cdiff_rt.export.tensors import places, raw
from cdiff_rt.manifest import NAME, Bundle, sha256
from cdiff_rt.outputs.files import all_or_nothing


def refit(bundle: Bundle, weights: Mapping[str, Tensor], folder: Path, provenance: dict) -> Bundle:
    """Writes `folder`, which is replaced if it is there. `provenance` is added to what the manifest says of that."""
    manifest = bundle.manifest
    with all_or_nothing(folder) as hidden:
        new = hidden / folder.name
        new.mkdir()
        for name, content in bundle.content.items():
            (new / name).write_bytes(content)
        overwrite(new / manifest.weights, weights)
        files = manifest.files | {manifest.weights: sha256(new / manifest.weights)}
        tuned = replace(manifest, files=files, provenance=manifest.provenance | provenance)
        (new / NAME).write_text(tuned.to_json(), encoding="utf-8")
    return Bundle.open(folder)


def overwrite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Tensors of a safetensors file, in the type that they have there."""
    stored = places(path)
    with path.open("r+b") as file:
        for name, tensor in weights.items():
            place = stored[name]
            assert place.shape == tuple(tensor.shape), f"{name} has another shape there"
            file.seek(place.offset)
            file.write(raw(tensor.to(getattr(torch, place.dtype))))
