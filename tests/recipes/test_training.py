import json
import time

import click
import pytest
import torch
from torch import nn

from recipes.faces import training
from recipes.faces.training import Plan, fit, rate


@pytest.fixture
def ticks(monkeypatch):
    """A clock on which every step of training takes one second."""
    now = iter(range(10**9))
    monkeypatch.setattr(training, "clock", lambda: next(now))


def plan(folder, steps=40, **settings):
    return Plan("stage", folder, steps / 60, **{"resume": False, "seed": 0, "examples": 64, "batch": 8} | settings)


class Line:
    """A line through noisy points, and the weights that each step started from."""

    def __init__(self):
        torch.manual_seed(1)
        self.x = torch.randn(64, 4)
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
        self.module = nn.Linear(4, 1)
        self.values, self.weights, self.batches = [], [], []

    def loss(self, indices, generator):
        self.weights.append(self.module.weight.detach().clone())
        self.batches.append(indices.tolist())
        value = ((self.module(self.x[indices]).float() - self.y[indices]) ** 2).mean()
        self.values.append(value.item())
        return value


@pytest.mark.parametrize(
    ("done", "step", "expected"),
    [
        (0, 0, 0.01),
        (0, 49, 0.5),
        (0, 99, 1),
        (0, 10_000, 1),
        (0.5, 10_000, 0.5),
        (1, 10_000, 0),
        (1.7, 10_000, 0),
        (0.5, 49, 0.25),
    ],
)
def test_rate_warms_up_and_falls_to_zero(done, step, expected):
    assert rate(done, step) == pytest.approx(expected)


def test_loss_falls(ticks, tmp_path):
    line = Line()
    fit(plan(tmp_path, steps=300, learning_rate=0.1), line.module, line.loss)
    assert len(line.values) == 300
    assert sum(line.values[-20:]) < 0.05 * sum(line.values[:20])


def test_averaged_weights_are_left_in_the_module(ticks, tmp_path):
    line = Line()
    fit(plan(tmp_path, learning_rate=0.1), line.module, line.loss)
    saved = torch.load(tmp_path / "stage.pt", weights_only=True)
    after = [*line.weights[1:], saved["module"]["weight"]]
    average = line.weights[0]
    for step, weight in enumerate(after, start=1):
        decay = min(0.999, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert torch.allclose(line.module.weight, average, atol=1e-5)
    assert not torch.allclose(line.module.weight, saved["module"]["weight"], atol=1e-3)


def test_a_resumed_run_goes_on_where_the_first_ended(ticks, tmp_path):
    first, second = Line(), Line()
    fit(plan(tmp_path, 15), first.module, first.loss)
    state = torch.load(tmp_path / "stage.pt", weights_only=True)
    fit(plan(tmp_path, 40, resume=True), second.module, second.loss)
    assert (state["step"], state["seconds"]) == (15, 15)
    assert len(second.values) == 25
    assert torch.equal(second.weights[0], state["module"]["weight"])
    assert torch.load(tmp_path / "stage.pt", weights_only=True)["step"] == 40
    assert second.batches[0] not in first.batches


def test_a_finished_run_resumes_to_the_same_average(ticks, tmp_path):
    first, second = Line(), Line()
    fit(plan(tmp_path), first.module, first.loss)
    fit(plan(tmp_path, resume=True), second.module, second.loss)
    assert second.values == []
    assert torch.equal(first.module.weight, second.module.weight)


def test_without_resume_the_old_state_is_not_read(ticks, tmp_path):
    first, second = Line(), Line()
    fit(plan(tmp_path), first.module, first.loss)
    fit(plan(tmp_path), second.module, second.loss)
    assert second.values == first.values


def test_an_interrupted_run_resumes_from_its_last_save(ticks, tmp_path):
    line = Line()

    def interrupted(indices, generator):
        if len(line.values) == 25:
            raise KeyboardInterrupt
        return line.loss(indices, generator)

    with pytest.raises(KeyboardInterrupt):
        fit(plan(tmp_path, save_every=10), line.module, interrupted)
    again = Line()
    fit(plan(tmp_path, resume=True), again.module, again.loss)
    assert len(again.values) == 40 - 20
    assert torch.equal(again.weights[0], line.weights[20])


def test_equal_seeds_train_equally(ticks, tmp_path):
    lines = [Line() for _ in range(3)]
    for line, seed in zip(lines, (5, 5, 6), strict=True):
        fit(plan(tmp_path, seed=seed), line.module, line.loss)
    assert torch.equal(lines[0].module.weight, lines[1].module.weight)
    assert not torch.equal(lines[0].module.weight, lines[2].module.weight)


def test_frozen_parameters_stay(ticks, tmp_path):
    line = Line()
    line.module.bias.requires_grad_(False)
    before = line.module.bias.clone()
    fit(plan(tmp_path), line.module, line.loss)
    assert torch.equal(line.module.bias, before)
    assert not torch.equal(line.module.weight, line.weights[0])


def test_progress_is_logged(ticks, tmp_path):
    line = Line()
    fit(plan(tmp_path, save_every=20), line.module, line.loss)
    rows = [json.loads(row) for row in (tmp_path / "stage.jsonl").read_text().splitlines()]
    assert [(row["step"], row["images"], row["minutes"]) for row in rows] == [(20, 160, 0.33), (40, 320, 0.67)]
    assert rows[1]["loss"] == pytest.approx(sum(line.values[20:]) / 20, abs=1e-4)


def test_the_time_box_is_kept(tmp_path):
    line = Line()
    start = time.thread_time()
    fit(plan(tmp_path, steps=0.3), line.module, line.loss)
    assert 0.3 <= time.thread_time() - start < 1.5
    assert torch.load(tmp_path / "stage.pt", weights_only=True)["seconds"] == pytest.approx(0.3, abs=0.2)


@pytest.mark.parametrize(
    ("resume", "exists", "words"), [(True, False, "no .* to resume"), (False, True, "add --resume")]
)
def test_work_is_neither_overwritten_nor_missed_silently(resume, exists, words, tmp_path):
    stage = plan(tmp_path, resume=resume)
    if exists:
        stage.state.touch()
    with pytest.raises(click.UsageError, match=words):
        stage.check()


@pytest.mark.parametrize("exists", [False, True])
def test_a_fresh_start_and_a_resumed_run_may_begin(exists, tmp_path):
    stage = plan(tmp_path, resume=exists)
    if exists:
        stage.state.touch()
    assert stage.check() is None
