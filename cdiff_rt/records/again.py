"""A picture made again from its record, and compared with what the file holds, byte by byte and pixel by pixel."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from cdiff_rt.editing.inversion import METHODS, side_by_side
from cdiff_rt.editing.reading import reading_for
from cdiff_rt.errors import BadArtefact, BadInput, BadRequest, check_choice, check_type
from cdiff_rt.extras import needed
from cdiff_rt.inputs.inpainting import Inpainting
from cdiff_rt.joined import Added
from cdiff_rt.manifest import MODELS
from cdiff_rt.notes import hushed, log
from cdiff_rt.outputs.formats import INPUTS, npz_bytes, parameters_text, png_bytes
from cdiff_rt.outputs.generated import Generated
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.records.find import bundles_of, check_search, inputs_of
from cdiff_rt.records.read import DAMAGED, READ, Record, array_of, latent_of, read_record
from cdiff_rt.sampling.calibrated import Calibration
from cdiff_rt.settings import Settings
from cdiff_rt.told import CALIBRATION
from cdiff_rt.version import __version__

PLACE = ("version", "backend", "precision", "experts", "threads", "machine")  # that may round otherwise
# What a run says anew; the rest is the request.
MADE = (*PLACE, "libraries", "model", "model_hash", "size", "adjustment")
NEAR = 1.0  # level of 255, by which another place may differ


@dataclass(frozen=True, eq=False)
class Reproduced:
    """A file made again. `levels` is the largest difference of a pixel, in levels of 0-255; of latents, scaled alike."""

    content: bytes
    same: bool  # to the byte
    levels: float
    elsewhere: list[str]  # what of the place is another, in words

    @property
    def holds(self) -> bool:
        """Whether it is the same picture: to the byte, or on another place as near as rounding lets it be."""
        return self.same or self.levels == 0 or (self.levels <= NEAR and bool(self.elsewhere))

    def __str__(self) -> str:
        if self.same:
            return "the same to the byte"
        near = f"a largest difference of {self.levels:.3g} of 255" if self.levels else "the same pixels in another file"
        return "; ".join((f"{'the same picture' if self.holds else 'another picture'}, {near}", *self.elsewhere))


def reproduce(
    path: str | Path,
    *,
    search: Sequence[str | Path] = (),
    model: str | Path | None = None,
    backend: str | None = None,
    with_experts: Added | None = None,
) -> Reproduced:
    """Makes the picture at `path` again, on its own backend unless another is named, and compares.

    Inputs are looked for by their hash: in the file itself, beside it, in the current folder, and below the folders to
    `search`; so are bundles whose experts took part, but for those that `with_experts` names. Raises BadInput if the
    file has no record or an input is not there, BadArtefact if the model is another.
    """
    with Again(search, model, backend, with_experts) as again:
        return again(path)


class Again:
    """Makes pictures again, as `reproduce`; the engines stay loaded from one to the next that asks for the same."""

    def __init__(
        self,
        search: Sequence[str | Path] = (),
        model: str | Path | None = None,
        backend: str | None = None,
        with_experts: Added | None = None,
    ) -> None:
        self._search, self._model, self._backend = [Path(folder) for folder in search], model, backend
        self._added = with_experts or {}
        self._pipeline: Pipeline | None = None
        self._asked: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pipeline:
            self._pipeline.close()
        self._pipeline = None

    def __call__(self, path: str | Path) -> Reproduced:
        record = read_record(path)
        asked = _asked_of(record, self._model, self._backend)
        check_search(self._search)
        asked["with_experts"] = bundles_of(record, Path(path).parent, self._search, self._added)
        if self._pipeline is None or asked != self._asked:
            self.__exit__()
            self._pipeline, self._asked = Pipeline.from_pretrained(**asked), asked
        _check_maker(record, self._pipeline)
        found = inputs_of(record, self._pipeline.manifest, Path(path).parent, self._search)
        with hushed():  # what there was to say of the request was said then
            return _made_again(self._pipeline, record, found)


def _asked_of(record: Record, model: str | Path | None, backend: str | None) -> dict[str, Any]:
    """The pipeline that made it, as `from_pretrained` takes it. Raises BadRequest or BadInput."""
    if record.format < 1:
        raise BadInput(f"picture {record.name}", "another program made it, or its record is lost", "give another")
    if "overlay" in record.parameters:
        raise BadRequest("picture", f"{record.name} is a mask laid over a picture", "give the picture itself")
    name, its_backend = record.told("model", str, ""), record.told("backend", str, "")
    if model is None and name not in {path.name for path in MODELS.glob("*/")}:
        raise BadRequest("model", f"{record.name} was made by {name!r:.80}", "give that bundle's folder by --model")
    asked: dict[str, Any] = {"model": model or name, "backend": backend or its_backend}
    known = ("precision", "threads", "experts") if asked["backend"] == its_backend else ()
    return asked | {key: record.parameters[key] for key in known if key in record.parameters}


def _check_maker(record: Record, pipeline: Pipeline) -> None:
    """Raises BadArtefact for another model; another version is told."""
    hashed, ours = record.told("model_hash", str, ""), pipeline.bundle.manifest_hash
    if ours != hashed:
        seen = f"it is {ours:.12}..., and {record.name} was made by {hashed:.12}..."
        raise BadArtefact(f"model {pipeline.manifest.name}, sha256 of its manifest", seen, "give that one by --model")
    if (version := record.parameters.get("version")) != __version__:
        log.warning("%s: made by cdiff-rt %s, and this is %s", record.name, version, __version__)


def _made_again(pipeline: Pipeline, record: Record, found: Mapping[str, Any]) -> Reproduced:
    """Of a batch the image alone, and if that is another, all of them: some libraries round a batch otherwise."""
    settings, image = _settings(record, found), record.told("image", int, 0)
    if record.command == "edit":
        return _compared(record, _edited(pipeline, record, found), image)
    if not settings.first <= image < settings.first + settings.batch:
        raise BadInput(f"record of {record.name}", f"image {image} of {settings.batch}", DAMAGED)
    painted = {role.partition(".")[2]: value for role, value in found.items() if role.startswith("inpaint.")}
    conditions = {role: value for role, value in found.items() if "." not in role}
    inpaint = Inpainting(**painted) if painted else None
    alone = replace(settings, first=image, batch=1)
    made = _compared(record, pipeline.generate(alone, conditions=conditions, inpaint=inpaint), 0)
    if made.levels and settings.batch > 1:
        whole = pipeline.generate(settings, conditions=conditions, inpaint=inpaint)
        made = _compared(record, whole, image - settings.first)
    return made


def _settings(record: Record, found: Mapping[str, Any]) -> Settings:
    """With the regions' maps, and the calibration, that were found."""
    settings = record.settings()
    if CALIBRATION in found:
        calibration = Calibration.of(found[CALIBRATION], found[CALIBRATION].name)
        settings = replace(settings, influence=(*settings.influence, calibration))
    maps = (found.get(f"region.{place}", each.map) for place, each in enumerate(settings.region))
    regions = (replace(each, map=map_) for each, map_ in zip(settings.region, maps, strict=True))
    return replace(settings, region=tuple(regions))


def _edited(pipeline: Pipeline, record: Record, found: Mapping[str, Any]) -> Generated:
    told: dict[str, Any] = {"strength": 1.0, "alphas": [1.0], "keep": [], "method": ""} | record.edit
    if "image" not in found:
        raise BadInput(f"record of {record.name}", "it does not name the photo, as older ones don't", "edit it again")
    wanted = {role: value for role, value in found.items() if "." not in role and role != "image"}
    check_choice("method", told["method"], (*METHODS, "imagic"))
    check_type("keep", told["keep"], list, DAMAGED)
    if told["method"] == "imagic":
        result = _tuned(pipeline, record, found, wanted, told)
    else:
        result = pipeline.edit(
            found["image"],
            _settings(record, found),
            conditions=wanted,
            source={role.removeprefix("source."): of for role, of in found.items() if role.startswith("source.")},
            read=lambda photo: _reading(pipeline, record, found, photo),
            **{name: told[name] for name in ("strength", "alphas", "keep", "method")},
        )
    return side_by_side(result) if told.get("strip") else result


def _reading(pipeline: Pipeline, record: Record, found: Mapping[str, Any], photo: np.ndarray) -> dict[str, Any]:
    """What was read off the photo then: as it is kept, or else read again."""
    names = [role.removeprefix(READ) for role in record.inputs if role.startswith(READ)]
    known = {name: found[READ + name] for name in names if READ + name in found}
    if len(known) == len(names):
        return known
    read = reading_for(pipeline.manifest.name)
    if read is None:
        lost = ", ".join(name for name in names if name not in known)
        raise BadInput(f"picture {record.name}", f"what was read off its photo ({lost}) cannot be read here", DAMAGED)
    return {name: value for name, value in read(photo).items() if name in names} | known


def _tuned(
    pipeline: Pipeline, record: Record, found: Mapping[str, Any], wanted: Mapping[str, Any], told: Mapping[str, Any]
) -> Generated:
    with needed("imagic", "torch"):
        from cdiff_rt.editing.imagic import Tuning
        from cdiff_rt.tuned import edit_by_imagic

    try:
        tuning = Tuning(**told["tuning"])
    except (TypeError, KeyError) as error:
        raise BadInput(f"record of {record.name}", f"its tuning cannot be read ({error})", DAMAGED) from None
    with tempfile.TemporaryDirectory() as folder:
        work, settings = Path(folder) / "work", _settings(record, found)
        how = {"alphas": told["alphas"], "threads": told.get("threads")}
        return edit_by_imagic(pipeline, found["image"], settings, wanted, work, tuning, **how)


def _compared(record: Record, result: Generated, place: int) -> Reproduced:
    """The file as it would be written now, with the request as it is in the record."""
    if not 0 <= place < len(result.latents):
        raise BadInput(f"record of {record.name}", f"it is image {place} of {len(result.latents)}", DAMAGED)
    fresh = result.parameters
    now = {name: fresh.get(name, value) if name in MADE else value for name, value in record.parameters.items()}
    if "change" in fresh.get("edit", {}) and "change" in record.edit:
        now["edit"] = record.edit | {"change": fresh["edit"]["change"]}
    texts = parameters_text(now) | {name: record.texts[name] for name in (INPUTS,) if name in record.texts}
    if record.is_picture:
        made, before, scale = result.images[place], array_of(record.content, record.name), 1.0
        content = png_bytes(made, texts)
    else:
        made, before, scale = result.latents[place], latent_of(record), 255.0
        content = npz_bytes(made, texts)
    if made.shape != before.shape:
        raise BadInput(f"picture {record.name}", f"it is {before.shape}, and its record's is {made.shape}", DAMAGED)
    levels = float(np.abs(made.astype(np.float64) - before).max(initial=0)) * scale
    elsewhere = [*_elsewhere(record, now), *_read_otherwise(record, fresh)]
    return Reproduced(content, content == record.content, levels, elsewhere)


def _elsewhere(record: Record, now: Mapping[str, Any]) -> Iterator[str]:
    for name in PLACE:
        yield from _otherwise(name, record.parameters.get(name), now.get(name))
    then = record.told("libraries", dict, {})
    for name in sorted(set(then) & set(now.get("libraries", {}))):
        yield from _otherwise(name, then[name], now["libraries"][name])


def _otherwise(name: str, then: object, now: object) -> Iterator[str]:
    if then != now:
        yield f"{name} {then} then, {now} now"


def _read_otherwise(record: Record, fresh: Mapping[str, Any]) -> Iterator[str]:
    if fresh.get("edit", {}).get("tuned") != record.edit.get("tuned"):
        yield "the experts learned the photo otherwise"
    for role, trace in record.inputs.items():
        if role.startswith(READ) and fresh["inputs"].get(role, trace).get("sha256") != trace.get("sha256"):
            yield f"{role.removeprefix(READ)} is read off the photo otherwise"
