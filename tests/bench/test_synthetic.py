import sys

import numpy as np
import pytest

from cdiff_rt.bench import synthetic as module
from cdiff_rt.bench.synthetic import official_key, synthetic, weight, write
from cdiff_rt.engines.backends import load_engine
from cdiff_rt.errors import BadRequest
from cdiff_rt.export.checkpoint import model_shapes
from cdiff_rt.export.published import PUBLISHED, published
from cdiff_rt.export.source import our_name
from cdiff_rt.manifest import Bundle

SMALL = published("small", (1, 2), 0.5, latent=8, context=16, channels=32, text_layers=1, vae_channels=32)


def test_every_weight_is_that_of_its_official_key():
    checkpoint = synthetic(SMALL)
    assert dict(checkpoint.shapes) == model_shapes(SMALL.model) and len(checkpoint.weights) == len(checkpoint.shapes)
    assert list(checkpoint.weights) == list(checkpoint.shapes)
    for name in checkpoint.shapes:
        assert our_name(official_key(name)) == name
    for name in ("experts.mask.unet.out.2.weight", "experts.text.diffuser.out.2.weight", "vae.decoder.conv_in.bias"):
        expected = weight(official_key(name), checkpoint.shapes[name])
        np.testing.assert_array_equal(checkpoint.weights[name].numpy(), expected)


def test_it_does_not_pass_for_the_published_model():
    described = synthetic(PUBLISHED[0]).description
    assert described.name == "synthetic-512" and described.image_size == 512 and "none" in described.licence
    assert "checkpoints" not in described.provenance


def test_a_bundle_is_written_once(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "cdiff_rt.export.bundle.write_bundle", lambda checkpoint, out, **how: written.append((checkpoint, out))
    )
    write("256", tmp_path / "new")
    ((checkpoint, out),) = written
    assert checkpoint.description.image_size == 256 and out == tmp_path / "new"
    with pytest.raises(BadRequest, match="new exists"):
        write("256", tmp_path / "new")
    with pytest.raises(BadRequest, match="'1024'; choose one of 512, 256"):
        write("1024", tmp_path / "other")
    assert not (tmp_path / "other").exists() and sys.modules[module.__name__]


@pytest.mark.slow
def test_one_for_pytorch_alone_has_no_graphs_and_makes_images_there(tmp_path, monkeypatch):
    monkeypatch.setattr("cdiff_rt.export.published.PUBLISHED", (SMALL,))
    monkeypatch.setitem(sys.modules, "onnx", None)  # which the machine lacks
    write("small", tmp_path / "new", for_torch=True)
    bundle = Bundle.open(tmp_path / "new")
    assert not (tmp_path / "new" / "expert.mask.onnx").read_bytes()
    x = np.ones((1, *bundle.manifest.latent_shape), np.float32)
    image = load_engine("torch", bundle, "vae.decode")(z=x)["image"]
    assert np.isfinite(image).all() and image.std() > 0
