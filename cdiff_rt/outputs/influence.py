"""Influence functions as files: arrays of every step, and pictures of where each modality decides and where they differ."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from cdiff_rt.errors import BadArtefact, BadEnvironment
from cdiff_rt.notes import log
from cdiff_rt.outputs.contact_sheet import INK, LINE, PAPER, TILE, Colour, contact_sheet
from cdiff_rt.outputs.recorder import Recorder, evenly
from cdiff_rt.sampling.conflict import disagreement
from cdiff_rt.sampling.loop import StepState

SHEET, ANIMATION = "sheet.jpg", "animation.webp"
CONFLICT = "conflict"  # beside the modalities, where there are several
SHEET_STEPS, ANIMATION_STEPS = 8, 10  # at most; the pictures stay small however many steps there are
LARGEST_PANEL = 256  # pixels per side
GRID_COLUMNS, GAP = 10, 2  # maps in a line; pixels between them
MILLISECONDS, LAST_MILLISECONDS = 150, 1500  # a frame of the animation, and the last before it begins again
COLOURS = ((255, 128, 0), (0, 144, 255), (60, 190, 60), (230, 60, 160), (150, 90, 230))  # by place, then again

Maps = dict[str, dict[int, np.ndarray]]  # modality -> step -> [h, w]


class InfluenceRecorder(Recorder):
    """The influence functions after all adjustment, and how much the modalities disagree (sampling/conflict.py).

    Raises BadEnvironment if Pillow lacks a format.
    """

    option, suffix, archive = "--save-influence", ".influence", "maps.npz"

    def __init__(self, out: str | Path, decode: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        missing = [name for name in ("webp", "jpg", "freetype2") if not features.check(name)]
        if missing:
            raise BadEnvironment("influence", f"Pillow has no {missing[0]}", "install Pillow's own wheel from PyPI")
        super().__init__(out, decode)

    def arrays(self, state: StepState) -> dict[str, np.ndarray]:
        found = {name: values[:, 0] for name, values in zip(state.modalities, state.influence, strict=True)}
        if CONFLICT in found:
            raise BadArtefact("recorder", f"a modality has the name {CONFLICT!r}", "give it another in the bundle")
        several = len(found) > 1
        return found | ({CONFLICT: disagreement(state.predictions, state.influence)} if several else {})

    def check(self, batch: int, steps: int) -> None:
        super().check(batch, steps)
        rank = self._rank()
        if rank != 2:
            log.info("influence: the latents have rank %d, so only %s is written", rank, self.archive)

    def write(self, folder: Path, image: int, pixels: np.ndarray, scale: int = 1) -> None:
        self.write_arrays(folder, image)
        if self._rank() != 2 or not pixels.size:
            return
        picture, steps = Image.fromarray(pixels), len(self.timesteps)
        for name in self.shapes:
            grid((self.read(step, name, image) for step in range(steps)), steps, scale).save(folder / f"{name}.png")
        shown = {count: evenly(steps, count) for count in (SHEET_STEPS, ANIMATION_STEPS)}
        seen = sorted({step for chosen in shown.values() for step in chosen})
        maps = {name: {step: self.read(step, name, image) for step in seen} for name in self.shapes}
        influence_sheet(picture, maps, shown[SHEET_STEPS], scale).save(folder / SHEET, quality=90, subsampling=0)
        deciding = {name: values for name, values in maps.items() if name != CONFLICT}
        write_animation(folder / ANIMATION, picture, deciding, shown[ANIMATION_STEPS], scale)

    def _rank(self) -> int:
        return len(next(iter(self.shapes.values()))) - 1


def levels(values: np.ndarray) -> np.ndarray:
    """Influence -> grey levels 0..255. With a weight below 0 it leaves 0..1, and pictures show the nearer of the two."""
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def grid(maps: Iterator[np.ndarray], count: int, scale: int = 1) -> Image.Image:
    """`count` maps [h, w] in 0..1 as one grey picture, GRID_COLUMNS in a line, the first at the top left."""
    columns, sheet = min(GRID_COLUMNS, count), np.zeros((0, 0), np.uint8)
    for place, values in enumerate(maps):
        height, width = (scale * side for side in values.shape)
        if not sheet.size:
            lines = -(-count // columns)
            sheet = np.full((lines * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255, np.uint8)
        top, left = place // columns * (height + GAP), place % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = levels(values).repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(sheet)


def overlays(picture: Image.Image, maps: list[np.ndarray], colour: Colour) -> Iterator[Image.Image]:
    """For each map the picture, grey where a modality has no influence and in its colour where it has all."""
    plain = picture.convert("L").convert("RGB")
    tinted = Image.blend(plain, Image.new("RGB", picture.size, colour), 0.6)
    for values in maps:
        where = Image.fromarray(levels(values)).resize(picture.size, Image.Resampling.BICUBIC)
        yield Image.composite(tinted, plain, where)


def influence_sheet(picture: Image.Image, maps: Maps, shown: list[int], scale: int = 1) -> Image.Image:
    """A row for each modality, a column for each of the steps `shown`, and the picture itself at the end."""
    small, colours = picture.resize((TILE * scale, TILE * scale)), colours_of(maps)
    rows = {
        name: [*overlays(small, [values[step] for step in shown], colours[name]), small]
        for name, values in maps.items()
    }
    return contact_sheet([*(f"step {step}" for step in shown), "image"], rows, colours, scale)


def colours_of(maps: Maps) -> dict[str, Colour]:
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(maps)}


def frames(picture: Image.Image, maps: Maps, shown: list[int]) -> Iterator[Image.Image]:
    """The influence of each modality over the picture, side by side; below, its name and a bar as long as its mean."""
    (width, height), font = picture.size, ImageFont.load_default(12)
    empty = Image.new("RGB", (width * len(maps), height + LINE), PAPER)
    for place, name in enumerate(maps):
        ImageDraw.Draw(empty).text((place * width + 4, height + 5), name, INK, font)
    colours = colours_of(maps)
    panels = [overlays(picture, [values[step] for step in shown], colours[name]) for name, values in maps.items()]
    for step, *row in zip(shown, *panels, strict=True):
        whole = empty.copy()
        draw = ImageDraw.Draw(whole)
        for place, ((name, values), panel) in enumerate(zip(maps.items(), row, strict=True)):
            whole.paste(panel, (place * width, 0))
            bar = round(width * float(values[step].mean()))
            if bar:
                draw.rectangle((place * width, height, place * width + bar - 1, height + 3), colours[name])
        draw.text((whole.width - 4, height + 5), f"step {step}", INK, font, "ra")
        yield whole


def write_animation(path: Path, picture: Image.Image, maps: Maps, shown: list[int], scale: int = 1) -> None:
    panel = picture.copy()
    panel.thumbnail((LARGEST_PANEL, LARGEST_PANEL))
    panel = panel.resize((panel.width * scale, panel.height * scale))
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
