"""Experts of other bundles: the embedded model taken apart and joined again is the embedded model."""

import dataclasses
import json
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from torch import nn

from cdiff_rt import Expert, Parameterisation, compose, export_composition, runners
from cdiff_rt.editing.imagic import Tuning
from cdiff_rt.engines import backends
from cdiff_rt.engines.backends import BACKENDS, fastest
from cdiff_rt.engines.base import COMPOSED, Placement
from cdiff_rt.engines.weights import places
from cdiff_rt.errors import BadArtefact, BadRequest
from cdiff_rt.gpu.runner import DeviceRunner
from cdiff_rt.inputs.inpainting import Inpainting
from cdiff_rt.jobs.run import run_jobs
from cdiff_rt.joined import guests_of, join, space_of
from cdiff_rt.manifest import NAME, Bundle, sha256
from cdiff_rt.memory import least
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.run import OnDevice
from cdiff_rt.sampling.conflict import LEVELS
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import Settings
from cdiff_rt.tuned import edit_by_imagic
from tests.parts import part_of

TEXT = "This man has a long beard. He is in his fifties."
COMPOSED_OF = (("a", 0.5, "eps"), ("b", -0.3, "x0"))
GIVEN = {"text": TEXT, "steps": 2, "seed": 3, "eta": 1.0}


def joined(parts, host="text", guest="mask", **how):
    return Pipeline.from_pretrained(parts.hosts[host], with_experts={guest: parts.guests[guest]}, **how)


@pytest.fixture(scope="module")
def both(parts):
    with joined(parts) as pipeline:
        yield pipeline


# --- the same images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "host", "guest"),
    [
        ("onnxruntime", "text", "mask"),
        pytest.param("onnxruntime", "mask", "text", marks=pytest.mark.slow),
        pytest.param("openvino", "text", "mask", marks=pytest.mark.long),
        pytest.param("torch", "mask", "text", marks=pytest.mark.slow),
    ],
)
def test_a_model_in_two_bundles_gives_the_images_of_the_whole_one(backend, host, guest, parts, bundle, mask):
    pytest.importorskip(backend)
    with joined(parts, host, guest, backend=backend) as two, Pipeline(bundle, backend) as whole:
        ours, theirs = (pipeline.generate(mask=mask, **GIVEN) for pipeline in (two, whole))
    np.testing.assert_array_equal(ours.latents, theirs.latents)
    np.testing.assert_array_equal(ours.images, theirs.images)


@pytest.mark.parametrize(
    "backend",
    [pytest.param("torch-cuda", marks=pytest.mark.long), pytest.param("onnxruntime-cuda", marks=pytest.mark.slow)],
)
def test_so_it_does_by_the_runner_of_devices(backend, parts, bundle, mask):
    made = []
    for pipeline in (joined(parts), Pipeline(bundle)):
        pipeline._runner = DeviceRunner(pipeline.bundle, backend, OnDevice("fp32"), device="cpu")
        made.append(pipeline.generate(mask=mask, **GIVEN).latents)
    np.testing.assert_array_equal(*made)


@pytest.mark.parametrize(
    "asked",
    [
        {"influence": {"mask": "2@0-0.5"}},
        pytest.param({"influence": {"text": 0.5}, "without": ["mask"]}, marks=pytest.mark.slow),
        {"region": ["mask={map}:only"]},
        pytest.param({"influence": "as-trained", "batch": 2}, marks=pytest.mark.slow),
    ],
    ids=["weighed", "left out", "only there", "as trained"],
)
def test_settings_name_it_as_any_other(asked, both, pipeline, mask, tmp_path):
    if "region" in asked:
        np.save(tmp_path / "map.npy", np.tri(16, dtype=np.float32))
        asked = {"region": [asked["region"][0].format(map=tmp_path / "map.npy")]}
    ours, theirs = (each.generate(mask=mask, **GIVEN, **asked) for each in (both, pipeline))
    np.testing.assert_array_equal(ours.latents, theirs.latents)


@pytest.mark.parametrize("given", ["mask", pytest.param("text", marks=pytest.mark.slow)])
def test_any_subset_of_the_conditions_runs(given, both, pipeline, mask):
    value = {"mask": mask, "text": TEXT}[given]
    ours, theirs = (each.generate(**{given: value}, steps=2) for each in (both, pipeline))
    np.testing.assert_array_equal(ours.latents, theirs.latents)


def test_pictures_are_edited_and_painted_into(both, pipeline, mask):
    photo = pipeline.generate(mask=mask, **GIVEN).images[0]
    for make in (
        lambda each: each.edit(photo, mask=mask, text=TEXT, source={"mask": mask, "text": "A woman."}, steps=2),
        lambda each: each.generate(mask=mask, **GIVEN, inpaint=Inpainting(photo, np.eye(128, dtype=np.uint8))),
    ):
        np.testing.assert_array_equal(*(make(each).images for each in (both, pipeline)))


def test_under_another_name_it_is_the_same_expert(parts, pipeline, mask):
    """Its words are looked up in its own vocabulary, and a third may come."""
    added = {"words": parts.guests["text"], "more": parts.guests["text"]}
    with Pipeline.from_pretrained(parts.hosts["mask"], with_experts=added) as three:
        ours = three.generate(mask=mask, words=TEXT, steps=2)
        np.testing.assert_array_equal(ours.latents, pipeline.generate(mask=mask, text=TEXT, steps=2).latents)
        assert ours.parameters["prompt"] == TEXT
        assert (
            np.abs(three.generate(mask=mask, words=TEXT, more="A woman.", steps=2).latents - ours.latents).max() > 0.1
        )


class Net(nn.Module):
    def __init__(self, pull):
        super().__init__()
        self.pull = nn.Parameter(torch.full((3, 1, 1), pull))

    def forward(self, x, time, condition):
        return torch.tanh(self.pull * x + condition[:, :, None, None])


@pytest.mark.slow
def test_bundles_that_were_composed_are_joined_too(tmp_path):
    experts = {name: Expert(Net(pull), Parameterisation(predicts), (3,)) for name, pull, predicts in COMPOSED_OF}
    for name, of in {"a": ["a"], "b": ["b"], "ab": ["a", "b"]}.items():
        export_composition(compose({each: experts[each] for each in of}, (3, 8, 8)), tmp_path / name)
    given, how = {"a": [1.0, 2, 3], "b": [0.5, 0, -1]}, {"steps": 4, "seed": 5}
    with Pipeline.from_pretrained(tmp_path / "ab") as whole:
        theirs = whole.generate(**given, **how)
    with Pipeline.from_pretrained(tmp_path / "a", with_experts={"other": tmp_path / "b"}) as two:
        ours = two.generate(a=given["a"], other=given["b"], **how)
    np.testing.assert_array_equal(ours.latents, theirs.latents)


def test_the_hosts_files_stay_as_they_are(parts, both, mask):
    before = {
        path: sha256(path) for folder in (*parts.hosts.values(), *parts.guests.values()) for path in folder.iterdir()
    }
    both.generate(mask=mask, **GIVEN)
    assert {path: sha256(path) for folder in {path.parent for path in before} for path in folder.iterdir()} == before


def test_a_pickled_pipeline_opens_both_again_unless_one_is_another(both, parts, bundle, tmp_path, mask):
    again = pickle.loads(pickle.dumps(both))
    np.testing.assert_array_equal(*(each.generate(mask=mask, **GIVEN).latents for each in (again, both)))
    folder = part_of(bundle, "mask", tmp_path / "moving")
    pickled = pickle.dumps(Pipeline.from_pretrained(parts.hosts["text"], with_experts={"mask": folder}))
    shutil.rmtree(folder)
    part_of(bundle, "mask", folder, licence="other")
    with pytest.raises(BadArtefact, match="it is another than the pipeline was opened with"):
        pickle.loads(pickled)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_loads_a_network_of_the_bundle_that_it_is_of(backend, both, parts, monkeypatch):
    """So plans that were built of either bundle are found, and what builds them is told by its own folder."""
    function = BACKENDS[backend].loader.split(":")[1]
    asked = SimpleNamespace(**{function: lambda bundle, network, placement: (bundle.folder, network)})
    monkeypatch.setattr(backends.importlib, "import_module", lambda name: asked)
    for network in both.manifest.networks:
        folder = parts.guests["mask"] if "mask" in network else parts.hosts["text"]
        assert backends._load(backend, both.bundle, network, Placement()) == (folder, network)


# --- what is told ----------------------------------------------------------------------------------------------------


def test_the_record_has_the_bundle_and_its_hash(both, parts, mask):
    told = both.generate(mask=mask, **GIVEN).parameters
    hashed = sha256(parts.guests["mask"] / NAME)
    assert told["model"] == "text-host" and told["model_hash"] == sha256(parts.hosts["text"] / NAME)
    assert told["with"] == {"mask": {"modality": "mask", "model_hash": hashed, "folder": "mask-guest"}}
    assert both.identity()["with"] == {"mask": {"modality": "mask", "model_hash": hashed}}  # wherever it lies


def test_a_model_without_guests_tells_of_none(pipeline):
    assert "with" not in pipeline.identity() and guests_of(pipeline.bundle) == {}


@pytest.mark.parametrize("with_guest", [True, False])
def test_a_conflict_with_a_guest_is_not_judged_by_the_hosts_own_level(
    with_guest, parts, mask, monkeypatch, caplog, tmp_path, bundle
):
    caplog.set_level("INFO")
    added = {"words": parts.guests["text"]}
    with Pipeline.from_pretrained("faces-128", with_experts=added) as three:
        monkeypatch.setitem(LEVELS, three.bundle.manifest_hash, 0.0)
        three.generate(mask=mask, **{"words" if with_guest else "text": TEXT}, steps=4)
    assert ("disagree" in caplog.text) is not with_guest


def test_memory_and_the_fastest_backend_know_it_too(both, bundle, parts):
    modalities = bundle.manifest.modalities
    assert (
        least(both.bundle, both.manifest.modalities, "onnxruntime", "fp32")[1]
        == least(bundle, modalities, "onnxruntime", "fp32")[1]
    )
    assert fastest(both.manifest) == fastest(bundle.manifest)
    guest = Bundle.open(parts.guests["mask"])
    composed = dataclasses.replace(guest, manifest=dataclasses.replace(guest.manifest, source={COMPOSED: {}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "open", lambda folder: composed)
        assert not any(
            name.startswith("torch") for name in fastest(join(bundle, {"other": parts.guests["mask"]}).manifest)
        )


# --- what cannot be joined -------------------------------------------------------------------------------------------

SHORT = Schedule(train_steps=500, prediction="v")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": SHORT}, "its schedule of noise is another than that of faces-128"),
        ({"schedule": Schedule(prediction="eps")}, "it predicts eps, and faces-128 v"),
        ({"space": "0" * 64}, "its latents are those of another autoencoder (000000000000...) than that of faces-128"),
    ],
    ids=["schedule", "prediction", "space"],
)
def test_what_does_not_fit_the_host_is_refused(changes, words, bundle, tmp_path):
    folder = part_of(bundle, "text", tmp_path / "odd", **changes)
    with pytest.raises(BadArtefact, match="with words, bundle odd: ") as raised:
        join(bundle, {"words": folder})
    assert words in str(raised.value) and "compose" in str(raised.value)


def test_latents_of_another_shape_or_scale_are_refused(bundle, parts, monkeypatch):
    small = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, latent_shape=(3, 8, 8)))
    with pytest.raises(BadArtefact, match=r"its latents are \[16, 16, 16\], those of faces-128 \[3, 8, 8\]"):
        join(small, {"words": parts.guests["text"]})
    scaled = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, latent_scale=2.0))
    with pytest.raises(BadArtefact, match="its latents have the scale .*, those of faces-128 2; take one"):
        join(scaled, {"words": parts.hosts["text"]})


def test_a_decoder_with_other_weights_is_another_space_and_one_in_more_digits_is_not(bundle, parts):
    host = Bundle.open(parts.hosts["text"])
    name = host.manifest.weights
    assert space_of(host) == space_of(bundle) == Bundle.open(parts.guests["mask"]).manifest.space
    in_fp32 = save({key: value.astype(np.float32) for key, value in load(host.content[name]).items()})
    assert space_of(dataclasses.replace(host, content={**host.content, name: in_fp32})) == space_of(host)
    place = next(place for key, place in places(host.content[name]).items() if key.startswith("vae."))
    content = bytearray(host.content[name])
    content[place.offset] ^= 1
    assert space_of(dataclasses.replace(host, content={**host.content, name: bytes(content)})) != space_of(host)


def test_a_guest_that_says_nothing_of_its_latents_is_taken_at_its_word(bundle, tmp_path, caplog):
    caplog.set_level("INFO")
    join(bundle, {"words": part_of(bundle, "text", tmp_path / "silent", space="")})
    assert "silent: nothing says whose latents it knows; they are taken for those of faces-128" in caplog.text


@pytest.mark.parametrize(
    ("added", "error", "words"),
    [
        (
            {"mask": "faces-128"},
            BadRequest,
            "with: faces-128 has a condition 'mask' of its own; give the expert another",
        ),
        ({"seed": "faces-128"}, BadRequest, "'seed' cannot be a condition's name"),
        ({"a b": "faces-128"}, BadRequest, "'a b' cannot be a condition's name"),
        (
            {"sketch": "faces-128"},
            BadRequest,
            "with sketch, expert: bundle faces-128 has the conditions mask, text; say which",
        ),
        ({"sketch": "no-such"}, BadArtefact, "with sketch, model: there is no bundle 'no-such'"),
        ({"sketch": 3}, BadRequest, "with sketch, model: a int"),
        (["sketch"], BadRequest, "with_experts: a list; give a dict"),
    ],
    ids=["taken", "setting", "no name", "which", "missing", "number", "list"],
)
def test_what_cannot_be_added_is_refused_in_words(added, error, words, bundle):
    with pytest.raises(error) as raised:
        join(bundle, added)
    assert words in str(raised.value)


def test_a_damaged_guest_is_refused(bundle, tmp_path):
    folder = part_of(bundle, "text", tmp_path / "damaged")
    (folder / NAME).write_text((folder / NAME).read_text().replace('"words"', '"nothing"'))
    with pytest.raises(BadArtefact, match="with words, .*altered"):
        join(bundle, {"words": folder})
    with pytest.raises(BadArtefact, match=f"with words, bundle .*it has no {NAME}"):
        join(bundle, {"words": tmp_path})


def test_experts_of_two_bundles_run_separate(parts, monkeypatch):
    monkeypatch.setattr(runners, "check_experts", lambda backend, experts: None)
    with pytest.raises(BadRequest, match="experts: stacked, and some are another bundle's; leave it out"):
        joined(parts, experts="stacked")


def test_imagic_trains_no_guest(both, mask, tmp_path):
    photo = np.zeros((128, 128, 3), np.uint8)
    with pytest.raises(
        BadRequest, match="method: imagic, which trains a model's own experts; mask is of bundle mask-guest"
    ):
        edit_by_imagic(both, photo, Settings(), {"mask": mask}, tmp_path / "work", Tuning(1, 1))


@pytest.mark.slow
def test_jobs_go_on_unless_the_expert_is_another(parts, bundle, mask_file, tmp_path):
    rows = tmp_path / "jobs.jsonl"
    rows.write_text(json.dumps({"mask": str(mask_file), "text": TEXT, "steps": 1}))
    other = part_of(bundle, "mask", tmp_path / "other", licence="other")
    moved = part_of(bundle, "mask", tmp_path / "moved", name="mask-guest")
    made = []
    for folder in (parts.guests["mask"], moved, other):
        with Pipeline.from_pretrained(parts.hosts["text"], with_experts={"mask": folder}) as pipeline:
            made.append(len([*run_jobs(pipeline, rows, tmp_path / "out", resume=True)]))
    assert made == [1, 0, 1]  # of the second, all but its folder is the same
