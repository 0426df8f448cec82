import dataclasses
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cdiff_rt import runners as runs_module
from cdiff_rt.editing import inversion
from cdiff_rt.editing.regions import region_between
from cdiff_rt.errors import BadInput, BadRequest
from cdiff_rt.gpu.runner import DeviceRunner
from cdiff_rt.manifest import Bundle
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.run import OnDevice
from cdiff_rt.sampling import noise, solvers
from cdiff_rt.sampling.loop import KnownRegion
from cdiff_rt.settings import Influence, Settings
from tests.tiny import CLASSES

NOW, THEN = "This man has stubble. He is in his twenties.", "This man has a long beard. He has red hair."
RECONSTRUCTED = 1e-4  # of the latents' norm; measured are 2e-7 to 2e-6


@pytest.fixture(scope="module")
def photos(pipeline, mask):
    return pipeline.generate(mask=mask, text=NOW, steps=10, seed=1, batch=4).images


@pytest.fixture(scope="module")
def photo(photos):
    return photos[0]


@pytest.fixture
def other_mask(mask):
    """Hair where the background was, beside the face."""
    labels = mask.copy()
    labels[40:110, 12:30] = 13
    return labels


@pytest.fixture(scope="module")
def random_bundle(tiny_bundle):
    """A model with random weights everywhere."""
    return Bundle.open(tiny_bundle)


def error(result, pipeline, photo):
    """Of the latents [A, C, h, w], relative to the photo's."""
    x0 = pipeline.encode(photo)
    return [np.linalg.norm(latent - x0[0]) / np.linalg.norm(x0) for latent in result.latents]


def counting(monkeypatch):
    """How often each network runs from now on."""
    calls, load = Counter(), runs_module.load_engine

    def load_counting(backend, bundle, network, **settings):
        engine = load(backend, bundle, network, **settings)

        def call(**inputs):
            calls[network] += 1
            return engine(**inputs)

        return call

    monkeypatch.setattr(runs_module, "load_engine", load_counting)
    return calls


@pytest.mark.parametrize(("backend", "steps"), [("onnxruntime", 5), ("onnxruntime", 50), ("torch", 5)])
def test_unchanged_conditions_give_the_photo_back_whatever_the_weights(backend, steps, random_bundle):
    pipeline, rng = Pipeline(random_bundle, backend), np.random.default_rng(steps)
    photo = rng.integers(0, 256, (16, 16, 3), np.uint8)
    conditions = {"mask": rng.integers(0, CLASSES, (8, 8)), "text": "this man has"}
    result = pipeline.edit(photo, source=conditions, steps=steps, **conditions)
    assert error(result, pipeline, photo)[0] <= RECONSTRUCTED
    changed = pipeline.edit(photo, source=conditions, steps=steps, **conditions | {"text": "a woman"})
    assert error(changed, pipeline, photo)[0] > 1e-2


@pytest.mark.parametrize("names", [["mask"], ["text"], ["mask", "text"]])
@pytest.mark.parametrize(
    ("backend", "steps"),
    [("onnxruntime", 10), pytest.param("onnxruntime", 50, marks=pytest.mark.slow), ("torch", 4)],
)
def test_and_with_the_trained_ones(backend, steps, names, bundle, photo, mask):
    pipeline, conditions = Pipeline(bundle, backend), {"mask": mask, "text": NOW}
    conditions = {name: conditions[name] for name in names}
    result = pipeline.edit(photo, source=conditions, steps=steps, **conditions)
    assert error(result, pipeline, photo)[0] <= RECONSTRUCTED
    assert np.abs(result.images[0].astype(int) - pipeline.decode(pipeline.encode(photo))[0]).max() <= 1


@pytest.mark.parametrize("influence", [Influence("none", 1.0), Influence("linear", 3.0, 0.5, 2.0)])
def test_and_under_any_adjustment_of_the_influence(influence, pipeline, photo, mask):
    conditions = {"mask": mask, "text": NOW}
    result = pipeline.edit(photo, source=conditions, steps=10, **dataclasses.asdict(influence), **conditions)
    assert error(result, pipeline, photo)[0] <= RECONSTRUCTED
    assert result.parameters["decay"] == influence.decay


def test_and_where_only_a_part_of_the_steps_is_walked(pipeline, photo, mask):
    conditions, seen = {"mask": mask, "text": NOW}, []
    result = pipeline.edit(
        photo, source=conditions, steps=10, strength=0.3, callback_on_step_end=seen.append, **conditions
    )
    assert error(result, pipeline, photo)[0] <= RECONSTRUCTED
    assert [state.timestep for state in seen] == [201, 101, 1]
    assert (result.parameters["steps"], result.parameters["edit"]["of_steps"]) == (3, 10)


def test_a_photo_is_given_back_by_a_devices_runner_too(bundle, photo, mask):
    pipeline, conditions = Pipeline(bundle), {"mask": mask, "text": NOW}
    by_host = pipeline.edit(photo, source=conditions, steps=5, alphas=(0.0, 1.0), mask=mask, text=THEN)
    pipeline._runner = DeviceRunner(bundle, "torch-cuda", OnDevice("fp32"), device="cpu")
    by_device = pipeline.edit(photo, source=conditions, steps=5, alphas=(0.0, 1.0), mask=mask, text=THEN)
    assert error(by_device, pipeline, photo)[0] <= RECONSTRUCTED
    assert np.abs(by_device.latents - by_host.latents).max() < 1e-3 * by_host.latents.std()


def test_noises_follow_from_the_definition(pipeline, photo, mask):
    """z_t = (x_{t-1} - mu_t(x_t)) / sigma_t, with mu_t by the formulas of DDIM at eta 1."""
    manifest, x0 = pipeline.manifest, pipeline.encode(photo)
    table = solvers.ddim(manifest.schedule, 4)
    known = KnownRegion(x0, np.zeros((16, 16)), lambda i: noise.normal(0, range(1), i, (16, 16, 16)))
    run = pipeline._run({"mask": mask}, table, Settings())
    found = inversion.invert(pipeline._runner, run, known)
    a = [*table.alpha_bars, manifest.schedule.alpha_bars()[0]]
    x = [np.sqrt(a[i]) * x0 + np.sqrt(1 - a[i]) * known.noise(i) for i in range(4)] + [x0]
    context = pipeline._runner.call("condition.mask", inputs=run.inputs[0])["context"]
    projections = pipeline._runner.call("time.mask", t=table.timesteps)["projections"]
    np.testing.assert_allclose(found.start, x[0], atol=1e-5)
    for i in range(4):
        v = pipeline._runner.call(
            "expert.mask", x=x[i].astype(np.float32), projections=projections[i : i + 1], context=context
        )["out"]
        predicted, eps = np.sqrt(a[i]) * x[i] - np.sqrt(1 - a[i]) * v, np.sqrt(1 - a[i]) * x[i] + np.sqrt(a[i]) * v
        sigma = np.sqrt((1 - a[i + 1]) / (1 - a[i]) * (1 - a[i] / a[i + 1]))
        mu = np.sqrt(a[i + 1]) * predicted + np.sqrt(1 - a[i + 1] - sigma**2) * eps
        np.testing.assert_allclose(found.noise(i), (x[i + 1] - mu) / sigma, atol=2e-3)


def test_an_edit_costs_twice_the_calls_of_an_image(bundle, photo, mask, monkeypatch):
    calls = counting(monkeypatch)
    Pipeline(bundle).edit(photo, source={"mask": mask, "text": NOW}, mask=mask, text=THEN, steps=4)
    assert {name: count for name, count in calls.items() if name.startswith("expert")} == {
        "expert.mask": 8,
        "expert.text": 8,
    }
    calls.clear()
    Pipeline(bundle).edit(photo, source={"text": NOW}, text=THEN, steps=4)
    assert {name: count for name, count in calls.items() if name.startswith("expert")} == {"expert.text": 8}


@pytest.mark.parametrize("names", [["mask"], ["text"], ["mask", "text"]])
def test_targets_change_what_they_speak_of(names, pipeline, photos, mask, other_mask):
    """On average: in some photos new hair before the background changes the colour of all of it."""
    source, wanted = (
        {n: of[n] for n in names} for of in ({"mask": mask, "text": NOW}, {"mask": other_mask, "text": THEN})
    )
    edited = [pipeline.edit(photo, source=source, steps=10, **wanted).images[0] for photo in photos]
    moved = np.abs(np.stack(edited).astype(int) - photos).mean((0, -1))
    hair, background = moved[60:100, 16:28].mean(), moved[4:40, 4:20].mean()
    beard = moved[90:110, 50:78].mean()
    if "mask" in names:
        assert hair > background
    if "text" in names:
        assert beard > background


def test_alphas_go_from_the_photo_to_the_target_and_on(pipeline, photo, mask):
    source = {"mask": mask, "text": NOW}
    result = pipeline.edit(photo, source=source, steps=10, alphas=[0, 0.5, 1, 1.5], mask=mask, text=THEN)
    errors = error(result, pipeline, photo)
    assert errors[0] <= RECONSTRUCTED and errors == sorted(errors)
    alone = pipeline.edit(photo, source=source, steps=10, mask=mask, text=THEN)
    np.testing.assert_allclose(result.latents[2], alone.latents[0], atol=1e-4)
    assert result.parameters["edit"]["alphas"] == [0, 0.5, 1, 1.5] and result.parameters["batch"] == 4
    strip = inversion.side_by_side(result)
    np.testing.assert_array_equal(strip.images[0, :, 128:256], result.images[1])


def test_what_is_to_be_kept_is_kept_pixel_by_pixel(pipeline, photo, mask, other_mask):
    source = {"mask": mask, "text": NOW}
    plain, kept = (
        pipeline.edit(photo, source=source, steps=10, mask=other_mask, text=THEN, keep=keep)
        for keep in ((), "background,18")
    )
    stays = region_between(mask, other_mask, "background,18", 19).kept
    np.testing.assert_array_equal(kept.images[0][stays], photo[stays])
    assert (plain.images[0][stays] != photo[stays]).mean() > 0.5
    change = kept.parameters["edit"]["change"]
    assert change["outside"] == [0] and change["inside"][0] > 2
    assert kept.parameters["edit"]["keep"] == [0, 18]
    # The latents are held, not only the pixels: those far inside the region are the photo's.
    held = np.abs(kept.latents[0] - pipeline.encode(photo)[0])[:, :3, :2].max()
    assert held < np.abs(plain.latents[0] - pipeline.encode(photo)[0])[:, :3, :2].max() / 3


def test_an_edit_is_the_same_twice_and_another_for_another_seed(pipeline, photo, mask):
    arguments = {"source": {"text": NOW}, "text": THEN, "steps": 5}
    first, second, other = (pipeline.edit(photo, **arguments, seed=seed).latents for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-2


def test_what_the_source_leaves_open_is_read_from_the_image(pipeline, photo, mask, caplog):
    def read(pixels):
        np.testing.assert_array_equal(pixels, photo)
        return {"mask": mask, "text": NOW}

    caplog.set_level("INFO")
    by_reading = pipeline.edit(photo, read=read, mask=mask, text=THEN, steps=5)
    assert f"source text: not given; it is read from the image as '{NOW}'" in caplog.messages
    assert by_reading.parameters["edit"].items() >= {"source": {"mask": "array 128x128", "text": NOW}}.items()
    assert by_reading.parameters["edit"]["read"] == ["mask", "text"]
    told = pipeline.edit(photo, source={"mask": mask, "text": NOW}, mask=mask, text=THEN, steps=5)
    np.testing.assert_array_equal(by_reading.latents, told.latents)
    mine = pipeline.edit(photo, source={"text": "a man"}, read=read, mask=mask, text=THEN, steps=5)
    assert mine.parameters["edit"]["source"] == {"mask": "array 128x128", "text": "a man"}
    assert mine.parameters["edit"]["read"] == ["mask"]


def test_nothing_is_read_where_the_source_says_all(pipeline, photo, mask):
    def read(pixels):
        raise AssertionError("nobody asked")

    told = pipeline.edit(photo, source={"mask": mask, "text": NOW}, read=read, text=THEN, steps=5)
    assert told.parameters["edit"]["read"] == []


@pytest.mark.parametrize(
    ("wanted", "stays"), [({"mask": "other"}, {"mask", "text"}), ({"text": THEN}, {"text"})], ids=["mask", "text"]
)
def test_of_what_is_read_the_sentence_stays_but_not_the_mask(wanted, stays, pipeline, photo, mask, other_mask):
    """A mask says nothing of hair's colour, which stays; but a sentence may ask for other hair than a mask has."""
    wanted = {name: other_mask if name == "mask" else value for name, value in wanted.items()}
    result = pipeline.edit(photo, read=lambda pixels: {"mask": mask, "text": NOW}, steps=5, **wanted)
    assert set(result.parameters["conditions"]) == set(result.parameters["edit"]["source"]) == stays
    source = {name: value for name, value in {"mask": mask, "text": NOW}.items() if name in stays}
    told = pipeline.edit(photo, source=source, steps=5, **source | wanted)
    np.testing.assert_array_equal(result.latents, told.latents)


def test_notes_and_warnings_are_said_once(pipeline, photo, mask_file, caplog):
    caplog.set_level("INFO")
    source = {"mask": mask_file, "text": "This guy has stubble."}
    result = pipeline.edit(photo, source=source, text="This guy has a beard.", keep="background", steps=5)
    assert len(caplog.messages) == len(set(caplog.messages))
    assert [line.split(":")[0] for line in caplog.messages] == ["mask face.png", "text"]
    assert result.warnings == [line for line in caplog.messages if "never learned 'guy' (say 'man')" in line]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"text": " "}, "source text: it is empty"),
        ({"text": "a\0"}, "source text: control character U+0000"),
        ({"mask": "nowhere.png"}, "source mask nowhere.png: there is no such file"),
        ({"mask": np.full((8, 8), 99)}, "source mask array: label 99"),
    ],
    ids=str,
)
@pytest.mark.parametrize("keep", ["", "background"])
def test_what_is_wrong_with_the_source_is_said_to_be_the_sources(source, words, keep, pipeline, photo, mask):
    with pytest.raises(BadInput) as raised:
        pipeline.edit(photo, source={"mask": mask, **source}, text=THEN, keep=keep, steps=5)
    assert str(raised.value).startswith(words)


def test_what_is_wrong_with_what_is_wanted_is_not(pipeline, photo, mask):
    for source in ({"text": NOW}, {"mask": mask, "text": NOW}):
        with pytest.raises(BadInput, match="^mask nowhere.png: there is no such file"):
            pipeline.edit(photo, source=source, mask="nowhere.png", text=THEN, steps=5)


def test_without_that_the_inversion_does_without_it_and_says_so(pipeline, photo, mask, caplog):
    result = pipeline.edit(photo, source={"mask": mask}, mask=mask, text=THEN, steps=5)
    assert "source text: not given; the inversion does without it" in caplog.text
    assert result.parameters["edit"]["source"] == {"mask": "array 128x128"}
    assert result.parameters["conditions"] == {"mask": "array 128x128", "text": THEN}


def test_a_source_of_which_nothing_else_is_wanted_stays(pipeline, photo, mask):
    source = {"mask": mask, "text": NOW}
    stays = pipeline.edit(photo, source=source, text=THEN, steps=5)
    np.testing.assert_array_equal(
        stays.latents, pipeline.edit(photo, source=source, mask=mask, text=THEN, steps=5).latents
    )


def test_the_record_tells_the_whole_edit(pipeline, photo, mask):
    result = pipeline.edit(photo, source={"mask": mask}, mask=mask, steps=5, seed=3)
    edit = {"of_steps": 5, "alphas": [1.0], "source": {"mask": "array 128x128"}, "keep": []}
    assert result.parameters["edit"].items() >= edit.items()
    assert (result.parameters["seed"], result.parameters["steps"], result.parameters["eta"]) == (3, 5, 1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": THEN}, "nothing says what the image shows now; give the source's text"),
        ({}, "give at least one of mask, text"),
        ({"text": THEN, "source": {"sketch": "s.png"}}, "source: 'sketch'; faces-128 knows mask, text"),
        ({"conditions": {"sketch": "s.png"}}, "condition: 'sketch'; faces-128 knows mask, text"),
        ({"text": THEN, "without": ["sketch"]}, "without: 'sketch'; faces-128 knows mask, text"),
        ({"text": THEN, "source": {"text": NOW}, "without": ["text"]}, "without: it leaves no condition"),
        ({"text": THEN, "source": {"text": NOW}, "strength": 1.5}, "strength: 1.5 is outside 0-1"),
        ({"text": THEN, "source": {"text": NOW}, "strength": float("nan")}, "strength: nan"),
        ({"text": THEN, "source": {"text": NOW}, "strength": 0}, "strength: 0 of 50 steps is none; give 0.02 or more"),
        ({"text": THEN, "source": {"text": NOW}, "strength": 0.04, "steps": 10}, "0.04 of 10 steps is none"),
        ({"text": THEN, "source": {"text": NOW}, "steps": 7}, "take 5 or 8"),
        ({"text": THEN, "source": {"text": NOW}, "alphas": [float("inf")]}, "alphas: inf"),
        ({"text": THEN, "source": {"text": NOW}, "alphas": []}, "number of alphas: 0"),
        ({"text": THEN, "source": {"text": NOW}, "seed": -1}, "seed: -1"),
        ({"text": THEN, "source": {"text": NOW}, "rounding": "up"}, "'up'"),
        ({"text": THEN, "source": {"text": NOW}, "keep": "hair"}, "nothing says where its labels are"),
    ],
    ids=str,
)
def test_bad_requests_are_refused_in_words(arguments, words, pipeline, photo):
    with pytest.raises(BadRequest) as raised:
        pipeline.edit(photo, **arguments)
    assert words in str(raised.value)


def test_alphas_need_a_source_for_each_condition(pipeline, photo, mask):
    with pytest.raises(BadRequest, match="what text the image has now"):
        pipeline.edit(photo, source={"mask": mask}, text=THEN, alphas=[0.5])


@pytest.mark.parametrize("array", [np.zeros((64, 64, 3), np.uint8), np.zeros((128, 128, 3))], ids=["small", "float"])
def test_an_array_that_is_no_photo_is_bad_input(array, pipeline):
    with pytest.raises(BadInput, match="photo array: "):
        pipeline.edit(array, source={"text": NOW}, text=THEN)


def test_a_model_without_an_encoder_edits_nothing(bundle, photo):
    networks = {name: spec for name, spec in bundle.manifest.networks.items() if name != "vae.encode"}
    pipeline = Pipeline(replace(bundle, manifest=replace(bundle.manifest, networks=networks)))
    with pytest.raises(BadRequest, match="no encoder of images"):
        pipeline.edit(photo, source={"text": NOW}, text=THEN)


@pytest.mark.parametrize(("strength", "expected"), [(1.0, [751, 501, 251, 1]), (0.5, [251, 1]), (0.2, [1])])
def test_the_last_steps_are_those_nearest_to_the_image(strength, expected, bundle):
    table = inversion.last_steps(solvers.ddim(bundle.manifest.schedule, 4), strength)
    assert table.timesteps.tolist() == expected
    assert len(table.coefficients) == len(table.alpha_bars) == len(expected)
    assert inversion.calls(4, strength) == 2 * len(expected)


@pytest.mark.parametrize(("text", "expected"), [("1", [1.0]), ("0,0.5, 1", [0.0, 0.5, 1.0]), ("-1", [-1.0])])
def test_alphas_are_read(text, expected):
    assert inversion.read_alphas(text) == expected


@pytest.mark.parametrize("text", ["", "a", "1;2", "1,,2"])
def test_others_are_refused(text):
    with pytest.raises(BadRequest, match="alphas"):
        inversion.read_alphas(text)
