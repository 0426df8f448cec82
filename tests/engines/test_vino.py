"""OpenVINO beside what every backend is tested for: its precisions, its sizes, and what importing it must not do."""

import subprocess
import sys

import numpy as np
import pytest

from cdiff_rt.engines import load_engine, vino
from cdiff_rt.errors import BadEnvironment, BadRequest, OutOfResource
from cdiff_rt.pipeline import Pipeline
from tests.engines.test_engines import inputs_for

BF16_HERE = "BF16" in vino._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not BF16_HERE, reason="this CPU does not compute in bf16")
TEXT = "This man has a long beard."


def relative(ours, reference):
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


def test_it_runs_on_as_many_threads_as_it_is_given_and_pins_none(bundle, monkeypatch):
    seen, real = [], vino._core().compile_model

    class Core:
        read_model = staticmethod(vino._core().read_model)
        get_property = staticmethod(vino._core().get_property)

        def compile_model(self, model, device, settings):
            seen.append((device, settings))
            return real(model, device, settings)

    monkeypatch.setattr(vino, "_core", Core)
    load_engine("openvino", bundle, "vae.decode", threads=1)
    ((device, settings),) = seen
    assert device == "CPU" and settings["INFERENCE_NUM_THREADS"] == 1 and settings["NUM_STREAMS"] == 1
    assert settings["INFERENCE_PRECISION_HINT"] == "f32" and settings["ENABLE_CPU_PINNING"] is False


def test_outputs_outlive_the_next_call(bundle):
    engine = load_engine("openvino", bundle, "vae.decode", threads=1)
    z = np.random.default_rng(0).standard_normal((1, 16, 16, 16)).astype(np.float32)
    first = engine(z=z)["image"]
    kept = first.copy()
    assert not np.allclose(engine(z=-z)["image"], kept)
    np.testing.assert_array_equal(first, kept)


def test_a_size_of_batch_is_compiled_once(bundle, monkeypatch):
    engine = load_engine("openvino", bundle, "vae.decode", threads=1)
    made, real = [], vino._compile
    monkeypatch.setattr(vino, "_compile", lambda *args: made.append(args[2]) or real(*args))
    for batch in (1, 2, 1, 2, 3):
        assert engine(z=np.zeros((batch, 16, 16, 16), np.float32))["image"].shape[0] == batch
    assert made == [2, 3]


def test_a_call_that_fails_is_for_want_of_memory(bundle):
    engine = load_engine("openvino", bundle, "vae.decode", threads=1)

    class Failing:
        def infer(self, inputs, share_inputs):
            raise RuntimeError("bad_alloc\nwhile running")

    engine._requests[1] = [Failing()]
    with pytest.raises(OutOfResource, match="running vae.decode.onnx: bad_alloc while running; choose a smaller batch"):
        engine(z=np.zeros((1, 16, 16, 16), np.float32))


def test_a_cpu_without_bf16_is_told_so_before_anything_is_compiled(bundle, monkeypatch):
    core = type("Core", (), {"get_property": lambda self, device, name: ["FP32", "INT8"]})
    monkeypatch.setattr(vino, "_core", core)
    with pytest.raises(BadEnvironment, match="does not compute in bf16, it has FP32, INT8; take precision fp32"):
        load_engine("openvino", bundle, "vae.decode", precision="bf16")


def test_other_precisions_are_refused(bundle):
    with pytest.raises(BadRequest, match="'fp16'; openvino computes in fp32, bf16"):
        load_engine("openvino", bundle, "vae.decode", precision="fp16")
    with pytest.raises(BadRequest, match="'bf16'; onnxruntime computes in fp32"):
        Pipeline(bundle, "onnxruntime", vino_in("bf16"))


def vino_in(precision):
    from cdiff_rt.runs import OnDevice

    return OnDevice(precision)


@needs_bf16
def test_bf16_is_near_fp32_and_not_the_same_but_its_logits_are(bundle):
    spec = bundle.manifest.networks["expert.mask"]
    inputs = inputs_for(spec, 1)
    half, whole = (load_engine("openvino", bundle, "expert.mask", precision=p)(**inputs) for p in ("bf16", "fp32"))
    assert half["out"].dtype == np.float32 and 1e-4 < relative(half["out"], whole["out"]) < 2e-2
    np.testing.assert_array_equal(half["logit"], whole["logit"])


@needs_bf16
@pytest.mark.parametrize("network", ["condition.text", "time.mask"])
def test_what_runs_once_stays_fp32(network, bundle):
    inputs = inputs_for(bundle.manifest.networks[network], 1)
    half, whole = (load_engine("openvino", bundle, network, precision=p)(**inputs) for p in ("bf16", "fp32"))
    for name, value in whole.items():
        np.testing.assert_array_equal(half[name], value)


@needs_bf16
def test_an_image_in_bf16_is_the_same_image_and_says_so(bundle, pipeline, mask):
    settings = {"mask": mask, "text": TEXT, "steps": 10, "seed": 3}
    ours, reference = Pipeline(bundle, "openvino", vino_in("bf16")).generate(**settings), pipeline.generate(**settings)
    assert ours.record["precision"] == "bf16" and reference.record["precision"] == "fp32"
    assert 1e-4 < relative(ours.latents, reference.latents) < 5e-2


def test_an_image_in_fp32_is_the_default_backends(bundle, pipeline, mask):
    settings = {"mask": mask, "text": TEXT, "steps": 10, "seed": 3, "batch": 2}
    ours, reference = Pipeline(bundle, "openvino").generate(**settings), pipeline.generate(**settings)
    assert ours.record["precision"] == "fp32" and relative(ours.latents, reference.latents) < 1e-4
    assert np.abs(ours.images.astype(int) - reference.images).max() <= 1


def test_importing_it_reports_to_nobody(tmp_path, root):
    """Its reporter, asked for nothing, writes a number of its own into the user's folder and sends it off."""
    code = """
import socket, sys
def refuse(*args, **kwargs): raise SystemExit('it opened a connection')
socket.socket.connect = socket.create_connection = refuse
from cdiff_rt.pipeline import Pipeline
Pipeline.from_pretrained(backend='openvino').decode(__import__('numpy').zeros((1, 16, 16, 16), 'float32'))
assert 'openvino' in sys.modules and sys.modules.get('openvino_telemetry', 'absent') == 'absent'
"""
    environment = {"HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("loaded", [True, False])
def test_who_uses_the_reporter_keeps_it(loaded, monkeypatch):
    module = object()
    if loaded:
        monkeypatch.setitem(sys.modules, vino.REPORTER, module)
    else:
        monkeypatch.delitem(sys.modules, vino.REPORTER, raising=False)
    with vino.unreported():
        assert sys.modules[vino.REPORTER] is None
    assert sys.modules.get(vino.REPORTER) is (module if loaded else None) and (vino.REPORTER in sys.modules) == loaded
