"""Weights of least error, where they are known."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from cdiff_rt import Calibration, Expert, Superposition, calibrate, compose
from cdiff_rt.errors import BadArtefact, BadRequest, CdiffError
from cdiff_rt.jobs.file import read_jobs
from cdiff_rt.learning import calibrate as module
from cdiff_rt.outputs import files
from tests.command_line import check_refused, run
from tests.learning.told import SHAPE, X0, of, pairs, pipeline, told

CASES = {
    # Independent errors of variance a and b: b / (a + b) and a / (a + b).
    "independent": ({"a": of(0.2, 0), "b": of(0.8, 1)}, (0.8, 0.2)),
    "alike": ({"a": of(0.5, 0), "b": of(0.5, 1)}, (0.5, 0.5)),
    # b errs twice as far the same way: 2 a - b is right.
    "signed": ({"a": lambda d: d[0], "b": lambda d: 2 * d[0] + 1e-3 * d[1]}, (2.0, -1.0)),
    # What is wrong with all alike changes nothing.
    "in common": ({"a": lambda d: 3 * d[2] + 0.2**0.5 * d[0], "b": lambda d: 3 * d[2] + 0.8**0.5 * d[1]}, (0.8, 0.2)),
    "of three": ({"a": of(0.5, 0), "b": of(1.0, 1), "c": of(1.0, 2)}, (0.5, 0.25, 0.25)),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_least_error(case):
    errors, best = CASES[case]
    found = calibrate(pipeline(*errors), pairs(40, errors), levels=4)
    weights = found.weights(list(errors))
    np.testing.assert_allclose(weights.mean((0, 1)), best, atol=0.05)
    np.testing.assert_allclose(weights.sum(-1), 1)
    if case != "alike":
        assert found.table["calibrated"] < 0.995 * found.table["plain mean"]
    assert found.table["calibrated"] < min(found.table[name] for name in errors)


def test_each_place_has_its_own_where_pairs_tell_places_apart():
    left = np.arange(8) < 4
    errors = {"a": lambda d: np.where(left, 0.1, 1) * d[0], "b": lambda d: np.where(left, 1, 0.1) * d[1]}
    made = pipeline("a", "b")
    found = calibrate(made, pairs(40, errors), levels=3)
    scales = found.scales(["a", "b"], np.array([0.5]), SHAPE[1:])[0]
    assert found.cells > 1
    np.testing.assert_allclose(scales[0], np.broadcast_to(np.where(left, 100 / 101, 1 / 101), (8, 8)), atol=0.03)
    assert found.table["calibrated"] < 0.1 * found.table["plain mean"]


def test_pairs_held_out_have_no_part_in_the_weights():
    errors = CASES["independent"][0]
    given = pairs(25, errors)
    spoilt = [(x, {"a": 9 * x, "b": x}) if i % 5 == 4 else (x, c) for i, (x, c) in enumerate(given)]
    one, other = (calibrate(pipeline("a", "b"), each, levels=2) for each in (given, spoilt))
    np.testing.assert_array_equal(one.errors, other.errors)
    assert other.table["a"] > 10 * one.table["a"] and other.table["b"] < 1e-9


def test_and_one_set_for_all_where_they_do_not():
    errors = {"a": of(0.5, 0), "b": of(0.5, 1)}
    assert calibrate(pipeline("a", "b"), pairs(25, errors), levels=3).cells == 1


def test_each_level_of_noise_has_its_own():
    """One is right of what is noisy, the other of what is clean; in between weights go from one to the other."""
    noisy = lambda t: t[0] > 500
    right = Expert(lambda x, t, c: c if noisy(t) else np.zeros_like(x), X0, SHAPE)
    late = Expert(lambda x, t, c: np.zeros_like(x) if noisy(t) else c, X0, SHAPE)
    found = calibrate(
        compose({"early": right, "late": late}, SHAPE), pairs(30, {"early": lambda d: 0, "late": lambda d: 0})
    )
    weights = found.weights(["early", "late"])[:, 0, 0]
    assert weights[0] > 0.99 and weights[-1] < 0.01 and found.alpha_bars == tuple(sorted(found.alpha_bars))
    assert found.table["calibrated"] < 0.01 * found.table["plain mean"]


def test_channels_say_which_errors_count():
    first = np.array([1.0, 0.0])[:, None, None]  # a is right in the second channel, b in the first
    errors = {"a": lambda d: first * d[0], "b": lambda d: (1 - first) * d[1]}
    for channels, best in (((1, 0), 0.0), ((0, 3), 1.0), (None, 0.5)):
        found = calibrate(pipeline("a", "b"), pairs(25, errors), levels=2, channels=channels)
        np.testing.assert_allclose(found.weights(["a", "b"])[..., 0], best, atol=0.05)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    errors, _ = CASES["of three"]
    out = tmp_path_factory.mktemp("calibrated") / "weights.json"
    return calibrate(pipeline(*errors), pairs(20, errors), out, levels=3)


@pytest.fixture(scope="module")
def asked():
    errors, _ = CASES["of three"]
    ((_, conditions),) = pairs(1, errors, seed=1)
    return conditions


def test_a_run_follows_them_however_they_are_given(found, asked):
    seen = []
    made = pipeline("a", "b", "c").generate(**asked, steps=5, influence=found, callback_on_step_end=seen.append)
    table = [state.influence[:, 0, 0] for state in seen]
    bars = pipeline("a", "b", "c").manifest.schedule.alpha_bars()[[state.timestep for state in seen]]
    np.testing.assert_allclose(table, found.scales(list("abc"), bars, SHAPE[1:]), atol=1e-6)
    assert made.parameters["influence"] == [found.file]
    for way in (found.file, [found.file], [found], Calibration.load(found.file)):
        np.testing.assert_array_equal(
            pipeline("a", "b", "c").generate(**asked, steps=5, influence=way).latents, made.latents
        )


def test_negative_weights_lead_away_as_far_as_they_say():
    errors, _ = CASES["signed"]
    made = pipeline("a", "b")
    found = calibrate(made, pairs(30, errors), levels=2)
    ((x0, conditions),) = pairs(1, errors, seed=5)
    wrong = lambda **how: np.abs(made.generate(**conditions, steps=2, eta=0.0, **how).latents[0] - x0).max()
    assert wrong(influence=found) < 0.2 and wrong() > 1


def test_of_those_that_take_part_alone(found, asked):
    seen = []
    made = pipeline("a", "b", "c")
    made.generate(**asked, without=["c"], steps=2, influence=found, callback_on_step_end=seen.append)
    np.testing.assert_allclose(seen[0].influence[:, 0, 0, 0, 0], [2 / 3, 1 / 3], atol=0.03)
    made.generate(**asked, steps=2, influence=[found, "a=0"], callback_on_step_end=seen.append)
    np.testing.assert_allclose(seen[-1].influence[:, 0, 0, 0, 0], [0.5, 0.5], atol=0.03)


def test_equal_pairs_and_seed_equal_numbers_on_disk(found, tmp_path):
    errors, _ = CASES["of three"]
    calibrate(pipeline(*errors), pairs(20, errors), tmp_path / "again.json", levels=3)
    assert (tmp_path / "again.json").read_bytes() == Path(found.file).read_bytes()
    other = calibrate(pipeline(*errors), pairs(20, errors), levels=3, seed=1)
    np.testing.assert_allclose(other.errors, found.errors, rtol=1e-3)  # experts that are told all do not see the noise
    assert list(json.loads((tmp_path / "again.json").read_text())["table"]) == [
        "a",
        "b",
        "c",
        "plain mean",
        "calibrated",
    ]


def test_a_bundle_is_calibrated_as_it_is_and_the_command_line_takes_the_file(pipeline, mask, tmp_path, monkeypatch):
    """With labels, words and pictures, on whatever backend."""
    monkeypatch.setattr(module, "LEAST_PAIRS", 5)
    generator = np.random.default_rng(0)
    photos = [generator.integers(0, 256, (128, 128, 3)).astype(np.uint8) for _ in range(5)]
    text = "This man has a long beard."
    calls = []
    out = tmp_path / "faces.json"
    found = calibrate(
        pipeline, [(p, {"mask": mask, "text": text}) for p in photos], out, levels=2, progress=lambda: calls.append(1)
    )
    assert found.names == ("mask", "text") and found.latent == (16, 16) and len(calls) == 1
    how = ["--text", text, "--mask", "examples/4.png", "--steps", 1]
    assert run("generate", *how, "--influence", out, "--out", tmp_path / "a.png").exit_code == 0
    refused = run("generate", *how, "--influence", tmp_path / "none.json", "--out", tmp_path / "b.png")
    check_refused(refused, 2, "none.json: there is no such file; check the path")
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"text": text, "influence": out.name}))
    (job,) = read_jobs(tmp_path / "jobs.jsonl", pipeline.manifest)
    assert job.settings.found == found
    before = job.request({})
    out.write_text(out.read_text().replace('"pull": ', '"pull": 1'))
    (job,) = read_jobs(tmp_path / "jobs.jsonl", pipeline.manifest)
    assert job.request({}) != before


GOOD = pairs(20, CASES["independent"][0])
BAD_PAIRS = [
    (GOOD[:3], "pairs: 3 of them; give 20 or more, some hundred are good"),
    (7, "pairs: a int; give a list of (x_0, {name: condition})"),
    ([*GOOD, GOOD[0][0]], "pair 20 form: a ndarray; give (x_0, {name: condition})"),
    (
        [(GOOD[0][0][:1], GOOD[0][1]), *GOOD],
        "pair 0 x_0: numbers of shape (1, 8, 8); give finite numbers of shape (2, 8, 8)",
    ),
    ([*GOOD, (GOOD[0][0] * np.nan, GOOD[0][1])], "pair 20 x_0: numbers not all finite"),
    ([*GOOD, ("photo.png", GOOD[0][1])], "pair 20 x_0: a str; give numbers of shape"),
    ([(GOOD[0][0], {"a": GOOD[0][1]["a"]}), *GOOD], "pair 1 conditions: it has a, b, the first has a; give all pairs"),
    ([*GOOD, (GOOD[0][0], {**GOOD[0][1], "d": 1})], "pair 20 condition: 'd'; composed knows a, b"),
    ([*GOOD, (GOOD[0][0], {"a": GOOD[0][1]["a"], "b": 3})], "pair 20 b: int64 of shape (); it takes"),
    (
        [*GOOD, (GOOD[0][0], {"a": GOOD[0][1]["a"], "b": GOOD[0][0] * np.inf})],
        "pair 20 b array 2x8x8: some numbers are not finite",
    ),
    ([(x, {"a": c["a"]}) for x, c in GOOD], "pairs: a is the only expert that takes part; give conditions of more"),
]


@pytest.mark.parametrize(("given", "words"), BAD_PAIRS, ids=[words[:30] for _, words in BAD_PAIRS])
def test_pairs_that_do_not_fit_are_refused_in_words(given, words):
    with pytest.raises(CdiffError) as caught:
        calibrate(pipeline("a", "b"), given)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"levels": 1}, "levels: 1 is outside 2-100"),
        ({"levels": 2.5}, "levels: 2.5; give a whole number"),
        ({"seed": -1}, "seed: -1 is outside"),
        ({"channels": [1]}, "channels: [1]; give 2 numbers of 0 or more"),
        ({"channels": [0, 0]}, "channels: [0, 0]; give 2"),
        ({"channels": [1, np.nan]}, "channels: [1, nan]; give 2"),
        ({"channels": "ab"}, "channels: 'ab'; give 2"),
        ({"out": "weights.npz"}, "out: 'weights.npz'; give the name of a .json file"),
        ({"out": "https://host/w.json"}, "out: 'https:/host/w.json' is an address"),
    ],
)
def test_and_so_are_arguments(how, words):
    with pytest.raises(BadRequest) as caught:
        calibrate(pipeline("a", "b"), GOOD, **how)
    assert str(caught.value).startswith(words)


def test_pipelines_whose_weights_nobody_may_decide_are_refused():
    for how, words in (
        ({"mixing": Superposition("or")}, "pipeline, influence: the weights of this pipeline follow from densities"),
        (
            {"top_k": 1},
            "pipeline, influence: weights that do not follow from logits, and by these each image calls some",
        ),
    ):
        experts = {name: Expert(told, X0, SHAPE, logit=lambda x, a, c: 0.0) for name in "ab"}
        with pytest.raises(BadRequest) as caught:
            calibrate(compose(experts, SHAPE, **how), GOOD)
        assert str(caught.value).startswith(words)
    broken = compose({name: Expert(lambda x, t, c: x * np.nan, X0, SHAPE) for name in "ab"}, SHAPE)
    with pytest.raises(BadRequest, match="expert a: it returned numbers that are not finite"):
        calibrate(broken, GOOD)


def test_another_pipeline_is_refused(found, asked):
    with pytest.raises(BadRequest, match=r"influence: .*weights.json is of latents \[8, 8\], these are \[4, 4\]"):
        shape = (2, 4, 4)
        pipeline("a", "b", shape=shape).generate(a=np.zeros(shape), b=np.zeros(shape), influence=found, steps=1)
    with pytest.raises(BadRequest, match=r"influence: .*weights.json knows no d; it is of a, b, c"):
        pipeline("a", "d").generate(a=asked["a"], d=asked["a"], influence=found, steps=1)
    with pytest.raises(BadRequest, match=r"influence: paper and .*weights.json; give one preset"):
        pipeline("a", "b").generate(a=asked["a"], influence=["paper", found])


def change(**fields):
    return lambda text: json.dumps(json.loads(text) | fields)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:-9], ""),
        (lambda text: "[]", "calibration"),
        (lambda text: text.replace('"pull"', '"push"'), "calibration"),
        (change(names=["a", "a", "b"]), "names or levels"),
        (change(alpha_bars=[0.5, 0.4, 0.6]), "names or levels"),
        (change(alpha_bars=[0.0, 0.4, 0.6]), "out of range"),
        (change(pull=-1.0), "out of range"),
        (change(cells=0), "numbers for 3 experts"),
        (change(cells=10**15), "numbers for 3 experts"),
        (change(latent=[]), "out of range"),
        (change(latent=[8] * 60, cells=10**6), "numbers for 3 experts"),
        (change(errors=[0.0]), "it has 1 numbers for 3 experts at 3 levels"),
        (lambda text: text.replace('"errors": [', '"errors": [1e999, '), "can be used"),
        (change(errors=[1e308] * 27), "finite"),
        (lambda text: "\0\udc80".encode("utf-8", "surrogatepass").decode("latin1"), ""),
    ],
)
def test_a_damaged_file_is_told_in_a_line(damage, words, found, tmp_path):
    path = tmp_path / "damaged.json"
    path.write_text(damage(Path(found.file).read_text()))
    with pytest.raises(BadArtefact) as caught:
        Calibration.load(path)
    assert words in str(caught.value) and str(caught.value).endswith("make it anew with calibrate")


def test_a_mix_that_is_no_better_than_the_mean_is_told(caplog):
    """Twenty pairs of single numbers tell nothing of experts that are alike."""
    errors = {"a": of(1.0, 0), "b": of(1.0, 1)}
    caplog.set_level("INFO")
    for seed in range(9):
        found = calibrate(pipeline("a", "b", shape=(1, 1)), pairs(20, errors, (1, 1), seed), levels=2)
        worse = found.table["calibrated"] >= found.table["plain mean"]
        assert worse == any("no better than the plain mean" in line for line in caplog.messages)
        caplog.clear()
        if worse:
            return
    pytest.fail("none of nine was")


def test_what_cannot_be_written_is_known_before_experts_are_asked(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    began = time.monotonic()
    with pytest.raises(CdiffError):
        calibrate(pipeline("a", "b"), GOOD, tmp_path / "file" / "weights.json")
    assert time.monotonic() - began < 0.5
    monkeypatch.setattr(files.os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CdiffError, match="No space left"):
        calibrate(pipeline("a", "b"), GOOD, tmp_path / "weights.json", levels=2)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
