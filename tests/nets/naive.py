"""The building blocks of the networks, written out: no fused attention, no nn.Module, sums where sums are meant."""

import math

import torch


def silu(x):
    return x / (1 + torch.exp(-x))


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def linear(x, layer):
    out = x @ layer.weight.T
    return out if layer.bias is None else out + layer.bias


def layer_norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * layer.weight + layer.bias


def group_norm(x, layer, eps):
    groups = x.unflatten(1, (32, -1))
    centred = groups - groups.mean((2, 3, 4), keepdim=True)
    normed = (centred / torch.sqrt((centred**2).mean((2, 3, 4), keepdim=True) + eps)).flatten(1, 2)
    return normed * layer.weight[:, None, None] + layer.bias[:, None, None]


def conv(x, layer, stride=1):
    """A 1x1 convolution, or a 3x3 one that pads its input by one on every side."""
    side = layer.weight.shape[-1]
    return torch.nn.functional.conv2d(x, layer.weight, layer.bias, stride, padding=side // 2)


def softmax_attention(q, k, v, heads, scale):
    """[B, N, heads * d], heads outermost."""
    outs = []
    for q_h, k_h, v_h in zip(q.chunk(heads, 2), k.chunk(heads, 2), v.chunk(heads, 2), strict=True):
        weights = torch.exp(scale * q_h @ k_h.mT)
        outs.append(weights / weights.sum(-1, keepdim=True) @ v_h)
    return torch.cat(outs, 2)


def randomise(module, seed=0):
    """Random weights everywhere: no zeros that would hide a layer, norms near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(value / math.sqrt(parameter[0].numel()))
            else:
                parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.2 * value)
    return module.eval()


def assert_same(ours, reference, tolerance=2e-5):
    assert ours.shape == reference.shape
    assert torch.isfinite(reference).all()
    assert (ours - reference).abs().max() <= tolerance * max(1.0, reference.abs().max().item())
