"""An engine of the whole step, made of those of its experts: what TensorRT compiles from export/whole_step.py, in PyTorch."""

import torch

from cdiff_rt.gpu.buffers import tensors_of
from cdiff_rt.gpu.fused_step import fuse_step
from cdiff_rt.manifest import NetworkSpec, TensorSpec
from cdiff_rt.sampling.numbers import WIDTH


class WholeStep:
    capturable = True

    def __init__(self, engines, shape):
        self._engines, self._shape = engines, shape
        latent, count = (shape.batch, *shape.latent_shape), len(engines)
        inputs = [TensorSpec(name, latent, "float32") for name in ("x", "hist", "noise")]
        inputs.append(TensorSpec("numbers", (WIDTH,), "float32"))
        inputs.append(TensorSpec("controls", (3, count, *latent[2:]), "float32"))
        for name, engine in zip(shape.modalities, engines, strict=True):
            given = {tensor.name: tensor for tensor in engine.spec.inputs}
            inputs += [
                TensorSpec(f"{kind}.{name}", given[kind].shape, given[kind].dtype)
                for kind in ("projections", "context")
            ]
        outputs = [TensorSpec(name, latent, "float32") for name in ("next_x", "next_hist")]
        outputs.append(TensorSpec("weights", (count, shape.batch, 1, *shape.latent_shape[1:]), "float32"))
        self.spec = NetworkSpec("step.onnx", tuple(inputs), tuple(outputs))

    def bind(self, tensors):
        assert set(tensors) == {tensor.name for tensor in (*self.spec.inputs, *self.spec.outputs)}
        own = [tensors_of(engine.spec, {}, torch.device("cpu")) for engine in self._engines]
        calls = [engine.bind(of) for engine, of in zip(self._engines, own, strict=True)]

        def enqueue():
            for name, of, call in zip(self._shape.modalities, own, calls, strict=True):
                of["x"].copy_(tensors["x"])
                of["projections"].copy_(tensors[f"projections.{name}"])
                of["context"].copy_(tensors[f"context.{name}"])
                call()
            outs, logits = (torch.stack([of[part] for of in own]) for part in ("out", "logit"))
            tensors["next_x"].copy_(tensors["x"])
            tensors["next_hist"].copy_(tensors["hist"])
            fuse_step(
                outs,
                logits,
                tensors["next_x"],
                tensors["numbers"],
                hist=tensors["next_hist"],
                noise=tensors["noise"],
                controls=tensors["controls"],
                weights=tensors["weights"],
                boosted=self._shape.boosted,
            )

        return enqueue
