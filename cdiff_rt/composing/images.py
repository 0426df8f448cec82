"""The images of a composition: what decodes latents to these, and what encodes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cdiff_rt.errors import BadRequest, named_as
from cdiff_rt.extras import needed
from cdiff_rt.foreign.modules import as_function
from cdiff_rt.manifest import Manifest, NetworkSpec, TensorSpec

Decode = Callable[[np.ndarray], np.ndarray]  # latents [B, C, *latent] -> images [B, 3, S, S] in [-1, 1]
Encode = Callable[[np.ndarray], np.ndarray]  # the other way round
NO_VARIANCE = -30.0  # the logarithm of the variance of latents that are known


def decoder(given: Any) -> Any:
    """A folder's, or an autoencoder's of diffusers; anything else as it is. Raises BadRequest, BadArtefact."""
    if not isinstance(given, str | Path) and not (hasattr(given, "config") and hasattr(given, "decode")):
        if given is None or callable(given):
            return given
        raise BadRequest("decode", f"a {type(given).__name__}", "give a function, a module, or an autoencoder's folder")
    with needed("decode", "compose"):
        from cdiff_rt.foreign.from_diffusers import bring_decoder
    return bring_decoder(given)


def check_latents(decode: Any, shape: tuple[int, ...]) -> None:
    """Raises BadRequest for latents that an autoencoder of diffusers does not have."""
    factor, channels = getattr(decode, "factor", None), getattr(decode, "channels", None)
    if isinstance(channels, int) and channels != shape[0]:
        seen = f"its latents have {channels} channels, the experts' {shape[0]}"
        raise BadRequest("decode", seen, "give the autoencoder that the experts were trained with")
    if factor and (len(shape) != 3 or shape[1] != shape[2]):
        raise BadRequest("latent_shape", f"{list(shape)} for images, which are square", "give as many rows as columns")


def decoding(decode: Any, size: int) -> Callable[..., dict[str, np.ndarray]]:
    """What decodes latents, whose images are looked at."""
    decoder = as_function(decode) if decode is not None else lambda z: z

    def call(z: np.ndarray) -> dict[str, np.ndarray]:
        with named_as("decode,"):
            image = np.asarray(decoder(z))
        wanted = (len(z), 3, size, size)
        if image.shape != wanted or image.dtype.kind != "f":
            seen = f"it returned {image.dtype} of shape {image.shape}"
            raise BadRequest("decode", seen, f"return numbers in [-1, 1] of shape {wanted}")
        return {"image": image.astype(np.float32, copy=False)}

    return call


def encoding(encode: Any, latent: tuple[int, ...]) -> Callable[..., dict[str, np.ndarray]]:
    """What makes latents of images; where these are the latents, none."""
    encoder = as_function(encode) if encode is not None else lambda image: image

    def call(image: np.ndarray) -> dict[str, np.ndarray]:
        with named_as("encode,"):
            mean = np.asarray(encoder(image))
        wanted = (len(image), *latent)
        if mean.shape != wanted or mean.dtype.kind != "f":
            raise BadRequest("encode", f"it returned {mean.dtype} of shape {mean.shape}", f"return latents {wanted}")
        mean = mean.astype(np.float32, copy=False)
        return {"mean": mean, "logvar": np.full_like(mean, NO_VARIANCE)}

    return call


def encode_spec(manifest: Manifest) -> NetworkSpec:
    size, latent = manifest.image_size, manifest.latent_shape
    given = TensorSpec("image", ("batch", 3, size, size), "float32")
    mean, logvar = (TensorSpec(name, ("batch", *latent), "float32") for name in ("mean", "logvar"))
    return NetworkSpec("", (given,), (mean, logvar))
