import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cdiff_rt import compose
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.solvers import x0_coefficients
from examples.motion import train
from examples.motion.evaluate import BOTH, MEAN, POINTS_ONLY, STYLE_ONLY, TRUE, WAYS, motions, sample, table
from examples.motion.experts import (
    ACTION,
    BODY,
    MODULES,
    PATH,
    SCHEDULE,
    SHAPE,
    WAYPOINTS,
    Waypoints,
    as_expert,
    experts,
    smooth,
    word,
)
from examples.motion.gait import BONES, JOINTS, NAMES, STYLES
from examples.motion.judge import (
    STYLE_KEPT,
    WAYPOINTS_KEPT,
    held_out,
    judge,
    slides,
    style_distances,
    waypoint_distances,
)
from examples.motion.motions import (
    ANY,
    FRAMES,
    RATE,
    ROOT_SCALE,
    TIMES,
    USUAL,
    WINDOWS,
    Motions,
    Requests,
    as_latents,
    as_motions,
    draw,
)
from examples.motion.plot import picture
from tests.command_line import run

COUNT = 24


def true_motions(seed=7, **how):
    return draw(COUNT, np.random.default_rng(seed), **how)


def turned(asked, angle=0.0, shift=0j):
    requests, made = asked
    turn = np.exp(1j * angle)
    points = requests.points.copy()
    moved = points[:, :, :2] @ (1, 1j) * turn + shift
    points[:, :, 0], points[:, :, 1] = moved.real, moved.imag
    return Requests(requests.styles, points), Motions(made.root * turn + shift, made.heading + angle, made.body)


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corridor", [False, True])
def test_bones_keep_their_lengths(corridor):
    _, made = true_motions(corridor=corridor)
    rigid = [bone for bone in BONES if bone != (1, 2)]
    for first, second in rigid:
        lengths = np.linalg.norm(made.body[:, :, first] - made.body[:, :, second], axis=-1)
        allowed = 1e-6 if "hip" in JOINTS[first] + JOINTS[second] else 0.12  # the back is not of one bone
        assert np.ptp(lengths, axis=1).max() < allowed * lengths.mean(), (JOINTS[first], JOINTS[second])


@pytest.mark.parametrize("corridor", [False, True])
def test_feet_on_the_ground_stay_where_they_are(corridor):
    _, made = true_motions(corridor=corridor)
    assert slides(made).max() < 0.05
    sliding = dataclasses.replace(made, root=made.root + 0.5 * TIMES)
    assert slides(sliding).min() > 0.4


def test_way_points_are_where_the_body_is_at_their_times():
    requests, made = true_motions()
    frames = requests.points[:, :, 2] * RATE
    assert np.array_equal(frames, np.rint(frames))
    for (low, high), column in zip(WINDOWS, frames.T, strict=True):
        assert low <= column.min() < column.max() <= high
    at = made.root[np.arange(COUNT)[:, None], frames.astype(int)]
    assert np.allclose(at, requests.points[:, :, :2] @ (1, 1j), atol=1e-6)


def test_only_the_data_of_way_points_wind_and_hurry():
    for corridor, pace, bent in ((True, USUAL, False), (False, ANY, True)):
        requests, made = true_motions(corridor=corridor)
        speed = np.abs(np.diff(made.root, axis=1)).mean(1) * RATE
        usual = np.array([style.speed for style in STYLES.values()])[requests.styles]
        assert pace[0] - 0.1 < (speed / usual).min() < (speed / usual).max() < pace[1] + 0.1
        assert bool(np.ptp(made.heading, axis=1).max() > 0.5) is bent and bool(np.abs(made.heading).max() > 0.5) is bent
        assert np.bincount(requests.styles).tolist() == [COUNT // len(NAMES)] * len(NAMES)


def test_motions_are_repeatable_and_survive_becoming_latents():
    _, made = true_motions()
    latents = as_latents(made)
    assert latents.shape == (COUNT, *SHAPE) and latents.dtype == np.float32
    assert np.array_equal(latents, as_latents(true_motions()[1]))
    assert not np.array_equal(latents, as_latents(true_motions(seed=8)[1]))
    assert np.abs(as_motions(latents).places() - made.places()).max() < 1e-4


# --- judge ------------------------------------------------------------------------------------------------------------


def test_true_motions_meet_everything_wherever_they_are():
    asked = held_out(COUNT)
    for requests, made in (asked, turned(asked, 2.0, 3 - 4j)):
        assert judge(made, requests).met["both"].mean() > 0.95


def test_its_bound_follows_its_rule():
    requests, made = held_out(COUNT)
    own = np.arange(len(NAMES)) == requests.styles[:, None]
    distances = style_distances(made)
    assert np.percentile(distances[own], 95) < STYLE_KEPT < distances[~own].min() + 0.005


def test_a_wrong_style_is_found():
    requests, made = true_motions()
    wrong = dataclasses.replace(requests, styles=(requests.styles + 1) % len(NAMES))
    verdict = judge(made, wrong)
    assert not verdict.style_met.any() and verdict.waypoints_met.all()


def test_one_missed_point_is_enough():
    requests, made = true_motions()
    points = requests.points.copy()
    points[np.arange(COUNT), np.arange(COUNT) % 4, 0] += WAYPOINTS_KEPT + 0.01
    assert not judge(made, Requests(requests.styles, points)).waypoints_met.any()
    points[np.arange(COUNT), np.arange(COUNT) % 4, 0] -= 0.02
    assert judge(made, Requests(requests.styles, points)).waypoints_met.all()


NO_STYLE = {
    "who stands": lambda body, rng: np.repeat(body[:, :1], FRAMES, axis=1),
    "who goes backward": lambda body, rng: body[:, ::-1],
    "who trembles": lambda body, rng: body + 0.1 * rng.normal(size=body.shape),
    "who is a giant": lambda body, rng: 1.5 * body,
}


@pytest.mark.parametrize("kind", NO_STYLE)
def test_what_has_no_style_is_given_none(kind):
    requests, made = true_motions()
    strange = dataclasses.replace(made, body=NO_STYLE[kind](made.body, np.random.default_rng(0)))
    assert judge(strange, requests).style_met.mean() < 0.05


# --- training ---------------------------------------------------------------------------------------------------------


def test_what_an_expert_learns_is_weighed_like_v():
    seen = {}

    def module(x, time, condition):  # what follows of v = 0
        seen.update(x=x, time=time)
        return torch.from_numpy(x0_coefficients(SCHEDULE.alpha_bars()[time.long()], "v")[0]).float()[:, None, None] * x

    x_0 = torch.randn(4, *SHAPE)
    loss = train.loss_of(module, x_0, None, torch.ones(SHAPE[0], 1), torch.Generator().manual_seed(1))
    bars = SCHEDULE.alpha_bars()[seen["time"].long()]
    assert bars.max() < 1 - train.LEAST_NOISE
    on_x, on_v = (torch.from_numpy(np.asarray(part)).float()[:, None, None] for part in x0_coefficients(bars, "v"))
    v = (x_0 - on_x * seen["x"]) / on_v
    assert loss.item() == pytest.approx(v.square().mean().item(), rel=1e-3)


def test_the_lines_pass_the_points_in_time():
    requests, _ = true_motions()
    points = torch.from_numpy(requests.points)
    lines = Waypoints(32).lines(points)
    frames = (points[:, :, 2] * RATE).long()
    at = lines.gather(2, frames[:, None].expand(-1, 3, -1))
    assert torch.allclose(at[:, :2], points[:, :, :2].transpose(1, 2) / ROOT_SCALE, atol=1e-5)
    assert (at[:, 2] >= 1).all() and (lines[:, 2] < 0.1).any(1).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What training leaves, of hardly any."""
    out = tmp_path_factory.mktemp("motion")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    patched = pytest.MonkeyPatch()
    patched.setattr(train, "MOTIONS", 30)
    patched.setattr(train, "PAIRS", 30)
    patched.setattr(train, "BATCH", 4)
    with patched.context():
        for name in MODULES:
            train.train_expert(name, out, 1, 10, steps=2, width=32)
        train.train_influence(out, 1, 10, iterations=2)
        assert max(train.export(out).values()) < 1e-2
    patched.undo()
    torch.set_num_threads(threads)
    return out


def test_each_expert_is_told_its_own_condition_only():
    for name, shape in ((ACTION, (12, 1, len(NAMES))), (WAYPOINTS, (12, 4, 3))):
        latents, condition = train.examples(name, 12, 3)
        assert condition.shape == shape and latents.shape == (12, *SHAPE)
    (_, given), *_ = train.pairs(12, 3)
    assert set(given) == {ACTION, WAYPOINTS}


def test_the_second_begins_as_the_first():
    torch.manual_seed(0)
    first, second = (MODULES[name](32) for name in (ACTION, WAYPOINTS))
    train._begin(second.unet, first.state_dict())
    x, time, points = torch.randn(2, *SHAPE), torch.tensor([3.0, 700.0]), torch.randn(2, 4, 3)
    more = torch.cat([x, second.lines(points)], dim=1)
    assert torch.equal(second.unet(more, time, points @ torch.zeros(3, 64)), first.unet(x, time, torch.zeros(2, 4, 64)))


def test_what_is_said_of_way_points_goes_through_them():
    torch.manual_seed(0)
    requests, _ = true_motions()
    x, time = torch.randn(COUNT, *SHAPE), torch.full((COUNT,), 900.0)
    with torch.inference_mode():
        found = as_motions(Waypoints(32)(x, time, torch.from_numpy(requests.points)).numpy())
    assert waypoint_distances(found, requests).max() < 1e-3


def test_paths_and_bodies_are_smooth_as_true_ones_are():
    latents = as_latents(true_motions()[1])
    for part, shape, least in ((slice(0, 4), PATH, 0.02), (slice(4, None), BODY, 0.1)):
        lost = latents[:, part] @ smooth(shape) - latents[:, part]
        assert np.sqrt((lost**2).mean()) < least
        trembling = np.random.default_rng(0).normal(size=latents[:, part].shape) @ smooth(shape)
        assert trembling.var() == pytest.approx(sum(shape) / FRAMES, abs=0.02)


def test_training_is_repeatable_and_the_loss_falls(monkeypatch, capsys):
    monkeypatch.setattr(train, "BATCH", 8)
    data, weights = train.examples(ACTION, 12, 3), []
    for drawn in (0, 3):  # numbers of the global state, which has no part in it
        torch.manual_seed(0)
        module = MODULES[ACTION](32)
        torch.rand(drawn)
        before = train.loss_of(module, *data, torch.ones(SHAPE[0], 1), torch.Generator().manual_seed(0)).item()
        train.fit(module, ACTION, data, 3, minutes=1, steps=12)
        weights.append(module.state_dict())
    after = train.loss_of(module, *data, torch.ones(SHAPE[0], 1), torch.Generator().manual_seed(0)).item()
    assert after < 0.98 * before and "action: step 12 of 12" in capsys.readouterr().out
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# --- the runtime ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(folder):
    return Pipeline.from_pretrained(folder / train.BUNDLE)


@pytest.mark.long
def test_every_way_gives_its_conditions_only(folder, pipeline):
    requests, _ = true_motions()
    found = {way: sample(folder, pipeline, requests, 0, way) for way in WAYS}
    assert {latents.shape for latents in found.values()} == {(1, *SHAPE)}
    other_style = Requests(requests.styles[[1]], requests.points)
    other_points = Requests(requests.styles, requests.points[1:])
    for way, of_style, of_points in ((STYLE_ONLY, True, False), (POINTS_ONLY, False, True), (BOTH, True, True)):
        assert np.array_equal(sample(folder, pipeline, other_style, 0, way), found[way]) is not of_style
        assert np.array_equal(sample(folder, pipeline, other_points, 0, way), found[way]) is not of_points
    assert not np.array_equal(found[MEAN], found[BOTH])


@pytest.mark.long
def test_the_table_has_every_way_and_intervals(folder, pipeline):
    requests, truth = held_out(2)
    found = {way: judge(motions(folder, pipeline, requests, way), requests) for way in WAYS}
    rows = table(found | {TRUE: judge(truth, requests)}).splitlines()
    assert rows[0] == "| motions | way-points met | style met | both met | foot slide |"
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == [*WAYS, "true motions"]
    assert rows[-1].startswith("| true motions | 100 % [34, 100] | 100 % [34, 100] | 100 % [34, 100] |")


@pytest.mark.long
def test_the_picture_is_small(folder, tmp_path):
    picture(folder).save(tmp_path / "motion.png")
    assert 20_000 < (tmp_path / "motion.png").stat().st_size < 300_000


def test_saved_experts_are_the_same_but_for_rounding(tmp_path):
    torch.manual_seed(0)
    requests, _ = true_motions()
    modules = {name: kind(32) for name, kind in MODULES.items()}
    for name, module in modules.items():
        train.save(module, tmp_path / f"{name}.safetensors")
    given = {ACTION: word(NAMES[requests.styles[0]]), WAYPOINTS: requests.points[0]}
    own = compose({name: as_expert(name, module) for name, module in modules.items()})
    found = [pipeline.generate(steps=2, **given).latents for pipeline in (own, compose(experts(tmp_path)))]
    assert found[0].shape == (1, *SHAPE) and np.allclose(*found, atol=0.02)
    assert not np.array_equal(own.generate(steps=2, **given | {ACTION: word("hop")}).latents, found[0])


@pytest.mark.long
def test_a_movement_is_made_again_from_what_its_npz_says(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", true_motions()[0].points[0])
    np.save("hop.npy", word("hop"))
    given = ("--condition", "waypoints=points.npy", "--condition", "action=hop.npy", "--steps", 10, "--batch", 2)
    bundle = folder / train.BUNDLE
    for more, out in (((), "plain"), (("--embed-inputs",), "whole")):
        assert run("generate", "--model", bundle, *given, *more, "--out", out).exit_code == 0
    Path("points.npy").rename("renamed.npy")
    made = [f"{out}/seed0-{number:03d}.npz" for out in ("plain", "whole") for number in range(2)]
    result = run("reproduce", *made, "--model", bundle)
    assert result.stdout.splitlines() == [f"{name}: the same to the byte" for name in made], result.stderr
    Path("renamed.npy").unlink()
    assert run("reproduce", made[0], "--model", bundle).exit_code == 3
    assert run("reproduce", made[3], "--model", bundle).exit_code == 0
    assert "--condition action=hop.npy" in run("show", made[0]).stdout


@pytest.mark.long
def test_influence_is_a_function_of_the_frame(folder, pipeline):
    requests, _ = true_motions()
    steps = []
    sample(folder, pipeline, requests, 0, BOTH, callback=steps.append)
    influence = np.stack([state.influence for state in steps])
    assert influence.shape == (20, 2, 1, 1, FRAMES)
    assert np.allclose(influence.sum(axis=1), 1, atol=1e-5) and influence.std(axis=-1).max() > 1e-4
