"""What experts are asked of pairs, and what they should have said."""

from dataclasses import replace

import numpy as np
import pytest

from cdiff_rt.errors import BadRequest
from cdiff_rt.learning.pairs import ask, contexts_of, levels, read_pairs
from cdiff_rt.sampling import noise
from tests.learning import told

TIMESTEPS = np.array([900, 400, 20])


@pytest.mark.parametrize("kind", ["v", "eps"])
def test_experts_are_asked_of_noised_data_and_held_against_what_they_predict(kind):
    pipeline, given = told.pipeline("a", "b"), told.pairs(3, {"a": told.of(1.0, 0), "b": told.of(1.0, 1)})
    schedule = replace(pipeline.manifest.schedule, prediction=kind)
    pipeline.manifest = replace(pipeline.manifest, schedule=schedule)
    pairs, table = read_pairs(pipeline, given, 2), levels(pipeline, TIMESTEPS)
    drawn = [noise.normal(i, range(2), 0, told.SHAPE) for i in range(3)]
    seen = []
    ask(pipeline, pairs, np.array([2, 0]), table, drawn.__getitem__, seen.append)
    x0, hints = np.stack([given[2][0], given[0][0]]), np.stack([given[2][1]["b"], given[0][1]["b"]])
    for answer, a in zip(seen, table.alpha_bars, strict=True):
        n = drawn[answer.step]
        np.testing.assert_allclose(answer.x, np.sqrt(a) * x0 + np.sqrt(1 - a) * n, atol=1e-5)
        v = np.sqrt(a) * n - np.sqrt(1 - a) * x0
        np.testing.assert_allclose(answer.wanted, v if kind == "v" else n, atol=1e-5)
        # Told x_0 with an error, b is wrong by it, in v.
        np.testing.assert_allclose(answer.outs[1] - v, (x0 - hints) / np.sqrt(1 - a), rtol=1e-3, atol=1e-3)


def test_a_bundle_answers_as_in_a_run(pipeline, mask):
    text = "This man has a long beard."
    zeros = np.zeros(pipeline.manifest.latent_shape, np.float32)
    pairs = read_pairs(pipeline, [(zeros, {"text": text, "mask": mask})] * 2, 2)
    first = levels(pipeline, pipeline.manifest.schedule.timesteps(1))
    seen, states = [], []
    ask(pipeline, pairs, np.array([0]), first, lambda i: np.ones((1, *zeros.shape), np.float32), seen.append)
    pipeline.generate(text=text, mask=mask, steps=1, x_T=seen[0].x, callback_on_step_end=states.append)
    np.testing.assert_allclose(seen[0].outs, states[0].predictions, atol=1e-5)


def test_what_experts_are_told_is_what_encoders_give_or_the_numbers_themselves(pipeline, mask):
    texts = ["This man has a long beard.", "She is young."]
    zeros = np.zeros(pipeline.manifest.latent_shape, np.float32)
    pairs = read_pairs(pipeline, [(zeros, {"text": text, "mask": mask}) for text in texts], 2)
    told_of = dict(zip(pairs.names, contexts_of(pipeline, pairs, np.array([1, 0, 1])), strict=True))
    for name, row in (("text", 1), ("mask", 0)):
        alone = pipeline._runner.call(f"condition.{name}", inputs=pairs.inputs[row][pairs.names.index(name)])["context"]
        np.testing.assert_allclose(told_of[name][1 - row], alone[0], atol=1e-5)
    given = told.pairs(2, {"a": told.of(1.0, 0), "b": told.of(1.0, 1)})
    numbers = contexts_of(told.pipeline("a", "b"), read_pairs(told.pipeline("a", "b"), given, 2), np.array([1]))
    np.testing.assert_array_equal(numbers[1].reshape(told.SHAPE), given[1][1]["b"].astype(np.float32))


def test_pairs_come_one_by_one_or_as_arrays():
    pipeline, given = told.pipeline("a", "b"), told.pairs(4, {"a": told.of(1.0, 0), "b": told.of(1.0, 1)})
    columns = {name: np.stack([conditions[name] for _, conditions in given]) for name in "ab"}
    x0 = np.stack([x for x, _ in given])
    wanted = read_pairs(pipeline, given, 2)
    for form in (iter(given), (x0, columns), (list(x0), {"a": list(columns["a"]), "b": columns["b"]})):
        found = read_pairs(pipeline, form, 2)
        np.testing.assert_array_equal(found.x0, wanted.x0)
        np.testing.assert_array_equal(np.array(found.inputs), np.array(wanted.inputs))
    assert len(wanted.first(3).x0) == len(wanted.first(3).inputs) == 3


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (3, "pairs: a int; give a list of"),
        ((np.zeros((4, *told.SHAPE)), {"a": np.zeros((3, *told.SHAPE))}), "pairs: 3 of a, 4 of x_0; give as many"),
        ((7, {"a": [1]}), "pairs, x_0: a int; give an array or a list"),
        (iter(()), "pairs: 0 of them; give 2 or more"),
    ],
)
def test_pairs_of_other_forms_are_refused_in_words(form, words):
    with pytest.raises(BadRequest) as caught:
        read_pairs(told.pipeline("a", "b"), form, 2)
    assert str(caught.value).startswith(words)
