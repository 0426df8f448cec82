import json
import math
import time

import pytest

from cdiff_rt import schema
from cdiff_rt.bench import roofline as module
from cdiff_rt.bench.roofline import Operations, Roofline, count, fastest, limit_s, measure, operations_of, run_kernels
from cdiff_rt.errors import BadEnvironment
from cdiff_rt.export.checkpoint import model_shapes
from cdiff_rt.manifest import Bundle
from cdiff_rt.nets.collaborative import ModelConfig

ROOF = Roofline({"fp32": 100.0, "bf16": 400.0}, {"fp32": 50.0, "bf16": 100.0}, 1000.0)


@pytest.fixture(scope="module")
def manifest(tiny_bundle):
    return Bundle.open(tiny_bundle).manifest


@pytest.mark.parametrize(
    ("work", "precision", "seconds"),
    [
        (Operations(product=200, convolution=100), "fp32", 4.0),
        (Operations(product=200, convolution=100), "bf16", 1.5),
        (Operations(product=200, convolution=100, calls=3), "fp32", 12.0),
        (Operations(product=200, convolution=100, weights=2000), "fp32", 8.0),  # bound by memory: 4 bytes each
        (Operations(product=200, convolution=100, weights=2000), "bf16", 4.0),
    ],
)
def test_the_limit_is_the_longer_of_computing_and_reading(work, precision, seconds):
    assert limit_s([work], ROOF, precision) == pytest.approx(seconds)
    assert limit_s([work, work], ROOF, precision) == pytest.approx(2 * seconds)


def test_without_the_precision_there_is_no_limit():
    assert limit_s([Operations(1, 1)], ROOF, "fp16") is None


def test_a_step_of_the_embedded_model_is_what_budget_counts_less_what_runs_once(bundle):
    """The reference's step also makes keys, values and time rows: two percent here."""
    from cdiff_rt.bench.budget import _subject, count_eager

    (step,) = operations_of(bundle.manifest, "step", 50, 1)
    whole = count_eager(_subject("faces-128")).flops
    assert 0.95 * whole < step.product + step.convolution < whole


def test_an_image_is_its_steps_and_the_decoder(manifest):
    (step,) = operations_of(manifest, "step", 50, 2)
    steps, decoder = operations_of(manifest, "image", 7, 2)
    assert steps == Operations(step.product, step.convolution, step.weights, 7)
    assert decoder == count(manifest, "vae.decode", 2) and decoder.convolution > 0


def test_operations_grow_with_the_batch_and_weights_do_not(manifest):
    one, two = (count(manifest, "expert.mask", batch) for batch in (1, 2))
    assert two.convolution == 2 * one.convolution and two.product == 2 * one.product and two.weights == one.weights


def test_a_convolution_counts_two_for_each_multiply_add(manifest):
    """The tiny autoencoder's last: 32 channels to 3, 3 x 3, 16 x 16 pixels, among others."""
    assert count(manifest, "vae.decode", 1).convolution > 2 * 32 * 3 * 9 * 16 * 16


def test_weights_that_other_networks_read_are_not_counted(manifest):
    weights = {network: count(manifest, network, 1).weights for network in manifest.networks}
    assert all(weights.values())
    described = model_shapes(schema.from_json(ModelConfig, manifest.source, "source"))
    assert sum(weights.values()) == sum(map(math.prod, described.values()))


@pytest.mark.slow
def test_kernels_are_run_in_every_precision_that_works(monkeypatch):
    monkeypatch.setattr(module, "KERNEL_S", 0.01)
    monkeypatch.setattr(module, "COPIED", 2**22)
    monkeypatch.setattr(module, "PRODUCTS", ((64, 64, 64),))
    monkeypatch.setattr(module, "CONVOLUTIONS", ((8, 8),))
    for able, precisions in ((True, {"fp32", "bf16"}), (False, {"fp32"})):
        monkeypatch.setattr(module, "multiplies_bf16", lambda able=able: able)
        found = run_kernels()
        assert set(found.product) == set(found.convolution) == precisions
        assert all(1e6 < speed < 1e15 for speed in (*found.product.values(), *found.convolution.values()))
        assert 1e8 < found.bandwidth < 1e13


def test_the_fastest_run_counts():
    waits = iter([0.03, 0.02, 0.001] + [0.02] * 100)
    assert 0.001 <= fastest(lambda: time.sleep(next(waits)), seconds=0.1) < 0.015


def test_it_is_measured_in_a_process_of_its_own(monkeypatch):
    def answer(code, out):
        fields = {"returncode": code, "stdout": out, "stderr": "it broke"}
        monkeypatch.setattr(module.subprocess, "run", lambda *a, **k: type("Done", (), fields))

    answer(0, json.dumps({"product": {"fp32": 1.5}, "convolution": {"fp32": 2.5}, "bandwidth": 3.5}))
    assert measure() == Roofline({"fp32": 1.5}, {"fp32": 2.5}, 3.5)
    answer(1, "")
    with pytest.raises(BadEnvironment, match="roofline: it broke"):
        measure()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert measure() is None
