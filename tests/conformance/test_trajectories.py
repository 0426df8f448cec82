"""Whole runs and single steps, from given noise to the image."""

import numpy as np
import pytest

from cdiff_rt.outputs.formats import to_uint8
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import SolverTable, ddim
from tests.conformance.conftest import conditions_of

STEPS = 10


@pytest.mark.parametrize("eta", [0, 1])
def test_ten_steps(eta, model, conditions, tiny512, measures):
    expected = {key.split("/")[1]: value for key, value in tiny512.items() if key.startswith(f"ddim10_eta{eta}/")}
    seen, noise = [], tiny512["ddim_noise"]
    z = model.run(conditions, tiny512["x_T"], noise.__getitem__, ddim(Schedule(), STEPS, eta=eta), seen.append)
    check = lambda quantity, ours, name: measures.check("tiny512", quantity, model.backend, ours, expected[name])
    check("trajectory", z, "z")
    check("trajectory", np.stack([state.x for state in seen]), "x_inter")
    check("trajectory", np.stack([state.x0 for state in seen]), "pred_x0")
    check("influence", np.stack([state.influence[0] for state in seen]), "infl_mask")
    check("autoencoder", model.decode(expected["z"]), "decoded")
    check("uint8", to_uint8(model.decode(z)), "uint8")


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("index", [49, 25, 0])
def test_single_steps_of_fifty(eta, index, model, conditions, tiny512, measures):
    whole = ddim(Schedule(), 50, eta=eta)
    row = slice(49 - index, 50 - index)
    table, seen = SolverTable(whole.timesteps[row], whole.alpha_bars[row], whole.coefficients[row]), []
    model.run(conditions, tiny512["x"], lambda i: tiny512["ddim_noise"][index % 10], table, seen.append)
    for name, ours in (("x_prev", seen[0].x), ("pred_x0", seen[0].x0)):
        expected = tiny512[f"step50_eta{eta}/idx{index}/{name}"]
        measures.check("tiny512", "trajectory", model.backend, ours, expected)


@pytest.mark.parametrize(("name", "official"), [("mask", "seg_mask"), ("text", "text")])
def test_one_modality(name, official, model, conditions, tiny512, measures):
    alone = {name: conditions[name]}
    z = model.run(alone, tiny512["x_T"], tiny512["ddim_noise"].__getitem__, ddim(Schedule(), 5, eta=1))
    measures.check("tiny512", "trajectory", model.backend, z, tiny512[f"uni_{official}_ddim5_eta1/z"])


def test_smaller_images(golden, model, small_model, tiny512, measures):
    """The published sizes differ in the autoencoder only, so the experts are those of the other bundle."""
    if model.backend != small_model.backend:
        return
    arrays, conditions, seen = golden.arrays("tiny256"), conditions_of(golden, "256", (2, 3)), []
    table = ddim(Schedule(), 4, eta=1)
    z = model.run(conditions, tiny512["x_T"], tiny512["ddim_noise"].__getitem__, table, seen.append)
    measures.check("tiny256", "exact", "", table.timesteps[::-1], arrays["ddim4_eta1/timesteps"])
    measures.check("tiny256", "trajectory", model.backend, z, arrays["ddim4_eta1/z"])
    influence = np.stack([state.influence[0] for state in seen])
    measures.check("tiny256", "influence", model.backend, influence, arrays["ddim4_eta1/infl_mask"])
    decoded = small_model.decode(arrays["ddim4_eta1/z"])
    measures.check("tiny256", "autoencoder", model.backend, decoded, arrays["ddim4_eta1/decoded"])
    measures.check("tiny256", "uint8", model.backend, to_uint8(small_model.decode(z)), arrays["ddim4_eta1/uint8"])


def test_three_modalities(golden, model, conditions, tiny512, measures):
    arrays = golden.arrays("tiny512_sketch")
    three = conditions | {"sketch": arrays["sketch"]}
    z = model.run(three, tiny512["x_T"], tiny512["ddim_noise"].__getitem__, ddim(Schedule(), 4, eta=1))
    measures.check("tiny512_sketch", "trajectory", model.backend, z, arrays["ddim4_eta1/z"])
