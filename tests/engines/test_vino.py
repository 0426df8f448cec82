"""OpenVINO beside what every backend is tested for: precisions, sizes, graphs, and what importing it must not do."""

import subprocess
import sys

import numpy as np
import pytest

from cdiff_rt.engines import vino
from cdiff_rt.engines.backends import load_engine
from cdiff_rt.errors import BadEnvironment, BadRequest, OutOfResource
from cdiff_rt.pipeline import Pipeline
from tests.engines.test_engines import inputs_for

with vino.unreported():
    from openvino import Model
    from openvino import opset13 as ops

BF16_HERE = "BF16" in vino._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not BF16_HERE, reason="this CPU does not compute in bf16")
TEXT = "This man has a long beard."
RNG = np.random.default_rng(0)
SIZES = {1: [6], 2: [4, 5], 3: [2, 3, 4]}


def relative(ours, reference):
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


@pytest.fixture
def compiled(monkeypatch):
    """What openvino is asked to compile: graphs, devices, settings."""
    seen, real = [], vino._core()

    class Core:
        read_model, get_property = real.read_model, real.get_property

        def compile_model(self, *given):
            seen.append(given)
            return real.compile_model(*given)

    monkeypatch.setattr(vino, "_core", Core)
    return seen


def test_it_runs_on_as_many_threads_as_it_is_given_and_pins_none(bundle, compiled):
    load_engine("openvino", bundle, "vae.decode", threads=1)
    ((_, device, settings),) = compiled
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


def test_the_last_sizes_of_batch_are_kept_and_no_more(bundle, monkeypatch):
    engine = load_engine("openvino", bundle, "time.mask", threads=1)
    made = []
    monkeypatch.setattr(vino, "_compile", lambda path, spec, batch, *more: made.append(batch) or [batch])
    for batch in [*range(2, 12), 11, 10, 2]:
        assert engine._compiled(batch) == [batch] and len([*engine._requests]) <= vino.MOST_SIZES
    assert made == [*range(2, 12), 2]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("can't alloc", "^loading time.mask.onnx: can't alloc; close other programs"),
        ("x: Resource temporarily unavailable", "threads: openvino cannot start its own; raise the limit of `ulimit"),
    ],
)
def test_a_network_that_finds_no_room_is_not_to_blame(error, words, bundle, monkeypatch):
    def refuse(*given):
        raise RuntimeError(error)

    monkeypatch.setattr(vino, "_core", lambda: type("Core", (), {"read_model": refuse}))
    monkeypatch.setattr(vino, "check_cpu", lambda precision: None)
    with pytest.raises(OutOfResource, match=words):
        load_engine("openvino", bundle, "time.mask", threads=1)


def test_a_call_that_fails_is_for_want_of_memory(bundle):
    engine = load_engine("openvino", bundle, "vae.decode", threads=1)

    class Failing:
        def infer(self, inputs, share_inputs):
            raise RuntimeError("bad_alloc\nwhile running")

    engine._requests.put(1, [Failing()])
    with pytest.raises(OutOfResource, match="running vae.decode.onnx: bad_alloc while running; close other programs"):
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
    from cdiff_rt.run import OnDevice

    return OnDevice(precision)


@pytest.mark.slow
@needs_bf16
def test_bf16_is_near_fp32_and_not_the_same_and_its_logits_are_nearer(bundle):
    spec = bundle.manifest.networks["expert.mask"]
    inputs = inputs_for(spec, 1)
    half, whole = (load_engine("openvino", bundle, "expert.mask", precision=p)(**inputs) for p in ("bf16", "fp32"))
    assert half["out"].dtype == np.float32 and 1e-4 < relative(half["out"], whole["out"]) < 2e-2
    assert 0 < relative(half["logit"], whole["logit"]) < 1e-3


@needs_bf16
@pytest.mark.parametrize("network", ["condition.text", "time.mask"])
def test_what_runs_once_stays_fp32(network, bundle):
    inputs = inputs_for(bundle.manifest.networks[network], 1)
    half, whole = (load_engine("openvino", bundle, network, precision=p)(**inputs) for p in ("bf16", "fp32"))
    for name, value in whole.items():
        np.testing.assert_array_equal(half[name], value)


@pytest.mark.slow
@needs_bf16
def test_an_image_in_bf16_is_the_same_image_and_says_so(bundle, pipeline, mask):
    settings = {"mask": mask, "text": TEXT, "steps": 4, "seed": 3}
    ours, reference = Pipeline(bundle, "openvino", vino_in("bf16")).generate(**settings), pipeline.generate(**settings)
    assert ours.parameters["precision"] == "bf16" and reference.parameters["precision"] == "fp32"
    assert 1e-4 < relative(ours.latents, reference.latents) < 5e-2


def test_an_image_in_fp32_is_the_default_backends(bundle, pipeline, mask):
    settings = {"mask": mask, "text": TEXT, "steps": 4, "seed": 3, "batch": 2}
    ours, reference = Pipeline(bundle, "openvino").generate(**settings), pipeline.generate(**settings)
    assert ours.parameters["precision"] == "fp32" and relative(ours.latents, reference.latents) < 1e-4
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


# --- graphs, on small ones of their own --------------------------------------------------------------------------------


def doubled(x, axes, *, factor=2.0, mode="nearest"):
    return ops.interpolate(
        x,
        np.full(axes, factor, np.float32),
        mode,
        "scales",
        axes=np.arange(2, 2 + axes),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def convolved(x, axes, *, taps=3, stride=1, pad=1, dilation=1, dtype=np.float32):
    kernel = ops.constant(RNG.standard_normal((7, 5, *[taps] * axes)).astype(dtype))
    weight = kernel if dtype == np.float32 else ops.convert(kernel, "f32")
    return ops.convolution(x, weight, [stride] * axes, [pad] * axes, [pad] * axes, [dilation] * axes)


def types_of(model):
    return [op.get_type_name() for op in model.get_ops()]


def run(model, x, precision="f32"):
    (value,) = vino._core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})(x).values()
    return value


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_convolution_after_a_doubling_goes_before_it(axes, dtype):
    x = ops.parameter([2, 5, *SIZES[axes]], np.float32)
    model = Model([ops.relu(convolved(doubled(x, axes), axes, dtype=dtype))], [x])
    given = RNG.standard_normal((2, 5, *SIZES[axes])).astype(np.float32)
    before = run(model.clone(), given)
    vino.convolve_before_upsampling(model)
    assert "Interpolate" not in types_of(model) and types_of(model).count("Convolution") == 2**axes
    assert before.shape == (2, 7, *[2 * d for d in SIZES[axes]])
    np.testing.assert_allclose(run(model, given), before, atol=1e-4)


@pytest.mark.parametrize(
    ("doubling", "convolution"),
    [
        ({}, {"taps": 5}),
        ({}, {"taps": 1}),
        ({}, {"stride": 2}),
        ({}, {"pad": 0}),
        ({}, {"pad": 2, "dilation": 2}),
        ({"factor": 3.0}, {}),
        ({"mode": "linear"}, {}),
    ],
)
def test_what_is_no_such_pair_is_left_alone(doubling, convolution):
    x = ops.parameter([1, 5, 4, 5], np.float32)
    model = Model([convolved(doubled(x, 2, **doubling), 2, **convolution)], [x])
    before = types_of(model)
    vino.convolve_before_upsampling(model)
    assert types_of(model) == before


def test_who_else_reads_the_doubled_image_keeps_it():
    x = ops.parameter([1, 5, 4, 5], np.float32)
    large = doubled(x, 2)
    model = Model([convolved(large, 2), ops.relu(large)], [x])
    vino.convolve_before_upsampling(model)
    assert types_of(model).count("Interpolate") == 1 and types_of(model).count("Convolution") == 4


def attention(queries, keys, **given):
    """A model of three heads that are 5 wide, and what it may be given."""
    sizes = {"q": (2, 3, queries, 5), "k": (2, 3, keys, 5), "v": (2, 3, keys, 5)}
    taken = [ops.parameter(size, np.float32) for size in sizes.values()]
    made = ops.scaled_dot_product_attention(*taken, **given)
    return Model([ops.relu(made)], taken), [
        RNG.standard_normal([abs(d) for d in size]).astype(np.float32) for size in sizes.values()
    ]


def attentions(model):
    return [op for op in model.get_ordered_ops() if op.get_type_name() == "ScaledDotProductAttention"]


@pytest.mark.parametrize(
    "given", [{}, {"attention_mask": np.float32(0), "scale": np.float32([0.2])}], ids=["bare", "with a scale"]
)
@pytest.mark.parametrize(("keys", "padded"), [(1, 16), (16, 16), (77, 80), (1009, 1040), (1024, 1040), (2048, 2064)])
def test_keys_fill_vectors_and_not_pages(keys, padded, given):
    model, values = attention(6, keys, **given)
    before = run(model.clone(), values)
    vino.pad_keys(model)
    (node,) = attentions(model)
    assert list(node.get_input_shape(1)) == list(node.get_input_shape(2)) == [2, 3, padded, 5]
    np.testing.assert_allclose(run(model, values), before, atol=1e-6)


@pytest.mark.parametrize("given", [{"attention_mask": np.zeros((6, 77), np.float32)}, {"causal": True}])
def test_attention_that_sees_not_all_is_left_alone(given):
    model, _ = attention(6, 77, **given)
    before = types_of(model)
    vino.pad_keys(model)
    assert types_of(model) == before


def test_as_many_keys_as_there_will_be_are_left_alone():
    model, _ = attention(6, -1)
    before = types_of(model)
    vino.pad_keys(model)
    assert types_of(model) == before


@needs_bf16
def test_attention_is_rounded_and_nothing_else():
    model, values = attention(64, 80)
    before = run(model.clone(), values)
    vino.attend_in_bf16(model)
    (node,) = attentions(model)
    assert {port.get_element_type().to_string() for port in node.input_values()} == {"bf16"}
    (after,) = (op for op in model.get_ops() if op.get_type_name() == "Relu")
    assert after.get_input_element_type(0).to_string() == "f32"
    assert 1e-4 < relative(run(model, values), before) < 1e-2


def outputs(**made):
    """Results by these names."""
    for name, value in made.items():
        value.output(0).set_names({name})
    return list(made.values())


def names(model):
    return {name for port in model.outputs for name in port.names}


def test_logits_of_their_own_are_a_graph_of_their_own():
    x = ops.parameter([1, 4], np.float32)
    model = Model(outputs(out=ops.sin(x), logit=ops.cos(x)), [x])
    (kind, apart), (other, rest) = vino.by_precision(model, "bf16")
    assert (kind, names(apart), types_of(apart).count("Sin")) == ("fp32", {"logit"}, 0)
    assert (other, names(rest), types_of(rest).count("Cos")) == ("bf16", {"out"}, 0)
    assert vino.by_precision(model, "fp32") == [("fp32", model)] and names(model) == {"out", "logit"}


def test_logits_that_are_computed_from_a_prediction_stay_with_it():
    x = ops.parameter([1, 4], np.float32)
    out = ops.sin(x)
    model = Model(outputs(out=out, logit=ops.cos(out)), [x])
    assert vino.by_precision(model, "bf16") == [("bf16", model)]


def test_a_network_without_logits_is_one_graph():
    x = ops.parameter([1, 4], np.float32)
    model = Model(outputs(image=ops.sin(x)), [x])
    assert vino.by_precision(model, "bf16") == [("bf16", model)]


def test_sums_of_equals_are_marked_and_biases_are_not():
    x = ops.parameter([1, 4], np.float32)
    bias = ops.add(ops.sin(x), ops.constant(np.ones((4,), np.float32)))
    total = ops.add(x, bias)
    vino.keep_sums_fp32(Model([total], [x]))
    name, _ = vino._fp32_mark()
    assert name in total.get_rt_info() and name not in bias.get_rt_info()


def residual_block(x, channels):
    kernel = RNG.standard_normal((channels, channels, 3, 3)).astype(np.float32) / (16 * channels)
    normal = ops.mvn(x, np.array([1, 2, 3]), True, 1e-5, "inside_sqrt")
    active = ops.multiply(normal, ops.sigmoid(normal))
    bias = np.full((1, channels, 1, 1), 0.01, np.float32)
    return ops.add(x, ops.add(ops.convolution(active, kernel, [1, 1], [1, 1], [1, 1], [1, 1]), bias))


@needs_bf16
def test_a_residual_that_many_blocks_add_to_is_not_rounded_by_each():
    x = ops.parameter([1, 32, 16, 16], np.float32)
    h = x
    for _ in range(24):
        h = residual_block(h, 32)
    last = RNG.standard_normal((3, 32, 1, 1)).astype(np.float32)  # without it the end of a graph is fp32 by itself
    model = Model([ops.convolution(h, last, [1, 1], [0, 0], [0, 0], [1, 1])], [x])
    given = RNG.standard_normal((1, 32, 16, 16)).astype(np.float32)
    whole, rounded = run(model, given), run(model, given, "bf16")
    vino.keep_sums_fp32(model)
    assert relative(run(model, given, "bf16"), whole) < 0.5 * relative(rounded, whole) < 1e-2


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_an_engine_compiles_the_graphs_so_rewritten(precision, bundle, compiled):
    name, _ = vino._fp32_mark()
    load_engine("openvino", bundle, "vae.decode", precision=precision)
    ((graph, *_),) = compiled
    assert "Interpolate" not in types_of(graph)
    assert any(name in op.get_rt_info() for op in graph.get_ops()) == (precision == "bf16")


def keys_and_types(model):
    found = [(op.get_input_shape(1)[2], op.get_input_element_type(1).to_string()) for op in attentions(model)]
    return sorted(set(found))


def test_an_expert_in_fp32_has_keys_in_whole_vectors(bundle, compiled):
    load_engine("openvino", bundle, "expert.mask")
    ((graph, *_),) = compiled
    assert keys_and_types(graph) == [(32, "f32"), (64, "f32"), (256, "f32")]


@needs_bf16
def test_an_expert_in_bf16_rounds_its_diffusers_attention_and_pads_none(bundle, compiled):
    name, _ = vino._fp32_mark()
    load_engine("openvino", bundle, "expert.mask", precision="bf16")
    diffuser, branch = (graph for graph, *_ in compiled)
    assert keys_and_types(diffuser) == [(19, "bf16"), (64, "bf16")]
    assert keys_and_types(branch) == [(19, "f32"), (64, "f32"), (256, "f32")]
    assert any(name in op.get_rt_info() for op in branch.get_ops())
