import dataclasses
import logging
import sys

import numpy as np
import pytest

from cdiff_rt.engines import backends as engines
from cdiff_rt.engines import cuda
from cdiff_rt.engines.backends import BACKENDS, Backend, load_engine, why_not
from cdiff_rt.engines.base import check_inputs
from cdiff_rt.errors import BadArtefact, BadEnvironment, BadRequest
from cdiff_rt.pipeline import Pipeline

ON_THE_CPU = [n for n, backend in BACKENDS.items() if backend.device == "cpu" and not n.endswith("compiled")]
RNG = np.random.default_rng(0)
Z = RNG.standard_normal((2, 16, 16, 16)).astype(np.float32)


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setitem(BACKENDS, "torch", Backend("no_such_library:load", ("numpy", "no_such_library"), "export"))


def with_files(bundle, files):
    """As if these were what the manifest's hashes are of."""
    return dataclasses.replace(bundle, content={**bundle.content, **files})


def inputs_for(spec, batch):
    """Numbers of every input's type and shape; whole ones are small enough to be words or timesteps."""
    sizes = {"batch": batch, "steps": 3}
    shapes = {tensor: tuple(sizes.get(length, length) for length in tensor.shape) for tensor in spec.inputs}
    return {
        tensor.name: RNG.integers(0, 40, shape) if tensor.dtype == "int64" else RNG.standard_normal(shape, np.float32)
        for tensor, shape in shapes.items()
    }


@pytest.mark.parametrize("backend", ON_THE_CPU)
@pytest.mark.parametrize(
    "network", ["vae.encode", "vae.decode", "condition.text", "time.mask", "expert.mask", "expert.text"]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_an_engine_gives_what_its_spec_says_and_what_torch_gives(backend, network, batch, bundle):
    spec = bundle.manifest.networks[network]
    inputs = inputs_for(spec, batch)
    outputs = load_engine(backend, bundle, network)(**inputs)
    expected = load_engine("torch", bundle, network)(**inputs)
    sizes = {"batch": batch, "steps": 3}
    for tensor in spec.outputs:
        array = outputs[tensor.name]
        assert array.shape == tuple(sizes.get(length, length) for length in tensor.shape)
        assert str(array.dtype) == tensor.dtype
        scale = np.abs(expected[tensor.name]).max()
        np.testing.assert_allclose(array, expected[tensor.name], atol=1e-4 * scale)


def test_an_unknown_backend_is_refused_and_the_known_are_named(bundle):
    with pytest.raises(BadRequest, match="'trt'; choose one of onnxruntime, openvino, torch"):
        load_engine("trt", bundle, "vae.decode")


def test_a_missing_library_is_named_with_the_command_that_installs_it(without_library, bundle):
    assert why_not("torch") == "no_such_library not installed"
    with pytest.raises(BadEnvironment, match=r"no_such_library not installed; run `pip install '\.\[export\]'`"):
        load_engine("torch", bundle, "vae.decode")


def test_a_missing_compiler_is_named(monkeypatch, bundle):
    monkeypatch.setenv("PATH", "")
    assert why_not("torch-compiled") == "no compiler: none of g++, clang++ is on the path" and why_not("torch") is None
    with pytest.raises(BadEnvironment, match="on the path; install one or choose another backend"):
        load_engine("torch-compiled", bundle, "vae.decode")


def test_asking_why_imports_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert why_not("onnxruntime") is None and "onnxruntime" not in sys.modules


@pytest.mark.parametrize(
    "content", [b"", b"<html></html>", bytes(100), "half", "flipped"], ids=["empty", "html", "zeros", "half", "flipped"]
)
@pytest.mark.parametrize(
    ("backend", "file"),
    [("onnxruntime", "vae.decode.onnx"), ("openvino", "vae.decode.onnx"), ("torch", "weights.safetensors")],
)
def test_a_file_that_no_library_can_read_is_a_bad_artefact(backend, file, content, bundle):
    whole = bundle.content[file]
    changes = {"half": whole[: len(whole) // 2], "flipped": bytes(byte ^ 0xFF for byte in whole[:1000]) + whole[1000:]}
    with pytest.raises(BadArtefact) as raised:
        load_engine(backend, with_files(bundle, {file: changes.get(content, content)}), "vae.decode")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [0, 100, 1_000_000])
def test_graphs_whose_weights_are_cut_are_refused(size, backend, bundle):
    cut = with_files(bundle, {"weights.safetensors": bundle.content["weights.safetensors"][:size]})
    with pytest.raises(BadArtefact, match="network expert.text"):
        load_engine(backend, cut, "expert.text")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_graphs_whose_names_are_not_the_manifests_are_refused(side, backend, bundle):
    spec = bundle.manifest.networks["vae.decode"]
    (tensor,) = getattr(spec, side)
    renamed = dataclasses.replace(spec, **{side: (dataclasses.replace(tensor, name="other"),)})
    networks = bundle.manifest.networks | {"vae.decode": renamed}
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, networks=networks))
    with pytest.raises(BadArtefact, match="vae.decode"):
        load_engine(backend, other, "vae.decode")


@pytest.mark.parametrize(
    "source",
    [{}, {"experts": {}, "vae": {}}, {"experts": None, "vae": None}],
    ids=["empty", "hollow", "null"],
)
def test_torch_refuses_a_source_that_describes_no_model(source, bundle):
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, source=source))
    with pytest.raises(BadArtefact):
        load_engine("torch", other, "vae.decode")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": Z}, "takes other inputs"),
        ({"x": Z.astype(np.float64)}, "x is float64"),
        ({"x": Z[0]}, "x is float32"),
        ({"x": Z[None]}, "x is float32"),
        ({"x": Z[:, :3]}, "x is float32"),
        ({"x": Z[:1]}, "context is float32"),
        ({"projections": np.zeros((2, 1088), np.float32)}, "projections is float32"),
    ],
    ids=["surplus", "type", "few axes", "many axes", "size", "batches differ", "projections"],
)
def test_inputs_must_be_the_specs(change, words, bundle):
    spec = bundle.manifest.networks["expert.mask"]
    inputs = inputs_for(spec, 2)
    check_inputs(spec, inputs)
    with pytest.raises(AssertionError, match=words):
        check_inputs(spec, inputs | change)


def test_no_input_may_be_missing(bundle):
    spec = bundle.manifest.networks["expert.mask"]
    inputs = inputs_for(spec, 2)
    del inputs["context"]
    with pytest.raises(AssertionError, match="takes other inputs"):
        check_inputs(spec, inputs)


@pytest.mark.parametrize("backend", ON_THE_CPU)
def test_engines_check_their_inputs(backend, bundle):
    with pytest.raises(AssertionError, match="expected"):
        load_engine(backend, bundle, "vae.decode")(z=Z[:, :3])


def test_engines_get_the_usual_threads_unless_told_otherwise(bundle, monkeypatch):
    seen = []
    module = type("Module", (), {"load": lambda bundle, network, placement: seen.append(placement.threads)})
    monkeypatch.setitem(sys.modules, "fake_backend", module)
    monkeypatch.setitem(BACKENDS, "torch", Backend("fake_backend:load", (), "cpu"))
    load_engine("torch", bundle, "vae.decode")
    load_engine("torch", bundle, "vae.decode", threads=1)
    assert seen == [engines.usual_threads(), 1]


def test_auto_is_the_first_that_works_and_says_why_others_do_not(bundle, monkeypatch, caplog):
    reasons = dict.fromkeys(engines.FASTEST) | {engines.FASTEST[0]: "no GPU", engines.FASTEST[1]: "x not installed"}
    monkeypatch.setattr(engines, "why_not", reasons.get)
    with caplog.at_level(logging.INFO, "cdiff_rt"):
        assert engines.resolve("auto", bundle.manifest) == engines.FASTEST[2]
    (message,) = caplog.messages
    assert engines.FASTEST[2] in message and "no GPU" in message and "x not installed" in message


@pytest.mark.parametrize(
    ("rewritten", "precision", "expected"),
    [
        ((), None, "openvino"),
        (("expert.text",), None, "openvino"),
        (("expert.mask", "expert.text"), None, "onnxruntime"),
        (("expert.mask", "expert.text"), "fp32", "onnxruntime"),
        (("expert.mask", "expert.text"), "bf16", "openvino"),
        ((), "bf16", "openvino"),
    ],
)
def test_auto_is_the_fastest_for_the_bundle_and_the_precision(bundle, monkeypatch, rewritten, precision, expected):
    monkeypatch.setattr(engines, "why_not", lambda name: "no GPU" if name == "torch-cuda" else None)
    networks = {
        name: dataclasses.replace(spec, cpu_file="some.cpu.onnx" if name in rewritten else "")
        for name, spec in bundle.manifest.networks.items()
    }
    assert engines.resolve("auto", dataclasses.replace(bundle.manifest, networks=networks), precision) == expected


def test_auto_needs_one_that_works(bundle, monkeypatch):
    monkeypatch.setattr(engines, "why_not", lambda name: "x not installed")
    with pytest.raises(BadEnvironment, match="^backend auto: none works here"):
        engines.resolve("auto", bundle.manifest)
    monkeypatch.setattr(engines, "why_not", lambda name: "no GPU" if name == "torch-cuda" else None)
    with pytest.raises(
        BadEnvironment, match=r"none works here in fp16 \(torch-cuda: no GPU\); choose another precision"
    ):
        engines.resolve("auto", bundle.manifest, "fp16")
    with pytest.raises(BadRequest, match="'fp8'"):
        engines.resolve("auto", bundle.manifest, "fp8")


def test_auto_makes_images_and_the_record_has_the_backends_name(bundle):
    pipeline = Pipeline(bundle, "auto")
    assert pipeline.backend in engines.FASTEST
    assert pipeline.generate(text="This man has a long beard.", steps=2).parameters["backend"] == pipeline.backend


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, None),
        ({"torch": "", "found": ["safetensors", "torch"]}, "this torch is a build for the CPU"),
        ({"found": ["safetensors", "torch"]}, "triton not installed"),
        ({"PATH": ""}, "no compiler: none of gcc, clang is on the path"),
        ({"PATH": "", "CC": sys.executable}, None),
        ({"CC": "no-such-cc"}, "no compiler: none of no-such-cc is on the path"),
        ({"include": "/nowhere"}, "no Python.h in /nowhere"),
        ({"torch": "14.0"}, "this torch needs CUDA 14.0, so driver 580 or later, and the one here knows CUDA 13.0"),
        (
            {"PATH": "", "torch": ""},
            "this torch is a build for the CPU, no compiler: none of gcc, clang is on the path",
        ),
    ],
    ids=str,
)
def test_what_a_backend_on_a_gpu_needs_beside_it(settings, words, monkeypatch):
    found, include = settings.get("found"), settings.get("include")
    monkeypatch.setattr(engines, "why_no_device", lambda: None)
    monkeypatch.setattr(cuda, "driver_cuda", lambda: "13.0")
    monkeypatch.setattr(cuda, "built_for", lambda name: settings.get(name, "13.0"))
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: found is None or name in found or None)
    monkeypatch.setattr(engines.sys, "platform", "linux")
    monkeypatch.delenv("CC", raising=False)
    if include:
        monkeypatch.setattr(engines.sysconfig, "get_paths", lambda scheme: {"include": include})
    for name in {"PATH", "CC"} & set(settings):
        monkeypatch.setenv(name, settings[name])
    assert why_not("torch-cuda") == words


def test_the_remedies_of_a_gpu_that_cannot_be_used_name_what_works(monkeypatch, bundle):
    monkeypatch.setattr(engines, "why_no_device", lambda: None)
    monkeypatch.setattr(cuda, "built_for", lambda name: "" if name in ("torch", "onnxruntime") else None)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(BadEnvironment, match=r"install a torch that fits \(docs/gpu.md\), or choose .*onnxruntime"):
        engines.check_backend("torch-cuda")
    with pytest.raises(BadEnvironment, match=r"onnxruntime is a build for the CPU.*run `pip install '\.\[gpu\]'`"):
        engines.check_backend("onnxruntime-cuda")


def test_auto_and_a_runner_try_a_gpu_before_they_take_it(bundle, monkeypatch, caplog):
    monkeypatch.setattr(engines, "lacking", lambda name: [])
    monkeypatch.setattr(engines, "why_torch_fails", lambda: "torch does not start on it (no kernel image)")
    with caplog.at_level(logging.INFO, "cdiff_rt"):
        assert engines.resolve("auto", bundle.manifest) == "onnxruntime"
    assert caplog.messages == ["backend auto: onnxruntime (torch-cuda: torch does not start on it (no kernel image))"]
    with pytest.raises(
        BadEnvironment, match=r"backend torch-cuda: .*no kernel image\); see docs/gpu.md, or choose one"
    ):
        Pipeline(bundle, "torch-cuda")
    monkeypatch.setattr(engines, "why_torch_fails", lambda: None)
    assert engines.resolve("auto", bundle.manifest) == "torch-cuda"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_a_network_that_gives_another_shape_than_the_manifest_says_is_refused(backend, bundle):
    engine = load_engine(backend, bundle, "vae.decode")
    (image,) = engine.spec.outputs
    engine.spec = dataclasses.replace(engine.spec, outputs=(dataclasses.replace(image, shape=("batch", 3, 64, 64)),))
    with pytest.raises(BadArtefact, match="it gives image .*128, 128.*, not"):
        engine(z=np.zeros((1, *bundle.manifest.latent_shape), np.float32))
