import dataclasses
import hashlib
import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cdiff_rt
from cdiff_rt import runners as module
from cdiff_rt.errors import BadArtefact, BadInput, BadRequest
from cdiff_rt.inputs.inpainting import Inpainting
from cdiff_rt.manifest import MODELS, NAME, Bundle, find_model, sha256
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling import noise
from cdiff_rt.sampling.conflict import LEVELS, disagreement
from cdiff_rt.settings import Influence
from cdiff_rt.version import __version__
from tests.label_pictures import TABLE, in_order, saved

TEXT = "This man has a long beard. He is in his fifties."


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_is_the_same_alone_and_in_any_batch(eta, pipeline, mask):
    def images(**which):
        return pipeline.generate(mask=mask, text=TEXT, steps=4, seed=5, eta=eta, **which).images.astype(int)

    whole = images(batch=4)
    assert whole.shape == (4, 128, 128, 3)
    assert np.abs(images(batch=1) - whole[:1]).max() <= 1
    assert np.abs(images(first=3, batch=1) - whole[3:]).max() <= 1
    assert np.abs(images(first=2, batch=2) - whole[2:]).max() <= 1


def test_the_loop_starts_from_the_noise_of_each_images_number(pipeline, monkeypatch):
    drawn = {}
    monkeypatch.setattr(module, "sample", lambda experts, x, noise, *rest: drawn.setdefault("all", [x, noise(0)])[0])
    pipeline.generate(text=TEXT, steps=4, seed=5, first=3, batch=2)
    first, step = drawn.pop("all")
    pipeline.generate(text=TEXT, steps=4, seed=5, batch=5)
    np.testing.assert_array_equal(first, drawn["all"][0][3:])
    np.testing.assert_array_equal(step, drawn["all"][1][3:])
    assert np.abs(first - step).max() > 1


@pytest.mark.parametrize("change", [{"seed": 6}, {"first": 1}, {"eta": 0.0}, {"text": "a woman"}, {"steps": 5}])
def test_each_parameter_changes_the_image(change, pipeline):
    plain = {"text": TEXT, "steps": 4, "seed": 5, "eta": 1.0}
    assert not np.allclose(pipeline.generate(**plain).latents, pipeline.generate(**plain | change).latents, atol=1e-3)


def test_the_same_call_twice_gives_the_same_bits(pipeline, mask):
    first, second = (pipeline.generate(mask=mask, text=TEXT, steps=4, batch=2) for _ in range(2))
    np.testing.assert_array_equal(first.latents, second.latents)
    np.testing.assert_array_equal(first.images, second.images)
    assert first.parameters == second.parameters


def test_the_order_of_the_conditions_does_not_matter(pipeline, mask):
    first = pipeline.generate(mask=mask, text=TEXT, steps=4)
    np.testing.assert_array_equal(first.latents, pipeline.generate(text=TEXT, mask=mask, steps=4).latents)


@pytest.mark.parametrize("names", [["mask"], ["text"], ["mask", "text"]])
def test_only_the_experts_of_the_conditions_run(names, bundle, mask, monkeypatch):
    calls = counting(monkeypatch)
    values = {"mask": mask, "text": TEXT}
    Pipeline(bundle).generate(steps=4, **{name: values[name] if name in names else None for name in values})
    once = {f"{network}.{name}": 1 for name in names for network in ("condition", "time")}
    assert calls == once | {f"expert.{name}": 4 for name in names} | {"vae.decode": 1}


@pytest.mark.parametrize("names", [["mask"], ["text"], ["mask", "text"]])
def test_a_callback_sees_every_step(names, pipeline, mask):
    values, seen = {"mask": mask, "text": TEXT}, []
    given = {name: values[name] for name in names}
    result = pipeline.generate(steps=5, batch=2, callback_on_step_end=seen.append, **given)
    assert [(state.step, state.timestep) for state in seen] == [(0, 801), (1, 601), (2, 401), (3, 201), (4, 1)]
    for state in seen:
        assert state.x.shape == state.x0.shape == (2, 16, 16, 16)
        assert state.influence.shape == (len(names), 2, 1, 16, 16)
        np.testing.assert_allclose(state.influence.sum(0), 1, atol=1e-6)
    np.testing.assert_array_equal(seen[-1].x, result.latents)
    np.testing.assert_array_equal(pipeline.generate(steps=5, batch=2, **given).latents, result.latents)


def test_the_masks_influence_fades_by_the_default_adjustment(pipeline, mask):
    seen = []
    pipeline.generate(mask=mask, text=TEXT, steps=5, callback_on_step_end=seen.append)
    means = [state.influence[0].mean() for state in seen]
    assert means == sorted(means, reverse=True) and means[-1] < 1e-4 < means[0]


@pytest.mark.parametrize(
    ("influence", "expected"),
    [
        (Influence("none", 1.0, 0.0), [0.5] * 5),
        (Influence("none", 3.0, 0.0), [0.75] * 5),
        (Influence("linear", 1.0, 0.0), [t / 1000 / 2 for t in (801, 601, 401, 201, 1)]),
    ],
)
def test_influence_of_a_call_stands_in_for_the_manifests(influence, expected, pipeline, mask):
    seen = []
    pipeline.generate(mask=mask, text=TEXT, steps=5, **dataclasses.asdict(influence), callback_on_step_end=seen.append)
    for state, masks in zip(seen, expected, strict=True):
        np.testing.assert_allclose(state.influence[0], masks, rtol=1e-5)


def test_the_manifests_influence_given_changes_nothing_but_the_record(pipeline, mask):
    default = pipeline.generate(mask=mask, text=TEXT, steps=2)
    given = pipeline.generate(mask=mask, text=TEXT, steps=2, **dataclasses.asdict(pipeline.manifest.influence))
    np.testing.assert_array_equal(default.latents, given.latents)
    assert given.parameters == default.parameters | {"decay": "cosine", "factor": 2.0, "sharpness": 1.0}


def test_sharpness_stands_in_the_record_and_in_the_file(pipeline, mask, tmp_path):
    result = pipeline.generate(mask=mask, text=TEXT, steps=1, sharpness=0.5)
    assert result.parameters["sharpness"] == 0.5
    with Image.open(result.save(tmp_path)[0]) as image:
        assert json.loads(image.text["cdiff_rt"])["sharpness"] == 0.5


def counting(monkeypatch):
    """Counts the calls of each network from now on."""
    calls, real = Counter(), module.load_engine

    def counted(backend, bundle, network, **options):
        engine = real(backend, bundle, network, **options)

        def call(**inputs):
            calls[network] += 1
            return engine(**inputs)

        return call

    monkeypatch.setattr(module, "load_engine", counted)
    return calls


@pytest.mark.parametrize("change", [{"without": ["mask"]}, {"factor": 0}, {"influence": "mask=0"}], ids=str)
def test_a_modality_that_is_left_out_or_has_no_weight_costs_nothing(change, bundle, mask, monkeypatch):
    calls = counting(monkeypatch)
    pipeline = Pipeline(bundle)
    both = pipeline.generate(mask=mask, text=TEXT, steps=4, **change)
    assert calls == {"condition.text": 1, "time.text": 1, "expert.text": 4, "vae.decode": 1}
    np.testing.assert_array_equal(both.latents, pipeline.generate(text=TEXT, steps=4).latents)


def test_a_mask_alone_keeps_its_weight(pipeline, mask):
    alone = pipeline.generate(mask=mask, steps=2, factor=0)
    np.testing.assert_array_equal(alone.latents, pipeline.generate(mask=mask, steps=2).latents)


def test_a_second_softmax_evens_the_influence_out(pipeline, mask):
    seen = []
    for boost in (None, 1.0):
        pipeline.generate(mask=mask, text=TEXT, steps=1, boost=boost, callback_on_step_end=seen.append)
    once, twice = (state.influence for state in seen)
    np.testing.assert_allclose(twice, np.exp(once) / np.exp(once).sum(0), rtol=1e-5)


def test_a_temperature_scales_the_noise_of_the_steps(pipeline):
    plain = {"text": TEXT, "steps": 4, "seed": 5}
    without = pipeline.generate(**plain, temperature=0.0)
    assert not np.allclose(without.latents, pipeline.generate(**plain).latents, atol=1e-2)
    assert not np.allclose(without.latents, pipeline.generate(**plain, eta=0.0).latents, atol=1e-2)
    assert without.parameters["temperature"] == 0.0


def test_a_run_can_begin_with_given_noise(pipeline):
    start = noise.normal(5, range(2), 0, (16, 16, 16))
    given = pipeline.generate(text=TEXT, steps=2, batch=2, seed=5, x_T=start)
    np.testing.assert_array_equal(given.latents, pipeline.generate(text=TEXT, steps=2, batch=2, seed=5).latents)
    other = pipeline.generate(text=TEXT, steps=2, batch=2, seed=5, x_T=-start)
    assert np.abs(other.latents - given.latents).max() > 0.1
    hashed = hashlib.sha256(start.tobytes()).hexdigest()
    assert given.parameters["inputs"]["x_T"] == {"array": f"{start.dtype} 2x16x16x16", "sha256": hashed}


def test_pixels_are_truncated_as_by_the_reference_or_rounded(pipeline):
    down, near = (pipeline.generate(text=TEXT, steps=1, rounding=way).images for way in ("truncate", "nearest"))
    assert set(np.unique(near.astype(int) - down)) == {0, 1}
    assert 0.4 < (near != down).mean() < 0.6


def test_inpainting_keeps_a_region_of_the_photo(pipeline, mask):
    photo = pipeline.generate(mask=mask, text=TEXT, seed=1, steps=10).images[0]
    keep = np.zeros((16, 16))
    keep[:, :8] = 1
    inpaint = Inpainting(photo, keep)
    made = pipeline.generate(text="The woman is in her twenties.", seed=2, steps=10, inpaint=inpaint)
    difference = np.abs(made.images[0].astype(int) - photo).mean(-1)
    assert difference[:, :56].mean() < 8
    assert difference[:, 72:].mean() > 16
    told = {role: trace.get("array") for role, trace in made.parameters["inputs"].items()}
    assert told == {"text": None, "inpaint.photo": "uint8 128x128x3", "inpaint.keep": "float64 16x16"}


def test_a_photo_becomes_latents_and_the_photo_again(pipeline):
    photo = pipeline.generate(text=TEXT, steps=10).images[0]
    again = pipeline.decode(pipeline.encode(photo))[0]
    assert np.abs(again.astype(int) - photo).mean() < 5


def test_an_exception_of_the_callback_ends_the_run(pipeline):
    def stop(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(text=TEXT, steps=4, callback_on_step_end=stop)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give at least one of mask, text"),
        ({"mask": None, "text": None}, "give at least one of mask, text"),
        ({"sketch": "s.png"}, "argument: 'sketch'; choose one of mask, text, seed"),
        ({"text": TEXT, "sketch": "s.png"}, "'sketch'"),
        *(({"text": TEXT, "eta": eta}, "eta: ") for eta in (float("nan"), float("inf"), -0.1, 1.1)),
        *(({"text": TEXT, "temperature": value}, "temperature: ") for value in (float("nan"), -1.0)),
        ({"text": TEXT, "rounding": "up"}, "'up'; choose one of truncate, nearest"),
        ({"text": TEXT, "without": ["text"]}, "without: it leaves no condition"),
        ({"text": TEXT, "without": ["sketch"]}, "without: 'sketch'; faces-128 knows mask, text"),
        ({"text": TEXT, "decay": "slow"}, "decay: 'slow'"),
        *(({"text": TEXT, "factor": value}, "factor: ") for value in (float("nan"), -1.0)),
        ({"text": TEXT, "sharpness": float("inf")}, "sharpness: "),
        ({"text": TEXT, "boost": -1.0}, "boost: "),
        ({"text": TEXT, "x_T": np.zeros((1, 16, 8, 8))}, "x_T: shape (1, 16, 8, 8)"),
        ({"text": TEXT, "x_T": np.full((1, 16, 16, 16), np.nan)}, "x_T: "),
        *(({"text": TEXT, "batch": batch}, "batch: ") for batch in (0, -1, 257)),
        *(({"text": TEXT, "steps": steps}, "steps: ") for steps in (0, -1, 1001, 7, 3)),
        *(({"text": TEXT, "seed": seed}, "seed: ") for seed in (-1, 2**63)),
        ({"text": TEXT, "first": -1}, "first: "),
    ],
    ids=str,
)
def test_bad_requests_are_refused_in_words(arguments, words, pipeline):
    with pytest.raises(BadRequest) as raised:
        pipeline.generate(**arguments)
    assert words in str(raised.value)


def test_bad_conditions_are_bad_input(pipeline, bad_mask):
    with pytest.raises(BadInput):
        pipeline.generate(mask=bad_mask.path, text=TEXT, steps=1)


@pytest.mark.parametrize("steps", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_the_backends_agree_over_all_steps(steps, bundle, pipeline, mask):
    arguments = {"mask": mask, "text": TEXT, "seed": 3, "steps": steps}
    by_ort = pipeline.generate(**arguments)
    by_torch = Pipeline(bundle, "torch").generate(**arguments)
    error = np.linalg.norm(by_ort.latents - by_torch.latents) / np.linalg.norm(by_torch.latents)
    assert error <= 1e-4
    assert np.abs(by_ort.images.astype(int) - by_torch.images).max() <= 1
    assert (by_ort.parameters["backend"], by_torch.parameters["backend"]) == ("onnxruntime", "torch")


def test_the_record_tells_the_whole_run(pipeline, bundle, mask):
    result = pipeline.generate(mask=mask, text=TEXT, steps=4, seed=9, first=2, batch=2, eta=0.5)
    assert result.parameters == {
        "record": 2,
        "command": "generate",
        "solver": "ddim",
        "steps": 4,
        "eta": 0.5,
        "temperature": 1.0,
        "seed": 9,
        "first": 2,
        "batch": 2,
        "rounding": "truncate",
        "labels": "celebamask",
        "snap": False,
        "adjustment": dataclasses.asdict(pipeline.manifest.influence),
        "inputs": {
            "mask": {"array": "uint8 128x128", "sha256": hashlib.sha256(mask.tobytes()).hexdigest()},
            "text": {"text": TEXT},
        },
        "prompt": TEXT,
        "conditions": {"mask": "array 128x128", "text": TEXT},
        "model": "faces-128",
        "model_hash": sha256(bundle.path("manifest.json")),
        "size": 128,
        "backend": "onnxruntime",
        "precision": "fp32",
        "version": __version__,
        "libraries": {name: sys.modules[name].__version__ for name in ("numpy", "PIL", "onnxruntime")},
        "machine": platform.machine(),
    }


@pytest.mark.parametrize("kind", [Path, str])
def test_the_record_has_a_masks_name_without_its_folder(kind, pipeline, mask_file):
    result = pipeline.generate(mask=kind(mask_file), steps=1)
    assert result.parameters["conditions"] == {"mask": "face.png"}


@pytest.mark.parametrize("model", ["faces-128", MODELS / "faces-128", str(MODELS / "faces-128")], ids=str)
def test_a_model_is_found_by_name_or_folder(model):
    assert find_model(model) == MODELS / "faces-128"


@pytest.mark.parametrize(
    "model",
    ["no-such-model", "../faces-128", "", "..", "/dev/null", "a\0b", "x" * 300],
    ids=lambda name: ascii(name[:20]),
)
def test_an_unknown_model_is_a_bad_artefact(model):
    with pytest.raises(BadArtefact):
        Pipeline.from_pretrained(model)


def test_the_message_about_an_unknown_model_names_those_there_are():
    with pytest.raises(BadArtefact, match="no bundle 'no-such-model'.*faces-128"):
        find_model("no-such-model")


def test_an_unknown_backend_is_refused(bundle):
    with pytest.raises(BadRequest, match="'cuda'; choose one of onnxruntime, openvino, torch"):
        Pipeline(bundle, "cuda").generate(text=TEXT, steps=1)


def test_saved_images_hold_their_own_number_and_make_the_same_image_again(pipeline, tmp_path):
    result = pipeline.generate(text=TEXT, steps=4, seed=7, first=1, batch=2)
    paths = result.save(tmp_path)
    assert [path.name for path in paths] == ["seed7-001.png", "seed7-002.png"]
    for number, path in enumerate(paths, start=1):
        with Image.open(path) as image:
            record, pixels = json.loads(image.text["cdiff_rt"]), np.asarray(image).astype(int)
        assert record["image"] == number and record["conditions"] == {"text": TEXT}
        again = pipeline.generate(**{key: record[key] for key in ("steps", "seed", "eta")}, first=number, text=TEXT)
        assert np.abs(again.images[0] - pixels).max() <= 1


def loaded_after(code, root, *libraries):
    """Which of `libraries` a fresh Python has loaded after `code`."""
    probe = f"{code}\nimport sys\nprint(*(name for name in {libraries!r} if name in sys.modules))"
    command = [sys.executable, "-c", probe]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=60).stdout.split()


def test_importing_the_package_loads_no_library(root):
    assert loaded_after("import cdiff_rt", root, "numpy", "torch", "onnxruntime", "PIL", "click") == []


def test_importing_the_commands_loads_click_alone(root):
    libraries = ("numpy", "torch", "onnxruntime", "PIL", "click")
    assert loaded_after("import cdiff_rt.commands", root, *libraries) == ["click"]


def test_generating_through_onnxruntime_loads_no_torch(root):
    code = "from cdiff_rt import Pipeline; Pipeline.from_pretrained().generate(text='a man', steps=1)"
    assert loaded_after(code, root, "torch", "onnx", "safetensors", "onnxruntime") == ["onnxruntime"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["latents", "image"])
def test_what_is_not_finite_is_an_error_and_no_black_image(what, value, bundle, monkeypatch):
    broken = np.full((1, 16, 16, 16), value, np.float32)
    pipeline = Pipeline(bundle)
    if what == "latents":
        monkeypatch.setattr(module, "sample", lambda *args: broken)
    else:
        monkeypatch.setattr(pipeline._runner, "call", lambda network, **inputs: {"image": broken})
    with pytest.raises(BadArtefact, match=f"{what} .* not finite"):
        pipeline.generate(text=TEXT, steps=1) if what == "latents" else pipeline.decode(np.zeros_like(broken))


def test_conditions_may_be_paths_bytes_pictures_or_arrays(pipeline, mask, mask_file):
    values = [mask_file, str(mask_file), mask_file.read_bytes(), Image.open(mask_file), Image.fromarray(mask), mask]
    made = [pipeline.generate(mask=value, steps=2).latents for value in values]
    for latents in made[1:]:
        np.testing.assert_array_equal(latents, made[0])
    names = [pipeline.generate(mask=value, steps=1).parameters["conditions"]["mask"] for value in values]
    size = mask_file.stat().st_size
    assert names == ["face.png", "face.png", f"{size} bytes", *["image 128x128"] * 2, "array 128x128"]


def test_a_photo_may_be_bytes_or_a_picture(pipeline, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for value in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), Image.fromarray(pixels), pixels):
        np.testing.assert_array_equal(pipeline.read_photo(value), pixels)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "mask of 0 bytes: 0 bytes"),
        (b"<html>", "it cannot be read as an image"),
        (7, "a int; give a path, a file's content as bytes, a Pillow image or an array"),
        (Image.new("F", (8, 8)), "pixels of mode F"),
    ],
    ids=["nothing", "a page", "a number", "a picture of floats"],
)
def test_other_conditions_are_bad_input_in_words(value, words, pipeline):
    with pytest.raises(BadInput) as caught:
        pipeline.generate(mask=value)
    assert words in str(caught.value)


def test_what_was_warned_of_is_told_with_the_result(pipeline):
    assert pipeline.generate(text="a man", steps=1).warnings == []
    (warning,) = pipeline.generate(text="a purple man", steps=1).warnings
    assert "'purple'" in warning


def test_threads_share_a_pipeline_and_get_each_its_own_images_and_warnings(bundle):
    def work(number):
        text = f"a {'purple' if number % 2 else 'green'} man"
        made = pipeline.generate(text=text, seed=number, steps=2)
        return made.images, made.warnings

    for backend in ("onnxruntime", "openvino"):
        with Pipeline(bundle, backend) as pipeline:
            alone = [work(number) for number in range(8)]
            with ThreadPoolExecutor(4) as pool:
                together = list(pool.map(work, range(8)))
        for (images, warnings), (expected, theirs) in zip(together, alone, strict=True):
            np.testing.assert_array_equal(images, expected)
            assert warnings == theirs and len(warnings) == 1


def test_raising_in_the_callback_cancels_and_the_pipeline_stays_usable(pipeline):
    def stop(state):
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        pipeline.generate(text="a man", steps=2, callback_on_step_end=stop)
    assert pipeline.generate(text="a man", steps=2).images.shape == (1, 128, 128, 3)


def test_a_closed_pipeline_says_so(bundle):
    with Pipeline(bundle) as pipeline:
        kept = pipeline.generate(text="a man", steps=1)
    for call in (
        lambda: pipeline.generate(text="a man"),
        lambda: pipeline.decode(kept.latents),
        lambda: pipeline.edit("x"),
    ):
        with pytest.raises(BadRequest, match="pipeline: it is closed; open another"):
            call()
    pipeline.close()
    assert kept.png_bytes(0)


FORKED = """
import os, sys
from cdiff_rt import BadEnvironment, Pipeline
pipeline = Pipeline.from_pretrained()
pipeline.generate(text="a man", steps=1)
child = os.fork()
if child == 0:
    try:
        pipeline.generate(text="a man", steps=1)
    except BadEnvironment as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(pipeline.generate(text="a man", steps=1).images.shape)
"""


def test_a_fork_is_told_and_leaves_the_parent_as_it_is(root):
    done = subprocess.run(
        [sys.executable, "-c", FORKED], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    told, after = done.stdout.splitlines()
    assert told.startswith("pipeline: it was opened before this process was forked; open one there")
    assert after == "(1, 128, 128, 3)"


def test_the_package_names_what_users_need_and_loads_nothing_before(root):
    assert {name for name in cdiff_rt.__all__ if getattr(cdiff_rt, name, None) is None} == set()
    assert cdiff_rt.__all__ == sorted(cdiff_rt.__all__) == dir(cdiff_rt)
    assert loaded_after("import cdiff_rt", root, "numpy", "PIL", "click") == []
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'"):
        cdiff_rt.__getattr__("Pipelin")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p.generate(promt="x"), "argument: 'promt'; it is called text here"),
        (lambda p: p.generate(conditions="x"), "conditions: a str; give a dict"),
        (lambda p: p.generate(text=TEXT, x_T=[1, 2]), "x_T: a list; give an array of shape (1, 16, 16, 16)"),
        (lambda p: p.generate(text=TEXT, contexts={"mask": 3}), "contexts of text: a NoneType; give an array"),
        (
            lambda p: p.generate(text=TEXT, contexts={"text": np.zeros(3)}),
            "contexts of text: shape (3,); give an array",
        ),
        (lambda p: p.generate(text=TEXT, inpaint="man.png"), "inpaint: a str; give a cdiff_rt.Inpainting"),
        (lambda p: p.generate(text=TEXT, callback_on_step_end=3), "callback_on_step_end: a int; give a function"),
        (lambda p: p.edit("man.png", text=TEXT, alphas="0,1"), "alphas: '0,1'; give a list of numbers"),
        (lambda p: p.edit("man.png", text=TEXT, strength="1"), "strength: '1'; give a number"),
        (lambda p: p.edit("man.png", text=TEXT, source="x"), "source: a str; give a dict"),
        (lambda p: p.edit("man.png", text=TEXT, batch=2), "batch: 2 for an edit"),
        (lambda p: p.edit("man.png", text=TEXT, eta=0), "eta: 0 with ddim, and an edit keeps the noise"),
        (lambda p: Pipeline.from_pretrained(None), "model: a NoneType; give an embedded model's name"),
        (lambda p: Pipeline("faces-128"), "bundle: a str; use Pipeline.from_pretrained"),
        (lambda p: p.generate(text=TEXT, steps=1).save(3), "out: a int; give the path"),
        (lambda p: p.generate(text=TEXT, steps=1).png_bytes(1), "image: 1; give the number of one of the 1"),
    ],
)
def test_misuse_is_told_in_words(call, words, pipeline):
    with pytest.raises(BadRequest) as caught:
        call(pipeline)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(("tier", "steps"), [("turbo", 10), ("fast", 20)])
def test_an_edit_takes_a_tier_and_the_fewer_steps_it_has(tier, steps, pipeline):
    photo, seen = pipeline.generate(text=TEXT, tier="turbo").images[0], []
    given = {"source": {"text": TEXT}, "alphas": (0.0,), "text": TEXT}
    again = pipeline.edit(photo, **given, tier=tier, progress=lambda: seen.append(1))
    assert len(seen) == 2 * steps and again.parameters["tier"] == tier
    assert np.abs(again.images[0].astype(int) - photo).mean() < 6  # the autoencoder's own loss


@pytest.mark.parametrize("as_array", [True, False])
def test_a_mask_in_another_order_makes_the_same_image_and_tells_how_it_was_read(as_array, mask, pipeline):
    theirs = in_order(mask, "bisenet")
    usual = pipeline.generate(mask=mask, steps=1)
    made = pipeline.generate(mask=theirs if as_array else saved(theirs), steps=1, labels="bisenet")
    np.testing.assert_array_equal(made.images, usual.images)
    np.testing.assert_array_equal(made.drawing, usual.drawing)
    assert made.warnings == usual.warnings and made.parameters["labels"] == "bisenet"
    how = {} if as_array else {"mask": "grey PNG, pixel values are labels, labels bisenet"}
    assert made.parameters.get("read_as", {}) == how


def test_a_soft_mask_is_read_on_request_and_that_is_told(mask, pipeline):
    soft = saved(TABLE[mask], "JPEG", quality=95)
    with pytest.raises(BadInput, match="--snap"):
        pipeline.generate(mask=soft, steps=1)
    made = pipeline.generate(mask=soft, steps=1, snap=True)
    assert made.parameters["snap"] is True and "pixels moved" in made.parameters["read_as"]["mask"]
    assert (made.drawing != TABLE[mask]).any(-1).mean() < 0.05


def test_a_doubt_about_a_mask_is_a_warning_of_the_result(mask, pipeline):
    (told,) = pipeline.generate(mask=in_order(mask, "bisenet"), steps=1).warnings
    assert "with --labels bisenet it can" in told


def test_the_order_is_that_of_the_masks_given_and_not_of_the_one_that_was_seen(mask, pipeline):
    photo, wanted = pipeline.generate(mask=mask, steps=1).images[0], np.roll(mask, 4, 1)
    how = {"tier": "turbo", "strength": 0.1, "keep": "all"}
    usual = pipeline.edit(photo, mask=wanted, source={"mask": mask}, **how)
    theirs = {"mask": in_order(wanted, "bisenet"), "labels": "bisenet", **how}
    given = pipeline.edit(photo, source={"mask": in_order(mask, "bisenet")}, **theirs)
    seen = pipeline.edit(photo, read=lambda photo: {"mask": mask}, **theirs)
    doubtful = pipeline.edit(photo, mask=wanted, read=lambda photo: {"mask": mask[::-1]}, **how)
    assert doubtful.warnings == usual.warnings == []
    for made in (given, seen):
        np.testing.assert_array_equal(made.images, usual.images)


def cut(path: Path) -> None:
    os.truncate(path, 10)


def overwritten(path: Path) -> None:
    """In its place, by as many bytes: who has the file mapped or open sees them."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


def replaced(path: Path) -> None:
    path.with_suffix(".new").write_bytes(b"of another model")
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(
    ("backend", "change"),
    [
        *(("onnxruntime", change) for change in (cut, overwritten, replaced, Path.unlink)),
        *(pytest.param("openvino", change, marks=pytest.mark.slow) for change in (cut, overwritten, Path.unlink)),
        ("torch", overwritten),
        pytest.param("torch", cut, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_becomes_of_a_bundle_that_is_open_changes_no_image(backend, change, tiny_bundle, tmp_path):
    """Before the first engine loads; and before the next, of another modality and another size of batch."""
    wanted = {"text": "a man has a beard.", "steps": 1, "seed": 3}
    both = {**wanted, "mask": np.ones((4, 4), np.uint8), "batch": 2}
    with Pipeline(Bundle.open(tiny_bundle), backend) as intact:
        expected = intact.generate(**wanted), intact.generate(**both)
    early, late = (Bundle.open(Path(shutil.copytree(tiny_bundle, tmp_path / name))) for name in ("early", "late"))
    with Pipeline(early, backend) as first, Pipeline(late, backend) as second:
        second.generate(**wanted)
        for path in (*early.folder.iterdir(), *late.folder.iterdir()):
            change(path)
        found = first.generate(**wanted), second.generate(**both)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.latents, theirs.latents)
        np.testing.assert_array_equal(ours.images, theirs.images)
        assert ours.parameters == theirs.parameters


def test_a_pipeline_does_not_arrive_elsewhere_with_another_bundle(tiny_bundle, tmp_path):
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    sent = pickle.dumps(Pipeline(Bundle.open(folder)))
    assert pickle.loads(sent).bundle.content
    manifest = Bundle.open(folder).manifest
    (folder / NAME).write_text(dataclasses.replace(manifest, licence="another").to_json())
    with pytest.raises(BadArtefact, match="another than the pipeline was opened with"):
        pickle.loads(sent)


@pytest.mark.parametrize("how", [{"labels": "bisenet"}, {"snap": True}], ids=str)
def test_a_way_to_read_masks_without_a_mask_is_told(how, mask, pipeline):
    (told,) = pipeline.generate(text=TEXT, steps=1, **how).warnings
    assert told.startswith(f"{next(iter(how))}: no mask is given")
    made = pipeline.generate(mask=mask, steps=1)
    assert not any("no mask" in line for line in pipeline.generate(mask=mask, steps=1, **how).warnings)
    edit = {"tier": "turbo", "strength": 0.1, **how}
    (told,) = pipeline.edit(made.images[0], text=TEXT, source={"text": "a man"}, **edit).warnings
    assert "no mask is given" in told
    both = pipeline.edit(made.images[0], text=TEXT, source={"text": "a man", "mask": mask}, **edit)
    assert not any("no mask" in line for line in both.warnings)


def test_a_result_tells_how_much_its_experts_disagreed(pipeline, mask):
    seen = []
    result = pipeline.generate(mask=mask, text=TEXT, steps=4, batch=2, callback_on_step_end=seen.append)
    late = [disagreement(state.predictions, state.influence) for state in seen if state.timestep <= 600]
    np.testing.assert_array_equal(result.conflict.map, np.mean(late, axis=0))
    assert len(result.conflict.of_images) == 2 and result.conflict.modalities == ("mask", "text")
    alone = pipeline.generate(mask=mask, text=TEXT, steps=4, batch=2)  # nobody watches, and on a CPU that is no matter
    assert alone.conflict.of_images == result.conflict.of_images and alone.parameters == result.parameters
    assert pipeline.generate(text=TEXT, steps=4).conflict.of_images == []


def test_steps_that_are_shown_at_a_cost_are_not_watched_for_it(pipeline, mask, monkeypatch):
    monkeypatch.setattr(module.HostRunner, "shows_steps", False)
    assert pipeline.generate(mask=mask, text=TEXT, steps=4).conflict.of_images == []
    watched = pipeline.generate(mask=mask, text=TEXT, steps=4, callback_on_step_end=lambda state: None)
    assert len(watched.conflict.of_images) == 1


@pytest.mark.parametrize(
    ("given", "noted"), [({}, True), ({"influence": "text=1"}, False), ({"region": {"text": np.ones((16, 16))}}, False)]
)
def test_a_conflict_is_noted_unless_it_was_decided(given, noted, pipeline, mask, monkeypatch, caplog):
    monkeypatch.setitem(LEVELS, pipeline.bundle.manifest_hash, 0.0)
    with caplog.at_level("INFO", "cdiff_rt"):
        pipeline.generate(mask=mask, text=TEXT, steps=4, **given)
    assert ("mask and text disagree" in caplog.text) == noted
