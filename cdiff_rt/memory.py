"""What memory a run surely needs, held against what this process may have, before any work is done.

A library that finds no memory says so, but a container's limit or a full machine ends the process without a word, after
minutes. The estimate counts only what must lie in memory at one time, so what it refuses could not have run.
"""

import math
from collections.abc import Collection
from typing import Any

from cdiff_rt.engines.backends import BACKENDS
from cdiff_rt.engines.base import MORE_MEMORY, Precision
from cdiff_rt.errors import OutOfResource
from cdiff_rt.manifest import Bundle, Manifest, Modality
from cdiff_rt.process import memory_limits

HOST = 4  # bytes of a number in numpy's arrays
SPARE, WORST = 2**30, 8  # bytes of libraries, and how many times the least the measured batches took, rounded up
GIB = 2**30


def check_memory(
    bundle: Bundle, modalities: Collection[Modality], batch: int, backend: str, precision: Precision
) -> None:
    """Raises OutOfResource for a batch that this process cannot have the memory for."""
    if backend not in BACKENDS:  # of what a user's own functions take, nothing is known
        return
    fixed, each = least(bundle, modalities, backend, precision)
    need = fixed + batch * each
    allowed, limit, raising = min(memory_limits(), default=(need, "", ""))
    if need <= allowed:
        return
    size = bundle.manifest.image_size
    images = f"a batch of {batch} images of {size}x{size} pixels" if size else f"a batch of {batch}"
    seen = f"{images} on {backend} needs {need / GIB:.2f} GiB at the least, and {limit} {allowed / GIB:.2f} GiB"
    fits = (allowed - fixed - SPARE) // (WORST * each)
    more = f"{raising}, or use a machine with more memory" if raising else MORE_MEMORY
    smaller = (
        f"choose a batch of {fits} or less, or " if fits > 0 else "choose a smaller batch, or " if batch > 1 else ""
    )
    raise OutOfResource("memory", seen, smaller + more)


def least(bundle: Bundle, modalities: Collection[Modality], backend: str, precision: Precision) -> tuple[int, int]:
    """Bytes that lie in this machine's memory at one time: of the model, and of each image of a batch.

    Engines that run side by side keep what they took, so there each network counts; else only the largest.
    """
    manifest = bundle.manifest
    contexts = sum(math.prod(_sizes(manifest, f"condition.{modality.name}")) for modality in modalities)
    pixels = 3 * manifest.image_size**2
    files = sum(map(len, bundle.content.values()))
    if BACKENDS[backend].device != "cpu":  # where the rest lies on the device
        return files, HOST * pixels
    number = 2 if precision in ("fp16", "bf16") else HOST
    experts = [number * _of_expert(manifest, modality) for modality in modalities]
    networks = [*experts, number * _of_decoder(manifest)]
    return files, HOST * (contexts + pixels) + (sum(networks) if BACKENDS[backend].parallel else max(networks))


def _sizes(manifest: Manifest, network: str) -> list[int]:
    return [size for size in manifest.networks[network].outputs[0].shape if isinstance(size, int)]


def _of_expert(manifest: Manifest, modality: Modality) -> int:
    """Numbers in the last residual block of a branch: its input twice as wide, that normalised, and what it makes of it."""
    channels = _whole(manifest.source, "experts", modality.name, "unet", "model_channels")
    return 5 * channels * math.prod(manifest.latent_shape[1:])


def _of_decoder(manifest: Manifest) -> int:
    """In its last: the input, that normalised, and what it makes of it."""
    patch = _whole(manifest.source, "vae", "patch") or 1
    channels = _whole(manifest.source, "vae", "channels") * _whole(manifest.source, "vae", "channel_mult", 0)
    return 3 * channels * (manifest.image_size // patch) ** 2


def _whole(description: Any, *place: str | int) -> int:
    """A number of the description of the networks, or 0: only PyTorch reads it as a whole."""
    for key in place:
        if isinstance(description, dict):
            description = description.get(key)
        elif isinstance(description, list | tuple) and isinstance(key, int) and key < len(description):
            description = description[key]
        else:
            return 0
    return description if isinstance(description, int) and 0 < description < 2**16 else 0
