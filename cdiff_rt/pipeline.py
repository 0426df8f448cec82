"""The whole way from conditions to images: `Pipeline.from_pretrained().generate(mask=..., text=...)`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from cdiff_rt.editing import inversion, regions
from cdiff_rt.editing.sides import sides_of
from cdiff_rt.engines.backends import resolve
from cdiff_rt.engines.base import Arrangement, Precision
from cdiff_rt.errors import BadRequest, check_type, named_as
from cdiff_rt.inputs import images
from cdiff_rt.inputs.inpainting import Inpainting
from cdiff_rt.inputs.modalities import KINDS, Condition, asked, drawing_of, in_words, inputs_in, tell_unused
from cdiff_rt.inputs.traces import Input, loaded, trace_of
from cdiff_rt.joined import Added, Where, guests_of, join, told_of
from cdiff_rt.manifest import DEFAULT_MODEL, Bundle, Modality, find_model
from cdiff_rt.memory import check_memory
from cdiff_rt.notes import collected
from cdiff_rt.outputs.formats import to_uint8
from cdiff_rt.outputs.generated import Generated
from cdiff_rt.run import (
    OnDevice,
    Run,
    Runner,
    adjustment_of,
    calibration_of,
    check_finite,
    given_contexts,
    given_start,
    known_of,
    modalities_of,
)
from cdiff_rt.runners import load_runner
from cdiff_rt.sampling import noise
from cdiff_rt.sampling.conflict import Conflict
from cdiff_rt.sampling.loop import Callback, KnownRegion, Progress
from cdiff_rt.sampling.solvers import SolverTable
from cdiff_rt.settings import SETTINGS, Settings, unknown_argument
from cdiff_rt.told import Inputs, arrays_of, numbers_given, place_of, regions_in, request_of, with_maps
from cdiff_rt.turns import Turns
from cdiff_rt.version import __version__

DEFAULT_BACKEND = "onnxruntime"
Conditions = Mapping[str, Condition | None]  # by modality; None is the same as leaving one out


def _reopened(where: Where, backend: str, on_device: OnDevice | None) -> "Pipeline":
    return Pipeline(where.open(), backend, on_device)


class Pipeline:
    """A bundle and a backend. Engines load at first use and stay loaded until `close`, or the end of a `with` block.

    Several threads may use one: their calls take turns, for each uses all cores or the whole GPU. A forked process may
    not, since the engines' threads are not copied; a pickled pipeline opens its bundle anew wherever it arrives. A
    callback may begin a run within its own. To cancel one, raise an exception there: the pipeline stays usable.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = DEFAULT_BACKEND,
        on_device: OnDevice | None = None,
        runner: Runner | None = None,
    ) -> None:
        if not isinstance(bundle, Bundle):
            raise BadRequest("bundle", f"a {type(bundle).__name__}", "use Pipeline.from_pretrained, or Bundle.open")
        self.bundle, self.manifest, self._on_device = bundle, bundle.manifest, on_device
        self.backend = backend if runner else resolve(backend, bundle.manifest, (on_device or OnDevice()).precision)
        self._runner = runner or load_runner(bundle, self.backend, on_device)
        self._turns = Turns("pipeline")
        self._own = calibration_of(bundle)
        self.composed: object = None  # what composition.py made it of

    def __reduce__(self) -> tuple:
        """Another process opens the bundles anew, and loads its own engines."""
        return _reopened, (Where.of(self.bundle), self.backend, self._on_device)

    def __enter__(self) -> Self:
        with self._turns.take():
            return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of engines and their memory, after the runs of other threads. What was generated stays."""
        self._turns.close(self._runner.close)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        with_experts: Added | None = None,
        backend: str = DEFAULT_BACKEND,
        precision: Precision | None = None,
        experts: Arrangement = "separate",
        threads: int | None = None,
        device: int = 0,
    ) -> "Pipeline":
        """`model` is the name of an embedded model or a bundle's folder; `backend` "auto" is the fastest here.

        `with_experts` lets experts of other bundles take part, by the name that their condition has here: of each bundle
        the modality of that name, or its only one. `precision` is that of the engines. A run on a CPU has so many
        `threads`; by default one for each processor, up to 32. Of several GPUs, `device` says which; there, `experts` may
        be "stacked" or "whole-step" (docs/gpu.md). Raises BadArtefact if the bundle isn't intact, BadEnvironment if the
        backend doesn't work here.
        """
        how = OnDevice(precision, experts, threads=threads, device=device)
        return cls(join(Bundle.open(find_model(model)), with_experts), backend, how)

    def generate(
        self,
        settings: Settings | None = None,
        *,
        conditions: Conditions | None = None,
        x_T: np.ndarray | None = None,
        contexts: Mapping[str, np.ndarray] | None = None,
        inpaint: Inpainting | None = None,
        progress: Progress | None = None,
        callback_on_step_end: Callback | None = None,
        **given: Any,
    ) -> Generated:
        """Images that follow every condition given, by the names of the model's modalities, e.g. `mask=`, `text=`.

        Settings may be given by name too, e.g. `seed=7, tier="fast"`, and go before those of `settings`. Only the
        experts of the modalities given run, less those of `without` and those that `influence` gives no weight.
        `x_T` [batch, C, *latent] takes the place of the seed's first noise, `contexts` [batch, T, K] by modality that of
        what the encoders make. `progress` is called after every step, and so is the callback, which is shown what the
        step did: on a GPU that keeps the host waiting. Raises BadRequest or BadInput.
        """
        with self._turns.take(), collected() as warnings:
            settings, wanted = self._request(settings, conditions, given)
            check_type("inpaint", inpaint, Inpainting | None, "give a cdiff_rt.Inpainting")
            check_type("callback_on_step_end", callback_on_step_end, Callable | None, "give a function")
            table, shape = settings.sampling().table(self.manifest.schedule), self.manifest.latent_shape
            numbers, drawn = settings.numbers, (settings.batch, *shape)
            tell_unused(self.manifest, wanted, labels=settings.labels, snap=settings.snap, weighed=settings.weighed)
            modalities, inputs = self._read(wanted, settings, table)
            check_memory(self.bundle, modalities, settings.batch, self.backend, self._runner.precision)
            painted = inpaint.read(self._encoded_size("inpaint"), shape[-1]) if inpaint else None
            run = Run(
                modalities,
                inputs,
                noise.normal(settings.seed, numbers, 0, shape) if x_T is None else given_start(x_T, drawn),
                noise.of_steps(self.manifest.schedule, table, settings.seed, numbers, shape),
                table,
                adjustment_of(self.manifest, modalities, table, settings, self._own),
                known_of(self.encode(painted.photo), painted.keep, table, settings) if painted else None,
                given_contexts(contexts, self.manifest, modalities, settings.batch) if contexts else None,
            )
            conflict = Conflict(self.manifest.schedule.train_steps)
            watch = conflict.beside(callback_on_step_end, always=self._runner.shows_steps)
            latents = self._runner.sample(run, watch, progress)
            check_finite(latents, "sampling", "the latents are", self._runner.precision)
            alone = not any(modality.name in guests_of(self.bundle) for modality in modalities)
            known = self.bundle.manifest_hash if alone else ""  # for levels are those of a model's own experts
            conflict.tell(known, decided=bool(settings.influence or settings.region))
            used = inputs_in(self.manifest, {modality.name: wanted.get(modality.name) for modality in modalities})
            used |= regions_in(settings, modalities, shape[1:]) | (painted.inputs if painted else {})
            used |= numbers_given(x_T, contexts)
            decoded = bool(self.manifest.image_size)
            made = self.decode(latents, settings.rounding) if decoded else np.zeros((len(latents), 0, 0, 3), np.uint8)
            told = self._told("generate", settings, modalities, wanted, used)
            return Generated(made, latents, told, drawing_of(modalities, wanted), warnings, arrays_of(used), conflict)

    def edit(
        self,
        image: images.Picture,
        settings: Settings | None = None,
        *,
        conditions: Conditions | None = None,
        source: Conditions | None = None,
        read: inversion.Reading | None = None,
        strength: float = 1.0,
        alphas: Sequence[float] = (1.0,),
        keep: regions.Keep = (),
        method: Literal["inversion", "sdedit"] = "inversion",
        progress: Progress | None = None,
        callback_on_step_end: Callback | None = None,
        **given: Any,
    ) -> Generated:
        """A photo, a file or [S, S, 3] uint8, changed no more than the conditions given ask for; see editing/.

        `source` says by modality what it shows now; what it leaves open is asked of `read`, or the inversion does
        without. A sentence that is read so stays if no other is given. There is an image for each of `alphas`, from the
        source's conditions, 0, to those given, 1, and beyond. `strength` is the share of the steps that are walked. The
        labels that `keep` names, or "all", stay pixel by pixel where the mask does, but for their borders. Settings are
        those of `generate`, but for `batch` and `first`, which follow from `alphas`; the solver has to add noise.
        `progress` is called after every step, the callback after those of the edit. Raises BadRequest or BadInput.
        """
        with self._turns.take(), collected() as warnings:
            settings, wanted = self._request(settings, conditions, given)
            strength, alphas = inversion.check(settings, strength, alphas, method)
            check_type("source", source, Mapping | None, "give a dict from names to conditions")
            source = asked(source or {}, self.manifest, labels=settings.labels, snap=settings.snap)
            table = inversion.last_steps(settings.sampling().table(self.manifest.schedule), strength)
            photo = self.read_photo(image := loaded(image, "photo"))
            seeing = (lambda photo: asked(read(photo), self.manifest, given=False)) if read else None
            sides = sides_of(self.manifest, wanted, source, settings.without, seeing, photo)
            said = {**source, **wanted}
            tell_unused(self.manifest, said, labels=settings.labels, snap=settings.snap, weighed=settings.weighed)
            region = regions.region_of(sides.seen, sides.after, keep, self.manifest)
            cells, shape = region.cells(self.manifest.latent_shape[-1]), self.manifest.latent_shape
            draw = lambda i: noise.normal(settings.seed, range(1), i, shape, noise.EDITING)
            known = KnownRegion(self.encode(photo), cells, draw)
            with named_as("source"):
                old = self._run(sides.before, table, settings)
            new = self._run(sides.after, table, settings)
            check_memory(self.bundle, new.modalities, len(alphas), self.backend, self._runner.precision)
            contexts = inversion.contexts_between(self._runner, old, new, alphas)
            new = replace(new, contexts=contexts, known=known if cells.any() else None)
            inverted = inversion.METHODS[method](self._runner, old, known, progress)
            latents = inverted.walk(self._runner, new, len(alphas), callback_on_step_end, progress)
            check_finite(latents, "editing", "the latents are", self._runner.precision)
            edited = region.paste(photo, self.decode(latents, settings.rounding))
            used = regions_in(settings, [*old.modalities, *new.modalities], shape[1:])
            used |= {"image": Input(trace_of(image), photo)}
            for role, of in {"": wanted, "source.": source, "read.": sides.read}.items():
                used |= inputs_in(self.manifest, of, settings.without, role)
            edit = inversion.told(method, settings, strength, alphas) | sides.told(old.modalities)
            edit |= region.told(photo, edited)
            told = self._told("edit", settings, new.modalities, sides.after, used)
            told |= {"steps": len(table.timesteps), "batch": len(alphas), "edit": edit}
            return Generated(edited, latents, told, drawing_of(new.modalities, sides.after), warnings, arrays_of(used))

    def decode(self, latents: np.ndarray, rounding: str = "truncate") -> np.ndarray:
        """[B, C, *latent] of the loop -> [B, H, W, 3] uint8."""
        with self._turns.take():
            decoded = self._runner.call("vae.decode", z=latents / np.float32(self.manifest.latent_scale))["image"]
            check_finite(decoded, "decoding", "the image is", self._runner.precision)
            return to_uint8(decoded, rounding)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8, as large as the model's images -> latents of the loop [1, C, *latent]."""
        with self._turns.take():
            encoded = self._runner.call("vae.encode", image=images.from_uint8(pixels))
            return encoded["mean"] * np.float32(self.manifest.latent_scale)

    def read_photo(self, image: images.Picture) -> np.ndarray:
        """A picture -> [S, S, 3] uint8, for `encode`. Raises BadInput; BadRequest if the model encodes no images."""
        return images.read_photo(image, self._encoded_size("image"))

    def identity(self) -> dict[str, Any]:
        """What made the images, beside the request."""
        model = {"model": self.manifest.name, "model_hash": self.bundle.manifest_hash, "size": self.manifest.image_size}
        how = {"backend": self.backend, "precision": self._runner.precision}
        return how | model | told_of(self.bundle) | {"version": __version__}

    def _request(
        self, settings: Settings | None, conditions: Conditions | None, given: Mapping[str, Any]
    ) -> tuple[Settings, Conditions]:
        """What was given by name, told apart: no modality is called like a setting."""
        names = [modality.name for modality in self.manifest.modalities]
        if unknown := [name for name in given if name not in names and name not in SETTINGS]:
            raise unknown_argument(unknown[0], [*names, *SETTINGS, "inpaint", "progress", "callback_on_step_end"])
        check_type("settings", settings, Settings | None, "give a cdiff_rt.Settings, and others by name")
        check_type("conditions", conditions, Mapping | None, "give a dict from names to conditions")
        named = {name: value for name, value in given.items() if name in names}
        changed = {name: value for name, value in given.items() if name not in names}
        whole = with_maps(replace(settings or Settings(), **changed))
        return whole, asked({**(conditions or {}), **named}, self.manifest, labels=whole.labels, snap=whole.snap)

    def _read(
        self, conditions: Conditions, settings: Settings, table: SolverTable
    ) -> tuple[list[Modality], list[np.ndarray]]:
        """The modalities that run, and what their encoders take."""
        running = modalities_of(self.manifest, [n for n, v in conditions.items() if v is not None], settings, table)
        return running, [KINDS[each.kind].read(conditions.get(each.name), each, self.bundle) for each in running]

    def _told(
        self, command: str, how: Settings, modalities: list[Modality], conditions: Conditions, used: Inputs
    ) -> dict[str, Any]:
        """All that the images follow from."""
        asked_for = request_of(command, how, self.manifest, used) | in_words(modalities, conditions)
        return asked_for | self.identity() | told_of(self.bundle, "folder") | place_of(self.backend, self._on_device)

    def _run(self, conditions: Conditions, table: SolverTable, settings: Settings) -> Run:
        """One without a beginning: an inversion's."""
        modalities, inputs = self._read(conditions, settings, table)
        nothing = np.zeros((1, *self.manifest.latent_shape), np.float32)
        adjustment = adjustment_of(self.manifest, modalities, table, settings, self._own)
        return Run(modalities, inputs, nothing, lambda i: nothing, table, adjustment)

    def _encoded_size(self, argument: str) -> int:
        """Pixels per side of what the encoder takes. Raises BadRequest if there is none."""
        if not self.manifest.image_size or "vae.encode" not in self.manifest.networks:
            raise BadRequest(argument, f"{self.manifest.name} has no encoder of images", "take another model")
        return self.manifest.image_size
