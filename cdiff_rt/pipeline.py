"""The whole way from conditions to images: `Pipeline.from_pretrained().generate(mask=..., text=...)`."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cdiff_rt.checks import check_influence, check_numbers, check_start
from cdiff_rt.editing import inversion, regions
from cdiff_rt.engines.backends import resolve
from cdiff_rt.engines.base import Precision
from cdiff_rt.errors import BadArtefact, BadInput, BadRequest, check_choice
from cdiff_rt.inputs import images
from cdiff_rt.inputs.inpainting import Inpainting
from cdiff_rt.inputs.modalities import KINDS, Condition, chosen_of
from cdiff_rt.manifest import NAME, Bundle, Influence, Modality, sha256
from cdiff_rt.outputs import formats
from cdiff_rt.outputs.generated import Generated
from cdiff_rt.run import OnDevice, Run, adjustment_of
from cdiff_rt.runners import load_runner
from cdiff_rt.sampling import noise, solvers
from cdiff_rt.sampling.loop import Callback, Known
from cdiff_rt.sampling.tiers import sampling
from cdiff_rt.version import __version__

MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = "faces-128"
DEFAULT_BACKEND = "onnxruntime"


def find_model(model: str | Path) -> Path:
    """The folder of an embedded model's name or of a path."""
    embedded = {path.name: path for path in MODELS.glob("*/")}
    if str(model) in embedded:
        return embedded[str(model)]
    if not os.path.isdir(model):
        known = ", ".join(sorted(embedded)) or "none"
        raise BadArtefact("model", f"there is no bundle {str(model)!r}", f"give a bundle's folder or one of: {known}")
    return Path(model)


def _reopened(folder: Path, backend: str, on_device: OnDevice | None) -> "Pipeline":
    return Pipeline(Bundle.open(folder), backend, on_device)


class Pipeline:
    """A bundle and a backend. Engines load at first use and stay loaded."""

    def __init__(self, bundle: Bundle, backend: str = DEFAULT_BACKEND, on_device: OnDevice | None = None) -> None:
        self.bundle, self.manifest, self._on_device = bundle, bundle.manifest, on_device
        self.backend = resolve(backend, bundle.manifest, on_device.precision if on_device else None)
        self._runner = load_runner(bundle, self.backend, on_device)

    def __reduce__(self) -> tuple:
        """Another process opens the bundle anew, and loads its own engines."""
        return _reopened, (self.bundle.folder.absolute(), self.backend, self._on_device)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        backend: str = DEFAULT_BACKEND,
        precision: Precision | None = None,
        whole_step: bool = False,
    ) -> "Pipeline":
        """`model` is the name of an embedded model or a bundle's folder; `backend` "auto" is the fastest here.

        On a GPU, `precision` is that of the engines and `whole_step` takes one for the whole step (docs/gpu.md).
        Raises BadArtefact if the bundle isn't intact, BadEnvironment if the backend doesn't work here.
        """
        return cls(Bundle.open(find_model(model)), backend, OnDevice(precision, whole_step))

    def generate(
        self,
        *,
        tier: str | None = None,
        solver: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        batch: int = 1,
        first: int = 0,
        eta: float | None = None,
        temperature: float | None = None,
        influence: Influence | None = None,
        without: Collection[str] = (),
        x_T: np.ndarray | None = None,
        contexts: Mapping[str, np.ndarray] | None = None,
        inpaint: Inpainting | None = None,
        rounding: Literal["truncate", "nearest"] = "truncate",
        callback_on_step_end: Callback | None = None,
        **conditions: Condition | None,
    ) -> Generated:
        """Images that follow every condition given, by the names of the model's modalities, e.g. `mask=`, `text=`.

        Only the experts of those modalities run, less those of `without` and those that `influence` gives no weight.
        The images are numbers `first` to `first + batch - 1` of the seed: image i is the same in any batch. `tier`
        names a set of `solver`, `steps`, `eta` and `temperature` and is given instead of them, see tiers.py; `influence`
        is instead of the manifest's, `x_T` [batch, C, *latent] of the seed's first noise. Raises BadRequest or BadInput.
        """
        numbers = check_numbers(seed, first, batch)
        check_choice("rounding", rounding, ("truncate", "nearest"))
        how = sampling(tier, solver, steps, eta, temperature)
        table = how.table(self.manifest.schedule)
        adjust = check_influence(influence or self.manifest.influence)
        shape = self.manifest.latent_shape
        start = noise.normal(seed, numbers, 0, shape) if x_T is None else check_start(x_T, (batch, *shape))
        modalities, inputs = self._read(conditions, without, adjust)
        run = Run(
            modalities,
            inputs,
            start,
            noise.of_steps(self.manifest.schedule, table, seed, numbers, shape),
            table,
            adjustment_of(self.manifest, modalities, table, adjust),
            self._known(inpaint, table, seed, numbers) if inpaint else None,
            [contexts[modality.name] for modality in modalities] if contexts else None,
        )
        latents = self._runner.sample(run, callback_on_step_end)
        self._check_finite(latents, "sampling", "the latents are")
        settings = asdict(how) | {"seed": seed, "first": first, "batch": batch}
        unusual = {
            "tier": how.tier,
            "rounding": rounding if rounding != "truncate" else None,
            "influence": influence and asdict(influence),
            "inpaint": inpaint and inpaint.shown(),
            "x_T": None if x_T is None else "given",
            "contexts": "given" if contexts else None,
        }
        record = settings | {name: value for name, value in unusual.items() if value is not None}
        decoded = self.decode(latents, rounding) if self.manifest.image_size else np.zeros((batch, 0, 0, 3), np.uint8)
        record |= self._told(modalities, conditions) | self.identity()
        return Generated(decoded, latents, record, self._drawing(modalities, conditions))

    def edit(
        self,
        image: str | Path | np.ndarray,
        *,
        source: Mapping[str, Condition | None] | None = None,
        read: inversion.Reading | None = None,
        steps: int = 50,
        seed: int = 0,
        strength: float = 1.0,
        alphas: Sequence[float] = (1.0,),
        keep: regions.Keep = (),
        method: Literal["inversion", "sdedit"] = "inversion",
        influence: Influence | None = None,
        rounding: Literal["truncate", "nearest"] = "truncate",
        progress: Callable[[], object] | None = None,
        callback_on_step_end: Callback | None = None,
        **conditions: Condition | None,
    ) -> Generated:
        """A photo, a file or [S, S, 3] uint8, changed no more than the conditions given ask for; see inversion.py.

        `source` says by modality what it shows now; what it leaves open is asked of `read`, or the inversion does
        without. There is an image for each of `alphas`, from the source's conditions, 0, to those given, 1, and beyond.
        `strength` is the share of the steps that are walked. The labels that `keep` names, or "all", stay pixel by
        pixel where the mask does. `progress` is called after every step of the inversion and of the edit, the callback
        after those of the edit. Raises BadRequest or BadInput.
        """
        inversion.check(seed, strength, alphas, rounding, method)
        adjust, shape = check_influence(influence or self.manifest.influence), self.manifest.latent_shape
        table = inversion.last_steps(solvers.ddim(self.manifest.schedule, steps), strength)
        photo = self.read_photo(image)
        seen = read(photo) if read else {}
        before, after = inversion.fill_in(conditions, source or {}, seen)
        inversion.note_gaps(before, after, source or {})
        region = regions.region_of({**seen, **before}, after, keep, self.manifest)
        cells = region.cells(shape[-1])
        known = Known(self.encode(photo), cells, lambda i: noise.normal(seed, range(1), i, shape, noise.EDITING))
        old, new = (self._run(of, table, adjust) for of in (before, after))
        new = replace(new, contexts=self._between(old, new, alphas), known=known if cells.any() else None)
        inverted = inversion.METHODS[method](self._runner, old, known, progress)
        latents = inverted.walk(self._runner, new, len(alphas), inversion.both(progress, callback_on_step_end))
        self._check_finite(latents, "editing", "the latents are")
        edited = region.paste(photo, self.decode(latents, rounding))
        edit: dict = {
            "method": method,
            "of_steps": steps,
            "alphas": list(alphas),
            "source": self._told(old.modalities, before)["conditions"],
        }
        edit |= {"keep": region.labels, "change": region.change(photo, edited)}
        settings = {"steps": len(table.timesteps), "eta": 1.0, "seed": seed, "first": 0, "batch": len(alphas)}
        unusual = {
            "rounding": rounding if rounding != "truncate" else None,
            "influence": influence and asdict(influence),
        }
        record = settings | {name: value for name, value in unusual.items() if value is not None} | {"edit": edit}
        record |= self._told(new.modalities, after) | self.identity()
        return Generated(edited, latents, record, self._drawing(new.modalities, after))

    def decode(self, latents: np.ndarray, rounding: str = "truncate") -> np.ndarray:
        """[B, C, *latent] of the loop -> [B, H, W, 3] uint8."""
        scaled = latents / np.float32(self.manifest.latent_scale)
        decoded = self._runner.call("vae.decode", z=scaled)["image"]
        self._check_finite(decoded, "decoding", "the image is")
        return formats.to_uint8(decoded, rounding)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8, as large as the model's images -> latents of the loop [1, C, *latent]."""
        encoded = self._runner.call("vae.encode", image=images.from_uint8(pixels))
        return encoded["mean"] * np.float32(self.manifest.latent_scale)

    def _check_finite(self, values: np.ndarray, what: str, subject: str) -> None:
        if not np.isfinite(values).all():
            half = self._runner.precision == "fp16"
            remedy = "take precision bf16 or fp32" if half else "this bundle's weights are broken, export them again"
            raise BadArtefact(what, f"{subject} not finite in {self._runner.precision}", remedy)

    def read_photo(self, image: str | Path | np.ndarray) -> np.ndarray:
        """A file, or [S, S, 3] uint8 -> that, for `encode`. Raises BadInput; BadRequest if the model encodes no images."""
        size = self.manifest.image_size
        if not size or "vae.encode" not in self.manifest.networks:
            raise BadRequest("image", f"{self.manifest.name} has no encoder of images", "take another model")
        pixels = image if isinstance(image, np.ndarray) else images.read_photo(Path(image), size)
        if pixels.shape != (size, size, 3) or pixels.dtype != np.uint8:
            raise BadInput("image array", f"{pixels.dtype} of shape {pixels.shape}", f"give uint8 {(size, size, 3)}")
        return pixels

    def _read(
        self, conditions: Mapping[str, Condition | None], without: Collection[str], adjust: Influence
    ) -> tuple[list[Modality], list[np.ndarray]]:
        """The modalities that run, and what their encoders take."""
        given = {name: value for name, value in conditions.items() if value is not None}
        chosen = chosen_of(self.manifest, given, without)
        if adjust.factor == 0 and any(modality.anchor for modality in chosen):
            chosen = [modality for modality in chosen if not modality.decays]  # no weight, so no work
        return chosen, [KINDS[modality.kind].read(given[modality.name], modality, self.bundle) for modality in chosen]

    def _told(self, modalities: list[Modality], conditions: Mapping[str, Condition | None]) -> dict:
        """What was asked for, in words."""
        given = {m.name: KINDS[m.kind].show(value) for m in modalities if (value := conditions[m.name]) is not None}
        return {"conditions": given, "prompt": " ".join(given[m.name] for m in modalities if m.kind == "words")}

    def _drawing(self, modalities: list[Modality], conditions: Mapping[str, Condition | None]) -> np.ndarray | None:
        """The first condition that can be drawn."""
        for modality in modalities:
            draw, value = KINDS[modality.kind].draw, conditions[modality.name]
            if draw and value is not None:
                return draw(value, modality)
        return None

    def _run(self, conditions: inversion.Conditions, table: solvers.SolverTable, adjust: Influence) -> Run:
        """One without a beginning: an inversion's."""
        modalities, inputs = self._read(conditions, (), adjust)
        nothing = np.zeros((1, *self.manifest.latent_shape), np.float32)
        adjustment = adjustment_of(self.manifest, modalities, table, adjust)
        return Run(modalities, inputs, nothing, lambda i: nothing, table, adjustment)

    def _between(self, old: Run, new: Run, alphas: Sequence[float]) -> list[np.ndarray] | None:
        """Contexts [A, T, K] per modality; None where there are no others than the new ones."""
        if set(alphas) == {1.0}:
            return None
        known = {modality.name: value for modality, value in zip(old.modalities, old.inputs, strict=True)}
        contexts = []
        for modality, value in zip(new.modalities, new.inputs, strict=True):
            name = modality.name
            if name not in known:
                remedy = f"give the source's {name}, or leave alphas out"
                raise BadRequest("alphas", f"nothing says what {name} the image has now", remedy)
            now, then = (self._runner.call(f"condition.{name}", inputs=x)["context"] for x in (known[name], value))
            contexts.append(inversion.between(now, then, alphas))
        return contexts

    def _known(self, inpaint: Inpainting, table: solvers.SolverTable, seed: int, numbers: range) -> Known:
        """Its noise goes by timesteps, so that it too is the same in every tier."""
        shape = self.manifest.latent_shape
        if not self.manifest.image_size or "vae.encode" not in self.manifest.networks:
            raise BadRequest("inpaint", f"{self.manifest.name} has no encoder of images", "take another model")
        photo, keep = inpaint.read(self.manifest.image_size, shape[-1])
        draws = table.timesteps.tolist()
        return Known(self.encode(photo), keep, lambda i: noise.normal(seed, numbers, draws[i], shape, noise.INPAINTING))

    def identity(self) -> dict:
        """What made the images, beside the request."""
        manifest_hash = sha256(self.bundle.path(NAME))
        name, size = self.manifest.name, self.manifest.image_size
        model = {"model": name, "model_hash": manifest_hash, "size": size}
        place = {"backend": self.backend, "precision": self._runner.precision}
        return place | model | {"version": __version__}
