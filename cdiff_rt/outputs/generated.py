"""What a run leaves: its images or latents with all parameters inside, and on request more beside each of them."""

import functools
import itertools
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdiff_rt.errors import BadRequest, check_range, check_type, whole
from cdiff_rt.outputs import files
from cdiff_rt.outputs.files import all_or_nothing
from cdiff_rt.outputs.formats import FORMATS, inputs_text, npz_bytes, parameters_text, png_bytes
from cdiff_rt.outputs.recorder import Recorder
from cdiff_rt.sampling.conflict import Conflict

IMAGE, LATENT, OVERLAY = next(iter(FORMATS)), ".npz", ".overlay.png"
OVERWRITE = "choose another name, or overwrite it with --force (force=True)"
OVERLAY_SHARE = 0.3  # of the mask, as the reference blends them
LARGEST_SCALE = 64
NO_OVERLAY = ("overlay", "no condition of this run can be drawn", "give a mask or leave it out")
TURN = "saving"  # what one process at a time has of a folder where names are free or not
_OF_A_FILE = re.compile(r"\.(?!v[0-9])[a-z][a-z0-9]{1,3}|\.(jsonl|safetensors)")  # face.txt, but no faces.v2 or run.2


@dataclass(frozen=True)
class Generated:
    images: np.ndarray  # [B, H, W, 3] uint8; [B, 0, 0, 3] if the latents are the data
    latents: np.ndarray  # [B, C, *latent] float32, as the loop left them
    parameters: dict[str, Any]  # all of the run, as stored in its files
    drawing: np.ndarray | None = field(default=None, repr=False)  # [S, S, 3] uint8: the mask, if there is one
    warnings: list[str] = field(default_factory=list)  # what was warned of on the way
    inputs: dict[str, np.ndarray] = field(
        default_factory=dict, repr=False
    )  # what was given, by its role, as it was read
    conflict: Conflict | None = field(default=None, repr=False)  # empty where the run did not show its steps

    @property
    def numbers(self) -> range:
        """Those of the images, of their seed."""
        return range(self.parameters["first"], self.parameters["first"] + len(self.latents))

    def png_bytes(self, i: int, *, embed: bool = False) -> bytes:
        """Image number `i` of the batch as the content of a PNG file, with all parameters inside; see `save`."""
        i = whole("image", i)
        if not 0 <= i < len(self.latents):
            raise BadRequest("image", str(i), f"give the number of one of the {len(self.latents)}, from 0 on")
        if not self.images.size:
            raise BadRequest("image", "this model's latents are the data", "take latents, or save to .npz")
        return png_bytes(self.images[i], self._texts_of(i, embed))

    def content(self, i: int) -> bytes:
        """The file of image number `i` of the batch: a PNG, or where latents are the data a .npz."""
        return self.png_bytes(i) if self.images.size else npz_bytes(self.latents[i], self._texts_of(i, False))

    def save(
        self,
        out: str | Path,
        *,
        force: bool = False,
        recorders: Sequence[Recorder] = (),
        latent: bool = False,
        overlay: bool = False,
        scale: int = 1,
        embed: bool = False,
    ) -> list[Path]:
        """Writes one file per image, each with all parameters of the run inside, and returns their paths.

        `out` is a file's name, or a folder, where each gets the next free name (`output_paths`). Beside each: a folder
        of every recorder that saw the run, the latent as .npz, the mask laid over the image; their pictures are
        enlarged `scale` times. With `embed` each file also holds the inputs, so that it can be made again without them
        (`reproduce`). They appear all or not at all. Raises BadRequest or OutOfResource.
        """
        check_type("out", out, str | Path, "give the path of a folder or file")
        if not out:
            raise BadRequest("out", "it is empty", "give the path of a folder or file")
        beside, scale = Beside(tuple(recorders), latent, overlay), whole("scale", scale)
        check_range("scale", scale, 1, LARGEST_SCALE)
        suffix = IMAGE if self.images.size else LATENT
        names = functools.partial(_paths, Path(out), self.parameters["seed"], self.numbers, suffix, beside, force)
        folder = names()[0].parent
        if overlay and (self.drawing is None or not self.images.size):
            raise BadRequest(*NO_OVERLAY)
        for recorder in recorders:
            recorder.check(len(self.latents), self.parameters["steps"])
        with (
            files.disk_errors(f"writing {out}"),
            nullcontext() if force else files.own_folder(folder, TURN, files.TURN),
        ):
            paths = names()  # whoever saved in the meantime has some of them
            for i, path in enumerate(paths):
                self._save(path, i, beside, scale, embed)
        return paths

    def _save(self, path: Path, i: int, beside: "Beside", scale: int, embed: bool) -> None:
        with all_or_nothing(path) as folder:
            self._write(folder / path.name, i, beside, scale, embed)
            for recorder in beside.recorders:
                assert isinstance(recorder, Recorder)
                its_folder = recorder.folder_of(folder / path.name)
                its_folder.mkdir()
                recorder.write(its_folder, i, self.images[i], scale)

    def _parameters_of(self, i: int) -> dict[str, Any]:
        return self.parameters | {"image": self.numbers[i]}

    def _texts_of(self, i: int, embed: bool, **more: Any) -> dict[str, str]:
        return parameters_text(self._parameters_of(i) | more) | (inputs_text(self.inputs) if embed else {})

    def _write(self, path: Path, i: int, beside: "Beside", scale: int, embed: bool) -> None:
        texts = self._texts_of(i, embed)
        if self.images.size:
            path.write_bytes(FORMATS[path.suffix.lower()](self.images[i], texts))
            if beside.overlay:
                assert self.drawing is not None
                drawn = laid_over(self.images[i], self.drawing, scale)
                path.with_suffix(OVERLAY).write_bytes(png_bytes(drawn, self._texts_of(i, embed, overlay=scale)))
        if beside.latent or not self.images.size:
            path.with_suffix(LATENT).write_bytes(npz_bytes(self.latents[i], texts))


def laid_over(image: np.ndarray, drawing: np.ndarray, scale: int = 1) -> np.ndarray:
    """The mask's colours, as large as the image, blended into it."""
    size = (image.shape[1] * scale, image.shape[0] * scale)
    picture = Image.fromarray(image).resize(size)
    mask = Image.fromarray(drawing).resize(size, Image.Resampling.NEAREST)
    return np.asarray(Image.blend(picture, mask, OVERLAY_SHARE))


@dataclass(frozen=True)
class Beside:
    """What is written beside an image."""

    recorders: tuple[Recorder | type[Recorder], ...] = ()
    latent: bool = False
    overlay: bool = False

    def check(self, path: Path, *, force: bool) -> None:
        """Raises BadRequest if the image, or something beside it, exists and may not be replaced."""
        more = [path.with_suffix(LATENT)] if self.latent else []
        more += [path.with_suffix(OVERLAY)] if self.overlay else []
        files.check_names(path, *more, *(recorder.folder_of(path) for recorder in self.recorders))
        for target in (path, *more):
            if os.path.isdir(target):
                raise BadRequest("out", f"{target} is a folder", "choose another name")
            if os.path.exists(target) and not force:
                raise BadRequest("out", f"{target} exists", OVERWRITE)
        for recorder in self.recorders:
            recorder.check_target(path, force=force)

    def exists(self, path: Path) -> bool:
        """Whether anything at all is there."""
        suffixes = {LATENT, OVERLAY, *(recorder.suffix for recorder in self.recorders)}
        return any(os.path.lexists(target) for target in (path, *map(path.with_suffix, suffixes)))


def output_paths(
    out: Path, seed: int, numbers: range, suffix: str = IMAGE, beside: Beside | None = None, *, force: bool = False
) -> list[Path]:
    """Where images go: `out` itself if it has the suffix of their format, else files of the folder `out`, named by seed and number.

    In a folder each takes the next name at which nothing lies, seed0-000-2.png after seed0-000.png; with `force` the
    first. Raises BadRequest for one file for many, for the name of another kind of file, and for a file that exists
    without `force`; BadInput or OutOfResource if none can be written.
    """
    files.check_names(out)
    files.check_folder(out.parent if out.suffix.lower() in FORMATS or out.suffix.lower() == suffix else out)
    return _paths(out, seed, numbers, suffix, beside or Beside(), force)


def _paths(out: Path, seed: int, numbers: range, suffix: str, beside: "Beside", force: bool) -> list[Path]:
    able = tuple(FORMATS) if suffix in FORMATS else (suffix,)
    one_file = out.suffix.lower() in able
    if not one_file:
        check_is_folder(out, able)
    elif len(numbers) > 1:
        raise BadRequest("out", f"one file, {out.name}, for {len(numbers)} images", "give a folder")
    paths = [out] if one_file else [out / f"seed{seed}-{number:03d}{suffix}" for number in numbers]
    if not one_file and not force:
        files.sweep(out)
        paths = [next(name for name in _names(path) if not beside.exists(name)) for path in paths]
    for path in paths:
        beside.check(path, force=force)
    return paths


def check_is_folder(out: Path, able: tuple[str, ...] = ()) -> None:
    """Raises BadRequest for what looks like a file's name and is no folder yet; `able` are those of results."""
    if out.is_dir():
        return
    if out.name.lower() in (*FORMATS, LATENT):
        raise BadRequest("out", f"{out.name} is an ending without a name", f"give one, such as face{out.name}")
    if _OF_A_FILE.fullmatch(out.suffix.lower()):
        make = f"a folder (if {out.name} is to be one, make it first)"
        if able:
            remedy = f"this model's results are written as {', '.join(able)}; give such a name or {make}"
            raise BadRequest("out", out.name, remedy)
        raise BadRequest("out", f"one file, {out.name}, for many images", f"give {make}")


def _names(path: Path) -> "itertools.chain[Path]":
    """man.png, man-2.png, man-3.png ..."""
    return itertools.chain([path], (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2)))
