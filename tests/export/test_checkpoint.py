import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

KEY = "vae.encoder.conv_in.weight"


def replaced(weights, key, value):
    return weights | {key: value}


FAULTS = {
    "missing": (lambda w: {k: v for k, v in w.items() if k != KEY}, rf"{KEY} is missing"),
    "surplus": (lambda w: replaced(w, "a.stranger", torch.zeros(1)), r"a\.stranger is surplus"),
    "wrong shape": (
        lambda w: replaced(w, KEY, w[KEY][:, :2].contiguous()),
        rf"{KEY} is \[32, 2, 3, 3\], expected \[32, 3, 3, 3\]",
    ),
    "nan": (lambda w: replaced(w, KEY, torch.full_like(w[KEY], torch.nan)), rf"{KEY} holds values that are not finite"),
    "infinity": (lambda w: replaced(w, KEY, w[KEY].index_fill(0, torch.tensor(3), torch.inf)), rf"{KEY} holds values"),
}


def test_a_checkpoint_survives_the_file(tiny_checkpoint, tmp_path):
    write_checkpoint(tmp_path / "model.safetensors", tiny_checkpoint)
    again = read_checkpoint(tmp_path / "model.safetensors")
    assert again.description == tiny_checkpoint.description
    assert again.weights.keys() == tiny_checkpoint.weights.keys()
    assert all(torch.equal(again.weights[key], weight) for key, weight in tiny_checkpoint.weights.items())


def test_latent_shape_follows_from_the_autoencoder(tiny_checkpoint):
    assert tiny_checkpoint.description.latent_shape == (3, 8, 8)


@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS)
def test_weights_that_do_not_fit_are_refused_by_name(tiny_checkpoint, tmp_path, spoil, message):
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, Checkpoint(tiny_checkpoint.description, spoil(tiny_checkpoint.weights)))
    with pytest.raises(BadArtefact, match=message):
        read_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadArtefact, match="nowhere.safetensors.*no such file"):
        read_checkpoint(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("content", [b"", b"no tensors in here", b"\xff" * 64])
def test_another_format_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadArtefact, match=r"model\.safetensors.*not a safetensors file"):
        read_checkpoint(path)


def test_weights_without_a_description_are_refused(tiny_checkpoint, tmp_path):
    save_file(tiny_checkpoint.weights, tmp_path / "bare.safetensors")
    with pytest.raises(BadArtefact, match=r"bare\.safetensors.*does not describe its model"):
        read_checkpoint(tmp_path / "bare.safetensors")


@pytest.mark.parametrize("description", ["no json", "[]", "{}", '{"config": {"experts": {}}}'])
def test_a_description_that_is_none_is_refused(tmp_path, description):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata={"cdiff_rt": description})
    with pytest.raises(BadArtefact, match=r"model\.safetensors"):
        read_checkpoint(path)


def test_a_description_with_a_surplus_field_is_refused(tiny_checkpoint, tmp_path):
    path = tmp_path / "model.safetensors"
    surplus = dataclasses.asdict(tiny_checkpoint.description) | {"stranger": 1}
    save_file(tiny_checkpoint.weights, path, metadata={"cdiff_rt": json.dumps(surplus)})
    with pytest.raises(BadArtefact, match=r"model\.safetensors"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/tmp/outside.txt", "sub/vocab.txt", "", "weights.safetensors", "manifest.json"]
)
def test_vocabularies_may_not_leave_the_bundle_or_replace_its_files(tiny_checkpoint, tmp_path, name):
    described = dataclasses.replace(tiny_checkpoint.description, vocabularies={name: ["word"]})
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, Checkpoint(described, tiny_checkpoint.weights))
    with pytest.raises(BadArtefact, match="vocabular"):
        read_checkpoint(path)
