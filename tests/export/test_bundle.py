import dataclasses
import errno
import os
import stat

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from cdiff_rt.engines import backends as engines
from cdiff_rt.engines.backends import load_engine
from cdiff_rt.errors import BadArtefact, BadEnvironment, BadRequest, OutOfResource
from cdiff_rt.export import bundle as bundle_module
from cdiff_rt.export.bundle import adapt, export_checkpoint
from cdiff_rt.export.checkpoint import in_memory, read_checkpoint, write_checkpoint
from cdiff_rt.export.verify import TOLERANCE
from cdiff_rt.manifest import Bundle
from cdiff_rt.nets.collaborative import ModelConfig
from cdiff_rt.nets.freeu import FreeUConfig
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.schema import from_json
from tests.tiny import DESCRIPTION, VOCABULARY, tiny_checkpoint

MASK = np.array([[0, 1], [2, 4]], np.uint8).repeat(8, 0).repeat(8, 1)
ONNX_TYPES = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return Bundle.open(tiny_bundle)


def export(tmp_path, checkpoint, out="out"):
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, checkpoint)
    return export_checkpoint([path], tmp_path / out)


def test_report_names_every_network_and_stays_within_tolerance(tiny_export, bundle):
    report = tiny_export[1]
    assert set(report) == set(bundle.manifest.networks)
    assert all(error <= TOLERANCE for error in report.values())


def test_manifest_carries_the_description(bundle):
    manifest = bundle.manifest
    for field in (
        "name",
        "image_size",
        "latent_shape",
        "latent_scale",
        "schedule",
        "influence",
        "modalities",
        "licence",
    ):
        assert getattr(manifest, field) == getattr(DESCRIPTION, field)
    assert manifest.provenance["data"] == DESCRIPTION.provenance["data"]
    assert bundle.path("vocab.txt").read_text().splitlines() == VOCABULARY


def test_weights_are_the_checkpoint_s_in_half_precision(bundle):
    stored, given = load_file(bundle.path("weights.safetensors")), tiny_checkpoint().weights
    assert list(stored) and stored.keys() == given.keys()
    same_shape = [key for key in given if stored[key].shape == given[key].shape]
    assert len(same_shape) > len(given) / 2
    assert all(stored[key].equal(given[key].half()) for key in same_shape)
    config = from_json(ModelConfig, bundle.manifest.source, "source")
    assert {expert.unet.head_multiple for expert in config.experts.values()} == {8}


def test_graphs_take_and_give_what_the_manifest_says(bundle):
    for spec in bundle.manifest.networks.values():
        graph = onnx.load(bundle.path(spec.file), load_external_data=False).graph
        for values, tensors in ((graph.input, spec.inputs), (graph.output, spec.outputs)):
            assert [value.name for value in values] == [tensor.name for tensor in tensors]
            for value, tensor in zip(values, tensors, strict=True):
                found, expected = value.type.tensor_type, tensor.shape
                sizes = [d.dim_value if d.HasField("dim_value") else None for d in found.shape.dim]
                assert sizes == [None if isinstance(d, str) else d for d in expected], (spec.file, tensor.name)
                assert found.elem_type == ONNX_TYPES[tensor.dtype]


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_any_batch_gives_each_image_the_same(bundle, backend):
    rng = np.random.default_rng(0)
    engine = load_engine(backend, bundle, "expert.mask")
    shapes = {tensor.name: [5 if d == "batch" else d for d in tensor.shape] for tensor in engine.spec.inputs}
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    together = engine(**inputs)
    alone = engine(**{name: value if name == "projections" else value[2:3] for name, value in inputs.items()})
    for name in ("out", "logit"):
        np.testing.assert_allclose(together[name][2:3], alone[name], atol=1e-4)


def test_bundle_makes_the_same_image_on_both_backends(tiny_bundle):
    ort, eager = (
        Pipeline.from_pretrained(tiny_bundle, backend=backend).generate(mask=MASK, text="This man.", steps=5, batch=2)
        for backend in ("onnxruntime", "torch")
    )
    assert ort.images.shape == (2, 16, 16, 3)
    assert eager.latents.std() > 0.1
    assert np.abs(ort.latents - eager.latents).max() <= 1e-4 * max(1.0, eager.latents.std())
    assert np.abs(ort.images.astype(int) - eager.images).max() <= 1


def test_both_conditions_reach_the_image(tiny_bundle):
    pipeline = Pipeline.from_pretrained(tiny_bundle)
    given = {"mask": MASK, "text": "This man."}
    images = [
        pipeline.generate(**given | other, steps=2).latents
        for other in ({}, {"mask": MASK // 2}, {"text": "This woman."})
    ]
    assert np.abs(images[0] - images[1]).max() > 1e-3
    assert np.abs(images[0] - images[2]).max() > 1e-3


def test_files_are_readable_by_all(bundle):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o444 for path in bundle.folder.iterdir()}
    assert set(modes.values()) == {0o444}


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_an_existing_place_is_not_written_to(tiny_checkpoint, tmp_path, make):
    getattr(tmp_path / "out", make)()
    before = (tmp_path / "out").stat().st_mtime_ns
    with pytest.raises(BadRequest, match="out exists"):
        export(tmp_path, tiny_checkpoint)
    assert (tmp_path / "out").stat().st_mtime_ns == before


def test_a_refused_checkpoint_leaves_nothing(tiny_checkpoint, tmp_path):
    weights = {key: weight for key, weight in tiny_checkpoint.weights.items() if "vae" not in key}
    with pytest.raises(BadArtefact):
        export(tmp_path, in_memory(tiny_checkpoint.description, weights))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_export_without_onnxruntime_is_refused_before_it_begins(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "lacking", lambda name: [engines.Lack(f"{name} not installed")])
    with pytest.raises(BadEnvironment, match="backend onnxruntime: onnxruntime not installed"):
        export(tmp_path, tiny_checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_export_that_fails_midway_leaves_nothing(tiny_checkpoint, tmp_path, monkeypatch):
    def full_disk(module, prefix, function, spec, folder, weights):
        (folder / spec.file).write_bytes(b"half a graph")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle_module, "export_network", full_disk)
    with pytest.raises(OutOfResource, match="No space left"):
        export(tmp_path, tiny_checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_of_two_exports_to_one_place_one_is_whole_and_the_other_told(tiny_checkpoint, tmp_path, monkeypatch):
    def as_another_export_ends(path, checkpoint):
        with pytest.raises(BadRequest, match="another run is writing out.safetensors"):
            export_checkpoint([tmp_path / "model.safetensors"], tmp_path / "out.safetensors")
        write_checkpoint(path, checkpoint)

    monkeypatch.setattr(bundle_module, "write_checkpoint", as_another_export_ends)
    export(tmp_path, tiny_checkpoint, "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "out.safetensors"]


def test_what_appears_while_an_export_works_stays(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, "write_bundle", lambda *args: (tmp_path / "out").mkdir())
    monkeypatch.setattr(bundle_module, "compare_networks", lambda *args: {})
    monkeypatch.setattr(bundle_module.Bundle, "open", lambda folder: None)
    with pytest.raises(BadRequest, match="out exists"):
        export(tmp_path, tiny_checkpoint)
    assert list((tmp_path / "out").iterdir()) == [] and len(list(tmp_path.iterdir())) == 2


def test_modalities_without_an_expert_are_refused(tiny_checkpoint, tmp_path):
    stranger = dataclasses.replace(tiny_checkpoint.description.modalities[0], name="sketch")
    described = dataclasses.replace(tiny_checkpoint.description, modalities=(stranger,))
    with pytest.raises(BadArtefact, match="sketch"):
        export(tmp_path, in_memory(described, tiny_checkpoint.weights))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(("value", "words"), [(torch.nan, "1 values that are not finite"), (1e6, "too large for fp16")])
def test_weights_that_cannot_be_kept_are_refused_and_leave_nothing(value, words, tmp_path):
    checkpoint = tiny_checkpoint()
    checkpoint.weights["vae.encoder.conv_in.weight"][0, 0, 0, 0] = value
    with pytest.raises(BadArtefact, match=rf"vae.encoder.conv_in.weight holds .*{words.split(' ', 1)[1]}"):
        export(tmp_path, checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_checkpoint_can_be_written_as_one_that_describes_itself(tiny_checkpoint, tmp_path):
    assert export(tmp_path, tiny_checkpoint, "again.safetensors") == {}
    again = read_checkpoint(tmp_path / "again.safetensors")
    assert again.description == tiny_checkpoint.description
    assert all(torch.equal(again.weights[name], weight) for name, weight in tiny_checkpoint.weights.items())


def test_settings_of_the_networks_are_changed_without_their_weights(tiny_checkpoint):
    freeu = FreeUConfig(1.1, 1.2, 0.9, 0.2)
    adapted = adapt(tiny_checkpoint, "prediction", {"text": freeu})
    experts = adapted.description.config.experts
    assert {name: expert.diffuser_input for name, expert in experts.items()} == dict.fromkeys(experts, "prediction")
    assert (experts["text"].unet.freeu, experts["mask"].unet.freeu) == (freeu, None)
    assert adapted.weights is tiny_checkpoint.weights
    assert adapt(tiny_checkpoint, None, {}).description == tiny_checkpoint.description
    with pytest.raises(BadRequest, match="'sketch'; this model has mask, text"):
        adapt(tiny_checkpoint, None, {"sketch": freeu})


def test_a_whole_model_is_given_alone(tiny_checkpoint, tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", tiny_checkpoint)
    with pytest.raises(BadRequest, match="a.safetensors is a whole model; give it alone"):
        export_checkpoint([tmp_path / "a.safetensors"] * 2, tmp_path / "out")
