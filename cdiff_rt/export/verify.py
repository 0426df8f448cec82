"""Does ONNX Runtime compute what PyTorch computes? Asked of every network before a bundle is handed out."""

import numpy as np
import torch

from cdiff_rt.engines.backends import load_engine
from cdiff_rt.engines.base import Engine
from cdiff_rt.engines.graphs import graph_of
from cdiff_rt.engines.ort import OrtEngine
from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.to_onnx import example_inputs
from cdiff_rt.export.watch import Watch, counted, unwatched
from cdiff_rt.manifest import Bundle
from cdiff_rt.process import usual_threads

TOLERANCE = 5e-5  # relative error of one network call in fp32, as in tests/conformance; most lie near 1e-6


def compare_networks(bundle: Bundle, watch: Watch = unwatched) -> dict[str, float]:
    """network -> largest relative error of its outputs on random inputs. Raises BadArtefact above TOLERANCE."""
    networks = bundle.manifest.networks
    with watch(len(networks), "comparing") as done:
        errors = {name: graph_errors(bundle, name) for name in counted(networks, done)}
    for graphs in errors.values():
        for file, error in graphs.items():
            if not error <= TOLERANCE:
                raise BadArtefact(
                    f"network {file}",
                    f"onnxruntime differs from torch by {error:.1e}",
                    "report this model; it cannot be exported",
                )
    return {name: max(graphs.values()) for name, graphs in errors.items()}


def graph_errors(bundle: Bundle, network: str) -> dict[str, float]:
    """`relative_error`, the worst of the outputs, of each of its graphs by file."""
    torch.manual_seed(0)
    spec = bundle.manifest.networks[network]
    tensors = example_inputs(spec, size=1)  # not the size traced with: shapes must not be frozen
    inputs = {tensor.name: value.numpy() for tensor, value in zip(spec.inputs, tensors, strict=True)}

    def outputs(engine: Engine) -> dict[str, np.ndarray]:
        found = engine(**inputs)
        engine.close()  # before the next is loaded: both at once may not fit into memory
        return found

    reference = outputs(load_engine("torch", bundle, network))
    errors = {}
    for file in spec.files:
        ours = outputs(OrtEngine(graph_of(bundle, network, file), spec, usual_threads()))
        found = [relative_error(ours[name], reference[name]) for name in reference]
        errors[file] = float(np.max(found))  # NaN if one is, where max() may not say so
    return errors


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """The root of the mean squared difference, in units of the reference's spread.

    Not the largest difference: that one grows with the number of outputs by rounding alone.
    """
    difference = ours.astype(np.float64) - reference
    return float(np.sqrt((difference**2).mean()) / max(float(reference.std()), 1e-6))
