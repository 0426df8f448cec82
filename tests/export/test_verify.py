import numpy as np
import pytest

from cdiff_rt.engines import modules
from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.verify import TOLERANCE, compare_networks, graph_errors, relative_error
from cdiff_rt.manifest import Bundle


def test_every_network_of_an_intact_bundle_agrees(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    errors = compare_networks(bundle)
    assert set(errors) == set(bundle.manifest.networks)
    assert all(0 <= error <= TOLERANCE for error in errors.values())


@pytest.mark.parametrize(
    ("part", "network"),
    [
        ("vae.decoder.conv_in", "vae.decode"),
        ("experts.text.diffuser.out.2", "expert.text"),
        ("experts.mask.encoder.linear", "condition.mask"),
        ("experts.text.unet.time_embed.0", "time.text"),
    ],
)
def test_one_weight_that_differs_is_found(tiny_bundle, part, network, monkeypatch):
    bundle, real = Bundle.open(tiny_bundle), modules.fp32
    place = modules.places(bundle.content["weights.safetensors"])[f"{part}.weight"]

    def altered(content, read):
        weight = real(content, read)
        weight.flat[0] += 0.1 * (read == place)
        return weight

    monkeypatch.setattr(modules, "fp32", altered)
    with pytest.raises(BadArtefact, match=rf"network {network}.onnx: onnxruntime differs"):
        compare_networks(bundle)
    assert max(graph_errors(bundle, network).values()) > TOLERANCE


@pytest.mark.parametrize(("ours", "expected"), [([0.0, 2.0], 0.0), ([0.5, 2.0], 0.125**0.5), ([np.nan, 2.0], np.nan)])
def test_relative_error_is_the_mean_difference_in_units_of_the_spread(ours, expected):
    assert relative_error(np.array(ours), np.array([0.0, 2.0])) == pytest.approx(expected, nan_ok=True)
