"""What a run is: all that its latents follow from, and who can carry it out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from cdiff_rt.controls import AS_TRAINED, FIRST, weights_of
from cdiff_rt.engines.base import Arrangement, Precision
from cdiff_rt.errors import BadArtefact, BadRequest, check_type
from cdiff_rt.inputs.modalities import chosen_of
from cdiff_rt.inputs.region_maps import read_map
from cdiff_rt.manifest import REBUILD, Bundle, Manifest, Modality
from cdiff_rt.sampling import fusion, noise
from cdiff_rt.sampling.calibrated import Calibration
from cdiff_rt.sampling.controls import controls, places_of, weight_at
from cdiff_rt.sampling.fusion import Adjustment
from cdiff_rt.sampling.loop import Callback, KnownRegion, Noise, Progress
from cdiff_rt.sampling.solvers import SolverTable
from cdiff_rt.settings import NAMED, Influence, Settings


@dataclass(frozen=True, eq=False)
class Run:
    """All that the latents follow from."""

    modalities: list[Modality]
    inputs: list[np.ndarray]  # per modality, what its encoder takes; of batch 1
    start: np.ndarray  # x_T [B, C, *latent]
    noise: Noise
    table: SolverTable
    adjust: Adjustment
    known: KnownRegion | None = None
    contexts: list[np.ndarray] | None = None  # per modality [B, T, K], in place of what its encoder makes of its inputs


class Runner(Protocol):
    """A bundle on a backend. Engines load at first use and stay loaded."""

    precision: Precision
    shows_steps: bool  # whether a callback costs nothing

    def call(self, network: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """One network of the bundle."""
        ...

    def sample(self, run: Run, callback: Callback | None = None, progress: Progress | None = None) -> np.ndarray:
        """x_T -> x_0 [B, C, *latent]. A callback may cost time, for it is shown what each step did; `progress` does not."""
        ...

    def close(self) -> None:
        """Lets go of every engine."""
        ...


@dataclass(frozen=True)
class OnDevice:
    """How a backend runs."""

    precision: Precision | None = None  # of its engines; None: the backend's default
    experts: Arrangement = "separate"
    graphs: bool = True  # on a GPU: whether steps are recorded as a CUDA graph
    threads: int | None = None  # on the CPU; None: see process.usual_threads
    kernels: bool = True  # PyTorch on a GPU: whether attention and normalisation are kernels of ours
    device: int = 0  # which GPU, as PyTorch counts them


def modalities_of(manifest: Manifest, given: Collection[str], settings: Settings, table: SolverTable) -> list[Modality]:
    """Those that run: given, not left out, and with a weight at some step. Raises BadRequest."""
    chosen = chosen_of(manifest, given, settings.without)
    places = places_of(table.timesteps, manifest.schedule.train_steps)
    weightless = {each.condition for each in weights_of(settings.influence) if not weight_at(each, places).any()}
    if settings.over(usual_of(manifest, settings)).factor == 0 and any(modality.anchor for modality in chosen):
        weightless |= {modality.name for modality in chosen if modality.decays}
    running = [modality for modality in chosen if modality.name not in weightless]
    if not running:
        names = " and ".join(modality.name for modality in chosen)
        raise BadRequest("influence", f"{names}: no weight at any step", "give one a weight above 0")
    return running


def usual_of(manifest: Manifest, settings: Settings) -> Influence:
    """What holds where the settings say nothing: the model's own, but a condition that comes first does not fade."""
    fading = {f"{modality.name}{FIRST}" for modality in manifest.modalities if modality.decays}
    if not fading.intersection(map(str, settings.influence)):
        return manifest.influence
    return replace(manifest.influence, decay=NAMED[AS_TRAINED].decay, factor=NAMED[AS_TRAINED].factor)


def calibration_of(bundle: Bundle) -> Calibration | None:
    """The weights that a bundle's influence is, unless a run asks for another. Raises BadArtefact."""
    if not (file := bundle.manifest.calibrated):
        return None
    manifest, found = bundle.manifest, Calibration.of(bundle.content[file], file)
    try:
        found.check_fits([m.name for m in manifest.modalities], manifest.schedule, manifest.latent_shape[1:])
    except BadRequest as error:
        raise BadArtefact(f"bundle {bundle.folder.name}", f"{error.what}, {error.seen}", REBUILD) from None
    return found


def adjustment_of(
    manifest: Manifest,
    modalities: list[Modality],
    table: SolverTable,
    settings: Settings,
    own: Calibration | None = None,
) -> fusion.Adjustment:
    """What the settings say of these modalities' influence, at each step of the table, where the model's `own` weights
    stand unless they say otherwise. Raises BadRequest or BadInput."""
    names = [modality.name for modality in modalities]
    asked, latent = settings.over(usual_of(manifest, settings)), manifest.latent_shape[1:]
    weights = [each for each in weights_of(settings.influence) if each.condition in names]
    regions = [
        (each, read_map(each.map, f"region of {each.condition}", latent))
        for each in settings.region
        if each.condition in names
    ]
    found = own if own and settings.as_usual else settings.found
    scales = found.scales(names, table.alpha_bars, latent) if found else None
    held = controls(names, weights, regions, places_of(table.timesteps, manifest.schedule.train_steps), latent, scales)
    anchors = [i for i, modality in enumerate(modalities) if modality.anchor]
    gain = fusion.decay(asked.decay, table.timesteps, manifest.schedule.train_steps)
    decays = [modality.decays for modality in modalities]
    adjust = fusion.adjustment(decays, anchors[0] if anchors else None, gain, asked, held.present)
    return replace(adjust, controls=held.values)


def known_of(x0: np.ndarray, keep: np.ndarray, table: SolverTable, settings: Settings) -> KnownRegion:
    """Inpainting's: its noise goes by timesteps, so that it too is the same in every tier."""
    shape, draws = x0.shape[1:], table.timesteps.tolist()
    return KnownRegion(
        x0, keep, lambda i: noise.normal(settings.seed, settings.numbers, draws[i], shape, noise.INPAINTING)
    )


def check_finite(values: np.ndarray, what: str, subject: str, precision: Precision) -> None:
    """Raises BadArtefact."""
    if not np.isfinite(values).all():
        half = precision == "fp16"
        remedy = "take precision bf16 or fp32" if half else "this bundle's weights are broken, export them again"
        raise BadArtefact(what, f"{subject} not finite in {precision}", remedy)


def given_start(x_T: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A user's x_T. Raises BadRequest."""
    check_type("x_T", x_T, np.ndarray, f"give an array of shape {shape}")
    if x_T.shape != shape or not np.isfinite(x_T).all():
        raise BadRequest("x_T", f"shape {x_T.shape}", f"give finite numbers of shape {shape}")
    return x_T.astype(np.float32)


def given_contexts(
    contexts: Mapping[str, np.ndarray], manifest: Manifest, modalities: list[Modality], batch: int
) -> list[np.ndarray]:
    """A user's contexts [batch, T, K], by modality. Raises BadRequest."""
    check_type("contexts", contexts, Mapping, "give a dict from names to arrays")
    found = []
    for name in (modality.name for modality in modalities):
        shape = (batch, *manifest.networks[f"condition.{name}"].outputs[0].shape[1:])
        value = contexts.get(name)
        check_type(f"contexts of {name}", value, np.ndarray, f"give an array of shape {shape}")
        if value is None or value.shape != shape:
            raise BadRequest(
                f"contexts of {name}",
                "there is none" if value is None else f"shape {value.shape}",
                f"give an array of shape {shape}",
            )
        found.append(value.astype(np.float32))
    return found
