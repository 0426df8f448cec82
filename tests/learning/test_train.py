"""Influence that depends on the image, on place and time: nothing else than learning finds it."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from cdiff_rt import Expert, Learned, Pipeline, compose, export_composition, train
from cdiff_rt.errors import BadArtefact, BadRequest, CdiffError
from cdiff_rt.learning import descent
from cdiff_rt.learning import train as module
from tests.learning.told import X0, told

SHAPE = (1, 8)
LEFT = np.arange(8) < 4


def experts(late=lambda t: False):
    """a's hint is right on the left of images of positive mean and on the right of others; b's where a's is not."""

    def expert(swapped):
        def denoise(x, time, c):  # late, each answers the other's way
            return c[:, int(swapped != late(time[0])), None].copy()

        return Expert(denoise, X0, (2, 8))

    return {"a": expert(False), "b": expert(True)}


def pairs(count, seed=0):
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sign = generator.choice([-1, 1])
        x = (3 * sign + generator.normal(size=SHAPE)).astype(np.float32)
        right = LEFT if sign > 0 else ~LEFT
        hints = [x + np.where(of, 0.05, 1.0) * generator.normal(size=SHAPE) for of in (right, ~right)]
        both = np.concatenate(hints)
        found.append((x, {"a": both, "b": both}))
    return found


@pytest.fixture
def no_export(monkeypatch):
    """Which takes its time: networks stay where they are."""
    monkeypatch.setattr(descent.Descent, "export", lambda self, folder: kept.append(self))
    kept = []
    return kept


def weights_of(kept):
    return {name: value.numpy() for name, value in kept[-1]._nets.state_dict().items()}


@pytest.mark.long
def test_a_mix_that_is_learned_beats_what_the_image_has_no_part_in(tmp_path, no_export):
    made = compose(experts(), SHAPE)
    calls = []
    learned = train(made, pairs(40), tmp_path / "a", iterations=60, rate=4e-3, progress=lambda: calls.append(1))
    table = learned.table
    assert len(calls) == 60
    assert list(table) == ["a", "b", "plain mean", "calibrated", "collaborative"]
    assert table["collaborative"] < 0.3 * min(table["calibrated"], table["plain mean"], table["a"])
    assert json.loads((tmp_path / "a" / "influence.json").read_text())["table"] == table


@pytest.mark.long
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, no_export, monkeypatch):
    monkeypatch.setattr(descent, "SAVED_AFTER", 4)
    made, given = compose(experts(), SHAPE), pairs(25)
    calls = []

    def end():
        calls.append(1)
        if len(calls) == 7:  # three iterations after a state was kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(made, given, tmp_path / "cut", iterations=10, progress=end)
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["state.safetensors", "training.json"]
    calls = [0] * 10
    cut = train(made, given, tmp_path / "cut", iterations=10, resume=True, progress=end)
    assert len(calls) == 16
    one = weights_of(no_export)
    torch.rand(3)  # nobody else's draws have a part in it
    through = train(made, given, tmp_path / "through", iterations=10)
    other = weights_of(no_export)
    assert cut.table == through.table
    assert all(np.array_equal(one[name], other[name]) for name in one) and len(one) > 50
    first = (tmp_path / "cut" / "state.safetensors").read_bytes()
    assert first == (tmp_path / "through" / "state.safetensors").read_bytes()
    train(made, given, tmp_path / "seed", iterations=10, seed=1)
    assert first != (tmp_path / "seed" / "state.safetensors").read_bytes()


def test_minutes_settle_how_many_iterations_there_are(tmp_path, no_export, monkeypatch):
    monkeypatch.setattr(descent.Descent, "seconds", lambda self: 25.0)
    monkeypatch.setattr(module, "LEAST_ITERATIONS", 1)
    made, given = compose(experts(), SHAPE), pairs(20)
    learned = train(made, given, tmp_path / "a", minutes=1.25)
    assert learned.about.iterations == 3


@pytest.mark.long
def test_what_was_learned_runs_in_a_composition_and_depends_on_time_and_place(tmp_path):
    late = lambda time: time < 500
    mine = experts(late)
    learned = train(compose(mine, SHAPE), pairs(60), tmp_path / "learned", iterations=250, rate=4e-3)
    table = learned.table
    assert table["collaborative"] < 0.2 * min(table["calibrated"], table["plain mean"])
    for way in (learned, Learned(tmp_path / "learned")):
        seen = []
        made = compose(way.over(mine), SHAPE)
        for x0, conditions in pairs(6, seed=9):
            made.generate(**conditions, steps=10, callback_on_step_end=seen.append)
            for state in (each for each in seen if abs(each.timestep - 500) > 100):  # where the roles change
                right = LEFT if (x0.mean() > 0) == (not late(state.timestep)) else ~LEFT
                share = state.influence[0, 0, 0]
                assert share[right].mean() > 0.8 and share[~right].mean() < 0.2
            seen.clear()
    with pytest.raises(BadRequest, match="learned knows no c; it is of a, b"):
        learned.over({"c": mine["a"]})
    with pytest.raises(BadRequest, match=r"expert a: its logit is of latents \[1, 8\] and 16 numbers of condition"):
        compose(learned.over(mine), (1, 9))
    with pytest.raises(BadRequest, match="expert a: its condition has 3 numbers, and .*learned was learned with 16"):
        learned.over({"a": Expert(told, X0, (3,))})
    (tmp_path / "learned" / "a.onnx").write_bytes(b"damaged")
    with pytest.raises(BadArtefact, match="a.onnx"):
        learned.over(mine)


class Half(nn.Module):
    """One of the two hints that it is told."""

    def __init__(self, which):
        super().__init__()
        self.which = which

    def forward(self, x, time, c):
        return c[:, self.which, None] + 0 * x


@pytest.mark.long
def test_what_was_learned_runs_the_same_inside_a_bundle(tmp_path):
    mine = {name: Expert(Half(which), X0, (2, 8)) for which, name in enumerate("ab")}
    learned = train(compose(mine, SHAPE), pairs(25), tmp_path / "learned", iterations=15, rate=4e-3)
    made = compose(learned.over(mine), SHAPE)
    export_composition(made, tmp_path / "bundle")
    opened, asked, shares = Pipeline.from_pretrained(tmp_path / "bundle"), pairs(1)[0][1] | {"steps": 10}, []
    wanted = made.generate(**asked, callback_on_step_end=lambda state: shares.append(state.influence)).latents
    assert np.abs(opened.generate(**asked).latents - wanted).max() < 1e-5 * wanted.std()
    assert np.ptp(shares) > 0.1


GOOD = pairs(20)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"pairs": GOOD[:5]}, "pairs: 5 of them; give 20 or more"),
        ({"minutes": -1}, "minutes: -1.0 is outside 0-100000"),
        ({"iterations": 0}, "iterations: 0 is outside"),
        ({"iterations": 1.5}, "iterations: 1.5; give a whole number"),
        ({"rate": 0}, "rate: 0.0 is outside"),
        ({"width": 48}, "width: 48; give a multiple of 32"),
        ({"width": 0}, "width: 0 is outside 32-512"),
        ({"seed": "x"}, "seed: 'x'; give a whole number"),
        ({"channels": [1, 2]}, "channels: [1, 2]; give 1 numbers"),
        ({"resume": True}, "resume: nothing was begun in"),
        ({"out": ""}, ""),
        ({"pairs": [(x, {"a": c["a"]}) for x, c in GOOD]}, "pairs: a is the only expert that takes part"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(how, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"pairs": GOOD, "out": tmp_path / "out", "iterations": 1, **how}
    with pytest.raises(CdiffError) as caught:
        train(compose(experts(), SHAPE), **given)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_refused(tmp_path, no_export):
    made = compose(experts(), SHAPE)
    train(made, GOOD, tmp_path / "a", iterations=1)
    for how, words in (
        ({}, "out: .* is not empty; choose another folder, or go on with resume=True"),
        ({"resume": True, "seed": 1}, "resume: .* holds other pairs or settings"),
        ({"resume": True, "pairs": pairs(20, seed=1)}, "resume: .* holds other pairs or settings"),
    ):
        with pytest.raises(BadRequest, match=words):
            train(made, **{"pairs": GOOD, "out": tmp_path / "a", "iterations": 1, **how})
    (tmp_path / "a" / "training.json").write_text("{")
    with pytest.raises(BadArtefact, match=r"training.json: it cannot be read"):
        train(made, GOOD, tmp_path / "a", iterations=1, resume=True)


@pytest.mark.slow
def test_of_a_bundle_networks_are_told_what_its_encoders_give(pipeline, mask, tmp_path, no_export, monkeypatch):
    monkeypatch.setattr(descent, "LEVELS", 2)
    monkeypatch.setattr(module, "calibrated", partial(module.calibrated, count=2))
    x0 = np.random.default_rng(0).normal(size=(20, *pipeline.manifest.latent_shape)).astype(np.float32)
    given = {"mask": [mask] * 20, "text": ["This man has a long beard.", "She is young."] * 10}
    learned = train(pipeline, (x0, given), tmp_path / "a", iterations=1)
    networks = pipeline.manifest.networks
    contexts = {name: networks[f"condition.{name}"].outputs[0].shape[1:] for name in ("mask", "text")}
    assert learned.about.conditions == {name: list(shape) for name, shape in contexts.items()}
    table = learned.table
    assert table["collaborative"] == pytest.approx(table["plain mean"], rel=1e-2)  # as good as untrained
    net = no_export[-1]._nets[1]
    assert (net.deviation > 0).all() and net.mean.shape == contexts["text"]


def test_latents_without_places_are_refused(tmp_path):
    flat = compose({name: Expert(told, X0, (3,)) for name in "ab"}, (3,))
    with pytest.raises(BadRequest, match="pipeline: its latents have 0 axes beside channels"):
        train(flat, [(np.zeros(3), {"a": np.zeros(3), "b": np.zeros(3)})] * 20, tmp_path / "a", iterations=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "Expecting value"), ("{}", "influence.json"), ('{"conditions": 3}', "influence.json"), ("[" * 99, "")],
)
def test_a_damaged_folder_is_told_in_a_line(text, words, tmp_path):
    with pytest.raises(BadRequest, match="there is no such file"):
        Learned(tmp_path)
    (tmp_path / "influence.json").write_text(text)
    with pytest.raises(BadArtefact) as caught:
        Learned(tmp_path)
    assert words in str(caught.value) and str(caught.value).endswith("train it anew")
