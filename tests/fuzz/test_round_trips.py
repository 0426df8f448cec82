"""What is written in any form is read as it was, for any content."""

import io

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.inputs import containers
from cdiff_rt.inputs.images import read_array, read_photo
from cdiff_rt.inputs.label_maps import read_labels
from cdiff_rt.inputs.palette import PALETTE
from cdiff_rt.inputs.region_maps import read_region

hypothesis = pytest.importorskip("hypothesis", reason="pip install '.[test]'")
from hypothesis import given, settings, strategies
from hypothesis.extra import numpy as arrays

FEW = settings(max_examples=40, deadline=None, derandomize=True)
SIDES = strategies.tuples(strategies.integers(1, 24), strategies.integers(1, 24))
MAPS = arrays.arrays(np.uint8, SIDES, elements=strategies.integers(0, 18))


def saved(image, kind="PNG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def with_palette(labels):
    image = Image.fromarray(labels).convert("P")
    image.putpalette([value for colour in PALETTE for value in colour])
    return image


FORMS = {
    "grey": Image.fromarray,
    "palette": with_palette,
    "colours": lambda labels: Image.fromarray(np.array(PALETTE, np.uint8)[labels]),
    "opaque": lambda labels: Image.fromarray(np.array(PALETTE, np.uint8)[labels]).convert("RGBA"),
}


@FEW
@given(MAPS, strategies.sampled_from(sorted(FORMS)), strategies.integers(0, 9), strategies.booleans())
def test_labels(labels, form, level, optimised):
    read, _ = read_labels(saved(FORMS[form](labels), compress_level=level, optimize=optimised), 19)
    np.testing.assert_array_equal(read, labels)


@FEW
@given(
    arrays.arrays(bool, strategies.integers(1, 24).map(lambda side: (side, side))),
    strategies.sampled_from(["1", "L", "RGB"]),
)
def test_regions(white, mode):
    np.testing.assert_array_equal(read_region(saved(Image.fromarray(white).convert(mode))), white)


@FEW
@given(
    arrays.arrays(np.uint8, strategies.integers(1, 24).map(lambda side: (side, side, 3))),
    strategies.sampled_from(["PNG", "WEBP"]),
)
def test_photos(pixels, kind):
    np.testing.assert_array_equal(read_photo(saved(Image.fromarray(pixels), kind, lossless=True), len(pixels)), pixels)


@FEW
@given(
    arrays.arrays(
        strategies.sampled_from(["<f2", ">f4", "<f8", ">i2", "<u4"]),
        arrays.array_shapes(min_dims=0, max_dims=4),
        elements={"allow_nan": False, "allow_infinity": False, "min_value": 0, "max_value": 1000},
    ),
    strategies.sampled_from([(1, 0), (2, 0), (3, 0)]),
    strategies.booleans(),
)
def test_numbers(values, version, turned):
    file = io.BytesIO()
    np.lib.format.write_array(file, values.T if turned else values, version=version)
    np.testing.assert_array_equal(read_array(file.getvalue(), "sketch"), values.T if turned else values)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    strategies.binary(max_size=200),
    strategies.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"BM", b"II*\0"]),
)
def test_whatever_begins_as_a_picture_is_read_or_refused(rest, start):
    try:
        containers.read(start + rest)
    except ValueError as error:
        assert str(error)
