"""The whole way from conditions to images: `Pipeline.from_pretrained().generate(mask=..., text=...)`."""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cdiff_rt import __version__, fusion, images, noise, solvers
from cdiff_rt.engines import BACKENDS, Engine, check_backend, cores, load_engine
from cdiff_rt.errors import BadArtefact, BadRequest
from cdiff_rt.experts import Experts
from cdiff_rt.influence import InfluenceRecorder, check_target, folder_of, whole_folder, write_influence
from cdiff_rt.manifest import NAME, Bundle, Influence, Modality, sha256
from cdiff_rt.modalities import KINDS, Condition
from cdiff_rt.sampler import Callback, sample

MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = "faces-128"
DEFAULT_BACKEND = "onnxruntime"
LARGEST_BATCH = 256


@dataclass(frozen=True)
class Generated:
    images: np.ndarray  # [B, H, W, 3] uint8
    latents: np.ndarray  # [B, C, *latent] float32, as the loop left them
    record: dict  # every parameter of the run, as stored in PNG files

    def save(self, out: str | Path, *, force: bool = False, recorder: InfluenceRecorder | None = None) -> list[Path]:
        """Writes the images to `image_paths(out, ...)`, each with all parameters of the run inside.

        With the recorder that saw the run, each image's influence maps go to a folder beside it, both or neither.
        """
        numbers = range(self.record["first"], self.record["first"] + len(self.images))
        paths = image_paths(Path(out), self.record["seed"], numbers, force=force, influence=recorder is not None)
        names = list(self.record["conditions"])
        if recorder:
            recorder.check(names, len(self.images), self.record["steps"])
        for i, (number, image, path) in enumerate(zip(numbers, self.images, paths, strict=True)):
            with whole_folder(folder_of(path)) if recorder else nullcontext() as folder:
                if recorder and folder:
                    write_influence(folder, recorder, i, names, image)
                images.write_png(path, image, images.parameters_text(self.record | {"image": number}))
        return paths


def image_paths(out: Path, seed: int, numbers: range, *, force: bool = False, influence: bool = False) -> list[Path]:
    """Where images go: `out` itself if it is a .png, else files of the folder `out`, named by seed and number.

    Raises BadRequest if a file, or with `influence` the folder beside it, exists and `force` is not set; BadInput if
    none can be written.
    """
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise BadRequest("out", f"{out.name}", "images are written as .png; give such a name or a folder")
    one_file = out.suffix.lower() == ".png"
    if one_file and len(numbers) > 1:
        raise BadRequest("out", f"one file, {out.name}, for {len(numbers)} images", "give a folder")
    paths = [out] if one_file else [out / f"seed{seed}-{number:03d}.png" for number in numbers]
    images.check_folder(paths[0].parent)
    for path in paths:
        if os.path.isdir(path):
            raise BadRequest("out", f"{path} is a folder", "choose another name")
        if os.path.exists(path) and not force:
            raise BadRequest("out", f"{path} exists", "choose another name or overwrite it with --force")
        if influence:
            check_target(folder_of(path), force=force)
    return paths


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

    def __init__(self, bundle: Bundle, backend: str = DEFAULT_BACKEND) -> None:
        self.bundle, self.manifest, self.backend = bundle, bundle.manifest, backend
        self._engines: dict[tuple[str, int], Engine] = {}

    @classmethod
    def from_pretrained(cls, model: str | Path = DEFAULT_MODEL, *, backend: str = DEFAULT_BACKEND) -> "Pipeline":
        """`model` is the name of an embedded model or a bundle's folder. Raises BadArtefact if it isn't intact."""
        check_backend(backend)
        return cls(Bundle.open(find_model(model)), backend)

    def generate(
        self,
        *,
        steps: int = 50,
        seed: int = 0,
        batch: int = 1,
        first: int = 0,
        eta: float = 1.0,
        influence: Influence | None = None,
        callback_on_step_end: Callback | None = None,
        **conditions: Condition | None,
    ) -> Generated:
        """Images that follow every condition given, by the names of the model's modalities, e.g. `mask=`, `text=`.

        Only the experts of those modalities run. The images are numbers `first` to `first + batch - 1` of the seed:
        image i is the same in any batch. `steps` and `eta` are DDIM's, `influence` stands in for the manifest's. Raises
        BadRequest or BadInput.
        """
        numbers = check_numbers(seed, first, batch)
        _check_range("eta", eta, 0.0, 1.0)
        table = solvers.ddim(self.manifest.schedule, steps, eta=eta)
        modalities, inputs = self._read(conditions)
        shape = self.manifest.latent_shape
        with self._experts(modalities, inputs, table, batch) as experts:
            latents = sample(
                experts,
                noise.normal(seed, numbers, 0, shape),
                lambda i: noise.normal(seed, numbers, i + 1, shape),
                table,
                self._adjustment(modalities, table, influence or self.manifest.influence),
                callback_on_step_end,
            )
        given = {m.name: KINDS[m.kind].show(value) for m in modalities if (value := conditions[m.name]) is not None}
        prompt = " ".join(given[m.name] for m in modalities if m.kind == "words")
        run: dict = {"steps": steps, "eta": eta, "seed": seed, "first": first, "batch": batch}
        run |= {"influence": asdict(influence)} if influence else {}
        record = run | {"conditions": given, "prompt": prompt, "backend": self.backend} | self._identity()
        return Generated(self.decode(latents), latents, record)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """[B, C, *latent] of the loop -> [B, H, W, 3] uint8."""
        scaled = latents / np.float32(self.manifest.latent_scale)
        decoded = self.engine("vae.decode")(z=scaled)["image"]
        if not np.isfinite(decoded).all():
            raise BadArtefact(
                "decoding", "the image is not finite", "this bundle's weights are broken, export them again"
            )
        return images.to_uint8(decoded)

    def engine(self, network: str, *, share: int = 1) -> Engine:
        """The engine of a network of the manifest, loaded once; `share` engines run at a time and share the cores."""
        threads = max(1, cores() // share)
        if (network, threads) not in self._engines:
            self._engines[network, threads] = load_engine(self.backend, self.bundle, network, threads=threads)
        return self._engines[network, threads]

    def _read(self, conditions: dict[str, Condition | None]) -> tuple[list[Modality], list[np.ndarray]]:
        known = {modality.name: modality for modality in self.manifest.modalities}
        given = {name: value for name, value in conditions.items() if value is not None}
        strange = sorted(set(given) - set(known))
        if strange:
            raise BadRequest("condition", f"{strange[0]!r}", f"{self.manifest.name} knows {', '.join(known)}")
        if not given:
            raise BadRequest("conditions", "none given", f"give at least one of {', '.join(known)}")
        chosen = [modality for name, modality in known.items() if name in given]
        return chosen, [KINDS[modality.kind].read(given[modality.name], modality, self.bundle) for modality in chosen]

    @contextmanager
    def _experts(
        self, modalities: list[Modality], inputs: list[np.ndarray], table: solvers.SolverTable, batch: int
    ) -> Iterator[Experts]:
        contexts, rows = [], []
        for modality, value in zip(modalities, inputs, strict=True):
            context = self.engine(f"condition.{modality.name}")(inputs=value)["context"]
            contexts.append(np.repeat(context, batch, axis=0))
            rows.append(self.engine(f"time.{modality.name}")(t=table.timesteps)["rows"])
        side_by_side = len(modalities) if BACKENDS[self.backend].parallel else 1
        engines = [self.engine(f"expert.{modality.name}", share=side_by_side) for modality in modalities]
        if side_by_side == 1:
            yield Experts(engines, contexts, rows)  # on this thread: a library may have its own threads bound to it
        else:
            with ThreadPoolExecutor(side_by_side) as pool:
                yield Experts(engines, contexts, rows, pool.map)

    def _adjustment(
        self, modalities: list[Modality], table: solvers.SolverTable, influence: Influence
    ) -> fusion.Adjustment:
        anchors = [i for i, modality in enumerate(modalities) if modality.anchor]
        gain = fusion.decay(influence.decay, table.timesteps, self.manifest.schedule.train_steps)
        decays = [modality.decays for modality in modalities]
        anchor = anchors[0] if anchors else None
        return fusion.adjustment(decays, anchor, gain, influence.factor, influence.sharpness)

    def _identity(self) -> dict:
        """What made the images, beside the request."""
        manifest_hash = sha256(self.bundle.path(NAME))
        name, size = self.manifest.name, self.manifest.image_size
        return {"model": name, "model_hash": manifest_hash, "size": size, "version": __version__}


def check_numbers(seed: int, first: int, batch: int) -> range:
    """The numbers of a run's images. Raises BadRequest."""
    noise.check_seed(seed)
    _check_range("batch", batch, 1, LARGEST_BATCH)
    _check_range("first", first, 0, 2**31)
    return range(first, first + batch)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise BadRequest(name, f"{value} is outside {low:g}-{high:g}", "choose a number of that range")
