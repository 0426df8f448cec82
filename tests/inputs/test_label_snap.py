import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.images import nearest
from cdiff_rt.inputs.label_maps import read_labels
from cdiff_rt.inputs.label_snap import OPEN, grow
from tests.label_pictures import OTHER, TABLE, example, palette_png, saved, sorted_anew


def blurred(picture: Image.Image, by: int) -> bytes:
    return saved(picture.filter(ImageFilter.GaussianBlur(by)))


WAYS = {  # how a mask becomes soft; its side; the share of the cells that must be the same
    "JPEG 95": (lambda picture: saved(picture, "JPEG", quality=95), 512, 0.99),
    "JPEG 75": (lambda picture: saved(picture, "JPEG", quality=75), 512, 0.99),
    "JPEG 50": (lambda picture: saved(picture, "JPEG", quality=50), 512, 0.985),
    "WebP": (lambda picture: saved(picture, "WEBP"), 512, 0.99),
    "BMP": (lambda picture: saved(picture, "BMP"), 512, 1),
    "blur 1": (lambda picture: blurred(picture, 1), 512, 0.99),
    "blur 2": (lambda picture: blurred(picture, 2), 512, 0.985),
    "blur 4": (lambda picture: blurred(picture, 4), 512, 0.975),
    "halved": (lambda picture: saved(picture.resize((256, 256), Image.Resampling.LANCZOS)), 512, 0.985),
    "doubled": (lambda picture: saved(picture.resize((1024, 1024), Image.Resampling.BICUBIC)), 512, 0.99),
    "small JPEG": (lambda picture: saved(picture, "JPEG", quality=75), 128, 0.96),
    "JPEG as PNG": (lambda picture: as_jpeg_first(picture), 512, 0.99),
}


def as_jpeg_first(picture: Image.Image) -> bytes:
    return saved(Image.open(io.BytesIO(saved(picture, "JPEG"))))


@pytest.mark.parametrize("number", [1, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 4, 5))])
@pytest.mark.parametrize("way", WAYS)
def test_nearly_every_cell_of_a_softened_mask_keeps_its_label(way, number, caplog):
    soften, side, share = WAYS[way]
    labels = example(number, side)
    read, how = read_labels(soften(Image.fromarray(TABLE[labels])), 19, snap=True)
    assert (nearest(read, 32) == nearest(labels, 32)).mean() >= share
    assert caplog.messages == []  # no soft edge is taken for an area of another colour
    assert "pixels moved" in how or way == "BMP"


LABELS = example(6)
HIDDEN = np.dstack([np.full((128, 128, 3), 255, np.uint8), np.zeros((128, 128), np.uint8)])
ON_CLEAR = np.where((LABELS == 0)[..., None], HIDDEN, np.dstack([TABLE[LABELS], np.full((128, 128), 255, np.uint8)]))
CLEAR = int((LABELS == 0).sum())


@pytest.mark.parametrize(
    ("picture", "moved"),
    [
        (saved(ON_CLEAR), CLEAR),
        (saved(np.where((LABELS == 0)[..., None], np.uint8(255), TABLE[LABELS])), CLEAR),
        (palette_png(LABELS, TABLE, transparency=0), CLEAR),
        (sorted_anew(LABELS, TABLE.astype(int) - 8), int((TABLE[LABELS] > 0).any(-1).sum())),
    ],
    ids=["transparent", "white", "transparent palette", "off by some"],
)
def test_transparent_and_white_are_background_and_what_moved_is_told(picture, moved):
    labels, how = read_labels(picture, 19, snap=True)
    np.testing.assert_array_equal(labels, LABELS)
    assert f", {moved} of 16384 pixels moved" in how


def test_what_is_exact_is_read_as_without():
    for picture in (saved(LABELS), saved(TABLE[LABELS]), palette_png(LABELS, TABLE), saved(LABELS, "BMP")):
        labels, how = read_labels(picture, 19, snap=True)
        np.testing.assert_array_equal(labels, LABELS)
        assert "moved" not in how


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (saved(TABLE[LABELS][..., ::-1].copy()), "exchanged (BGR)"),
        (saved(TABLE[LABELS][..., ::-1].copy(), "JPEG", quality=95), "areas of other colours"),
        (saved(OTHER.astype(np.uint8)[LABELS]), "areas of other colours"),
        (saved(LABELS, "JPEG"), "JPEG of greys"),
        (saved(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "are far from the colours"),
        (saved(TABLE[LABELS], "TIFF"), "format TIFF"),
        (saved(LABELS, "GIF"), "format GIF"),
    ],
    ids=["BGR", "BGR JPEG", "other colours", "grey JPEG", "noise", "TIFF", "GIF"],
)
def test_what_is_more_than_soft_is_refused(picture, words):
    with pytest.raises(BadInput) as caught:
        read_labels(picture, 19, snap=True)
    assert words in str(caught.value)


def test_a_place_too_far_from_any_colour_is_refused():
    picture = TABLE[LABELS]
    picture[40:80, 40:80] = np.random.default_rng(0).integers(90, 110, (40, 40, 3))
    with pytest.raises(BadInput, match="more than soft edges are"):
        read_labels(saved(picture), 19, snap=True)


@pytest.mark.parametrize("side", [3, 4, 12])
@pytest.mark.parametrize("way", ["PNG", "JPEG"])
def test_a_small_area_of_another_colour_is_told(side, way, caplog):
    """With a soft edge of its own where it is large enough; a JPEG of 3 pixels is none any more."""
    picture = TABLE[example(1, 512)]
    picture[200 : 200 + side, 200 : 200 + side] = (255, 128, 0)
    picture[300:301, 300:330] = (255, 128, 0)  # a line is like an edge
    read_labels(saved(picture, way, **({"quality": 95} if way == "JPEG" else {})), 19, snap=True)
    told = [line for line in caplog.messages if "areas of other colours" in line]
    assert len(told) == (way == "PNG" or side > 4)
    assert all("#ff80" in line and "draw them in the table's" in line for line in told)
    assert way == "JPEG" or f": {side**2} of its 262144 pixels" in told[0]


def test_labels_grow_to_the_nearest():
    labels = np.array([[1, OPEN, OPEN, OPEN, OPEN, OPEN, 2]] * 3, np.uint8)
    assert grow(labels, 9)
    assert labels.tolist() == [[1, 1, 1, labels[0, 3], 2, 2, 2]] * 3 and labels[0, 3] in (1, 2)
    assert not grow(np.array([[1, OPEN, OPEN, OPEN]], np.uint8), 2)
