import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cdiff_rt.editing import imagic
from cdiff_rt.editing.imagic import Tuning, tune
from cdiff_rt.errors import BadArtefact, BadRequest, OutOfResource
from cdiff_rt.manifest import Bundle
from cdiff_rt.outputs.files import PLACE, own_folder
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.settings import Settings
from tests import tiny

PHOTO = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
CONDITIONS = {"mask": np.arange(64).reshape(8, 8) % tiny.CLASSES, "text": "a woman"}
TUNING = Tuning(6, 6, embedding_rate=1e-2, branch_rate=1e-3)


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("imagic") / "work"


@pytest.fixture(scope="module")
def calls():
    return []


@pytest.fixture(scope="module")
def tuned(bundle, work, calls):
    return tune(bundle, PHOTO, CONDITIONS, work, TUNING, lambda: calls.append(1))


def weights(bundle):
    return load_file(bundle.path(bundle.manifest.weights))


def test_the_references_defaults():
    assert Tuning() == Tuning(500, 1000, 1e-3, 1e-6, 0)


def test_branches_change_and_nothing_else(bundle, tuned, calls):
    old, new = weights(bundle), weights(tuned.bundle)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(name.split(".")[2] == "unet" for name in changed)
    assert {name.split(".")[1] for name in changed} == {"mask", "text"}
    assert len(calls) == 2 * TUNING.iterations
    assert tuned.bundle.manifest.provenance["imagic"]["branch_iterations"] == 6


def test_the_branch_learns_the_photo(bundle, tmp_path):
    """Of the loss that it was trained by, at the photo, over many draws."""
    settings = Tuning(60, 60, embedding_rate=1e-2, branch_rate=1e-3)
    tuned = tune(bundle, PHOTO, {"text": "a woman"}, tmp_path / "w", settings)
    z = imagic.latent_of(bundle, PHOTO, 0)
    schedule = bundle.manifest.schedule
    diffusion = imagic.Diffusion(torch.from_numpy(schedule.alpha_bars()).float(), schedule.prediction)
    ids = torch.from_numpy(imagic.KINDS["words"].read("a woman", bundle.manifest.modalities[1], bundle))
    draws = list(imagic.draws_of(99, 50, range(60), schedule.train_steps, tuple(z.shape[1:])))

    def loss(of, embedding):
        expert = imagic.load_part(of, "experts.text")
        with torch.no_grad():
            tokens = expert.encoder(ids) if embedding is None else embedding
            errors = [
                (
                    (expert.unet(diffusion.noisy(z, t, n), torch.tensor([t]), tokens) - diffusion.target(z, t, n)) ** 2
                ).mean()
                for t, n in draws
            ]
        return torch.stack(errors).mean().item()

    optimised = load_file(tmp_path / "w" / "text.0.safetensors")["value.embedding"]
    first, second, third = loss(bundle, None), loss(bundle, optimised), loss(tuned.bundle, optimised)
    assert third < second < first


def test_an_interrupted_run_goes_on_where_it_was(bundle, tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(imagic, "SAVED_EVERY", 2)
    count = 0

    def interrupt():
        nonlocal count
        count += 1
        if count == 9:  # in the branch of the first expert
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(bundle, PHOTO, CONDITIONS, tmp_path / "w", TUNING, interrupt)
    assert not (tmp_path / "w" / "bundle").exists()
    rest = []
    again = tune(bundle, PHOTO, CONDITIONS, tmp_path / "w", TUNING, lambda: rest.append(1))
    assert len(rest) == 2 * TUNING.iterations - 8  # iteration 9 was not saved
    new, whole = weights(again.bundle), weights(tuned.bundle)
    assert all(torch.equal(new[name], whole[name]) for name in whole)
    for name in ("mask", "text"):
        np.testing.assert_array_equal(again.optimised[name], tuned.optimised[name])


def test_a_finished_run_is_not_done_again(bundle, tuned, work):
    again = tune(bundle, PHOTO, CONDITIONS, work, TUNING, lambda: pytest.fail("an iteration"))
    np.testing.assert_array_equal(again.wanted["text"], tuned.wanted["text"])


@pytest.mark.parametrize(
    "change",
    [
        {"photo": 255 - PHOTO},
        {"conditions": {"text": "a man"}},
        {"settings": Tuning(6, 7)},
        {"settings": Tuning(seed=1)},
    ],
    ids=str,
)
def test_a_folder_of_another_run_is_refused(change, bundle, tuned, work):
    arguments = {"photo": PHOTO, "conditions": CONDITIONS, "settings": TUNING} | change
    with pytest.raises(BadRequest, match="holds another photo"):
        tune(bundle, arguments["photo"], arguments["conditions"], work, arguments["settings"])


def test_so_is_a_folder_of_anything_else(bundle, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(BadRequest, match="something else"):
        tune(bundle, PHOTO, CONDITIONS, tmp_path, TUNING)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_damaged_file_is_an_error_in_words(bundle, tmp_path):
    tune(bundle, PHOTO, {"text": "a"}, tmp_path / "w", Tuning(1, 1))
    (tmp_path / "w" / "text.1.safetensors").write_bytes(b"not this")
    with pytest.raises(BadArtefact, match="remove the work folder"):
        tune(bundle, PHOTO, {"text": "a"}, tmp_path / "w", Tuning(1, 1))


def test_numbers_of_numpy_are_plain_ones(bundle, tmp_path):
    settings = Tuning(np.int64(1), np.uint8(1), np.float32(0.5), np.array(0.25), np.int32(7))
    assert settings == Tuning(1, 1, 0.5, 0.25, 7)
    tune(bundle, PHOTO, {"text": "a"}, tmp_path / "w", settings)
    assert json.loads((tmp_path / "w" / "tuning.json").read_text())["settings"]["seed"] == 7


@pytest.mark.parametrize("name", ["tuning.json", "text.0.safetensors", "text.1.safetensors"])
def test_a_state_that_cannot_be_written_is_the_old_one_or_none(name, bundle, tmp_path, monkeypatch):
    real, work = os.replace, tmp_path / "w"

    def full(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutOfResource, match="No space left on device"):
        tune(bundle, PHOTO, {"text": "a"}, work, Tuning(1, 1))
    assert not [path for path in work.rglob("*") if path.name == name] and not list(tmp_path.rglob(PLACE))
    monkeypatch.undo()
    tune(bundle, PHOTO, {"text": "a"}, work, Tuning(1, 1))


def test_what_the_library_of_weights_is_refused_by_the_disk_is_told_so(bundle, tmp_path, monkeypatch):
    def full(*args):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(imagic, "save_file", full)
    with pytest.raises(OutOfResource, match="text.0.safetensors: .*No space left"):
        tune(bundle, PHOTO, {"text": "a"}, tmp_path / "w", Tuning(1, 1))


def test_two_do_not_tune_in_one_folder(bundle, tmp_path):
    with own_folder(tmp_path, "w"), pytest.raises(BadRequest, match="another run is writing w"):
        tune(bundle, PHOTO, {"text": "a"}, tmp_path / "w", Tuning(1, 1))


@pytest.mark.parametrize(
    ("conditions", "words"), [({}, "give at least one of mask, text"), ({"sketch": "s"}, "'sketch'; tiny knows")]
)
def test_bad_conditions_are_found_before_anything_is_written(conditions, words, bundle, tmp_path):
    with pytest.raises(BadRequest, match=words):
        tune(bundle, PHOTO, conditions, tmp_path / "w", TUNING)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("settings", [(0, 1), (1, 0), (1, 10**6), (1, 1, float("nan")), (1, 1, 1e-3, -1.0)])
def test_bad_settings_are_refused(settings):
    with pytest.raises(BadRequest):
        Tuning(*settings)


def test_images_lie_between_the_optimised_embedding_and_the_wanted(tuned):
    generate, alphas = Pipeline(tuned.bundle).generate, [0.0, 1.0, {"mask": 1.0, "text": 0.0}]
    result = imagic.edit(tuned, generate, Settings(steps=4, seed=3), CONDITIONS, alphas=alphas)
    assert result.images.shape == (3, 16, 16, 3) and result.parameters["batch"] == 3
    plain = Pipeline(tuned.bundle).generate(steps=4, seed=3, **CONDITIONS)
    np.testing.assert_allclose(result.latents[1], plain.latents[0], atol=1e-4)
    differences = [np.abs(result.latents[i] - result.latents[1]).max() for i in (0, 2)]
    assert differences[0] > 1e-3 and differences[1] > 1e-3
    assert json.dumps(result.parameters)


def test_the_torch_backend_agrees(tuned):
    generators = [Pipeline(tuned.bundle, backend).generate for backend in ("onnxruntime", "torch")]
    ours, reference = (imagic.edit(tuned, g, Settings(steps=4), CONDITIONS, alphas=[0.5]) for g in generators)
    assert np.abs(ours.latents - reference.latents).max() < 1e-3
