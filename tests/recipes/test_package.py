import json

from recipes.faces.package import runs


def log_of(*steps):
    return "".join(json.dumps({"step": step, "loss": step / 10}) + "\n" for step in steps)


def test_a_run_that_was_resumed_is_one_run():
    assert runs(log_of(200, 400, 600)) == [{"step": 600, "loss": 60.0}]


def test_a_stage_that_was_trained_again_has_two():
    assert [row["step"] for row in runs(log_of(200, 400, 200, 300))] == [400, 300]


def test_runs_of_equal_length_are_told_apart():
    assert [row["step"] for row in runs(log_of(200, 200))] == [200, 200]
