"""A stand-in for TensorRT: the calls that cdiff_rt makes, written down, and computed by ONNX Runtime on CPU memory.

Its plan is the ONNX graph with the weights inside. `install` puts it in a library's place and pretends that there is a
GPU. What it doesn't know is an AttributeError, so a call of an API that nobody thought of does not pass unseen.
"""

import enum
import io
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import torch

MAGIC, KERNELS = b"stand-in plan\n", b"compiled kernels"
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT64 = 1, 10, 16, 7  # as ONNX numbers them


class StandIn(SimpleNamespace):
    """One library: what was called of it, and switches that make it fail."""

    def __init__(self, name: str, version: str = "11.4.0") -> None:
        super().__init__(
            __name__=name,
            __version__=version,
            __spec__=ModuleSpec(name, None),  # torch's exporter looks which libraries there are
            calls=Counter(),  # function -> how often
            deserialized=[],  # every plan that reached the library
            streams=[],  # of execute_async_v3
            contexts=[],
            refuses=set(),  # names of functions that fail
            DataType=DataType,
            LayerType=SimpleNamespace(SOFTMAX="softmax"),
            ProfilingVerbosity=SimpleNamespace(DETAILED="detailed", NONE="none"),
            BuilderFlag=SimpleNamespace(REFIT="refit", REQUIRE_USER_ALLOCATION="user allocation", TF32="tf32"),
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=0),
            EngineValidity=SimpleNamespace(VALID="valid", SUBOPTIMAL="suboptimal", INVALID="invalid"),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
            ILogger=Logger,
            Weights=lambda kind, address, count: np.ctypeslib.as_array(
                _memory(address, count, NUMPY[kind.name])
            ).copy(),
        )
        self.Builder = lambda log: Builder(self, log)
        self.OnnxParser = lambda network, log: Parser(self, network, log)
        self.Runtime = lambda log: Runtime(self, log)
        self.Refitter = lambda engine, log: Refitter(self, engine)
        if name == "tensorrt_rtx":
            self.ComputeCapability = enum.Enum("ComputeCapability", "NONE CURRENT SM75 SM86 SM121")

    def called(self, name: str) -> bool:
        """Notes the call; whether it goes well."""
        self.calls[name] += 1
        return name not in self.refuses


def install(monkeypatch, module="tensorrt", version="11.4.0", capability="8.6", gpu="A GPU") -> StandIn:
    library = StandIn(module, version)
    monkeypatch.setitem(sys.modules, module, library)
    for place in ("cdiff_rt.engines.trt_library", "cdiff_rt.export.gpu_engines"):
        monkeypatch.setattr(f"{place}.compute_capability", lambda device=0: capability)
    monkeypatch.setattr("cdiff_rt.engines.trt_library.device_name", lambda device=0: gpu)
    monkeypatch.setattr("cdiff_rt.engines.trt_library.why_no_device", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=41))
    return library


def _memory(address, count, dtype):
    kind = np.ctypeslib.as_ctypes_type(np.uint16 if dtype is np.float16 else dtype)
    return np.ctypeslib.as_array((kind * count).from_address(address)).view(dtype)


class Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None: ...


class Builder:
    def __init__(self, library, log) -> None:
        self._library, self._log = library, log

    def create_network(self, flags):
        return SimpleNamespace(flags=flags)

    def create_builder_config(self):
        return Config(self._library)

    def create_optimization_profile(self):
        return SimpleNamespace(set_shape=lambda name, *shapes: None)

    def build_serialized_network(self, network, config):
        assert "tf32" not in config.flags
        if not self._library.called("build_serialized_network"):
            self._log.log(Severity.ERROR, "Error Code 1: out of\n tactics")
            return None
        if config.get_timing_cache():
            config.get_timing_cache().data += b"."
        for node in network.model.graph.node:
            kernel = "_gemm_mha_v2" if node.op_type == "Softmax" else f"__myl_{node.op_type[:4].title()}"
            self._log.log(
                Severity.VERBOSE,
                f"Name: {kernel}_myl0_0, LayerType: kgen, Inputs: [], TacticName: {kernel}_0x1, StreamId: 0, "
                f"Metadata: [ONNX Layer: {node.name}]",
            )
        file = io.BytesIO(MAGIC + network.model.SerializeToString())
        return file.getbuffer()


class Config:
    def __init__(self, library) -> None:
        self._library, self.flags, self.profiles, self._timing = library, ["tf32"], [], None

    def set_flag(self, flag):
        self.flags.append(flag)

    def clear_flag(self, flag):
        self.flags.remove(flag)

    def set_compute_capability(self, capability, index):
        assert 0 <= index < self.num_compute_capabilities

    def create_timing_cache(self, data):
        return SimpleNamespace(data=data, serialize=lambda: self._timing.data)

    def set_timing_cache(self, timing, ignore_mismatch):
        self._library.timing_given = timing.data
        self._timing = timing
        return True

    def get_timing_cache(self):
        return self._timing

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)


class Parser:
    def __init__(self, library, network, log) -> None:
        self._library, self._network, self.num_errors = library, network, 0

    def parse_from_file(self, path):
        if not self._library.called("parse_from_file"):
            self.num_errors = 1
            return False
        model = onnx.load(path, load_external_data=False)
        _embed(model, Path(path).parent)
        graph, network = model.graph, self._network
        network.model = model
        network.num_inputs, network.num_layers = len(graph.input), len(graph.node)
        network.get_input = lambda i: _tensor(graph.input[i])
        network.get_layer = lambda i: SimpleNamespace(name=graph.node[i].name, type=graph.node[i].op_type.lower())
        return True

    def get_error(self, i):
        words = "Plugin not found, are the plugin name,\n version, and namespace correct?"
        return SimpleNamespace(desc=lambda: words, node_operator=lambda: "Gelu2", node_name=lambda: "node_gelu")


def _embed(model, folder):
    """The weights into the graph. onnx itself refuses hard links."""
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            with open(folder / entries["location"], "rb") as file:
                file.seek(int(entries["offset"]))
                tensor.raw_data = file.read(int(entries["length"]))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]


def _tensor(value):
    dims = value.type.tensor_type.shape.dim
    return SimpleNamespace(
        name=value.name,
        shape=tuple(-1 if d.dim_param else d.dim_value for d in dims),
        get_dimension_name=lambda axis: dims[axis].dim_param or None,
    )


class Runtime:
    def __init__(self, library, log) -> None:
        self._library, self._log, self.engine_host_code_allowed = library, log, False
        library.called("Runtime")

    def get_engine_validity(self, data):
        good = self._library.called("get_engine_validity")
        return (self._library.EngineValidity.VALID if good else self._library.EngineValidity.INVALID), 0

    def deserialize_cuda_engine(self, data):
        self._library.deserialized.append(data)
        if not self._library.called("deserialize_cuda_engine") or not data.startswith(MAGIC):
            self._log.log(Severity.ERROR, "Serialization assertion failed.\n Magic tag does not match")
            return None
        return Engine(self._library, data)


class Engine:
    device_memory_size_v2 = 1000

    def __init__(self, library, data) -> None:
        self.library, self.model = library, onnx.load_from_string(data[len(MAGIC) :])
        self.refittable = True
        self.load()
        graph = self.model.graph
        self.values = {value.name: value for value in (*graph.input, *graph.output)}
        self.num_io_tensors, self.inputs = len(self.values), [value.name for value in graph.input]

    def load(self):
        self.session = ort.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])

    def get_tensor_name(self, i):
        return list(self.values)[i]

    def get_tensor_dtype(self, name):
        return DataType(self.values[name].type.tensor_type.elem_type)

    def get_tensor_shape(self, name):
        return _tensor(self.values[name]).shape

    def create_runtime_config(self):
        return RuntimeConfig(self.library)

    def create_execution_context(self, given):
        if isinstance(given, RuntimeConfig):
            given.cache.compile()
            given = given.strategy
        assert given == self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        context = Context(self) if self.library.called("create_execution_context") else None
        self.library.contexts.append(context)
        return context


class RuntimeConfig:
    def __init__(self, library) -> None:
        assert library.__name__ == "tensorrt_rtx"  # the full library has no such thing
        self._library = library

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return RuntimeCache(self._library)

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class RuntimeCache:
    """All kernels of an engine, or none."""

    def __init__(self, library) -> None:
        self._library, self.known = library, False

    def deserialize(self, data):
        self.known = self._library.called("deserialize") and data == KERNELS
        return self.known

    def compile(self):
        if not self.known:
            self._library.calls["compiled"] += 1
        self.known = True

    def serialize(self):
        return KERNELS if self.known else b""


class Context:
    def __init__(self, engine) -> None:
        self._engine, self._addresses, self._memory = engine, {}, None
        self._shapes = {name: engine.get_tensor_shape(name) for name in engine.values}

    def set_device_memory(self, address, size):
        assert address and size >= self._engine.device_memory_size_v2
        self._memory = address

    def set_input_shape(self, name, shape):
        self._shapes[name] = shape
        return self._engine.library.called("set_input_shape")

    def set_tensor_address(self, name, address):
        assert name in self._engine.values
        self._addresses[name] = address
        return self._engine.library.called("set_tensor_address")

    def execute_async_v3(self, stream):
        library = self._engine.library
        library.streams.append(stream)
        if not library.called("execute_async_v3"):
            return False
        assert self._memory and set(self._addresses) == set(self._engine.values)
        inputs = {name: self._view(name) for name in self._engine.inputs}
        outputs = [name for name in self._engine.values if name not in self._engine.inputs]
        for name, value in zip(outputs, self._engine.session.run(outputs, inputs), strict=True):
            _memory(self._addresses[name], value.size, value.dtype.type)[:] = value.reshape(-1)
        return True

    def is_stream_capturable(self, stream):
        assert self._engine.library.__name__ == "tensorrt_rtx"  # the full library has no such function
        return self._engine.library.called("is_stream_capturable")

    def _view(self, name):
        shape = self._shapes[name]
        dtype = NUMPY[self._engine.get_tensor_dtype(name).name]
        return _memory(self._addresses[name], int(np.prod(shape)), dtype).reshape(shape)


class Refitter:
    def __init__(self, library, engine) -> None:
        self._library, self._engine, self._given = library, engine, {}

    def set_named_weights(self, name, weights):
        (tensor,) = (t for t in self._engine.model.graph.initializer if t.name == name)
        shape = tuple(tensor.dims)
        self._given[name] = onnx.numpy_helper.from_array(weights.reshape(shape), name)
        return self._library.called("set_named_weights")

    def refit_cuda_engine(self):
        if not self._library.called("refit_cuda_engine"):
            return False
        for tensor in self._engine.model.graph.initializer:
            if tensor.name in self._given:
                tensor.CopyFrom(self._given[tensor.name])
        self._engine.load()
        return True

    def get_missing_weights(self):
        return ["model.a", "model.b"]
