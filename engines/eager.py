"""PyTorch, eagerly, from the same weights as the bundle's ONNX graphs: the baseline and the check of the others."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cdiff_rt import records
from cdiff_rt.engines import check_inputs
from cdiff_rt.errors import BadArtefact
from cdiff_rt.manifest import Bundle, NetworkSpec
from cdiff_rt.nets.collaborative import CollaborativeModel, ModelConfig, network_functions


class EagerEngine:
    def __init__(self, spec: NetworkSpec, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self.spec, self._function = spec, function

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        check_inputs(self.spec, inputs)
        with torch.inference_mode():
            outputs = self._function(*(torch.from_numpy(inputs[tensor.name]) for tensor in self.spec.inputs))
        return {tensor.name: value.numpy() for tensor, value in zip(self.spec.outputs, outputs, strict=True)}

    def close(self) -> None:
        del self._function


@lru_cache(maxsize=1)
def load_model(bundle: Bundle) -> CollaborativeModel:
    """The bundle's networks in fp32; one bundle's are kept, since every engine of it shares them."""
    from safetensors.torch import load_file

    try:
        model = CollaborativeModel(records.from_json(ModelConfig, bundle.manifest.source, "source"))
        weights = load_file(bundle.path(bundle.manifest.weights))
        model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    except Exception as error:  # of the description, of safetensors and of torch: no base class but this
        reason = " ".join(str(error).split())[:200]
        raise BadArtefact(
            f"bundle {bundle.folder.name}", f"its weights do not make its model ({reason})", "export it again"
        ) from error
    return model.eval()


def load(bundle: Bundle, network: str, threads: int) -> EagerEngine:
    torch.set_num_threads(threads)
    return EagerEngine(bundle.manifest.networks[network], network_functions(load_model(bundle))[network])
