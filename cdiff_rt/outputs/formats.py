"""Finished images as files, with their parameters inside: one row of `FORMATS` for each kind of file."""

import base64
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import array_api_compat
import numpy as np
from PIL import Image, PngImagePlugin

from cdiff_rt.sampling.solvers import SOLVERS

GALLERY, RECORD, INPUTS = "parameters", "cdiff_rt", "cdiff_rt_inputs"  # keywords of a PNG's texts


def to_uint8(images: Any, rounding: str = "truncate") -> Any:
    """numpy or torch [B, 3, H, W] in [-1, 1] -> [B, H, W, 3] in 0..255: "truncate", as the reference, or "nearest"."""
    xp = array_api_compat.array_namespace(images)
    values = xp.clip(xp.permute_dims((images + 1) * 127.5, (0, 2, 3, 1)), 0, 255)
    return xp.astype(xp.round(values) if rounding == "nearest" else values, xp.uint8)


def png_bytes(image: np.ndarray, texts: dict[str, str]) -> bytes:
    """[H, W, 3] uint8 with `texts` as PNG text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value) if not value.isascii() else info.add_text(key, value, zip=key == INPUTS)
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", pnginfo=info)
    return content.getvalue()


def parameters_text(parameters: dict) -> dict[str, str]:
    """The PNG texts of one image: the A1111 line that galleries read, and our own JSON."""
    shown = {
        "Steps": parameters["steps"],
        "Sampler": SOLVERS[parameters["solver"]].gallery_name,
        "Eta": parameters["eta"],
        "Temperature": parameters["temperature"],
        "Seed": parameters["seed"],
        "Image": parameters["image"],
        "Size": f"{parameters['size']}x{parameters['size']}",
        "Model": parameters["model"],
        "Model hash": parameters["model_hash"][:10],
        "Version": f"cdiff-rt {parameters['version']}",
    }
    line = ", ".join(f"{key}: {value}" for key, value in shown.items() if (key, value) != ("Temperature", 1))
    return {GALLERY: f"{parameters['prompt']}\n{line}".lstrip(), RECORD: as_json(parameters)}


def npz_bytes(latent: np.ndarray, texts: dict[str, str]) -> bytes:
    """[C, *latent] float32 with its parameters, and the inputs if they are to be inside; without the time of day."""
    content, more = io.BytesIO(), {"inputs": texts[INPUTS]} if INPUTS in texts else {}
    with zipfile.ZipFile(content, "w") as archive:
        for name, value in {"latent": latent, "parameters": texts[RECORD], **more}.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy_bytes(np.asarray(value)))
    return content.getvalue()


def inputs_text(inputs: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Arrays as one text: labels and pictures as PNG, numbers as .npy."""
    return {INPUTS: json.dumps({name: base64.b64encode(_stored(array)).decode() for name, array in inputs.items()})}


def _stored(array: np.ndarray) -> bytes:
    if array.dtype != np.uint8 or not array.size or array.ndim < 2 or array.shape[2:] not in ((), (3,)):
        return _npy_bytes(array)
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG", optimize=True)
    return content.getvalue()


def _npy_bytes(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def as_json(parameters: dict) -> str:
    """Whatever a number or a path came as: nothing that was computed is lost for how it was asked for."""
    return json.dumps(parameters, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value))


# suffix -> how an image and its texts become a file's content; the first is the one that folders get
FORMATS: dict[str, Callable[[np.ndarray, dict[str, str]], bytes]] = {".png": png_bytes}
