"""Networks of a user's own: a module with sines of time and a condition, and an ONNX file."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

CHANNELS, WIDTH = 8, 5


class Small(nn.Module):
    """Of x [B, C, H, W], time [B], and a condition [B, WIDTH], or labels [B] if there are `classes`."""

    def __init__(self, channels: int = 3, seed: int = 0, classes: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.into = nn.Conv2d(channels, CHANNELS, 3, padding=1)
        self.out = nn.Conv2d(CHANNELS, channels, 3, padding=1)
        self.time = nn.Linear(16, CHANNELS)
        self.condition = nn.Embedding(classes, CHANNELS) if classes else nn.Linear(WIDTH, CHANNELS)
        self.first = nn.Parameter(torch.randn(CHANNELS, 200) / 20)  # large enough to lie in a bundle's file
        self.second = nn.Parameter(torch.randn(200, CHANNELS) / 20)
        self.classes = classes

    def forward(self, x, time, condition):
        angles = time[:, None] * torch.exp(-torch.arange(8, device=x.device) * 0.9)
        shift = self.time(torch.cat([torch.sin(angles), torch.cos(angles)], 1).to(x.dtype))
        shift = shift + self.condition(condition.round().long() if self.classes else condition)
        hidden = torch.tanh(self.into(x) + shift[:, :, None, None])
        mixed = (hidden.permute(0, 2, 3, 1) @ self.first).relu() @ self.second
        return self.out(hidden + mixed.permute(0, 3, 1, 2))


class Router(nn.Module):
    """A logit for each image, or for each place of x, of its mean, alpha_bar, and a condition [B, WIDTH]."""

    def __init__(self, places: bool = False) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.into, self.out = nn.Linear(WIDTH, 300), nn.Linear(300, 1)
        self.places = places

    def forward(self, x, alpha_bar, condition):
        told = self.out(torch.tanh(self.into(condition)))[:, 0] + alpha_bar
        mean = x.mean(1, keepdim=True)
        return told[:, None, None, None] + mean if self.places else told + mean.mean((1, 2, 3))


def onnx_file(
    path,
    *,
    x=("batch", 3, 16, 16),
    time=("batch",),
    condition=("batch", WIDTH),
    names=("sample", "timestep", "cond", "pred"),
    kinds=(TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT),
    outside=False,
    nodes=(),
    constants=(),
    of="",
):
    """pred = two convolutions of x, plus the sum of the condition, plus time / 1000; without torch."""
    random = np.random.default_rng(0)
    kernels = {"w1": (64, 3, 3, 3), "w2": (3, 64, 3, 3)}
    constants = [
        *constants,
        *(
            onnx.numpy_helper.from_array((random.standard_normal(s) / 10).astype(np.float32), n)
            for n, s in kernels.items()
        ),
    ]
    constants += [
        onnx.numpy_helper.from_array(np.array(v), n) for n, v in (("c", [-1, 1, 1, 1]), ("k", np.float32(1e-3)))
    ]
    constants += [onnx.numpy_helper.from_array(np.array([1]), "one")]
    given_x, given_t, given_c, pred = names
    made = [
        *nodes,
        helper.make_node("Conv", [of or given_x, "w1"], ["h"], pads=[1] * 4),
        helper.make_node("Tanh", ["h"], ["g"]),
        helper.make_node("Conv", ["g", "w2"], ["f"], pads=[1] * 4),
        helper.make_node("Cast", [given_t], ["t1"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["t1", "k"], ["t2"]),
        helper.make_node("Reshape", ["t2", "c"], ["t3"]),
        helper.make_node("Add", ["f", "t3"], ["e" if condition else pred]),
    ]
    inputs = [helper.make_tensor_value_info(n, k, s) for n, k, s in zip(names, kinds, (x, time), strict=False)]
    if condition:
        inputs.append(helper.make_tensor_value_info(given_c, kinds[2], condition))
        made += [
            helper.make_node("Cast", [given_c], ["s0"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["s0", "one"], ["s1"], keepdims=0)
            if len(condition) > 1
            else helper.make_node("Sin", ["s0"], ["s1"]),
            helper.make_node("Reshape", ["s1", "c"], ["s2"]),
            helper.make_node("Add", ["e", "s2"], [pred]),
        ]
    out = helper.make_tensor_value_info(pred, TensorProto.FLOAT, x)
    graph = helper.make_graph(made, "theirs", inputs, [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=outside, location="theirs.data", size_threshold=1024)
    return path


def router_file(path, *, told="alpha_bar", condition=None):
    """logit [batch] = 3 mean of x, plus what it is told of the noise, plus the sum of the condition."""
    made = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "three"], ["scaled"]),
        helper.make_node("Add", ["scaled", told], ["noted" if condition else "logit"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 3, 16, 16)),
        helper.make_tensor_value_info(told, TensorProto.FLOAT, ("batch",)),
    ]
    if condition:
        inputs.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, condition))
        made += [
            helper.make_node("ReduceSum", ["c", "axis"], ["sum"], keepdims=0),
            helper.make_node("Add", ["noted", "sum"], ["logit"]),
        ]
    constants = [
        onnx.numpy_helper.from_array(np.float32(3), "three"),
        onnx.numpy_helper.from_array(np.array([1]), "axis"),
    ]
    out = helper.make_tensor_value_info("logit", TensorProto.FLOAT, ("batch",))
    graph = helper.make_graph(made, "router", inputs, [out], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
