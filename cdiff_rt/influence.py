"""Influence functions as files: recorded while the loop runs, then written beside an image as arrays and pictures."""

import logging
import math
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from cdiff_rt.errors import BadArtefact, BadEnvironment, BadRequest, OutOfResource
from cdiff_rt.manifest import is_plain_name
from cdiff_rt.sampler import StepState

ARRAYS, SHEET, ANIMATION = "maps.npz", "sheet.jpg", "animation.webp"
TIMESTEPS, FLOAT = "timesteps", "<f4"  # the array beside the modalities' in the .npz, and the type of theirs
SHEET_STEPS, ANIMATION_STEPS = 8, 10  # at most; the pictures stay small however many steps there are
TILE, LARGEST_PANEL = 96, 256  # pixels per side
MILLISECONDS, LAST_MILLISECONDS = 150, 1500  # a frame of the animation, and the last before it begins again
COLOURS = ((255, 128, 0), (0, 144, 255), (60, 190, 60), (230, 60, 160), (150, 90, 230))  # by place, then again
PAPER, INK, LINE = (255, 255, 255), (40, 40, 40), 20  # the ground, the letters, a line's height
log = logging.getLogger("cdiff_rt")

Maps = dict[str, dict[int, np.ndarray]]  # modality -> step -> [*latent]


class InfluenceRecorder:
    """Records every step's influence functions, as a `callback_on_step_end`; `Generated.save(recorder=)` writes them.

    They lie in a nameless file on the disk of `out`: memory does not grow with the steps, and nothing is left of it
    whatever happens. A run's first step begins a new recording. Raises BadEnvironment if Pillow lacks a format.
    """

    def __init__(self, out: str | Path) -> None:
        missing = [name for name in ("webp", "jpg", "freetype2") if not features.check(name)]
        if missing:
            raise BadEnvironment("influence", f"Pillow has no {missing[0]}", "install Pillow's own wheel from PyPI")
        path = Path(out).absolute()
        self._folder = next(folder for folder in (path, *path.parents) if folder.is_dir())
        self._file: IO[bytes] | None = None
        self.timesteps: list[int] = []
        self.shape: tuple[int, ...] = ()  # [M, B, *latent] of each step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def __call__(self, state: StepState) -> None:
        with disk_errors("recording the influence"):
            if state.step == 0 or self._file is None:
                self.__exit__()
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - open as long as this object
                modalities, batch, _, *latent = state.influence.shape
                self.timesteps, self.shape = [], (modalities, batch, *latent)
            self._file.write(state.influence.astype(FLOAT).tobytes())
        self.timesteps.append(state.timestep)

    def read(self, step: int, modality: int, image: int) -> np.ndarray:
        """[*latent]: the influence of one modality at one step on one image."""
        assert self._file is not None
        modalities, batch, *latent = self.shape
        size = math.prod(latent) * np.dtype(FLOAT).itemsize
        self._file.seek(size * ((step * modalities + modality) * batch + image))
        return np.frombuffer(self._file.read(size), FLOAT).reshape(latent)

    def check(self, names: list[str], batch: int, steps: int) -> None:
        """Raises BadRequest unless this holds such a run, BadArtefact if a name cannot be that of a file."""
        if self._file is None or (len(self.timesteps), *self.shape[:2]) != (steps, len(names), batch):
            remedy = "give it to generate as callback_on_step_end, and save before its with block ends"
            raise BadRequest("influence", "the recorder did not see this run", remedy)
        for name in names:
            if not is_plain_name(name) or name == TIMESTEPS:
                raise BadArtefact("influence", f"a modality has the name {name!r}", "give it another in the bundle")
        if len(self.shape) != 4:
            log.info("influence: the latents have rank %d, so only %s is written", len(self.shape) - 2, ARRAYS)


def write_influence(
    folder: Path, recorder: InfluenceRecorder, image: int, names: list[str], pixels: np.ndarray
) -> None:
    """The influence on image number `image` of the batch, [H, W, 3] uint8, as files of `folder`."""
    maps = write_maps(folder, recorder, image, names)
    if maps:
        picture, steps = Image.fromarray(pixels), len(recorder.timesteps)
        contact_sheet(picture, maps, evenly(steps, SHEET_STEPS)).save(folder / SHEET, quality=90, subsampling=0)
        write_animation(folder / ANIMATION, picture, maps, evenly(steps, ANIMATION_STEPS))


def write_maps(folder: Path, recorder: InfluenceRecorder, image: int, names: list[str]) -> Maps:
    """All as an .npz, each modality's as a strip if they are flat -> the few that the pictures show, none if they are not flat."""
    steps, (_, _, *latent) = len(recorder.timesteps), recorder.shape
    shown = {*evenly(steps, SHEET_STEPS), *evenly(steps, ANIMATION_STEPS)} if len(latent) == 2 else set()
    maps: Maps = {name: {} for name in names} if shown else {}
    with zipfile.ZipFile(folder / ARRAYS, "w") as archive:
        with begin_array(archive, TIMESTEPS, (steps,), "<i8") as member:
            member.write(np.array(recorder.timesteps, "<i8").tobytes())
        for m, name in enumerate(names):
            with begin_array(archive, name, (steps, *latent), FLOAT) as member:
                for step in range(steps):
                    values = recorder.read(step, m, image)
                    member.write(values.tobytes())
                    if step in shown:
                        maps[name][step] = values
            if maps:
                write_strip(folder / f"{name}.png", (recorder.read(step, m, image) for step in range(steps)), steps)
    return maps


def begin_array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str) -> IO[bytes]:
    """Opens an array of an .npz to be written bit by bit: numpy's own savez wants it whole."""
    member = archive.open(f"{name}.npy", "w", force_zip64=True)
    np.lib.format.write_array_header_1_0(member, {"descr": dtype, "fortran_order": False, "shape": shape})
    return member


def folder_of(image: Path) -> Path:
    """Where the influence on an image goes: beside it, man.png -> man.influence."""
    return image.with_suffix(".influence")


def check_target(folder: Path, *, force: bool) -> None:
    """Raises BadRequest if something is there that may not be replaced: by force only what this file wrote."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not (folder / ARRAYS).is_file():
        raise BadRequest("out", f"{folder} was not written by --save-influence", "remove it or choose another name")
    if not force:
        raise BadRequest("out", f"{folder} exists", "choose another name or overwrite it with --force")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder that takes the place of `folder` at the end of the block, or is gone if the block fails."""
    with disk_errors(f"writing {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".cdiff-rt-") as hidden:
            new, old = Path(hidden, "new"), Path(hidden, "old")
            new.mkdir()  # with the permissions that the user's folders have; the hidden one is its owner's alone
            yield new
            if folder.exists():
                os.replace(folder, old)
            os.replace(new, folder)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "free some space or choose another folder"
        raise OutOfResource(doing, error.strerror or str(error), remedy) from None


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of 0..count-1, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def levels(values: np.ndarray) -> np.ndarray:
    """Influence -> grey levels 0..255. It leaves 0..1 by rounding errors only, which are rounded away here."""
    return np.rint(values * 255).astype(np.uint8)


def write_strip(path: Path, maps: Iterator[np.ndarray], count: int) -> None:
    """`count` maps [h, w] in 0..1 as one grey PNG, each below the one before.

    Pillow wants the whole picture at once, and a file for each map takes ten times as long as all that is in it.
    """
    packer, begun = zlib.compressobj(1), False
    with path.open("wb") as file:
        for values in maps:
            height, width = values.shape
            if not begun:
                file.write(b"\x89PNG\r\n\x1a\n")
                file.write(
                    chunk(b"IHDR", struct.pack(">IIBBBBB", width, count * height, 8, 0, 0, 0, 0))
                )  # 8 bits, grey
                begun = True
            lines = np.zeros((height, 1 + width), np.uint8)  # each begins with its filter, 0 for none
            lines[:, 1:] = levels(values)
            file.write(chunk(b"IDAT", packer.compress(lines.tobytes())))
        file.write(chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b""))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def overlays(picture: Image.Image, maps: list[np.ndarray], colour: tuple[int, int, int]) -> Iterator[Image.Image]:
    """For each map the picture, grey where a modality has no influence and in its colour where it has all."""
    plain = picture.convert("L").convert("RGB")
    tinted = Image.blend(plain, Image.new("RGB", picture.size, colour), 0.6)
    for values in maps:
        where = Image.fromarray(levels(values)).resize(picture.size, Image.Resampling.BICUBIC)
        yield Image.composite(tinted, plain, where)


def contact_sheet(picture: Image.Image, maps: Maps, shown: list[int]) -> Image.Image:
    """A row for each modality, a column for each of the steps `shown`, and the picture itself at the end."""
    small, font = picture.resize((TILE, TILE)), ImageFont.load_default(12)
    left, pitch = 12 + max(math.ceil(font.getlength(name)) for name in maps), TILE + 2
    sheet = Image.new("RGB", (left + pitch * (len(shown) + 1), LINE + pitch * len(maps)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate([*(f"step {step}" for step in shown), "image"]):
        draw.text((left + column * pitch, 1), title, INK, font)
    for row, (name, values) in enumerate(maps.items()):
        top, colour = LINE + row * pitch, COLOURS[row % len(COLOURS)]
        draw.text((6, top + TILE / 2), name, colour, font, "lm")
        tiles = overlays(small, [values[step] for step in shown], colour)
        for column, tile in enumerate([*tiles, small]):
            sheet.paste(tile, (left + column * pitch, top))
    return sheet


def frames(picture: Image.Image, maps: Maps, shown: list[int]) -> Iterator[Image.Image]:
    """The influence of each modality over the picture, side by side; below, its name and a bar as long as its mean."""
    (width, height), font = picture.size, ImageFont.load_default(12)
    empty = Image.new("RGB", (width * len(maps), height + LINE), PAPER)
    for place, name in enumerate(maps):
        ImageDraw.Draw(empty).text((place * width + 4, height + 5), name, INK, font)
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(maps))]
    panels = [
        overlays(picture, [of[step] for step in shown], colour)
        for of, colour in zip(maps.values(), colours, strict=True)
    ]
    for step, *row in zip(shown, *panels, strict=True):
        whole = empty.copy()
        draw = ImageDraw.Draw(whole)
        for place, (values, panel, colour) in enumerate(zip(maps.values(), row, colours, strict=True)):
            whole.paste(panel, (place * width, 0))
            bar = round(width * float(values[step].mean()))
            draw.rectangle((place * width, height, place * width + bar - 1, height + 3), colour) if bar else None
        draw.text((whole.width - 4, height + 5), f"step {step}", INK, font, "ra")
        yield whole


def write_animation(path: Path, picture: Image.Image, maps: Maps, shown: list[int]) -> None:
    panel = picture.copy()
    panel.thumbnail((LARGEST_PANEL, LARGEST_PANEL))
    first, *others = frames(panel, maps, shown)
    first.save(
        path,
        save_all=True,
        append_images=others,
        duration=[MILLISECONDS] * len(others) + [LAST_MILLISECONDS],
        loop=0,
        method=0,  # the encoder's quickest
        quality=75,
        kmin=0,  # with kmax: no second attempt at each frame as a key frame
        kmax=0,
    )
