"""What a picture carries of how it was made: all that it follows from, so that it can be made again."""

import platform
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cdiff_rt.engines.backends import BACKENDS
from cdiff_rt.inputs.region_maps import read_map
from cdiff_rt.inputs.traces import Input, Trace, loaded, named, trace_of
from cdiff_rt.manifest import Manifest, Modality
from cdiff_rt.process import usual_threads
from cdiff_rt.run import OnDevice, usual_of
from cdiff_rt.sampling.calibrated import Calibration
from cdiff_rt.settings import Settings

FORMAT = 2  # of the record; the first had neither a number nor hashes of inputs
CALIBRATION = "influence.calibration"  # the role of its file
ALSO = ("numpy", "PIL")  # draw the noise, and scale photos and write files
Inputs = dict[str, Input]


def request_of(command: str, settings: Settings, manifest: Manifest, inputs: Inputs) -> dict[str, Any]:
    """What was asked for: each setting, what of the influence the model settled, and what every input was."""
    told = {"record": FORMAT, "command": command} | settings.told()
    adjustment = asdict(settings.over(usual_of(manifest, settings)))
    own = {"calibrated": manifest.calibrated} if manifest.calibrated and settings.as_usual else {}
    return told | {"adjustment": adjustment | own, "inputs": traces_of(inputs)}


def traces_of(inputs: Inputs) -> dict[str, Trace]:
    return {role: given.trace for role, given in inputs.items()}


def with_maps(settings: Settings) -> Settings:
    """With the content of regions' files in place of their paths. Raises BadInput."""
    regions = (replace(each, map=loaded(each.map, f"region of {each.condition}")) for each in settings.region)
    return replace(settings, region=tuple(regions)) if settings.region else settings


def regions_in(settings: Settings, running: Collection[Modality], latent: tuple[int, ...]) -> Inputs:
    """By their places; those of conditions that do not run were not read. And of weights that were found, their file."""
    found = {}
    for calibration in (each for each in settings.influence if isinstance(each, Calibration)):
        content = calibration.content or calibration.to_json().encode()
        found[CALIBRATION] = Input(trace_of(named(content, Path(str(calibration)).name)))
    names = [modality.name for modality in running]
    for place, each in enumerate(settings.region):
        name = f"region of {each.condition}"
        whole = read_map(each.map, name, latent) if each.condition in names else None
        found[f"region.{place}"] = Input(trace_of(each.map, name), whole)
    return found


def arrays_of(inputs: Inputs) -> dict[str, np.ndarray]:
    """Of each that was a file or an array, what was read."""
    return {role: given.array for role, given in inputs.items() if given.array is not None}


def numbers_given(x_T: np.ndarray | None, contexts: Mapping[str, np.ndarray] | None) -> Inputs:
    """What takes the place of noise and encoders: told by its hash alone, for it may be large."""
    found = {"x_T": x_T} if x_T is not None else {}
    found |= {f"contexts.{name}": array for name, array in (contexts or {}).items()}
    return {role: Input(trace_of(array)) for role, array in found.items()}


def place_of(backend: str, how: OnDevice | None) -> dict[str, Any]:
    """What else the bytes may depend on: the kind of machine, versions of libraries, and for some how many threads."""
    about = BACKENDS.get(backend)  # none of a user's own functions
    loaded_ = {name: sys.modules.get(name) for name in (*ALSO, *(about.requires if about else ()))}
    versions = {name: version for name, of in loaded_.items() if (version := getattr(of, "__version__", None))}
    divided = {"experts": how.experts} if how and how.experts != "separate" else {}
    of_threads = {"threads": (how and how.threads) or usual_threads()} if about and about.by_threads else {}
    return {"libraries": versions, "machine": platform.machine()} | of_threads | divided
