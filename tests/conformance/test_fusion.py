"""Influence functions and the fused prediction, with every adjustment that the reference knows."""

import numpy as np
import pytest

from cdiff_rt.settings import Influence

VARIANTS = {
    "linear_decay_sf2": Influence("linear", 2.0),
    "cosine_sfnone": Influence("cosine", 1.0),
    "none_sf2": Influence("none", 2.0),
    "none_none": Influence("none", 1.0),
    "cosine_sf2_twice_boost1": Influence("cosine", 2.0, boost=1.0),
    "cosine_sf2_twice_boost3": Influence("cosine", 2.0, boost=3.0),
}
PLAIN = Influence("none", 1.0)


def check_fused(case, model, names, found, expected, measures):
    weights, fused = found
    total = weights.sum(0)
    measures.check(case, "sum of influence", model.backend, total, np.ones_like(total))
    for name, influence in zip(names, weights, strict=True):
        if f"infl_{name}" in expected:
            measures.check(case, "influence", model.backend, influence, expected[f"infl_{name}"])
    measures.check(case, "prediction", model.backend, fused, expected["fused"])


def group(arrays, prefix):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def test_the_defaults_of_the_reference(golden, model, conditions, tiny512, measures):
    timesteps = golden.inputs["timesteps_tiny"]
    experts = model.experts(conditions, timesteps)
    for i, t in enumerate(timesteps):
        outs, logits = experts(tiny512["x"], i)
        plain, _ = model.fused(outs, logits, t, experts.modalities, PLAIN)
        measures.check("tiny512", "influence", model.backend, plain[0], tiny512[f"t{t}/softmax_mask"])
        found = model.fused(outs, logits, t, experts.modalities, model.bundle.manifest.influence)
        check_fused("tiny512", model, experts.modalities, found, group(tiny512, f"t{t}/"), measures)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant, golden, model, conditions, tiny512, measures):
    t = golden.inputs["timesteps_tiny"][1]
    experts = model.experts(conditions, [t])
    found = model.fused(*experts(tiny512["x"], 0), t, experts.modalities, VARIANTS[variant])
    check_fused("tiny512", model, experts.modalities, found, group(tiny512, f"variant/{variant}/"), measures)


def test_dynamic_diffusers_that_look_at_the_prediction(golden, small_model, conditions, tiny512, measures):
    t = golden.inputs["timesteps_tiny"][1]
    experts = small_model.experts(conditions, [t])
    found = small_model.fused(*experts(tiny512["x"], 0), t, experts.modalities, Influence())
    expected = group(tiny512, "variant/input_unet_output/")
    check_fused("tiny512", small_model, experts.modalities, found, expected, measures)


@pytest.mark.parametrize(("name", "influence"), [("default", Influence()), ("none_none", PLAIN)])
def test_three_modalities(name, influence, golden, model, conditions, tiny512, measures):
    arrays, timesteps = golden.arrays("tiny512_sketch"), golden.inputs["timesteps_tiny"]
    experts = model.experts(conditions | {"sketch": arrays["sketch"]}, timesteps)
    assert experts.modalities == ("mask", "text", "sketch")
    for i, t in enumerate(timesteps):
        outs, logits = experts(tiny512["x"], i)
        measures.check("tiny512_sketch", "prediction", model.backend, outs[2], arrays[f"t{t}/eps_sketch"])
        found = model.fused(outs, logits, t, experts.modalities, influence)
        check_fused("tiny512_sketch", model, experts.modalities, found, group(arrays, f"t{t}/{name}/"), measures)
