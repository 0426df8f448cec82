"""What one needs to paint masks: the palette as a picture and for paint programs, a mask to begin with, a script."""

import io
import struct
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

from cdiff_rt.inputs.palette import CLASSES, PALETTE

NAME = "cdiff-rt faces"
SIDE = 512  # of the template
# (class, centre x, centre y, half its width, half its height), of SIDE, each over those before: a face from the front
SHAPES = (
    ("hair", 256, 216, 158, 178), ("cloth", 256, 544, 244, 128), ("neck", 256, 410, 60, 92), ("l_ear", 382, 256, 22, 44),
    ("r_ear", 130, 256, 22, 44), ("skin", 256, 256, 124, 160), ("l_brow", 312, 188, 40, 12), ("r_brow", 200, 188, 40, 12),
    ("l_eye", 312, 224, 28, 13), ("r_eye", 200, 224, 28, 13), ("nose", 256, 276, 26, 44), ("u_lip", 256, 338, 54, 16),
    ("l_lip", 256, 358, 46, 18),
)  # fmt: skip
CELL, LINE = (150, 40), 30  # pixels of the swatch: a colour's, and of that what its name leaves

GIMP_SCRIPT = f"""\
; Turns a picture into a mask: flattens it on black, and gives every pixel the nearest colour of the palette.
; Copy this into GIMP's folder of scripts and faces.gpl into that of palettes (Preferences, Folders); then it is
; Image > Mode > To a cdiff-rt mask. Export as PNG.
(define (cdiff-rt-mask image drawable)
  (let ((palette (if (defined? 'gimp-palette-get-by-name) (car (gimp-palette-get-by-name "{NAME}")) "{NAME}")))
    (gimp-image-undo-group-start image)
    (gimp-context-push)
    (gimp-context-set-background '(0 0 0))
    (gimp-image-flatten image)
    (gimp-image-convert-indexed image CONVERT-DITHER-NONE CONVERT-PALETTE-CUSTOM 0 FALSE FALSE palette)
    (gimp-context-pop)
    (gimp-image-undo-group-end image)
    (gimp-displays-flush)))
(script-fu-register "cdiff-rt-mask" "To a cdiff-rt mask" "The nearest colours of {NAME}" "cdiff-rt" "cdiff-rt" "2026"
  "RGB*" SF-IMAGE "Image" 0 SF-DRAWABLE "Drawable" 0)
(script-fu-menu-register "cdiff-rt-mask" "<Image>/Image/Mode")
"""


def swatch() -> bytes:
    """Every colour with its label and class below it."""
    columns = 5
    rows = -(-len(CLASSES) // columns)
    picture = Image.new("RGB", (columns * CELL[0], rows * CELL[1]), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default_imagefont()  # letters that are the same everywhere
    for label, (name, colour) in enumerate(zip(CLASSES, PALETTE, strict=True)):
        x, y = label % columns * CELL[0], label // columns * CELL[1]
        draw.rectangle((x, y, x + CELL[0] - 3, y + CELL[1] - LINE // 2 - 1), colour)
        draw.text((x + 2, y + CELL[1] - LINE // 2), f"{label} {name}", "black", font)
    return _png(picture)


def template() -> bytes:
    """A mask of a face from the front, to paint over."""
    picture = Image.new("P", (SIDE, SIDE))
    picture.putpalette([channel for colour in PALETTE for channel in colour])
    draw = ImageDraw.Draw(picture)
    for name, x, y, width, height in SHAPES:
        draw.ellipse((x - width, y - height, x + width, y + height), CLASSES.index(name))
    return _png(picture)


def gpl() -> bytes:
    """For GIMP, Krita, Inkscape, Aseprite."""
    colours = [f"{r:3} {g:3} {b:3}\t{label} {name}" for label, name, (r, g, b) in _named()]
    return "\n".join(["GIMP Palette", f"Name: {NAME}", "Columns: 5", "#", *colours, ""]).encode()


def aco() -> bytes:
    """For Photoshop: the colours of version 1, then those of version 2, which have names."""
    plain = [struct.pack(">5H", 0, *(257 * channel for channel in colour), 0) for colour in PALETTE]
    names = [f"{label} {name}\0".encode("utf-16-be") for label, name, _ in _named()]
    named = [colour + struct.pack(">I", len(name) // 2) + name for colour, name in zip(plain, names, strict=True)]
    return b"".join(
        struct.pack(">2H", version, len(PALETTE)) + b"".join(of) for version, of in ((1, plain), (2, named))
    )


def _named() -> list[tuple[int, str, tuple[int, int, int]]]:
    return [(label, name, colour) for label, (name, colour) in enumerate(zip(CLASSES, PALETTE, strict=True))]


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "faces.png": swatch,
    "faces.gpl": gpl,
    "faces.aco": aco,
    "template.png": template,
    "gimp-mask.scm": GIMP_SCRIPT.encode,
}
