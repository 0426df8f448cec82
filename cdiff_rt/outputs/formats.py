"""Finished images as PNG files, with their parameters inside."""

import json
from pathlib import Path
from typing import Any

import array_api_compat
import numpy as np
from PIL import Image, PngImagePlugin

SAMPLERS = {"ddim": "DDIM", "dpmpp-2m": "DPM++ 2M", "dpmpp-2m-sde": "DPM++ 2M SDE"}  # as galleries write them


def to_uint8(images: Any, rounding: str = "truncate") -> Any:
    """numpy or torch [B, 3, H, W] in [-1, 1] -> [B, H, W, 3] in 0..255: "truncate", as the reference, or "nearest"."""
    xp = array_api_compat.array_namespace(images)
    values = xp.clip(xp.permute_dims((images + 1) * 127.5, (0, 2, 3, 1)), 0, 255)
    return xp.astype(xp.round(values) if rounding == "nearest" else values, xp.uint8)


def write_png(path: Path, image: np.ndarray, texts: dict[str, str]) -> None:
    """Writes [H, W, 3] uint8 with `texts` as PNG text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value) if not value.isascii() else info.add_text(key, value)
    Image.fromarray(image).save(path, "PNG", pnginfo=info)


def parameters_text(record: dict) -> dict[str, str]:
    """The PNG texts of one image: the A1111 line that galleries read, and our own JSON."""
    shown = {
        "Steps": record["steps"],
        "Sampler": SAMPLERS[record.get("solver", "ddim")],
        "Eta": record["eta"],
        "Temperature": record.get("temperature", 1),
        "Seed": record["seed"],
        "Image": record["image"],
        "Size": f"{record['size']}x{record['size']}",
        "Model": record["model"],
        "Model hash": record["model_hash"][:10],
        "Version": f"cdiff-rt {record['version']}",
    }
    line = ", ".join(f"{key}: {value}" for key, value in shown.items() if (key, value) != ("Temperature", 1))
    return {"parameters": f"{record['prompt']}\n{line}".lstrip(), "cdiff_rt": json.dumps(record)}
