"""Encoders, branches, dynamic diffusers and the autoencoder, one call each."""

import numpy as np
import torch

from cdiff_rt.nets.collaborative import build_part
from cdiff_rt.outputs.formats import to_uint8


def test_conditions_are_embedded_as_by_the_reference(golden, three, tiny512, measures):
    """On torch alone: a bundle's condition networks go on to keys and values, which the branches below depend on."""
    sketches = golden.arrays("tiny512_sketch")
    masks = golden.arrays("masks")
    labels = np.stack([masks[f"ids32_from512_{i}"] for i in (0, 1)]).reshape(2, -1)
    cases = {
        "mask": (np.eye(19, dtype=np.float32)[labels].transpose(0, 2, 1), tiny512["mask_emb"]),
        "text": (golden.arrays("tokens")["input_ids"], tiny512["text_emb"]),
        "sketch": (sketches["sketch"], sketches["sketch_emb"]),
    }
    for name, (inputs, expected) in cases.items():
        expert = build_part(three.description.config, f"experts.{name}")
        expert.load_state_dict({key: three.weights[f"experts.{name}.{key}"] for key in expert.state_dict()})
        with torch.inference_mode():
            ours = expert.encoder(torch.from_numpy(inputs)).numpy()  # type: ignore[operator]
        measures.check("tiny512_sketch" if name == "sketch" else "tiny512", "embedding", "torch", ours, expected)


def test_branches_and_dynamic_diffusers(golden, model, conditions, tiny512, measures):
    timesteps = golden.inputs["timesteps_tiny"]
    experts = model.experts(conditions, timesteps)
    for i, t in enumerate(timesteps):
        outs, logits = experts(tiny512["x"], i)
        for name, out, logit in zip(experts.modalities, outs, logits, strict=True):
            measures.check("tiny512", "prediction", model.backend, out, tiny512[f"t{t}/eps_{name}"])
            measures.check("tiny512", "prediction", model.backend, logit, tiny512[f"t{t}/logit_{name}"])


def check_autoencoder(case, model, arrays, measures):
    encoded = model.engine("vae.encode")(image=arrays["vae/image"])
    measures.check(case, "autoencoder", model.backend, encoded["mean"], arrays["vae/mean"])
    measures.check(case, "autoencoder", model.backend, encoded["logvar"], arrays["vae/logvar"])
    decoded = model.decode(arrays["vae/z"])
    measures.check(case, "autoencoder", model.backend, decoded, arrays["vae/decoded"])
    return decoded


def test_the_autoencoder(model, tiny512, measures):
    decoded = check_autoencoder("tiny512", model, tiny512, measures)
    measures.check("tiny512", "uint8", model.backend, to_uint8(decoded), tiny512["vae/uint8"])


def test_the_autoencoder_of_smaller_images(golden, small_model, measures):
    check_autoencoder("tiny256", small_model, golden.arrays("tiny256"), measures)
