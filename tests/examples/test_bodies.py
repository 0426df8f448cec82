"""Bodies without anny: capsules stand in for people. What needs anny is left out where it is not installed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cdiff_rt import Learned
from examples.bodies import evaluate, experts, train
from examples.bodies.draw import render, shown, stick
from examples.bodies.experts import BUILD, CONDITIONS, JOINTS, LENGTHS, POSE, SCHEDULE, BodyExpert, Mannequin
from examples.bodies.people import MIRRORED, draw_kinds, draw_poses, mirrored, sentence, standing
from examples.bodies.volumes import (
    BLOCK,
    CLOTHES,
    LATENT,
    ORIGIN,
    REACH,
    SIDE,
    SURFACE,
    VOXELS,
    Code,
    filled,
    surface,
    volume,
)

CENTRES = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in VOXELS), indexing="ij"), -1) * SIDE + ORIGIN
CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
SIDES = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]  # outwards, of CUBE
FACES = np.array([[a, b, c] for a, b, c, d in SIDES for a, b, c in ((a, b, c), (a, c, d))])


def capsules(kinds, poses):
    """[N, *VOXELS]: a trunk as thick as the second word says, and limbs of a stick figure."""
    bodies = []
    for kind, pose in zip(kinds, poses, strict=True):
        deep = 0.18 + 0.06 * kind[1] - np.linalg.norm((CENTRES - [0, 0, 0.25]) / [1, 1, 2], axis=-1)
        for limb, length in enumerate(LENGTHS):
            start = np.array(JOINTS)[limb // 2] + limb % 2 * pose[limb - 1] * LENGTHS[limb - 1]
            along = ((CENTRES - start) @ pose[limb]).clip(0, length)[..., None]
            deep = np.maximum(deep, 0.07 - np.linalg.norm(CENTRES - start - along * pose[limb], axis=-1))
        bodies.append((deep / SIDE).clip(-REACH, REACH) / (2 * REACH) + SURFACE)
    return np.stack(bodies).astype(np.float32)


def people(count, seed=0):
    return draw_kinds(count), draw_poses(count, np.random.default_rng(seed))


# --- volumes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [(0.3, 0.2, 0.4), (0.5, 0.11, 0.25)])
def test_a_mesh_fills_its_volume(half):
    share = filled(CUBE * half, FACES)
    assert share.sum() * SIDE**3 == pytest.approx(8 * np.prod(half), rel=0.05)
    inside = (np.abs(CENTRES) < np.array(half) - SIDE).all(-1)
    assert (share[inside] == 1).all() and not share[(np.abs(CENTRES) > np.array(half) + SIDE).any(-1)].any()
    assert np.array_equal(share, filled(CUBE * half, FACES[:, ::-1]))  # whichever way round faces are told


def test_depths_are_distances_from_the_surface_up_to_their_reach():
    body = volume(CUBE * 0.3, FACES)
    row = (body[:, 12, 25] - SURFACE) * 2 * REACH
    wanted = ((0.3 - np.abs(CENTRES[:, 12, 25, 0])) / SIDE + CLOTHES).clip(-REACH, REACH)
    assert np.abs(row - wanted).max() < 0.6 and set(row[[0, -1]]) == {-REACH}


def test_a_surface_lies_where_the_body_ends():
    vertices, corners = surface(capsules(*people(1))[0])
    assert corners.max() == len(vertices) - 1 > 500
    ball = (0.4 - np.linalg.norm(CENTRES, axis=-1)) / SIDE / (2 * REACH) + SURFACE
    vertices, _ = surface(ball.clip(0, 1))
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.4).max() < 0.005
    assert [len(part) for part in surface(np.zeros(VOXELS))] == [0, 0]


def test_the_code_carries_bodies():
    bodies = capsules(*people(12))
    code = Code.fitted(bodies[:10])
    latents = code.encode(bodies)
    assert latents.shape == (12, *LATENT) and latents[:10].std() == pytest.approx(1, abs=0.1)
    assert np.abs(code.decode(latents) - bodies).mean() < 0.01
    one = np.zeros((2, *LATENT), np.float32)
    one[1, 3, 2, 1, 4] = 1  # an error of a component shows as its channel says, in its block
    difference = np.subtract(*code.decode(one))
    assert (difference**2).sum() == pytest.approx(code.channels[3], rel=1e-4)
    assert not np.delete(difference, np.s_[2 * BLOCK : 3 * BLOCK], 0).any()


# --- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [lambda n, rng: draw_poses(n, rng), standing])
def test_poses_are_directions(draw):
    poses = draw(50, np.random.default_rng(0))
    assert np.allclose(np.linalg.norm(poses, axis=-1), 1)
    assert (poses[:, 0, 0] > 0).all() and (poses[:, 2, 0] < 0).all()  # left, right
    assert np.array_equal(mirrored(mirrored(poses)), poses)
    assert np.array_equal(mirrored(poses)[:, :, 2], poses[:, MIRRORED, 2])


def test_every_sentence_is_asked_for_equally_often():
    found = [sentence(kind) for kind in draw_kinds(32)]
    assert {words: found.count(words) for words in found} == dict.fromkeys(found, 4) and len(set(found)) == 8


def test_a_mannequin_is_in_its_pose():
    kinds, poses = people(8)
    code = Code.fitted(capsules(kinds, poses))
    made = code.decode(Mannequin(code).figure(torch.from_numpy(poses).float()).numpy())
    for body, pose in zip(made, poses, strict=True):
        for limb, length in enumerate(LENGTHS):
            start = np.array(JOINTS)[limb // 2] + limb % 2 * pose[limb - 1] * LENGTHS[limb - 1]
            middle = tuple(((start + pose[limb] * length / 2 - ORIGIN) / SIDE).astype(int))
            assert body[middle] > SURFACE
        assert body[0, 0, 0] < SURFACE / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONS)
def test_a_guess_is_of_least_squares(name):
    kinds, poses = people(32)
    bodies = capsules(kinds, poses if name == POSE else standing(32, np.random.default_rng(0)))
    given = torch.from_numpy({POSE: poses, BUILD: kinds[:, None]}[name]).float()
    code = Code.fitted(bodies)
    latents = torch.from_numpy(code.encode(bodies))
    expert = BodyExpert(name, code)
    expert.fit(latents[:24], given[:24])
    around = (latents - latents.mean(0)).square().mean()
    assert (latents - expert.guess(given))[24:].square().mean() < 0.7 * around
    assert expert.deviation.square().mean() < 0.7 * around


def test_an_untrained_expert_knows_what_is_best_of_normal_noise():
    torch.manual_seed(0)
    expert = BodyExpert(BUILD, Code.fitted(capsules(*people(8))))
    expert.deviation.fill_(0.3)
    x_0, eps, words = 0.3 * torch.randn(4, *LATENT), torch.randn(4, *LATENT), torch.ones(4, 1, 3)
    for t in (5, 500, 995):
        a = float(SCHEDULE.alpha_bars()[t])
        x, v = a**0.5 * x_0 + (1 - a) ** 0.5 * eps, a**0.5 * eps - (1 - a) ** 0.5 * x_0
        found = expert(x, torch.full((4,), float(t)), words)
        best = 0.09 / (a * 0.09 + 1 - a)  # the variance that is left
        assert (found - v).square().mean().item() == pytest.approx(best, rel=0.02)
    between = expert(x, torch.full((4,), 994.5), words)
    assert not torch.equal(between, found) and torch.allclose(between, found, atol=0.1)


# --- from training to the table ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a training of narrow networks leaves that saw little of capsules."""
    folder = tmp_path_factory.mktemp("bodies")
    kinds, poses = people(20)
    bodies = capsules(kinds, poses)
    code = Code.fitted(bodies)
    code.save(folder / train.CODE)
    given = {POSE: poses.astype(np.float32), BUILD: kinds[:, None].astype(np.float32)}
    for name in (*CONDITIONS, "pairs"):
        np.savez(folder / f"{name}.npz", latents=code.encode(bodies).astype(np.float16), **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "BATCH", 2)
        patch.setattr(experts, "WIDTH", 32)
        patch.setattr(evaluate, "STEPS", 2)
        for name in CONDITIONS:
            train.train_expert(folder, name, 3)
        train.find_influence(folder, 1.0, iterations=1)
        yield folder


@pytest.mark.slow
def test_training_leaves_experts_and_their_influence(folder):
    code = Code.load(folder / train.CODE)
    found = experts.experts_of(folder, code)
    assert {name: expert.condition for name, expert in found.items()} == CONDITIONS
    assert list(Learned(folder / train.LEARNED).table) == [*CONDITIONS, "plain mean", "calibrated", "collaborative"]
    assert all(expert.denoise.unet.out[2].weight.any() for expert in found.values())  # they begin at zero


@pytest.mark.slow
def test_every_way_gives_its_conditions_only(folder):
    model = evaluate.Model.open(folder)
    kinds, poses = people(8)
    asked = SimpleNamespace(kinds=kinds, poses=poses)
    for way in evaluate.WAYS:
        body = model.body(asked, 1, way)
        assert body.shape == VOXELS and np.isfinite(body).all()
        other_words = SimpleNamespace(kinds=-kinds, poses=poses)
        other_pose = SimpleNamespace(kinds=kinds, poses=poses[::-1])
        assert np.array_equal(model.body(other_words, 1, way), body) is (way == evaluate.POSES)
        assert np.array_equal(model.body(other_pose, 1, way), body) is (way == evaluate.BUILDS)


@pytest.mark.slow
def test_influence_is_a_function_of_the_place(folder):
    steps, kinds = [], draw_kinds(1)
    model = evaluate.Model.open(folder)
    asked = SimpleNamespace(kinds=kinds, poses=draw_poses(1, np.random.default_rng(0)))
    model.body(asked, 0, evaluate.BOTH, steps.append)
    assert steps[-1].influence.shape == (2, 1, 1, *LATENT[1:])
    assert np.allclose(steps[-1].influence.sum(0), 1, atol=1e-5)


def test_a_gain_is_of_pairs():
    one, other = np.arange(100) < 60, np.arange(100) < 40
    low, high = evaluate.gain(one, other)
    assert 0 < low < 0.2 < high and evaluate.gain(one, one) == (0, 0)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_picture_has_the_colour_of_who_decided():
    body = capsules(*people(1))[0]
    share = np.zeros(LATENT[1:])
    share[:, :, 4:] = 1  # the pose's expert above the pelvis
    picture = np.asarray(shown(body, 0, share)).astype(int)
    painted = picture.sum(-1) < 3 * 255
    redder = picture[..., 0] > picture[..., 2]
    assert painted.mean() > 0.05
    assert (redder & painted)[:60].sum() > 0.9 * painted[:60].sum() and not (redder & painted)[100:].any()
    assert (np.asarray(stick(draw_poses(1, np.random.default_rng(0))[0])) < 255).any(-1).mean() > 0.02


def test_the_nearest_surface_is_seen():
    near, far = CUBE * 0.1 + [0, -0.3, 0], CUBE * 0.2 + [0, 0.3, 0]
    colours = np.repeat([[1.0, 0, 0], [0, 0, 1.0]], 8, 0)
    for degrees, middle in ((0, 0), (180, 2)):
        picture = np.asarray(render(np.concatenate([near, far]), np.concatenate([FACES, FACES + 8]), colours, degrees))
        assert picture[77, 75].argmax() == middle


# --- people -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_people_are_in_their_pose_and_of_their_build():
    pytest.importorskip("anny")
    from examples.bodies import judge
    from examples.bodies.people import faces, limbs, make_people

    kinds, poses = people(16)
    made = make_people(kinds, poses, np.random.default_rng(0))
    for limb, of_limb in enumerate(limbs().T):
        part = made.vertices[:, of_limb] - made.vertices[:, of_limb].mean(1, keepdims=True)
        axis = np.linalg.svd(part)[2][:, 0]  # the longest
        assert (np.abs((axis * poses[:, limb]).sum(-1)) > 0.9).all()
    height = np.ptp(standing_people(kinds).vertices[..., 2], axis=1)
    assert height[kinds[:, 0] > 0].min() > height[kinds[:, 0] < 0].max()
    full = np.array([filled(each, faces()).sum() for each in made.vertices]).reshape(-1, 2, 2, 2)
    assert (full[:, :, 1] > full[:, :, 0]).all()  # of one height and gender, the stout and the slim
    assert judge.in_pose(poses[:2]).shape[:2] == (2, len(judge.KINDS))


def standing_people(kinds):
    from examples.bodies.people import make_people

    rng = np.random.default_rng(0)
    return make_people(kinds, standing(len(kinds), rng), rng)
