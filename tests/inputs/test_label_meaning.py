import logging

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.label_maps import read_labels
from cdiff_rt.inputs.label_meaning import ranges
from tests.label_pictures import GREYS, OTHER, TABLE, example, palette_png, saved, sorted_anew

LABELS = example(6)
HAIR = np.where(LABELS == 13, 255, 0).astype(np.uint8)
ADE = np.random.default_rng(0).integers(0, 150, (16, 16)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
LUMA = np.asarray(Image.fromarray(TABLE[None]).convert("L"))[0]
FEW = np.tile(np.array([0, 1, 2, 3], np.uint8), (8, 2))

READ = {  # what is read as LABELS, and what is told of it
    "palette in order": (palette_png(LABELS, TABLE), ""),
    "palette of greys": (palette_png(LABELS, GREYS), ""),
    "greys sorted anew": (sorted_anew(LABELS, GREYS), ""),
    "table sorted anew": (sorted_anew(LABELS, TABLE), ""),
    "table off by one": (sorted_anew(LABELS, TABLE.astype(int) + 1), "16384 pixels are up to 1 levels off"),
    "table off by some": (sorted_anew(LABELS, TABLE.astype(int) - 8), "up to 8 levels off"),
    "unknown palette": (palette_png(LABELS, OTHER), "its numbers are taken as labels"),
    "BGR palette in order": (palette_png(LABELS, TABLE[:, ::-1]), "its numbers are taken as labels"),
    "stretched greys": (palette_png(LABELS, 14 * GREYS[:19]), "its numbers are taken as labels"),
    "all black": (palette_png(LABELS, np.zeros((19, 3))), "its numbers are taken as labels"),
    "transparent background": (palette_png(LABELS, TABLE, transparency=0), ""),
    "transparent hair": (palette_png(LABELS, TABLE, transparency=13), "shown partly transparent"),
    "colours": (saved(TABLE[LABELS]), ""),
    "colours off by one": (saved(TABLE[LABELS] | 1), "up to 1 levels off"),
    "greys in colour": (saved(np.repeat(LABELS[..., None], 3, 2)), ""),
    "grey": (saved(LABELS), ""),
}


@pytest.mark.parametrize("form", READ)
def test_a_mask_is_read_by_what_its_colours_mean(form, caplog):
    picture, told = READ[form]
    caplog.set_level(logging.WARNING, "cdiff_rt")
    np.testing.assert_array_equal(read_labels(picture, 19)[0], LABELS)
    assert [told in message for message in caplog.messages] == [True] * bool(told)


REFUSED = {
    "BGR": (saved(TABLE[LABELS][..., ::-1].copy()), "exchanged (BGR)"),
    "BGR palette sorted anew": (sorted_anew(LABELS, TABLE[:, ::-1]), "exchanged (BGR)"),
    "a part": (saved(HAIR), "the mask of one part"),
    "a part in colour": (saved(np.repeat(HAIR[..., None], 3, 2)), "the mask of one part"),
    "a part in a palette": (palette_png(HAIR // 255, [[0] * 3, [255] * 3]), "the mask of one part"),
    "a part of one bit": (saved(HAIR > 0), "the mask of one part"),
    "the table's greys": (saved(LUMA[LABELS]), "colours turned to grey"),
    "stretched": (saved(LABELS * 13), "labels times a number"),
    "from 1 on": (saved(LABELS + 1), "begin with 1"),
    "ADE20K": (saved(ADE), "ADE20K"),
    "ADE20K in colour": (saved(np.repeat(ADE[..., None], 3, 2)), "ADE20K"),
    "ADE20K in a palette": (palette_png(ADE, np.tile(OTHER, (8, 1))), "ADE20K"),
    "few of ADE20K in greys": (sorted_anew(ADE // 40 * 21 + 2, GREYS), "ADE20K"),
    "white background": (saved(np.where((LABELS == 0)[..., None], np.uint8(255), TABLE[LABELS])), "white is none"),
    "soft": (saved(Image.fromarray(TABLE[LABELS]).resize((200, 200), Image.Resampling.BILINEAR)), "soft edges"),
    "soft in a palette": (
        saved(Image.fromarray(TABLE[LABELS]).resize((200, 200), Image.Resampling.BILINEAR).quantize(200)),
        "soft edges",
    ),
    "other colours": (saved(OTHER.astype(np.uint8)[LABELS]), "other colours"),
    "a photo": (saved(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)), "a photo"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_mask_is_refused_with_what_it_probably_is(form):
    picture, cause = REFUSED[form]
    with pytest.raises(BadInput) as caught:
        read_labels(picture, 19)
    assert cause in str(caught.value) and len(str(caught.value)) < 500


def test_the_table_goes_before_numbers_and_so_few_colours_are_told(caplog):
    colours = [(0, 0, 0), (255, 0, 0), (255, 255, 0), (0, 255, 255)]
    labels, how = read_labels(palette_png(FEW, colours), 19)
    np.testing.assert_array_equal(labels, np.array([0, 9, 11, 6])[FEW])
    assert "colours" in how and "all its 4 colours are the table's" in caplog.text


def test_a_palette_of_one_colour_is_read_by_it():
    assert (read_labels(palette_png(np.zeros((4, 4), int), [TABLE[13]]), 19)[0] == 13).all()


def test_numbers_beyond_the_palette_are_no_labels():
    with pytest.raises(BadInput, match="label 25 at x 0, y 0"):
        read_labels(palette_png(np.full((4, 4), 25), OTHER), 19)


def test_a_model_with_other_classes_reads_its_own_labels():
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4) % 5
    for picture in (saved(labels), palette_png(labels, OTHER), sorted_anew(labels, GREYS), labels):
        np.testing.assert_array_equal(read_labels(picture, 5)[0], labels)
    many = np.arange(64).reshape(8, 8).astype(np.uint8)
    np.testing.assert_array_equal(read_labels(saved(many), 64)[0], many)
    with pytest.raises(BadInput, match="label 13"):
        read_labels(saved(TABLE[np.full((4, 4), 13)]), 5)


def test_numbers_are_told_in_ranges():
    assert ranges({0, 1, 2, 5, 7, 8}) == "0-2, 5, 7-8"
