"""A bundle's networks for ONNX Runtime on a GPU: in the types of an engine, made as they are loaded."""

from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.graphs import Graph
from cdiff_rt.engines.ort import OrtDeviceEngine
from cdiff_rt.export.cpu_graph import normalise_by_instances
from cdiff_rt.export.typed import typed_network
from cdiff_rt.manifest import Bundle


def load(bundle: Bundle, network: str, placement: Placement) -> OrtDeviceEngine:
    """Raises BadArtefact, BadEnvironment, OutOfResource."""
    typed, weights = typed_network(bundle, network, placement, normalise_by_instances), bundle.manifest.weights
    graph = Graph(typed.spec.file, typed.model.SerializeToString(), weights, bundle.content[weights])
    return OrtDeviceEngine(graph, typed.spec, placement.device)
