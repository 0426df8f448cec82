"""A model's bundles: one without graphs, for torch needs none; and one for each part, made when its graph is asked for.

The golden networks are as deep as the released ones, so tracing one takes many times as long as running it.
"""

import dataclasses
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cdiff_rt import schema
from cdiff_rt.engines.weights import part_of
from cdiff_rt.export import bundle
from cdiff_rt.export.checkpoint import Checkpoint
from cdiff_rt.manifest import DIGEST, NAME, Bundle, Manifest, NetworkSpec
from cdiff_rt.nets.collaborative import ModelConfig
from tests.shared import once


def bundle_of(checkpoint: Checkpoint, folder: Path) -> Bundle:
    folder.mkdir()
    bundle.write_bundle(checkpoint, folder, "fp32")
    return Bundle.open(folder)


def without_graphs(checkpoint: Checkpoint, folder: Path) -> Bundle:
    """Every graph is an empty file."""

    def export(module: object, prefix: str, function: object, spec: NetworkSpec, folder: Path, weights: str) -> None:
        (folder / spec.file).touch()

    def write(partial: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bundle, "export_network", export)
            patch.setattr(bundle, "write_cpu_graph", lambda spec, folder: spec)
            bundle.write_bundle(checkpoint, partial, "fp32")

    return Bundle.open(once(folder, write))


def only(checkpoint: Checkpoint, part: str) -> Checkpoint:
    """A model of nothing but that part."""
    described, name = checkpoint.description, part.removeprefix("experts.")
    if part == "vae":
        modalities, config = (), ModelConfig({}, described.config.vae)
    else:
        modalities = tuple(modality for modality in described.modalities if modality.name == name)
        config = ModelConfig({name: described.config.experts[name]}, None)
    size = described.image_size if part == "vae" else 0
    described = dataclasses.replace(described, config=config, modalities=modalities, image_size=size)
    return dataclasses.replace(checkpoint, description=described)


@contextmanager
def uncollected() -> Iterator[None]:
    """Tracing makes millions of small objects, and looking through them takes a sixth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True)
class Parts:
    checkpoint: Checkpoint
    folder: Path

    def __call__(self, network: str) -> Bundle:
        """The bundle of the network's part."""
        part = part_of(network)

        def export(partial: Path) -> None:
            with uncollected():
                bundle.write_bundle(only(self.checkpoint, part), partial, "fp32")

        folder = once(self.folder / part, export)
        fields = json.loads((folder / NAME).read_text())
        del fields[DIGEST]
        return Bundle.of(
            folder, schema.from_json(Manifest, fields, "manifest")
        )  # an autoencoder alone is no whole model
