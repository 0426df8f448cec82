"""Weights for parity tests without a trained model: every tensor is a function of its official key and its shape.

The reference implementation was run with weights of this rule; its outputs are in data/tiny_golden.npz. Numbers come
from splitmix64, seeded by the key's sha256, so they are the same on every machine and in every version of numpy.
"""

import hashlib
import math

import numpy as np

# suffix of the key -> gain of a matrix or convolution; the others have 1
GAINS = {
    "diffusion_model.out.2.weight": 1.6,  # predictions and logits of about unit spread
    "to_q.weight": 1.5,  # attention that isn't uniform
    "to_k.weight": 1.5,
    "time_embed.0.weight": 2.0,  # outputs that depend on the timestep
    "time_embed.2.weight": 2.0,
    "emb_layers.1.weight": 1.5,
    "cond_stage_model.linear.weight": 2.0,
}


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    offset, gain = _offset_and_gain(key, shape)
    return (offset + gain * _unit_variance(key, math.prod(shape))).astype(np.float32).reshape(shape)


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform, zero mean, unit variance."""
    return _unit_variance(f"input/{name}", math.prod(shape)).astype(np.float32).reshape(shape)


def _offset_and_gain(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if len(shape) == 1:
        return (1.0, 0.15) if key.endswith("weight") else (0.0, 0.05)
    if key.endswith(("token_emb.weight", "pos_emb.emb.weight")):
        return 0.0, 0.5
    gain = next((gain for suffix, gain in GAINS.items() if key.endswith(suffix)), 1.0)
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


def _unit_variance(seed: str, count: int) -> np.ndarray:
    """splitmix64 -> 24 bits of each number -> uniform in [-sqrt(3), sqrt(3))."""
    state = np.uint64(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        z = state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (2 * (z >> np.uint64(40)).astype(np.float64) * 2.0**-24 - 1) * math.sqrt(3)
