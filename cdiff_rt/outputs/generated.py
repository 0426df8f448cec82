"""What a run leaves: its images or latents with all parameters inside, and on request more beside each of them."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cdiff_rt.errors import BadRequest
from cdiff_rt.outputs import files, formats
from cdiff_rt.outputs.files import all_or_nothing
from cdiff_rt.outputs.recorder import Recorder

IMAGE, LATENT, OVERLAY = ".png", ".npz", ".overlay.png"
OVERLAY_SHARE = 0.3  # of the mask, as the reference blends them
_OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Generated:
    images: np.ndarray  # [B, H, W, 3] uint8; [B, 0, 0, 3] if the latents are the data
    latents: np.ndarray  # [B, C, *latent] float32, as the loop left them
    record: dict  # every parameter of the run, as stored in its files
    drawing: np.ndarray | None = field(default=None, repr=False)  # [S, S, 3] uint8: the mask, if there is one

    def save(
        self,
        out: str | Path,
        *,
        force: bool = False,
        recorders: Sequence[Recorder] = (),
        latent: bool = False,
        overlay: bool = False,
    ) -> list[Path]:
        """Writes one file per image, see `output_paths`, each with all parameters of the run inside.

        Beside each: a folder of every recorder that saw the run, the latent as .npz, the mask laid over the image.
        They appear all or not at all. Raises BadRequest or OutOfResource.
        """
        numbers = range(self.record["first"], self.record["first"] + len(self.latents))
        suffix = IMAGE if self.images.size else LATENT
        paths = output_paths(Path(out), self.record["seed"], numbers, suffix)
        check_free(paths, force=force, recorders=recorders, latent=latent, overlay=overlay)
        if overlay and (self.drawing is None or not self.images.size):
            raise BadRequest("overlay", "no condition of this run can be drawn", "give a mask or leave it out")
        for recorder in recorders:
            recorder.check(len(self.latents), self.record["steps"])
        for i, (number, path) in enumerate(zip(numbers, paths, strict=True)):
            with all_or_nothing(path.parent, str(path)) as folder:
                self._write(folder / path.name, i, self.record | {"image": number}, latent=latent, overlay=overlay)
                for recorder in recorders:
                    beside = recorder.folder_of(folder / path.name)
                    beside.mkdir()
                    recorder.write(beside, i, self.images[i])
        return paths

    def _write(self, path: Path, i: int, record: dict, *, latent: bool, overlay: bool) -> None:
        texts = formats.parameters_text(record)
        if self.images.size:
            formats.write_png(path, self.images[i], texts)
            if overlay:
                assert self.drawing is not None
                formats.write_png(path.with_suffix(OVERLAY), laid_over(self.images[i], self.drawing), texts)
        if latent or not self.images.size:
            np.savez(path.with_suffix(LATENT), latent=self.latents[i], record=json.dumps(record))


def laid_over(image: np.ndarray, drawing: np.ndarray) -> np.ndarray:
    """The mask's colours, as large as the image, blended into it."""
    picture = Image.fromarray(image)
    return np.asarray(
        Image.blend(picture, Image.fromarray(drawing).resize(picture.size, Image.Resampling.NEAREST), OVERLAY_SHARE)
    )


def output_paths(out: Path, seed: int, numbers: range, suffix: str = IMAGE) -> list[Path]:
    """Where things go: `out` itself if it has the suffix, else files of the folder `out`, named by seed and number.

    Raises BadRequest for one file for many, or for a name of another format.
    """
    strange = (*_OTHER_FORMATS, *({IMAGE, LATENT} - {suffix}))
    if out.suffix.lower() in strange:
        raise BadRequest(
            "out", f"{out.name}", f"this model's results are written as {suffix}; give such a name or a folder"
        )
    one_file = out.suffix.lower() == suffix
    if one_file and len(numbers) > 1:
        raise BadRequest("out", f"one file, {out.name}, for {len(numbers)} images", "give a folder")
    return [out] if one_file else [out / f"seed{seed}-{number:03d}{suffix}" for number in numbers]


def check_free(
    paths: list[Path],
    *,
    force: bool,
    recorders: Sequence[Recorder | type[Recorder]] = (),
    latent: bool = False,
    overlay: bool = False,
) -> None:
    """Raises BadRequest if something to be written exists and `force` is not set; BadInput if none can be written."""
    files.check_folder(paths[0].parent)
    for path in paths:
        more = [path.with_suffix(LATENT)] if latent else []
        more += [path.with_suffix(OVERLAY)] if overlay else []
        for target in (path, *more):
            if os.path.isdir(target):
                raise BadRequest("out", f"{target} is a folder", "choose another name")
            if os.path.exists(target) and not force:
                raise BadRequest("out", f"{target} exists", "choose another name or overwrite it with --force")
        for recorder in recorders:
            recorder.check_target(path, force=force)
