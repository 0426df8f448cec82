"""What is timed: a whole image from conditions to pixels, or one fused step; as a function without arguments."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from cdiff_rt import schema
from cdiff_rt.bench.cases import Case
from cdiff_rt.inputs.label_maps import LabelMap
from cdiff_rt.inputs.modalities import KINDS
from cdiff_rt.joined import WITH, join
from cdiff_rt.manifest import Bundle, find_model
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.run import OnDevice, Run, adjustment_of, calibration_of
from cdiff_rt.runners import HostRunner
from cdiff_rt.sampling import noise
from cdiff_rt.sampling.loop import sample
from cdiff_rt.sampling.tiers import Sampling
from cdiff_rt.settings import Settings

What = Literal["image", "step"]
WHATS: tuple[What, ...] = get_args(What)
SEED, SAMPLES = 0, 2**14  # pixels of an image that are compared


@dataclass(frozen=True)
class Task:
    model: str
    what: What = "image"
    batch: int = 1
    with_experts: dict[str, str] = field(default_factory=dict, hash=False)  # folders of bundles, see joined.py

    @property
    def subject(self) -> str:
        """What it is of, in words."""
        return " ".join((self.model, *(f"{WITH} {name}={folder}" for name, folder in self.with_experts.items())))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        return schema.from_json(cls, json.loads(text), "task")


@dataclass(frozen=True, eq=False)
class Result:
    """Of the first image of a batch."""

    latents: np.ndarray  # [C, *latent]
    pixels: np.ndarray  # [N] uint8, some of the image's; none after a step


@dataclass(frozen=True)
class Timed:
    """Both on the same engines: there is memory for one set of them."""

    once: Callable[[], Result]
    after: Callable[[int], Result]  # what a run of so many steps comes to


@contextmanager
def whole_image(bundle: Bundle, case: Case, task: Task) -> Iterator[Timed]:
    pipeline = Pipeline(bundle, case.backend, OnDevice(case.precision, case.experts, case.graphs, kernels=case.kernels))
    conditions: dict[str, Any] = {m.name: example(m.kind, m.classes, m.input_shape) for m in bundle.manifest.modalities}

    def made(how: Sampling) -> Result:
        settings = Settings(seed=SEED, batch=task.batch, **asdict(how))
        image = pipeline.generate(settings, conditions=conditions)
        pixels = image.images[0].ravel()
        return Result(image.latents[0], pixels[:: max(1, len(pixels) // SAMPLES)])

    yield Timed(lambda: made(case.sampling), lambda steps: made(replace(case.sampling, steps=steps)))


@contextmanager
def one_step(bundle: Bundle, case: Case, task: Task) -> Iterator[Timed]:
    """The first step of a run: every expert, the fusion, the update. What runs once per image is done before."""
    runner = HostRunner.of(bundle, case.backend, case.precision)
    run = run_of(bundle, case.sampling, task.batch)
    parts = {name: getattr(run.table, name)[:1] for name in ("timesteps", "alpha_bars", "coefficients")}
    first = replace(run.table, **parts)

    def after(steps: int) -> Result:
        return _latents(runner.sample(run_of(bundle, replace(case.sampling, steps=steps), task.batch)))

    with runner.experts(replace(run, table=first)) as experts:
        yield Timed(lambda: _latents(sample(experts, run.start, run.noise, first, run.adjust)), after)


WAYS = {"image": whole_image, "step": one_step}


def open_bundle(task: Task) -> Bundle:
    return join(Bundle.open(find_model(task.model)), task.with_experts)


def run_of(bundle: Bundle, how: Sampling, batch: int) -> Run:
    """A run of every expert."""
    manifest = bundle.manifest
    modalities, table = list(manifest.modalities), how.table(manifest.schedule)
    inputs = [KINDS[m.kind].read(example(m.kind, m.classes, m.input_shape), m, bundle) for m in modalities]
    start = noise.normal(SEED, range(batch), 0, manifest.latent_shape)
    added = noise.of_steps(manifest.schedule, table, SEED, range(batch), manifest.latent_shape)
    adjust = adjustment_of(manifest, modalities, table, Settings(), calibration_of(bundle))
    return Run(modalities, inputs, start, added, table, adjust)


def example(kind: str, classes: int, shape: tuple[int, ...]) -> Any:
    """A condition whose content doesn't matter: latency depends on sizes only."""
    if kind == "words":
        return "This man has a long beard. He is in his fifties."
    if kind == "labels":
        return LabelMap(np.arange(64 * 64).reshape(64, 64) // 216 % classes, classes, given=False)
    numbers = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32)
    return {"nothing": None, "picture": numbers.reshape(shape[-2:])}.get(kind, numbers)


def _latents(x: np.ndarray) -> Result:
    return Result(x[0], np.zeros(0, np.uint8))
