import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.checkpoint import describes_itself, in_memory, read_checkpoint, write_checkpoint

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
}


def test_a_checkpoint_survives_the_file(tiny_checkpoint, tmp_path):
    write_checkpoint(tmp_path / "model.safetensors", tiny_checkpoint)
    again = read_checkpoint(tmp_path / "model.safetensors")
    assert again.description == tiny_checkpoint.description
    assert again.weights.keys() == tiny_checkpoint.weights.keys()
    assert all(torch.equal(again.weights[key], weight) for key, weight in tiny_checkpoint.weights.items())


@pytest.mark.parametrize("change", [{"latent_shape": (3, 4, 4)}, {"image_size": 0}, {"image_size": 32}], ids=str)
def test_latents_and_images_fit_the_autoencoder(change, tiny_checkpoint, tmp_path):
    path = tmp_path / "model.safetensors"
    described = dataclasses.replace(tiny_checkpoint.description, **change)
    write_checkpoint(path, in_memory(described, tiny_checkpoint.weights))
    with pytest.raises(BadArtefact, match="do not fit its autoencoder"):
        read_checkpoint(path)


@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS)
def test_weights_that_do_not_fit_are_refused_by_name(tiny_checkpoint, tmp_path, spoil, message):
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, in_memory(tiny_checkpoint.description, spoil(tiny_checkpoint.weights)))
    with pytest.raises(BadArtefact, match=message):
        read_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadArtefact, match="nowhere.safetensors.*no such file"):
        read_checkpoint(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("content", [b"", b"no tensors in here", b"\xff" * 64])
def test_another_format_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadArtefact, match=r"model\.safetensors"):
        read_checkpoint(path)


def test_weights_without_a_description_are_refused(tiny_checkpoint, tmp_path):
    torch.save(dict(tiny_checkpoint.weights), tmp_path / "model.pt")
    save_file(tiny_checkpoint.weights, tmp_path / "model.safetensors")
    for path in tmp_path.iterdir():
        with pytest.raises(BadArtefact, match=rf"{path.name}: its description cannot be read"):
            read_checkpoint(path)


def test_only_what_was_written_here_describes_itself(tiny_checkpoint, tmp_path):
    write_checkpoint(tmp_path / "own.safetensors", tiny_checkpoint)
    save_file(tiny_checkpoint.weights, tmp_path / "bare.safetensors")
    (tmp_path / "other").write_bytes(b"no tensors in here")
    found = {path.name: describes_itself(path) for path in tmp_path.iterdir()}
    assert found == {"own.safetensors": True, "bare.safetensors": False, "other": False}


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
    write_checkpoint(path, in_memory(described, tiny_checkpoint.weights))
    with pytest.raises(BadArtefact, match="vocabular"):
        read_checkpoint(path)
