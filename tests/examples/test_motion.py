import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cdiff_rt.inputs.modalities import KINDS
from cdiff_rt.manifest import Bundle
from cdiff_rt.nets.collaborative import CollaborativeModel
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.solvers import x0_coefficients
from examples.motion import train
from examples.motion.evaluate import BOTH, ENDPOINTS, MEAN, STYLE, WAYS, sample, table, verdicts
from examples.motion.judge import ENDPOINTS_KEPT, STYLE_KEPT, held_out, judge, style_distances
from examples.motion.models import BRANCH, DIFFUSER, MODALITIES, SCHEDULE, encoder_inputs, model_config
from examples.motion.paths import (
    DISTANCES,
    NAMES,
    POINTS,
    STYLES,
    TREMBLE,
    Requests,
    as_latents,
    as_numbers,
    as_paths,
    draw_paths,
    draw_requests,
    draw_wanderings,
    line,
)
from examples.motion.plot import REQUESTS, draw
from tests.command_line import run

SMALL = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 0, "attention_resolutions": (1,)}
STEPS = {"endpoints": 3, "style": 3, "diffusers": 3}


def true_paths(count=500, seed=7, drawn=draw_paths):
    rng = np.random.default_rng(seed)
    requests = draw_requests(count, rng)
    return requests, drawn(requests, rng)


# --- data and judge ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", [draw_paths, draw_wanderings])
def test_paths_begin_and_end_where_they_are_asked_to(drawn):
    requests, paths = true_paths(drawn=drawn)
    assert np.abs(paths[:, [0, -1]] - requests.ends).max() < 6 * TREMBLE
    straight = np.abs(paths - line(requests.ends))
    assert straight[:, :8].max() < 6 * TREMBLE < 20 * TREMBLE < straight[:, 16].max()
    distances = np.abs(requests.ends[:, 1] - requests.ends[:, 0])
    assert DISTANCES[0] <= distances.min() < distances.max() <= DISTANCES[1]


def test_every_style_is_asked_for_equally_often():
    assert np.bincount(true_paths()[0].styles).tolist() == [100] * len(NAMES)


@pytest.mark.parametrize("drawn", [draw_paths, draw_wanderings])
def test_paths_are_repeatable_and_survive_becoming_latents(drawn):
    _, paths = true_paths(drawn=drawn)
    assert np.array_equal(paths, true_paths(drawn=drawn)[1])
    assert not np.array_equal(paths, true_paths(seed=8, drawn=drawn)[1])
    latents = as_latents(paths)
    assert latents.shape == (500, 2, POINTS) and latents.dtype == np.float32
    assert np.allclose(latents[:, 0], paths.real, atol=1e-6)
    assert np.allclose(as_paths(latents), paths, atol=1e-6)


def test_the_judge_says_of_true_paths_that_they_meet_everything():
    requests, paths = held_out(5000)
    assert judge(paths, requests).met["both"].mean() > 0.999


def test_its_bounds_follow_their_rules():
    requests, paths = held_out(5000)
    own = np.arange(len(NAMES)) == requests.styles[:, None]
    assert pytest.approx(DISTANCES[0] / 8) == ENDPOINTS_KEPT
    assert pytest.approx(style_distances(paths)[~own].min() / 2, abs=0.005) == STYLE_KEPT


@pytest.mark.parametrize("style", range(len(NAMES)))
def test_a_wrong_style_is_found(style):
    requests, paths = true_paths()
    asked = dataclasses.replace(requests, styles=np.full(500, style))
    assert np.array_equal(judge(paths, asked).style_met, requests.styles == style)


def test_wrong_endpoints_are_found():
    requests, paths = true_paths()
    for shift in (ENDPOINTS_KEPT + 6 * TREMBLE, -1j):
        verdict = judge(paths + shift, requests)
        assert not verdict.endpoints_met.any() and verdict.style_met.all()
    turned_round = judge(paths[:, ::-1], requests)
    assert not turned_round.endpoints_met.any()


def test_one_wrong_end_is_enough():
    requests, paths = true_paths()
    for end in (0, -1):
        bent = paths.copy()
        bent[:, end] += 2 * ENDPOINTS_KEPT
        assert not judge(bent, requests).endpoints_met.any()


@pytest.mark.parametrize("ends", [(0, 0), (2 - 5j, 2 - 5j), (0, 30j), (-3 + 1j, 0.2)])
def test_the_style_does_not_depend_on_the_endpoints(ends):
    _, paths = true_paths()
    assert np.allclose(style_distances(paths + line(np.array([ends]))), style_distances(paths))


def test_a_figure_upside_down_is_another():
    requests, paths = true_paths()
    places = {name: place for place, name in enumerate(NAMES)}
    found = judge(paths.conj(), requests)
    swapped = {places["hop"]: places["dip"], places["dip"]: places["hop"]}
    for style, other in swapped.items():
        assert (found.style[requests.styles == style] == other).all()
    assert not found.style_met.any()


def test_the_distance_is_that_to_the_best_size_allowed():
    hop = STYLES["hop"]
    sizes = np.array([0.2, hop.smallest, 0.57, hop.largest, 0.9])
    off = np.abs(sizes - sizes.clip(hop.smallest, hop.largest)) * np.sqrt((np.abs(hop.figure) ** 2).mean())
    assert np.allclose(style_distances(sizes[:, None] * hop.figure)[:, NAMES.index("hop")], off)


NO_STYLE = {
    "noise": lambda rng: rng.standard_normal((500, POINTS, 2)) @ (1, 1j),
    "a point": lambda rng: np.ones((500, POINTS), complex),
    "a straight line": lambda rng: line(draw_requests(500, rng).ends),
    "a figure without a name": lambda rng: draw_wanderings(draw_requests(500, rng), rng),
}


@pytest.mark.parametrize("kind", NO_STYLE)
def test_what_has_no_style_is_given_none(kind):
    paths = NO_STYLE[kind](np.random.default_rng(0))
    requests = draw_requests(500, np.random.default_rng(1))
    assert not judge(paths, requests).style_met.any()
    assert style_distances(paths).min() > STYLE_KEPT


# --- training ---------------------------------------------------------------------------------------------------------


CONFIG = model_config(dataclasses.replace(BRANCH, **SMALL), dataclasses.replace(DIFFUSER, **SMALL))


def trained(seed=0):
    torch.manual_seed(seed)
    model = CollaborativeModel(CONFIG)
    train.train(model, train.all_examples(64), STEPS)
    return model


def test_what_a_branch_learns_is_what_the_solver_takes():
    x_0, eps = torch.randn(2, 8, 2, POINTS).unbind()
    generator = torch.Generator().manual_seed(3)
    t = torch.randint(SCHEDULE.train_steps, (8,), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    x_t, timesteps, v = train.diffuse(x_0, torch.Generator().manual_seed(3))
    assert torch.equal(timesteps, t)
    on_x, on_v = x0_coefficients(SCHEDULE.alpha_bars()[t], "v")
    again = torch.from_numpy(on_x)[:, None, None] * x_t + torch.from_numpy(on_v)[:, None, None] * v
    assert torch.allclose(again.float(), x_0, atol=1e-5)
    assert (x_t - eps).abs()[t > 950].max() < (x_t - x_0).abs().max()


def test_a_branch_sees_only_its_own_condition():
    model = trained()
    batch = train.examples(draw_paths, 16, 1)
    generator = torch.Generator()
    for name, other in (("endpoints", "style"), ("style", "endpoints")):
        loss = train.branch_loss(model.expert(name), name)
        plain = loss(batch, generator.manual_seed(0))
        changed = {key: values.flip(0) for key, values in batch[1].items()}
        assert loss((batch[0], batch[1] | {other: changed[other]}), generator.manual_seed(0)) == plain
        assert loss((batch[0], batch[1] | {name: changed[name]}), generator.manual_seed(0)) != plain


def test_the_branches_stay_as_they_are_while_the_diffusers_learn(monkeypatch):
    fit, before, after = train.fit, {}, {}

    def watched(name, *arguments):
        if name == "diffusers":
            before.update({key: value.clone() for key, value in model.state_dict().items()})
        fit(name, *arguments)
        after.update(model.state_dict())

    monkeypatch.setattr(train, "fit", watched)
    model = CollaborativeModel(CONFIG)
    train.train(model, train.all_examples(64), STEPS)
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed and all(".diffuser." in key for key in changed)


def test_only_the_diffusers_see_pairs_of_both_conditions():
    data = train.all_examples(200)
    assert list(data) == list(STEPS) == list(train.STEPS)
    found = {}
    for place, (name, (latents, inputs)) in enumerate(data.items()):
        requests = draw_requests(200, np.random.default_rng(train.SEED + place))
        found[name] = judge(as_paths(latents.numpy()), requests).met
        assert np.array_equal(inputs["endpoints"], as_numbers(requests.ends))
    assert found["endpoints"]["endpoints"].all() and not found["endpoints"]["style"].any()
    assert found["style"]["both"].all() and found["diffusers"]["both"].all()
    assert not torch.equal(data["style"][0], data["diffusers"][0])


@pytest.mark.slow
def test_training_is_repeatable():
    first, second, other = (trained(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


# --- the runtime ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion") / "out"
    model = trained()
    for name in model.experts:  # after three steps they would hardly differ from the plain mean
        torch.nn.init.normal_(model.expert(name).diffuser.out[2].weight, std=0.3)
    assert max(train.export(model, CONFIG, folder).values()) < 1e-4
    return folder / "bundle"


@pytest.fixture(scope="module")
def motion(folder):
    return Pipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def eager(folder):
    return Pipeline.from_pretrained(folder, backend="torch")


GIVEN = {"endpoints": as_numbers(np.array([[-0.5 + 0.1j, 0.6 - 0.2j]]))[0], "style": "loop"}


@pytest.mark.slow
@pytest.mark.parametrize("names", [["endpoints"], ["style"], ["endpoints", "style"]])
def test_the_runtime_moves_by_either_condition_and_by_both(motion, eager, names):
    given = {name: GIVEN[name] for name in names}
    result = motion.generate(steps=10, batch=3, **given)
    assert result.images.size == 0 and result.latents.shape == (3, 2, POINTS)
    assert np.array_equal(result.latents, motion.generate(steps=10, batch=3, **given).latents)
    assert np.allclose(result.latents, eager.generate(steps=10, batch=3, **given).latents, atol=1e-3)


@pytest.mark.slow
def test_each_condition_and_the_influence_functions_matter(motion):
    def path(**given):
        return motion.generate(steps=10, **given).latents

    both = path(**GIVEN)
    for changed in ({"style": "arc"}, {"endpoints": -GIVEN["endpoints"]}):
        assert not np.allclose(path(**GIVEN | changed), both, atol=1e-3)
    assert not np.allclose(path(**GIVEN, **WAYS[MEAN][1]), both, atol=1e-3)


@pytest.mark.slow
def test_influence_is_a_function_of_the_point(motion):
    steps = []
    motion.generate(steps=10, batch=2, callback_on_step_end=steps.append, **GIVEN)
    influence = np.stack([state.influence for state in steps])
    assert influence.shape == (10, 2, 2, 1, POINTS)
    assert np.allclose(influence.sum(axis=1), 1, atol=1e-5)
    assert influence.std(axis=-1).min() > 1e-3


@pytest.mark.slow
def test_training_and_the_runtime_read_conditions_alike(folder):
    bundle = Bundle.open(folder)
    requests, _ = true_paths(len(NAMES))
    for modality in MODALITIES:
        values = {"endpoints": list(as_numbers(requests.ends)), "style": [NAMES[i] for i in requests.styles]}
        read = [KINDS[modality.kind].read(value, modality, bundle) for value in values[modality.name]]
        assert np.array_equal(np.concatenate(read), encoder_inputs(requests)[modality.name])


@pytest.mark.slow
def test_every_way_gives_its_conditions_only(motion):
    requests = Requests(np.array([[0j, 1], [1j, -1]]), np.array([1, 3]))
    paths = {way: sample(motion, requests, 0, way) for way in WAYS}
    assert {path.shape for path in paths.values()} == {(1, POINTS)}
    other_style = Requests(requests.ends, requests.styles[::-1])
    other_ends = Requests(requests.ends[::-1], requests.styles)
    for way, of_style, of_ends in ((ENDPOINTS, False, True), (STYLE, True, False), (BOTH, True, True)):
        assert np.array_equal(sample(motion, other_style, 0, way), paths[way]) is not of_style
        assert np.array_equal(sample(motion, other_ends, 0, way), paths[way]) is not of_ends


@pytest.mark.slow
def test_the_table_counts(motion):
    rows = table(verdicts(motion, 3)).splitlines()
    assert rows[0] == "| paths | endpoints met | style met | both met |"
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == [*WAYS, "true paths"]
    assert rows[-1] == "| true paths | 3 of 3 | 3 of 3 | 3 of 3 |"


@pytest.mark.slow
def test_the_plot_is_small_and_of_requests_that_are_not_in_the_table(motion, tmp_path):
    requests, _ = held_out(REQUESTS.stop)
    draw(motion, requests).save(tmp_path / "motion.png")
    assert 10_000 < (tmp_path / "motion.png").stat().st_size < 200_000
    assert set(requests.styles[list(REQUESTS)]) == set(range(len(NAMES)))


@pytest.mark.long
def test_a_movement_is_made_again_from_what_its_npz_says(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("ends.npy", GIVEN["endpoints"])
    given = ("--condition", "endpoints=ends.npy", "--condition", "style=loop", "--steps", 10, "--batch", 2)
    for more, out in (((), "plain"), (("--embed-inputs",), "whole")):
        assert run("generate", "--model", folder, *given, *more, "--out", out).exit_code == 0
    Path("ends.npy").rename("renamed.npy")
    made = [f"{out}/seed0-{number:03d}.npz" for out in ("plain", "whole") for number in range(2)]
    result = run("reproduce", *made, "--model", folder)
    assert result.stdout.splitlines() == [f"{name}: the same to the byte" for name in made], result.stderr
    Path("renamed.npy").unlink()
    assert run("reproduce", made[0], "--model", folder).exit_code == 3
    assert run("reproduce", made[3], "--model", folder).exit_code == 0
    assert "--condition endpoints=ends.npy --condition style=loop" in run("show", made[0]).stdout
