"""One step of the loop as one operation on a device: influence functions, collaborative prediction, next x, in place.

All that differs between steps is a row of numbers in memory (sampling/numbers.py).
"""

import torch
from torch import Tensor

from cdiff_rt.sampling.fusion import fuse, influence, update
from cdiff_rt.sampling.numbers import LARGEST, WIDTH, unpack

STORED = (torch.float16, torch.bfloat16, torch.float32)


def fuse_step(
    outs: Tensor,
    logits: Tensor,
    x: Tensor,
    numbers: Tensor,
    *,
    hist: Tensor | None = None,
    noise: Tensor | None = None,
    controls: Tensor | None = None,
    weights: Tensor | None = None,
    boosted: bool = False,
) -> None:
    """Moves x by one step of Collaborative Diffusion (Huang et al., CVPR 2023, eq. 5-7), in place.

    outs [M, B, C, *latent] and logits [M, B, 1, *latent] are the experts'; over M their stride may be any.
    x [B, C, *latent] becomes the next x, and `hist`, of that shape, the solver's next one. Without `hist`, or without
    `noise`, its terms are left out. `numbers` [WIDTH] is a row of `pack`, whose boost counts if `boosted`.
    `controls` [3, M, *latent] float32 steer the influence functions, those of a modality that is not present being 0.
    `weights` [M, B, 1, *latent] float32 receives the influence functions after the adjustment.
    Storage may be fp16, bf16 or fp32, mixed at will; the arithmetic is fp32 and stores round to nearest.
    """
    fuse_step_op(outs, logits, x, hist, noise, numbers, controls, weights, boosted)


def on_cpu(
    outs: Tensor,
    logits: Tensor,
    x: Tensor,
    hist: Tensor | None,
    noise: Tensor | None,
    numbers: Tensor,
    controls: Tensor | None,
    weights: Tensor | None,
    boosted: bool,
) -> None:
    """The definition itself."""
    check(outs, logits, x, hist, noise, numbers, controls, weights, boosted)
    row, adjust = unpack(numbers, len(outs), x.ndim, boosted, controls)
    shares = influence(logits.float(), adjust)
    absent = torch.zeros(())
    following, kept = update(
        x.float(),
        fuse(outs.float(), shares, adjust.present),
        absent if hist is None else hist.float(),
        absent if noise is None else noise.float(),
        row,
    )
    x.copy_(following)
    if hist is not None:
        hist.copy_(kept)
    if weights is not None:
        weights.copy_(shares)


def on_cuda(outs: Tensor, logits: Tensor, x: Tensor, *others: Tensor | bool | None) -> None:
    """One launch of the kernel, on the current stream of x's device; `others` are as `on_cpu` has them."""
    from cdiff_rt.gpu.kernel import launch

    check(outs, logits, x, *others)  # type: ignore[arg-type]
    with torch.cuda.device_of(x):  # Triton launches on the current device, wherever the tensors are
        launch(outs, logits, x, *others)  # type: ignore[arg-type]


def check(
    outs: Tensor,
    logits: Tensor,
    x: Tensor,
    hist: Tensor | None,
    noise: Tensor | None,
    numbers: Tensor,
    controls: Tensor | None,
    weights: Tensor | None,
    boosted: bool,
) -> None:
    """Our own invariants; it is also the operation on tensors without data."""
    modalities, batch, channels, *latent = outs.shape
    assert 1 <= modalities <= LARGEST, f"{modalities} modalities, the kernel knows 1 to {LARGEST}"
    of_modalities = (modalities, batch, 1, *latent)
    shapes = {
        "logits": (logits, of_modalities),
        "x": (x, (batch, channels, *latent)),
        "hist": (hist, (batch, channels, *latent)),
        "noise": (noise, (batch, channels, *latent)),
        "numbers": (numbers, (WIDTH,)),
        "controls": (controls, (3, modalities, *latent)),
        "weights": (weights, of_modalities),
    }
    for name, (tensor, shape) in shapes.items():
        assert tensor is None or tuple(tensor.shape) == shape, f"{name} is {tuple(tensor.shape)}, not {shape}"
    single = {"numbers": numbers, "controls": controls, "weights": weights}
    parts = {"outs": outs[0], "logits": logits[0], "x": x, "hist": hist, "noise": noise}
    for name, tensor in (parts | single).items():
        assert tensor is None or tensor.is_contiguous(), f"{name} is not contiguous"
        assert tensor is None or tensor.device == x.device, f"{name} is on {tensor.device}, x on {x.device}"
        assert tensor is None or tensor.dtype in STORED, f"{name} is {tensor.dtype}"
    for name, tensor in single.items():
        assert tensor is None or tensor.dtype == torch.float32, f"{name} is {tensor.dtype}, not torch.float32"


fuse_step_op = torch.library.custom_op(
    "cdiff_rt::fuse_step", on_cpu, mutates_args=("x", "hist", "weights"), device_types="cpu"
)
fuse_step_op.register_kernel("cuda", on_cuda)
fuse_step_op.register_fake(check)
