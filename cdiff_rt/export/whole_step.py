"""The whole step of a fixed set of experts as one graph, for engines that fuse it themselves.

The experts are those of `typed.py`, in the precision; what joins them is traced from its definition,
cdiff_rt/sampling/fusion.py, and computes in fp32. All that changes from step to step or run to run is an input,
`numbers` (sampling/numbers.py).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.cache import step_network
from cdiff_rt.export.to_onnx import OPSET, quiet_exporter
from cdiff_rt.export.typed import Typed, element_type, rename, typed_network
from cdiff_rt.manifest import Bundle, NetworkSpec, TensorSpec
from cdiff_rt.sampling.fusion import fuse, influence, update
from cdiff_rt.sampling.numbers import WIDTH, unpack

if TYPE_CHECKING:
    import onnx


class _Fusion(nn.Module):
    """cdiff_rt/sampling/fusion.py on separate arguments, as an exporter wants them."""

    def __init__(self, boosted: bool) -> None:
        super().__init__()
        self._boosted = boosted

    def forward(
        self,
        x: Tensor,
        hist: Tensor,
        noise: Tensor,
        numbers: Tensor,
        controls: Tensor,
        outs: list[Tensor],
        logits: list[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        row, adjust = unpack(numbers, len(outs), x.ndim, self._boosted, controls)
        weights = influence(torch.stack(logits), adjust)
        following, hist = update(x, fuse(torch.stack(outs), weights, adjust.present), hist, noise, row)
        return following, hist, weights


def whole_step_graph(
    bundle: Bundle, modalities: Sequence[str], placement: Placement, *, boosted: bool = False
) -> Typed:
    """x, hist, noise [B, C, *latent], `numbers` [WIDTH], `controls` [3, M, *latent], each expert's projections and context
    -> next x and hist, weights.

    `boosted` is whether there is a second softmax (`Adjustment.boost`), which changes the graph.
    """
    import onnx

    experts = {name: typed_network(bundle, f"expert.{name}", placement) for name in modalities}
    spec = _step_spec(bundle, experts, boosted)
    fusion = _fusion_graph(spec, len(experts), boosted)
    parts = [_named(expert.model.graph, name) for name, expert in experts.items()]
    casts = [_in_fp32(name, m, output) for m, name in enumerate(experts) for output in ("out", "logit")]
    graph = onnx.helper.make_graph(
        [*(node for part in parts for node in part.node), *casts, *fusion.node],
        step_network(modalities, boosted),
        [_value(tensor) for tensor in spec.inputs],
        [_value(tensor) for tensor in spec.outputs],
        [*(tensor for part in parts for tensor in part.initializer), *fusion.initializer],
    )
    first = next(iter(experts.values())).model
    return Typed(onnx.helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version), spec)


def _step_spec(bundle: Bundle, experts: dict[str, Typed], boosted: bool) -> NetworkSpec:
    name = step_network(tuple(experts), boosted)
    specs = {modality: {t.name: t for t in (*e.spec.inputs, *e.spec.outputs)} for modality, e in experts.items()}
    first = next(iter(specs.values()))
    latent, logit = first["x"].shape, first["logit"].shape
    inputs = [TensorSpec(tensor, latent, "float32") for tensor in ("x", "hist", "noise")]
    inputs.append(TensorSpec("numbers", (WIDTH,), "float32"))
    inputs.append(TensorSpec("controls", (3, len(specs), *latent[2:]), "float32"))
    for modality, tensors in specs.items():
        for kind in ("projections", "context"):
            inputs.append(TensorSpec(f"{kind}.{modality}", tensors[kind].shape, tensors[kind].dtype))
    outputs = [TensorSpec(tensor, latent, "float32") for tensor in ("next_x", "next_hist")]
    outputs.append(TensorSpec("weights", (len(specs), *logit), "float32"))
    return NetworkSpec(f"{name}.onnx", tuple(inputs), tuple(outputs))


def _value(tensor: TensorSpec) -> "onnx.ValueInfoProto":
    import onnx

    return onnx.helper.make_tensor_value_info(tensor.name, element_type(tensor.dtype), tensor.shape)


def _named(graph: "onnx.GraphProto", modality: str) -> "onnx.GraphProto":
    """An expert's graph with names of its own but for x, which all experts share."""
    kept = {"x": "x", "": ""} | {kind: f"{kind}.{modality}" for kind in ("projections", "context")}
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    names = {name: kept.get(name, f"{modality}/{name}") for name in used}
    rename(graph.node, names)
    for node in graph.node:
        node.name = f"{modality}/{node.name}"
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    return graph


def _in_fp32(modality: str, m: int, output: str) -> "onnx.NodeProto":
    import onnx

    made = f"{output}.{m}"
    return onnx.helper.make_node("Cast", [f"{modality}/{output}"], [made], made, to=onnx.TensorProto.FLOAT)


def _fusion_graph(spec: NetworkSpec, count: int, boosted: bool) -> "onnx.GraphProto":
    """Its inputs are named as the step's, and out.0, logit.0 and so on."""
    shapes = {tensor.name: [int(d) for d in tensor.shape] for tensor in (*spec.inputs, *spec.outputs)}
    names = ["x", "hist", "noise", "numbers", "controls"]
    names += [f"{output}.{m}" for output in ("out", "logit") for m in range(count)]
    # Each a tensor of its own: the exporter takes two arguments that are one tensor for one input.
    latents = [torch.zeros(shapes["x"]) for _ in range(3 + count)]
    logits = [torch.zeros(shapes["weights"][1:]) for _ in range(count)]
    with quiet_exporter():
        program = torch.onnx.export(
            _Fusion(boosted).eval(),
            (*latents[:3], torch.zeros(WIDTH), torch.zeros(shapes["controls"]), latents[3:], logits),
            input_names=names,
            output_names=[tensor.name for tensor in spec.outputs],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto.graph
    inner = {name for node in graph.node for name in node.output} - set(shapes)
    inner |= {tensor.name for tensor in graph.initializer}
    rename(graph.node, {name: f"fusion/{name}" for name in inner})
    for part in (*graph.initializer, *graph.node):
        part.name = f"fusion/{part.name}"
        part.ClearField("doc_string")
    for node in graph.node:
        node.ClearField("metadata_props")
    return graph
