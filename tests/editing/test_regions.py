import numpy as np
import pytest
from PIL import Image

from cdiff_rt.editing import regions
from cdiff_rt.errors import BadRequest
from cdiff_rt.inputs.palette import CLASSES, SYNONYMS
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
        ("glasses", {3}),
        ("eye_g", {3}),
        ("Left Eye,eyebrows", {4, 6, 7}),
        ("lips,necklace,clothes", {11, 12, 16, 18}),
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


@pytest.mark.parametrize("keep", ["hair", "eyes"])  # of which the left one is the fifth class
def test_of_a_model_with_few_classes_only_those_are_known(keep):
    with pytest.raises(BadRequest, match="0-4"):
        regions.kept_labels(keep, 5)


def test_synonyms_mean_classes_that_there_are():
    assert set().union(*SYNONYMS.values()) <= set(CLASSES) and not set(SYNONYMS) & {*CLASSES, "all"}


def test_what_is_kept_has_a_label_of_those_in_both_masks_and_is_not_at_their_border():
    kept = regions.region_between(BEFORE, AFTER, "background", 19).kept
    assert kept[:3, :3].all() and kept.sum() == 9
    both = regions.region_between(BEFORE, AFTER, "background,hair", 19).kept  # between them there is no border
    assert both[:, :3].all() and both[5:].all() and both.sum() == 8 * 3 + 3 * 5
    with pytest.raises(BadRequest, match="nothing of it is in the picture and stays"):
        regions.region_between(BEFORE, AFTER, "skin", 19)


def test_without_it_what_is_edited_is_where_the_masks_differ():
    region = regions.region_between(BEFORE, AFTER, "", 19)
    assert not region.kept.any() and region.edited.sum() == 16 and region.edited[:4, 4:].all()
    assert not region.cells(4).any()


def test_a_latent_is_held_as_far_as_it_and_its_neighbours_are_kept():
    share = np.zeros((12, 12), np.float32)
    share[:, :7] = 1  # three whole columns of latents of 2 x 2 pixels, and half of a fourth
    share[:, 7] = 0.9
    cells = regions.Region(share, share < 1).cells(6)
    np.testing.assert_allclose(cells, np.tile([1, 1, 2 / 3, 0, 0, 0], (6, 1)), rtol=1e-6)
    assert cells.dtype == np.float32


def test_kept_pixels_are_the_photos():
    photo, edited = np.full((8, 8, 3), 10, np.uint8), np.full((2, 8, 8, 3), 20, np.uint8)
    region = regions.region_between(BEFORE, AFTER, "background", 19)
    pasted = region.paste(photo, edited)
    assert (pasted[:, :3, :3] == 10).all() and (pasted == 10).sum() == 2 * 3 * 9 and (pasted == 20).sum() == 2 * 3 * 55
    assert region.change(photo, pasted) == {"inside": [10.0, 10.0], "outside": [0.0, 0.0]}
    edited[1, :3, :3] = 16
    assert region.change(photo, edited) == {"inside": [10.0, 10.0], "outside": [10.0, 6.0]}


def test_a_part_stays_less_and_less_towards_its_border():
    kept = np.zeros((9, 12), bool)
    kept[:, :6] = True
    share = regions.softened(kept, np.zeros(kept.shape, np.uint8), 2)
    np.testing.assert_array_equal(share, np.tile(np.float32([1, 1, 1, 1, 0.5, 0] + [0] * 6), (9, 1)))
    photo, edited = np.full((9, 12, 3), 10, np.uint8), np.full((1, 9, 12, 3), 21, np.uint8)
    pasted = regions.Region(share, share < 1).paste(photo, edited)
    assert pasted[0, 0, :, 0].tolist() == [10] * 4 + [16] + [21] * 7 and pasted.dtype == np.uint8


def test_specks_of_a_large_part_do_not_stay():
    kept = np.zeros((32, 32), bool)
    kept[:16] = True
    kept[20::4, ::3] = True  # where an outline of old hair was taken for background in both masks
    share = regions.softened(kept, np.zeros(kept.shape, np.uint8), 2)
    assert share[:14].all() and not share[15:].any()


@pytest.mark.parametrize(("thickness", "whole"), [(2, 2), (3, 3), (4, 2), (8, 4)])
def test_a_thin_part_loses_no_more_than_half(thickness, whole):
    """Glasses in the middle of a face that stays too."""
    labels = np.zeros((32, 64), np.uint8)
    labels[12 : 12 + thickness] = 3
    share = regions.softened(labels == 3, labels, 2)
    assert (share == 1).sum() == whole * 64
    np.testing.assert_array_equal(regions.softened(labels < 4, labels, 2), np.ones(labels.shape))


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
