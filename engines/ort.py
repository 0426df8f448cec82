"""ONNX Runtime on the CPU: the default backend, which needs neither PyTorch nor a GPU."""

from pathlib import Path

import numpy as np

from cdiff_rt.engines import check_inputs
from cdiff_rt.errors import BadArtefact, OutOfResource
from cdiff_rt.manifest import Bundle, NetworkSpec


class OrtEngine:
    """The network of an ONNX file whose hash was checked."""

    def __init__(self, path: Path, spec: NetworkSpec, threads: int) -> None:
        import onnxruntime as ort

        self.spec = spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait would take the cores from the other engines of the step.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base class but this
            reason = str(error).splitlines()[0]
            raise BadArtefact(
                f"network {spec.file}", f"onnxruntime refuses it ({reason})", "export the bundle again"
            ) from error
        found = [tensor.name for tensor in (*self._session.get_inputs(), *self._session.get_outputs())]
        if set(found) != {tensor.name for tensor in (*self.spec.inputs, *self.spec.outputs)}:
            raise BadArtefact(
                f"network {spec.file}", f"its inputs and outputs are {', '.join(found)}", "export the bundle again"
            )
        self._outputs = [tensor.name for tensor in self.spec.outputs]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        check_inputs(self.spec, inputs)
        try:
            outputs = self._session.run(self._outputs, inputs)
        except Exception as error:  # see above; a checked network with checked inputs fails for want of memory
            reason = str(error).splitlines()[0]
            raise OutOfResource(f"running {self.spec.file}", reason, "choose a smaller batch") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        del self._session


def load(bundle: Bundle, network: str, threads: int) -> OrtEngine:
    spec = bundle.manifest.networks[network]
    return OrtEngine(bundle.path(spec.file), spec, threads)
