"""The whole way from conditions to images: `Pipeline.from_pretrained().generate(mask=..., text=...)`."""

import math
import os
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import numpy as np

from cdiff_rt import __version__, fusion, images, noise, solvers
from cdiff_rt.engines import Precision
from cdiff_rt.errors import BadArtefact, BadRequest
from cdiff_rt.inpainting import Inpainting
from cdiff_rt.manifest import NAME, Bundle, Influence, Modality, sha256
from cdiff_rt.modalities import KINDS, Condition
from cdiff_rt.outputs import Generated
from cdiff_rt.runs import OnDevice, Run, load_runner
from cdiff_rt.sampler import Callback, Known

MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = "faces-128"
DEFAULT_BACKEND = "onnxruntime"
LARGEST_BATCH = 256


def find_model(model: str | Path) -> Path:
    """The folder of an embedded model's name or of a path."""
    embedded = {path.name: path for path in MODELS.glob("*/")}
    if str(model) in embedded:
        return embedded[str(model)]
    if not os.path.isdir(model):
        known = ", ".join(sorted(embedded)) or "none"
        raise BadArtefact("model", f"there is no bundle {str(model)!r}", f"give a bundle's folder or one of: {known}")
    return Path(model)


class Pipeline:
    """A bundle and a backend. Engines load at first use and stay loaded."""

    def __init__(self, bundle: Bundle, backend: str = DEFAULT_BACKEND, on_device: OnDevice | None = None) -> None:
        self.bundle, self.manifest, self.backend = bundle, bundle.manifest, backend
        self._runner = load_runner(bundle, backend, on_device)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        backend: str = DEFAULT_BACKEND,
        precision: Precision | None = None,
        fused_step: bool = False,
    ) -> "Pipeline":
        """`model` is the name of an embedded model or a bundle's folder.

        On a GPU, `precision` is that of the engines and `fused_step` takes one for the whole step (docs/gpu.md).
        Raises BadArtefact if the bundle isn't intact, BadEnvironment if the backend doesn't work here.
        """
        return cls(Bundle.open(find_model(model)), backend, OnDevice(precision, fused_step))

    def generate(
        self,
        *,
        steps: int = 50,
        seed: int = 0,
        batch: int = 1,
        first: int = 0,
        eta: float = 1.0,
        temperature: float = 1.0,
        influence: Influence | None = None,
        without: Collection[str] = (),
        x_T: np.ndarray | None = None,
        inpaint: Inpainting | None = None,
        rounding: Literal["truncate", "nearest"] = "truncate",
        callback_on_step_end: Callback | None = None,
        **conditions: Condition | None,
    ) -> Generated:
        """Images that follow every condition given, by the names of the model's modalities, e.g. `mask=`, `text=`.

        Only the experts of those modalities run, less those of `without` and those that `influence` gives no weight.
        The images are numbers `first` to `first + batch - 1` of the seed: image i is the same in any batch. `steps`,
        `eta` and `temperature` are DDIM's, `influence` stands in for the manifest's, `x_T` [batch, C, *latent] for the
        seed's first noise. Raises BadRequest or BadInput.
        """
        numbers = check_numbers(seed, first, batch)
        _check_range("eta", eta, 0.0, 1.0)
        _check_range("temperature", temperature, 0.0, 100.0)
        _check_choice("rounding", rounding, ("truncate", "nearest"))
        table = solvers.ddim(self.manifest.schedule, steps, eta=eta, temperature=temperature)
        adjust = check_influence(influence or self.manifest.influence)
        shape = self.manifest.latent_shape
        start = noise.normal(seed, numbers, 0, shape) if x_T is None else _check_start(x_T, (batch, *shape))
        modalities, inputs = self._read(conditions, without, adjust)
        run = Run(
            modalities,
            inputs,
            start,
            lambda i: noise.normal(seed, numbers, i + 1, shape),
            table,
            self._adjustment(modalities, table, adjust),
            self._known(inpaint, seed, numbers) if inpaint else None,
        )
        latents = self._runner.sample(run, callback_on_step_end)
        self._check_finite(latents, "sampling", "the latents are")
        settings = {"steps": steps, "eta": eta, "seed": seed, "first": first, "batch": batch}
        unusual = {
            "temperature": temperature if temperature != 1.0 else None,
            "rounding": rounding if rounding != "truncate" else None,
            "influence": influence and asdict(influence),
            "inpaint": inpaint and inpaint.shown(),
            "x_T": None if x_T is None else "given",
        }
        record = settings | {name: value for name, value in unusual.items() if value is not None}
        decoded = self.decode(latents, rounding) if self.manifest.image_size else np.zeros((batch, 0, 0, 3), np.uint8)
        record |= self._told(modalities, conditions) | self._identity()
        return Generated(decoded, latents, record, self._drawing(modalities, conditions))

    def decode(self, latents: np.ndarray, rounding: str = "truncate") -> np.ndarray:
        """[B, C, *latent] of the loop -> [B, H, W, 3] uint8."""
        scaled = latents / np.float32(self.manifest.latent_scale)
        decoded = self._runner.call("vae.decode", z=scaled)["image"]
        self._check_finite(decoded, "decoding", "the image is")
        return images.to_uint8(decoded, rounding)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8, as large as the model's images -> latents of the loop [1, C, *latent]."""
        encoded = self._runner.call("vae.encode", image=images.from_uint8(pixels))
        return encoded["mean"] * np.float32(self.manifest.latent_scale)

    def _check_finite(self, values: np.ndarray, what: str, subject: str) -> None:
        if not np.isfinite(values).all():
            half = self._runner.precision == "fp16"
            remedy = "take precision bf16 or fp32" if half else "this bundle's weights are broken, export them again"
            raise BadArtefact(what, f"{subject} not finite in {self._runner.precision}", remedy)

    def _read(
        self, conditions: dict[str, Condition | None], without: Collection[str], adjust: Influence
    ) -> tuple[list[Modality], list[np.ndarray]]:
        """The modalities that run, and what their encoders take."""
        known = {modality.name: modality for modality in self.manifest.modalities}
        given = {name: value for name, value in conditions.items() if value is not None}
        strange = sorted({*given, *without} - set(known))
        if strange:
            raise BadRequest("condition", f"{strange[0]!r}", f"{self.manifest.name} knows {', '.join(known)}")
        chosen = [modality for name, modality in known.items() if name in given and name not in without]
        if not chosen:
            raise BadRequest("conditions", "none given", f"give at least one of {', '.join(known)}")
        if adjust.factor == 0 and any(modality.anchor for modality in chosen):
            chosen = [modality for modality in chosen if not modality.decays]  # no weight, so no work
        return chosen, [KINDS[modality.kind].read(given[modality.name], modality, self.bundle) for modality in chosen]

    def _told(self, modalities: list[Modality], conditions: dict[str, Condition | None]) -> dict:
        """What was asked for, in words."""
        given = {m.name: KINDS[m.kind].show(value) for m in modalities if (value := conditions[m.name]) is not None}
        return {"conditions": given, "prompt": " ".join(given[m.name] for m in modalities if m.kind == "words")}

    def _drawing(self, modalities: list[Modality], conditions: dict[str, Condition | None]) -> np.ndarray | None:
        """The first condition that can be drawn."""
        for modality in modalities:
            draw, value = KINDS[modality.kind].draw, conditions[modality.name]
            if draw and value is not None:
                return draw(value, modality)
        return None

    def _known(self, inpaint: Inpainting, seed: int, numbers: range) -> Known:
        shape = self.manifest.latent_shape
        if not self.manifest.image_size or "vae.encode" not in self.manifest.networks:
            raise BadRequest("inpaint", f"{self.manifest.name} has no encoder of images", "take another model")
        photo, keep = inpaint.read(self.manifest.image_size, shape[-1])
        return Known(self.encode(photo), keep, lambda i: noise.normal(seed, numbers, i, shape, noise.INPAINTING))

    def _adjustment(
        self, modalities: list[Modality], table: solvers.SolverTable, influence: Influence
    ) -> fusion.Adjustment:
        anchors = [i for i, modality in enumerate(modalities) if modality.anchor]
        gain = fusion.decay(influence.decay, table.timesteps, self.manifest.schedule.train_steps)
        decays = [modality.decays for modality in modalities]
        anchor = anchors[0] if anchors else None
        return fusion.adjustment(decays, anchor, gain, influence.factor, influence.sharpness, influence.boost)

    def _identity(self) -> dict:
        """What made the images, beside the request."""
        manifest_hash = sha256(self.bundle.path(NAME))
        name, size = self.manifest.name, self.manifest.image_size
        model = {"model": name, "model_hash": manifest_hash, "size": size}
        place = {"backend": self.backend, "precision": self._runner.precision}
        return place | model | {"version": __version__}


def check_numbers(seed: int, first: int, batch: int) -> range:
    """The numbers of a run's images. Raises BadRequest."""
    noise.check_seed(seed)
    _check_range("batch", batch, 1, LARGEST_BATCH)
    _check_range("first", first, 0, 2**31)
    return range(first, first + batch)


def check_influence(influence: Influence) -> Influence:
    """Raises BadRequest unless it is one."""
    _check_choice("decay", influence.decay, get_args(get_type_hints(Influence)["decay"]))
    for name in ("factor", "sharpness", "boost"):
        value = getattr(influence, name)
        if value is not None:
            _check_range(name, value, 0.0, 1e6)
    return influence


def _check_start(x_T: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if x_T.shape != shape or not np.isfinite(x_T).all():
        raise BadRequest("x_T", f"shape {x_T.shape}", f"give finite numbers of shape {shape}")
    return x_T.astype(np.float32)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BadRequest(name, repr(value), f"choose one of {', '.join(choices)}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise BadRequest(name, f"{value} is outside {low:g}-{high:g}", "choose a number of that range")
