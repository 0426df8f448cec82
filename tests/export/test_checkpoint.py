import dataclasses
import hashlib
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


def changed(described, **changes):
    """A description as JSON, with the values at some places replaced."""
    data = json.loads(json.dumps(dataclasses.asdict(described)))
    for place, value in changes.items():
        *above, last = place.split("__")
        inner = data
        for name in above:
            inner = inner[int(name) if isinstance(inner, list) else name]
        inner[int(last) if isinstance(inner, list) else last] = value
    return json.dumps(data)


MASK, TEXT, VAE = "config__experts__mask__unet", "config__experts__text__encoder", "config__vae"
UNET = {
    "blocks": ("num_res_blocks", 10**9, "larger than any model's"),
    "more blocks than tensors": ("num_res_blocks", 10**6, "blocks, the file .* tensors"),
    "levels": ("channel_mult", [1] * 10**5, "blocks, the file .* tensors"),
    "no levels": ("channel_mult", [], "keys differ|makes no model"),
    "channels": ("model_channels", 10**12, "larger than any model's"),
    "fewer than none": ("model_channels", -32, "makes no model"),
    "heads": ("num_heads", 0, "makes no model"),
    "heads of nothing": ("num_heads", 1000, "makes no model"),
    "padding": ("head_multiple", 0, "makes no model"),
    "axes": ("dims", 9, "makes no model"),
    "another context": ("context_dim", 8, "makes no model"),
    "other latents": ("in_channels", 4, "makes no model"),
}
ODD = {name: ({f"{MASK}__{field}": value}, words) for name, (field, value, words) in UNET.items()} | {
    "layers": ({f"{TEXT}__layers": 10**9}, "larger than any model's"),
    "blocks of the autoencoder": ({f"{VAE}__num_res_blocks": 10**9}, "larger than any model's"),
    "no patch": ({f"{VAE}__patch": 0}, "an autoencoder of 0 pixels"),
    "no levels of the autoencoder": ({f"{VAE}__channel_mult": []}, "0.5 pixels"),
    "training steps": ({"schedule__train_steps": 10**7}, "10000000 training steps"),
    "no training steps": ({"schedule__train_steps": 0}, "0 training steps"),
    "betas": ({"schedule__beta_end": 5}, "is no schedule"),
    "scale": ({"latent_scale": 0}, "latent_scale 0"),
    "scale without end": ({"latent_scale": float("inf")}, "larger than any model's"),
    "scale that is none": ({"latent_scale": float("nan")}, "larger than any model's"),
    "huge latents": ({"latent_shape": [3, 4000, 4000], "image_size": 8000}, "larger than any model's"),
    "tokens": ({"modalities__1__tokens": 10**9}, "larger than any model's"),
    "other tokens": ({"modalities__1__tokens": 5}, "makes no model"),
    "a larger map": ({"modalities__0__size": 8}, "makes no model"),
    "a huge map": ({"modalities__0__size": 10**5}, "mask takes"),
    "no classes": ({"modalities__0__classes": 0}, "mask takes"),
    "a name with a path": ({"modalities__0__name": "../x"}, "not both a modality"),
    "a piece of two lines": ({"vocabularies__vocab.txt__4": "a\nb"}, "a piece of two lines"),
    "a vocabulary that is missing": ({"modalities__1__vocabulary": "x.txt"}, "has 0 pieces"),
}


@pytest.mark.parametrize(("changes", "words"), ODD.values(), ids=ODD)
def test_a_description_of_an_impossible_model_is_refused_before_any_work(tiny_checkpoint, tmp_path, changes, words):
    text = changed(tiny_checkpoint.description, **changes)
    save_file(tiny_checkpoint.weights, tmp_path / "model.safetensors", metadata={"cdiff_rt": text})
    with pytest.raises(BadArtefact, match=words):
        read_checkpoint(tmp_path / "model.safetensors")


def test_a_name_that_is_no_word_is_refused(tiny_checkpoint, tmp_path):
    text = changed(tiny_checkpoint.description).replace('"mask"', '"../mask"')
    save_file(tiny_checkpoint.weights, tmp_path / "model.safetensors", metadata={"cdiff_rt": text})
    with pytest.raises(BadArtefact, match="the name '../mask', which is no word"):
        read_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"image_size":' + "9" * 5000 + "}"], ids=["deep", "long"])
def test_json_that_cannot_be_read_is_refused(tmp_path, text):
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"cdiff_rt": text})
    with pytest.raises(BadArtefact, match="its description cannot be read"):
        read_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool], ids=str)
def test_whole_numbers_are_no_weights(tiny_checkpoint, tmp_path, dtype):
    weights = replaced(tiny_checkpoint.weights, KEY, tiny_checkpoint.weights[KEY].to(dtype))
    text = changed(tiny_checkpoint.description)
    save_file(weights, tmp_path / "model.safetensors", metadata={"cdiff_rt": text})
    with pytest.raises(BadArtefact, match=f"{KEY} has whole numbers, {str(dtype).removeprefix('torch.')}; give"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_other_precisions_are_told_and_so_is_the_hash(tiny_checkpoint, tmp_path, caplog):
    path, weights = tmp_path / "model.safetensors", tiny_checkpoint.weights
    text = changed(tiny_checkpoint.description)
    save_file(replaced(weights, KEY, weights[KEY].half()), path, metadata={"cdiff_rt": text})
    with caplog.at_level("INFO", logger="cdiff_rt"):
        read_checkpoint(path)
    assert caplog.messages == [
        "model.safetensors: weights in float16 become fp32 first",
        f"model.safetensors: sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_checkpoint_of_what_is_not_finite_is_not_written(tiny_checkpoint, tmp_path, value):
    weight = tiny_checkpoint.weights[KEY].clone()
    weight.view(-1)[3] = value
    broken = in_memory(tiny_checkpoint.description, replaced(tiny_checkpoint.weights, KEY, weight))
    with pytest.raises(BadArtefact, match=f"{KEY} holds 1 values that are not finite"):
        write_checkpoint(tmp_path / "model.safetensors", broken)


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/tmp/outside.txt", "sub/vocab.txt", "", "weights.safetensors", "manifest.json"]
)
def test_vocabularies_may_not_leave_the_bundle_or_replace_its_files(tiny_checkpoint, tmp_path, name):
    described = dataclasses.replace(tiny_checkpoint.description, vocabularies={name: ["word"]})
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, in_memory(described, tiny_checkpoint.weights))
    with pytest.raises(BadArtefact, match="vocabular"):
        read_checkpoint(path)
