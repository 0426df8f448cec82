"""Experts as a command tells of them: a folder of diffusers or an ONNX file, and in words what these do not say."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cdiff_rt.composing.expert import Expert
from cdiff_rt.errors import BadRequest, named_as
from cdiff_rt.foreign import schedulers
from cdiff_rt.foreign.encoders import Encoder
from cdiff_rt.inputs import images

FORM = ("predicts", "space", "betas", "time_scale", "whole_timesteps")
OF_DIFFUSERS, OF_ONNX = ("tokens", "time_ids"), ("names",)
_encoder = functools.cache(Encoder.of)  # experts that name one share it


def read_expert(name: str, path: str, told: Mapping[str, Any]) -> Expert:
    """`told` has the words by the names of options. Raises BadRequest, BadArtefact, BadEnvironment."""
    with named_as(f"expert {name},"):
        is_file = path.endswith(".onnx")
        for option in OF_DIFFUSERS if is_file else OF_ONNX:
            if option in told and not (option == "tokens" and "encoder" in told):
                seen = f"{path} is {'an ONNX file, which says that' if is_file else 'no ONNX file'}"
                raise BadRequest(option.replace("_", "-"), seen, "leave it out")
        encoder, fixed = _encoder_of(told), _fixed(told)
        form = schedulers.told(_scheduler(path, told, is_file), **_form(told))
        if not is_file:
            sizes = {option: _whole(option, told[option]) for option in OF_DIFFUSERS if option in told}
            return Expert.from_diffusers(path, form=form, fixed=fixed, encoder=encoder, **sizes)
        if form is None:
            raise BadRequest(
                "predicts", "an ONNX file does not say what it predicts", "say it, and its betas or scheduler"
            )
        return Expert.from_onnx(path, form, names=_names(told.get("names", "")), fixed=fixed, encoder=encoder)


def _encoder_of(told: Mapping[str, Any]) -> Encoder | None:
    if "encoder" not in told:
        if "tokenizer" in told:
            raise BadRequest("tokenizer", "there is no encoder of its tokens", "give --encoder, or leave it out")
        return None
    tokens = _whole("tokens", told["tokens"]) if "tokens" in told else None
    return _encoder(told["encoder"], tokens, told.get("tokenizer"))


def _fixed(told: Mapping[str, Any]) -> np.ndarray | str | None:
    """An array's file, or of an expert with an encoder a sentence, which may be empty."""
    fixed = told.get("fixed")
    if fixed is None or ("encoder" in told and not fixed.endswith(".npy")):
        return fixed
    return np.asarray(images.read_array(Path(fixed), "fixed"))


def read_shape(text: str) -> tuple[int, ...]:
    """4x64x64. Raises BadRequest."""
    sizes = text.split("x")
    if len(sizes) < 2 or not all(size.isascii() and size.isdigit() and 0 < int(size) < 2**16 for size in sizes):
        raise BadRequest("latents", repr(text[:80]), "write e.g. 4x64x64, channels first")
    return tuple(map(int, sizes))


def _scheduler(path: str, told: Mapping[str, Any], is_file: bool) -> Mapping[str, Any] | None:
    from cdiff_rt.foreign.from_diffusers import network_folder, scheduler_beside

    if "scheduler" in told:
        return scheduler_beside(Path(told["scheduler"]))
    if is_file or ("predicts" in told and "betas" in told):
        return None
    folder = network_folder(Path(path))
    try:
        return scheduler_beside(folder)
    except BadRequest:
        if "predicts" not in told:
            raise
        return None


def _form(told: Mapping[str, Any]) -> dict[str, Any]:
    form = {option: told[option] for option in FORM if option in told}
    if "time_scale" in form:
        form["time_scale"] = _number("time-scale", form["time_scale"], float)
    return form


def _whole(option: str, text: str) -> int:
    return _number(option.replace("_", "-"), text, int)


def _number(option: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        number = kind(text)
        if not 0 < number < 2**20:
            raise ValueError
    except ValueError:
        raise BadRequest(option, repr(text[:80]), "give a number above 0") from None
    return number


def _names(text: str) -> dict[str, str]:
    """x:sample,time:timestep. Raises BadRequest."""
    pairs = [pair.partition(":") for pair in text.split(",")] if text else []
    if not all(role and colon and name for role, colon, name in pairs):
        raise BadRequest("names", repr(text[:80]), "write e.g. x:sample,time:timestep,condition:cond,out:pred")
    return {role: name for role, _, name in pairs}
