"""What a step costs on a GPU, counted and not timed: from compiled engines, and from PyTorch on tensors without data.

Eager PyTorch's launches are its operations that are no views, so a lower bound; bytes are what operations or kernels
read and write, as if no cache held anything; operations count a multiply-add as two.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdiff_rt import schema
from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.cache import step_network
from cdiff_rt.engines.trt import FLAVOURS
from cdiff_rt.engines.trt_build import Report, build_plan
from cdiff_rt.errors import BadRequest
from cdiff_rt.extras import needed
from cdiff_rt.manifest import Bundle, Manifest, find_model

TARGET, CAPABILITIES, STEPS = "tensorrt-rtx", ("8.9",), 50


@dataclass(frozen=True)
class Row:
    """Of one step at batch 1."""

    way: str
    launches: int
    replays: int | None  # of CUDA graphs per image, where the loop is one; None: every launch is the host's
    bytes: int
    flops: int


@dataclass(frozen=True)
class Budget:
    model: str
    target: str
    steps: int
    rows: list[Row]


def count(model: str) -> Budget:
    """Builds the engines of a step anew, without a GPU. Raises BadEnvironment, BadArtefact or BadRequest."""
    bundle = Bundle.open(find_model(model))
    with needed("bench budget", TARGET):
        return _count(bundle)


def _count(bundle: Bundle) -> Budget:
    names = [modality.name for modality in bundle.manifest.modalities]
    if not names:
        raise BadRequest("model", bundle.manifest.name, "it has no modality")
    experts = [_built(bundle, f"expert.{name}") for name in names]
    whole = _built(bundle, step_network(names))
    eager = count_eager(bundle.manifest)
    fusion = fusion_bytes(bundle.manifest)
    separate = sum(len(report.kernels) for report in experts) + len(names) + 1  # a copy per expert, and the fusion
    copies = len(names) + 4  # rows; numbers, noise, x and history
    moved = sum(report.bytes for report in experts) + fusion
    rows = [
        eager,
        Row("an engine per expert, Triton", separate, 1, moved, eager.flops),
        Row("one engine for the step", len(whole.kernels) + copies, 1, whole.bytes, eager.flops),
    ]
    return Budget(bundle.manifest.name, f"{TARGET}, fp16, {', '.join(CAPABILITIES)}", STEPS, rows)


def _built(bundle: Bundle, network: str) -> Report:
    from cdiff_rt.export.gpu_engines import typed_graph
    from cdiff_rt.export.typed import write_typed

    with tempfile.TemporaryDirectory(prefix="cdiff-rt-") as folder:
        path = write_typed(typed_graph(bundle, network, Placement()).model, bundle, Path(folder), network)
        return build_plan(path, FLAVOURS[TARGET], CAPABILITIES, {}).report


def fusion_bytes(manifest: Manifest) -> int:
    """What the fused kernel reads and writes: fp16 predictions and logits, fp32 latents and noise."""
    count, (channels, *latent) = len(manifest.modalities), manifest.latent_shape
    pixels = 1
    for side in latent:
        pixels *= side
    return pixels * (2 * count * (channels + 1) + 4 * 3 * channels)


def count_eager(manifest: Manifest) -> Row:
    """A step as the reference runs it: every expert's UNets from x_t, t and tokens, the softmax, the sum, the update."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from cdiff_rt.export.padding import padded_config
    from cdiff_rt.nets.collaborative import CollaborativeModel, ModelConfig
    from cdiff_rt.sampling.fusion import fuse, softmax

    config = padded_config(schema.from_json(ModelConfig, manifest.source, "source"), 1)  # no padding for engines
    watching = _Launches()
    flops = FlopCounterMode(display=False)
    with ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        model = CollaborativeModel(config).eval()
        x, t = torch.zeros(1, *manifest.latent_shape), torch.zeros(1, dtype=torch.int64)
        tokens = [
            torch.zeros(1, m.input_shape[0], config.experts[m.name].unet.context_dim) for m in manifest.modalities
        ]
        for entered in (torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), flops, watching):
            stack.enter_context(entered)
        experts = [model.expert(modality.name) for modality in manifest.modalities]
        outs = [expert.unet(x, t, context) for expert, context in zip(experts, tokens, strict=True)]
        logits = [e.diffuser(x, t, c) for e, c in zip(experts, tokens, strict=True) if e.config.diffuser]
        fused = fuse(torch.stack(outs), softmax(torch.stack(logits))) if logits else torch.stack(outs).mean(0)
        x = 0.5 * x + 0.5 * fused + 0.5 * torch.zeros_like(x)
    return Row("PyTorch, eager, fp32", watching.count, None, watching.bytes, flops.get_total_flops())


def _Launches() -> Any:  # a class, made when torch is there
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Launches(TorchDispatchMode):
        count, bytes = 0, 0

        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = operation(*args, **kwargs or {})
            if not _is_view(operation):
                self.count += 1
                tensors: Sequence[Any] = tree_leaves((args, kwargs, result))
                self.bytes += sum(leaf.nbytes for leaf in tensors if isinstance(leaf, Tensor))
            return result

    return Launches()


def _is_view(operation: Any) -> bool:
    """Whether an operation only makes another description of memory, or gets some."""
    if operation.__name__.split(".")[0] in {"_unsafe_view", "empty", "detach", "lift_fresh"}:
        return True
    returned = [value.alias_info for value in operation._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)
