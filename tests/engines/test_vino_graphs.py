"""What OpenVINO's graphs are rewritten to, on small ones of their own."""

import numpy as np
import pytest
from openvino import Model
from openvino import opset13 as ops

from cdiff_rt.engines import vino
from tests.engines.test_vino import needs_bf16, relative

RNG = np.random.default_rng(0)
SIZES = {1: [6], 2: [4, 5], 3: [2, 3, 4]}


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
        ({}, {"taps": 5, "pad": 2}),
        ({}, {"taps": 1, "pad": 0}),
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
