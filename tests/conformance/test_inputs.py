"""What goes in: word-piece ids, labels, the schedule and DDIM's coefficients."""

import json
from pathlib import Path

import numpy as np
import pytest

from cdiff_rt.errors import BadRequest
from cdiff_rt.export import published
from cdiff_rt.inputs.label_maps import read_labels
from cdiff_rt.inputs.modalities import KINDS
from cdiff_rt.inputs.wordpiece import WordPiece
from cdiff_rt.sampling import fusion
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import C_NOISE, E_OUT, E_X, ddim

ROWS = {modality.name: modality for modality in published.PUBLISHED[0].modalities}


def test_captions_become_the_references_ids(golden, measures):
    vocabulary = WordPiece.from_file(Path(published.__file__).with_name(published.VOCABULARY))
    ids = np.array([vocabulary.encode(caption, 77).ids for caption in golden.inputs["captions"]])
    measures.check("tokens", "exact", "", ids, golden.arrays("tokens")["input_ids"])


def test_masks_become_the_references_labels(golden, measures):
    arrays = golden.arrays("masks")
    for path in sorted(golden.cases.glob("mask*.png")):
        size, number = path.stem.removeprefix("mask").split("_")
        labels, _ = read_labels(path, 19)
        measures.check("masks", "exact", "", labels, arrays[path.stem])
        expected = arrays[f"ids32_from{size}_{number}"]
        one_hot = KINDS["labels"].read(path, ROWS["mask"], None)
        measures.check("masks", "exact", "", one_hot[0].argmax(0).reshape(32, 32), expected)


def test_the_schedule(golden, measures):
    measures.check("schedule", "coefficient", "", Schedule().alpha_bars(), golden.schedule["alphas_cumprod"])


def test_timesteps_and_the_steps_that_the_reference_crashes_on(golden, measures):
    told = json.loads((golden.folder / "schedule.json").read_text())
    for steps, expected in told["ddim_timesteps"].items():
        if len(expected) == int(steps):
            ours = Schedule().timesteps(int(steps))
            measures.check("schedule", "exact", "", ours, np.array(expected))
        else:
            with pytest.raises(BadRequest, match=f"{steps} does not divide"):
                Schedule().timesteps(int(steps))
    for steps in told["S_that_raise_IndexError"]:
        with pytest.raises(BadRequest):
            Schedule().timesteps(steps)


def test_the_decay_of_the_masks_influence(golden, measures):
    for kind, values in json.loads((golden.folder / "schedule.json").read_text())["mask_schedule"].items():
        timesteps = np.array(list(map(int, values)))
        ours = fusion.decay(kind.removesuffix("_decay"), timesteps, 1000)
        measures.check("schedule", "influence", "", ours, np.array(list(values.values())))


@pytest.mark.parametrize("eta", [0, 1])
def test_the_coefficients_of_ddim(eta, tiny512, measures):
    case = {key: tiny512[f"ddim10_eta{eta}/{key}"] for key in ("timesteps", "alphas", "alphas_prev", "sigmas")}
    table = ddim(Schedule(), 10, eta=eta)
    measures.check("tiny512", "exact", "", table.timesteps[::-1], case["timesteps"])
    measures.check("tiny512", "coefficient", "", table.alpha_bars[::-1], case["alphas"])
    measures.check("tiny512", "coefficient", "", table.coefficients[::-1, C_NOISE], case["sigmas"])
    roots = 1 / table.coefficients[::-1, E_X], -table.coefficients[::-1, E_OUT] / table.coefficients[::-1, E_X]
    measures.check("tiny512", "coefficient", "", roots[0] ** 2, case["alphas"])
    measures.check("tiny512", "coefficient", "", roots[1], tiny512[f"ddim10_eta{eta}/sqrt_one_minus_alphas"])
    following = np.concatenate([Schedule().alpha_bars()[:1], table.alpha_bars[::-1][:-1]])
    measures.check("tiny512", "coefficient", "", following, case["alphas_prev"])
