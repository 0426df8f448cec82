"""The experts of a bundle that have one shape as one graph, on the bundle's own weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from cdiff_rt import schema
from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.modules import build_stack
from cdiff_rt.engines.stacked import stack_network, stack_spec
from cdiff_rt.engines.weights import fp32, places
from cdiff_rt.export.stored import DTYPES, Stored
from cdiff_rt.export.to_onnx import network_graph
from cdiff_rt.export.typed import Typed, typed_model
from cdiff_rt.manifest import Bundle, NetworkSpec
from cdiff_rt.nets.collaborative import ModelConfig

if TYPE_CHECKING:
    import onnx


def typed_stack(bundle: Bundle, modalities: Sequence[str], placement: Placement) -> Typed:
    """The same in an engine's types. Raises BadRequest unless the experts have one shape."""
    model, spec = stacked_graph(bundle, modalities)
    return typed_model(model, spec, stack_network(modalities), placement)


def stacked_graph(bundle: Bundle, modalities: Sequence[str]) -> "tuple[onnx.ModelProto, NetworkSpec]":
    """With x, projections [M, E] and context [M, B, T, K]. Raises BadRequest unless the experts have one shape."""
    manifest, spec = bundle.manifest, stack_spec(bundle.manifest, modalities)
    config = schema.from_json(ModelConfig, manifest.source, "source")
    content = bundle.content[manifest.weights]
    found = places(content)
    stored = {name: Stored(DTYPES[p.dtype], p.shape, p.offset, p.length) for name, p in found.items()}
    with torch.device("meta"):
        module = build_stack(config, manifest, modalities)
    prefixes = [f"experts.{name}." for name in modalities]
    read = lambda name: torch.from_numpy(fp32(content, found[name]))
    return network_graph(module, prefixes, module.forward, spec, manifest.weights, stored, read), spec
