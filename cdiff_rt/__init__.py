"""Collaborative diffusion, fast: a thin runtime for exported engines.

What users need is named here and loaded when it is first used, so `import cdiff_rt` alone loads nothing.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from cdiff_rt.process import remember_forks, report_to_nobody

if sys.version_info < (3, 11):  # noqa: UP036 - pip asks, a checkout on the path does not
    raise SystemExit(f"cdiff-rt needs Python 3.11 or later; this is {sys.version.split()[0]}")

report_to_nobody()  # before anything imports a library that would
remember_forks()

if TYPE_CHECKING:
    from cdiff_rt.composing.bundle import export_composition
    from cdiff_rt.composing.composition import compose
    from cdiff_rt.composing.expert import Expert
    from cdiff_rt.controls import Region, Weight
    from cdiff_rt.errors import BadArtefact, BadEnvironment, BadInput, BadRequest, CdiffError, OutOfResource
    from cdiff_rt.foreign.encoders import Encoder
    from cdiff_rt.inputs.inpainting import Inpainting
    from cdiff_rt.jobs.results import Outcome
    from cdiff_rt.jobs.run import run_jobs
    from cdiff_rt.learning.calibrate import calibrate
    from cdiff_rt.learning.learned import Learned
    from cdiff_rt.learning.train import train
    from cdiff_rt.outputs.generated import Generated
    from cdiff_rt.outputs.influence import InfluenceRecorder
    from cdiff_rt.outputs.recorder import Recorder
    from cdiff_rt.outputs.trajectory import TrajectoryRecorder
    from cdiff_rt.pipeline import Pipeline
    from cdiff_rt.records.again import Reproduced, reproduce
    from cdiff_rt.records.read import Record, read_record
    from cdiff_rt.sampling.calibrated import Calibration
    from cdiff_rt.sampling.loop import StepState
    from cdiff_rt.sampling.preconditioning import Parameterisation
    from cdiff_rt.sampling.schedule import Schedule
    from cdiff_rt.sampling.superposition import Superposition
    from cdiff_rt.settings import Influence, Settings
    from cdiff_rt.version import __version__

_HOMES = {
    "composing.bundle": "export_composition",
    "composing.composition": "compose",
    "controls": "Region Weight",
    "composing.expert": "Expert",
    "foreign.encoders": "Encoder",
    "errors": "BadArtefact BadEnvironment BadInput BadRequest CdiffError OutOfResource",
    "inputs.inpainting": "Inpainting",
    "jobs.results": "Outcome",
    "jobs.run": "run_jobs",
    "learning.calibrate": "calibrate",
    "learning.learned": "Learned",
    "learning.train": "train",
    "outputs.generated": "Generated",
    "outputs.influence": "InfluenceRecorder",
    "outputs.recorder": "Recorder",
    "outputs.trajectory": "TrajectoryRecorder",
    "pipeline": "Pipeline",
    "records.again": "Reproduced reproduce",
    "records.read": "Record read_record",
    "sampling.calibrated": "Calibration",
    "sampling.loop": "StepState",
    "sampling.preconditioning": "Parameterisation",
    "sampling.schedule": "Schedule",
    "sampling.superposition": "Superposition",
    "settings": "Influence Settings",
    "version": "__version__",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = [
    "BadArtefact", "BadEnvironment", "BadInput", "BadRequest", "Calibration", "CdiffError", "Encoder", "Expert", "Generated",
    "Influence", "InfluenceRecorder", "Inpainting", "Learned", "OutOfResource", "Outcome", "Parameterisation", "Pipeline", "Record", "Recorder",
    "Region", "Reproduced", "Schedule", "Settings", "StepState", "Superposition", "TrajectoryRecorder", "Weight",
    "__version__", "calibrate", "compose", "export_composition", "read_record", "reproduce", "run_jobs", "train",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"cdiff_rt.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
