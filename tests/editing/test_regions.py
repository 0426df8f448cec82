import numpy as np
import pytest
from PIL import Image

from cdiff_rt.editing import regions
from cdiff_rt.errors import BadRequest
from cdiff_rt.manifest import Modality

BEFORE = np.zeros((8, 8), np.uint8)
BEFORE[4:] = 13
AFTER = BEFORE.copy()
AFTER[:4, 4:] = 13  # the hair has grown over the right of the background
MASK = Modality("mask", "labels", decays=True, anchor=False, size=4, classes=19)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("background", {0}),
        ("0", {0}),
        ("hair, 18", {13, 18}),
        (" HAIR ", {13}),
        ([13, "skin"], {13, 1}),
        ("all", set(range(19))),
        ("", set()),
        ((), set()),
    ],
    ids=str,
)
def test_labels_are_named_by_number_or_class(keep, expected):
    assert regions.kept_labels(keep, 19) == expected


@pytest.mark.parametrize("keep", ["face", "19", "-1", "hair,,skin", [2.5], "x" * 300], ids=lambda keep: str(keep)[:20])
def test_others_are_refused_with_those_there_are(keep):
    with pytest.raises(BadRequest, match="name labels of 0-18, background, skin"):
        regions.kept_labels(keep, 19)


def test_of_a_model_with_few_classes_only_those_are_known():
    with pytest.raises(BadRequest, match="0-4"):
        regions.kept_labels("hair", 5)


def test_what_is_kept_has_a_label_of_those_in_both_masks():
    kept = regions.region_between(BEFORE, AFTER, "background", 19).kept
    assert kept[:4, :4].all() and kept.sum() == 16
    assert regions.region_between(BEFORE, AFTER, "all", 19).kept.sum() == 48
    with pytest.raises(BadRequest, match="no pixel has such a label in both masks"):
        regions.region_between(BEFORE, AFTER, "skin", 19)


def test_without_it_what_is_edited_is_where_the_masks_differ():
    region = regions.region_between(BEFORE, AFTER, "", 19)
    assert not region.kept.any() and region.edited.sum() == 16 and region.edited[:4, 4:].all()
    assert not region.cells(4).any()


def test_a_latent_is_held_as_far_as_it_and_its_neighbours_are_kept():
    kept = np.zeros((12, 12), bool)
    kept[:, :7] = True  # three whole columns of latents of 2 x 2 pixels, and half of a fourth
    cells = regions.Region(kept, ~kept).cells(6)
    np.testing.assert_allclose(cells, np.tile([1, 1, 2 / 3, 0, 0, 0], (6, 1)), rtol=1e-6)
    assert cells.dtype == np.float32


def test_kept_pixels_are_the_photos():
    photo, edited = np.full((8, 8, 3), 10, np.uint8), np.full((2, 8, 8, 3), 20, np.uint8)
    region = regions.region_between(BEFORE, AFTER, "background", 19)
    pasted = region.paste(photo, edited)
    assert (pasted[:, :4, :4] == 10).all() and (pasted == 10).sum() == 2 * 3 * 16
    assert region.change(photo, pasted) == {"inside": [10.0, 10.0], "outside": [0.0, 0.0]}
    edited[1, :4, :4] = 16
    assert region.change(photo, edited) == {"inside": [10.0, 10.0], "outside": [10.0, 6.0]}


def test_a_part_that_is_empty_has_no_change():
    region = regions.nothing_kept(8)
    assert list(region.change(np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8))) == ["inside"]


@pytest.mark.parametrize("as_file", [False, True])
def test_labels_are_taken_as_large_as_the_image(as_file, tmp_path):
    value = np.zeros((32, 48), np.uint8)
    value[:, 24:] = 13
    if as_file:
        Image.fromarray(value).save(tmp_path / "mask.png")
        value = tmp_path / "mask.png"
    np.testing.assert_array_equal(regions.labels_at(value, MASK, 16), np.repeat([[0] * 8 + [13] * 8], 16, 0))
