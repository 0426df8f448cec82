"""What a step costs on a GPU, counted and not timed: from compiled engines, and from PyTorch on tensors without data.

Beside it stands what the step must cost there at least (bench/floor.py).

Eager PyTorch's launches are its operations that are no views, so a lower bound; bytes are what operations or kernels
read and write, as if no cache held anything; operations count a multiply-add as two.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdiff_rt import schema
from cdiff_rt.bench.floor import Floor, Gpu, count_floor, find_gpu
from cdiff_rt.engines.base import Placement, is_composed
from cdiff_rt.engines.cache import step_network
from cdiff_rt.engines.stacked import stack_network
from cdiff_rt.engines.trt_build import Report, build_plan
from cdiff_rt.engines.trt_library import FLAVOURS
from cdiff_rt.errors import BadRequest
from cdiff_rt.extras import needed
from cdiff_rt.manifest import Bundle, Manifest, Modality, find_model

if TYPE_CHECKING:
    from cdiff_rt.nets.collaborative import ModelConfig

TARGET, CAPABILITIES, STEPS = "tensorrt-rtx", ("8.9",), 50
SELECTION = 2  # launches that bring a step's own values to where they are read (gpu/buffers.py)


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
    target: str  # of the engines; empty if there are none to build
    steps: int
    rows: list[Row]
    gpu: str
    peaks: Gpu
    floor: Floor


@dataclass(frozen=True)
class Subject:
    """What is needed of a model to count its work."""

    name: str
    config: "ModelConfig"
    latent_shape: tuple[int, ...]
    modalities: tuple[Modality, ...]
    bundle: Bundle | None  # whose engines can be built

    @property
    def stackable(self) -> bool:
        """Whether its experts can run as one network."""
        experts = [self.config.experts[modality.name] for modality in self.modalities]
        shapes = {(expert.unet, expert.diffuser, expert.diffuser_input) for expert in experts}
        return len(experts) > 1 == len(shapes)


def count(model: str, gpu: str) -> Budget:
    """Of a bundle, whose engines are built anew without a GPU; of a published size, such as "512", without engines.

    Raises BadEnvironment, BadArtefact or BadRequest.
    """
    peaks = find_gpu(gpu)
    with needed("bench budget", TARGET):
        subject = _subject(model)
        if not subject.modalities:
            raise BadRequest("model", subject.name, "it has no modality")
        rows = [eager := count_eager(subject), count_torch(subject, eager.flops)]
        if subject.stackable:
            rows.append(count_torch(subject, eager.flops, stacked=True))
        if subject.bundle:
            rows += _engines(subject.bundle, subject.stackable, eager.flops)
        tokens = {modality.name: modality.context_tokens for modality in subject.modalities}
        floor = count_floor(subject.config, subject.latent_shape, tokens)
    target = f"{TARGET}, fp16, {', '.join(CAPABILITIES)}" if subject.bundle else "none, without a bundle"
    return Budget(subject.name, target, STEPS, rows, gpu, peaks, floor)


def _subject(model: str) -> Subject:
    from cdiff_rt.export.padding import padded_config
    from cdiff_rt.export.published import PUBLISHED, describe
    from cdiff_rt.nets.collaborative import ModelConfig

    for size in PUBLISHED:
        if size.name == model:
            d = describe(size, size.model, {})
            return Subject(d.name, d.config, d.latent_shape, d.modalities, None)
    bundle = Bundle.open(find_model(model))
    m = bundle.manifest
    if is_composed(m):
        seen = f"{m.name} was composed of others' networks, which are graphs alone"
        raise BadRequest("budget", seen, "time its engines with `cdiff-rt bench time`")
    config = padded_config(schema.from_json(ModelConfig, m.source, "source"), 1)  # no padding, which is the engines'
    return Subject(m.name, config, m.latent_shape, tuple(m.modalities), bundle)


def _engines(bundle: Bundle, stackable: bool, flops: int) -> list[Row]:
    names = [modality.name for modality in bundle.manifest.modalities]
    fusion = fusion_bytes(bundle.manifest)

    def row(way: str, networks: Sequence[str], others: int, moved: int) -> Row:
        reports = [_built(bundle, network) for network in networks]
        launches = sum(len(report.kernels) for report in reports) + others
        return _replayed(way, launches, sum(report.bytes for report in reports) + moved, flops)

    copies = 2  # of x and of the history
    ways = [row("TensorRT, an engine per expert", [f"expert.{name}" for name in names], SELECTION + 1, fusion)]
    if stackable:
        ways.append(row("TensorRT, experts stacked", [stack_network(names)], SELECTION + 1, fusion))
    return [*ways, row("TensorRT, one engine for the step", [step_network(names)], SELECTION + copies, 0)]


def _replayed(way: str, launches: int, moved: int, flops: int) -> Row:
    """All steps are one graph where they are few launches, else each is a replay."""
    from cdiff_rt.gpu.loop import MOST_NODES

    return Row(way, launches, 1 if launches * STEPS <= MOST_NODES else STEPS, moved, flops)


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


def count_eager(subject: Subject) -> Row:
    """A step as the reference runs it: every expert's UNets from x_t, t and tokens, the softmax, the sum, the update."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from cdiff_rt.nets.collaborative import CollaborativeModel
    from cdiff_rt.sampling.fusion import fuse, softmax

    watching = _Launches()
    flops = FlopCounterMode(display=False)
    with ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        model = CollaborativeModel(subject.config).eval()
        x, t = torch.zeros(1, *subject.latent_shape), torch.zeros(1, dtype=torch.int64)
        widths = {name: expert.unet.context_dim for name, expert in subject.config.experts.items()}
        tokens = [torch.zeros(1, m.context_tokens, widths[m.name]) for m in subject.modalities]
        for entered in (torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), flops, watching):
            stack.enter_context(entered)
        experts = [model.expert(modality.name) for modality in subject.modalities]
        outs = [expert.unet(x, t, context) for expert, context in zip(experts, tokens, strict=True)]
        logits = [e.diffuser(x, t, c) for e, c in zip(experts, tokens, strict=True) if e.config.diffuser]
        fused = fuse(torch.stack(outs), softmax(torch.stack(logits))) if logits else torch.stack(outs).mean(0)
        x = 0.5 * x + 0.5 * fused + 0.5 * torch.zeros_like(x)
    return Row("PyTorch, eager, fp32", watching.count, None, watching.bytes, flops.get_total_flops())


def count_torch(subject: Subject, flops: int, stacked: bool = False) -> Row:
    """A step as torch-cuda launches it in fp16, attention and normalisation being one kernel each."""
    import torch

    from cdiff_rt.gpu.own_kernels import with_kernels
    from cdiff_rt.nets.collaborative import Expert
    from cdiff_rt.nets.stacked import Stacked

    experts = [subject.config.experts[modality.name] for modality in subject.modalities]
    tokens = [modality.context_tokens for modality in subject.modalities]
    watching, fused, zeros = _Launches(), 1, partial(torch.zeros, dtype=torch.float16)
    with torch.device("meta"), torch.inference_mode():
        x = zeros(1, *subject.latent_shape)
        networks: list[tuple[Any, tuple[int, ...]]] = [
            (Expert(e), (1, t)) for e, t in zip(experts, tokens, strict=True)
        ]
        if stacked:
            networks = [(Stacked(experts, tokens), (len(experts), 1, max(tokens)))]
        for network, shape in networks:
            network.eval().half()
            with_kernels(network)
            nets = network.unet, *([network.diffuser] if experts[0].diffuser else [])
            projections = zeros(shape[0], sum(net.projection_width for net in nets))
            packed = zeros(*shape, sum(net.context_width for net in nets))
            with watching:
                network(x, projections, packed)
    way = f"PyTorch, our kernels, fp16{', experts stacked' if stacked else ''}"
    return _replayed(way, watching.count + SELECTION + fused, watching.bytes, flops)


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
