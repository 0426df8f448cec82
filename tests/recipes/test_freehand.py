import numpy as np
import pytest
import torch

from cdiff_rt.inputs.images import nearest
from cdiff_rt.inputs.palette import CLASSES
from recipes.faces import freehand as module
from recipes.faces.freehand import forget, freehand, straighten, thicken, waver
from recipes.faces.painter import portrait

SKIN, NOSE, BROW, HAIR = (CLASSES.index(name) for name in ("skin", "nose", "l_brow", "hair"))


@pytest.fixture(scope="module")
def labels():
    return torch.from_numpy(np.stack([nearest(portrait(seed, 64).labels, 32) for seed in range(8)]))


def planes_of(labels):
    return torch.nn.functional.one_hot(labels.long(), len(CLASSES)).permute(0, 3, 1, 2).float()


def test_the_classes_it_names_are_those_of_the_palette():
    assert {*module.OFTEN_FORGOTTEN, *module.DRAWN_THICK} <= set(CLASSES)


def test_a_redrawn_mask_is_still_the_same_face(labels, generator):
    drawn = torch.stack([freehand(labels, generator) for _ in range(8)])
    same = (drawn == labels).float().mean((0, 2, 3))
    assert (same < 0.99).all()
    assert (same > 0.75).all()
    assert drawn.min() >= 0
    assert drawn.max() < len(CLASSES)


def test_equal_generators_draw_alike(labels):
    one, two = (freehand(labels, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)


def test_a_forgotten_part_is_filled_with_what_surrounds_it(monkeypatch, generator):
    monkeypatch.setattr(module, "FORGET", 1.0)
    face = torch.full((1, 32, 32), SKIN)
    face[:, 12:20, 14:18] = NOSE
    assert torch.equal(forget(planes_of(face), generator).argmax(1), torch.full((1, 32, 32), SKIN))


def test_what_people_never_forget_stays(monkeypatch, labels, generator):
    monkeypatch.setattr(module, "FORGET", 1.0)
    left = set(forget(planes_of(labels), generator).argmax(1).unique().tolist())
    assert {SKIN, HAIR} <= left
    assert not left & {CLASSES.index(name) for name in module.OFTEN_FORGOTTEN}


def test_a_thick_brush_widens_a_part_by_a_cell_on_all_sides(monkeypatch, generator):
    monkeypatch.setattr(module, "THICKEN", 1.0)
    face = torch.full((1, 32, 32), SKIN)
    face[:, 10, 5:9] = BROW
    drawn = thicken(planes_of(face), generator).argmax(1)
    wide = torch.full((1, 32, 32), SKIN)
    wide[:, 9:12, 4:10] = BROW
    assert torch.equal(drawn, wide)


def test_wavering_moves_outlines_and_nothing_far_from_them(generator):
    half = torch.zeros(16, 32, 32, dtype=torch.long)
    half[:, :, 16:] = HAIR
    drawn = waver(half, generator)
    assert (drawn != half).any()
    assert (drawn[:, :, :8] == 0).all()
    assert (drawn[:, :, 24:] == HAIR).all()


def test_straight_masks_are_made_of_squares(monkeypatch, labels, generator):
    monkeypatch.setattr(module, "STRAIGHT", 1.0)
    drawn = straighten(labels, generator)
    squares = drawn.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    assert (squares == squares[..., :1]).all()
    assert (drawn != labels).any()
