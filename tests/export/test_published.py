import math
import zlib
from pathlib import Path

import pytest
import torch

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export import published as module
from cdiff_rt.export import source
from cdiff_rt.export.checkpoint import model_shapes
from cdiff_rt.export.published import PUBLISHED, import_published
from cdiff_rt.export.source import our_name
from cdiff_rt.export.stored import Stored
from cdiff_rt.export.tensors import Tensors
from cdiff_rt.manifest import sha256
from cdiff_rt.nets.collaborative import CollaborativeModel
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.settings import Influence
from tests.published_keys import KEYS

SIZES = {size.name: size for size in PUBLISHED}
# Counted on the official classes; those of the text encoder's output layer, 30522 x (640 + 1), are never used.
PARAMETERS = {
    "experts.mask.unet": 403_623_939,
    "experts.text.unet": 403_623_939,
    "experts.mask.diffuser": 13_136_321,
    "experts.text.diffuser": 13_136_321,
    "experts.mask.encoder": 656_000,
    "experts.text.encoder": 186_154_682 - 30522 * 641,
}
VAE_PARAMETERS = {"512": (34_154_374, 49_485_571), "256": (22_351_238, 32_960_771)}


@pytest.fixture(scope="module", params=SIZES)
def size(request):
    return request.param


@pytest.fixture(scope="module")
def model(size):
    with torch.device("meta"):
        return CollaborativeModel(SIZES[size].model)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_tensor_of_the_released_model_has_its_place_and_shape(model, size):
    released = {our_name(key): tuple(shape) for key, shape in KEYS[size].items() if our_name(key)}
    assert released == {key: tuple(weight.shape) for key, weight in model.state_dict().items()}


def test_no_two_official_keys_share_a_name(size):
    names = [our_name(key) for key in KEYS[size] if our_name(key)]
    assert len(names) == len(set(names))


def test_only_schedule_buffers_and_token_logits_are_left_out(size):
    left_out = {key: shape for key, shape in KEYS[size].items() if our_name(key) is None}
    assert sum(shape == [1000] and "." not in key for key, shape in left_out.items()) == 12
    logits = "cond_stage_model.text_cond_stage_model.transformer.to_logits"
    assert {key for key in left_out if "." in key} == {f"{logits}.weight", f"{logits}.bias"}


@pytest.mark.parametrize(("part", "count"), PARAMETERS.items())
def test_parameter_counts_are_those_of_the_reference(model, part, count):
    assert parameters(model.get_submodule(part)) == count


def test_autoencoder_has_the_reference_s_parameters(model, size):
    assert (parameters(model.vae.encoder), parameters(model.vae.decoder)) == VAE_PARAMETERS[size]


def test_all_parameters_of_the_released_file_are_accounted_for(model, size):
    total = {"512": 1_103_983_201, "256": 1_075_655_265}[size]  # with 12 buffers of 1000 values
    unused = sum(math.prod(shape) for key, shape in KEYS[size].items() if our_name(key) is None)
    assert parameters(model) + unused == total


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("model.seg_mask_unet.diffusion_model.out.2.weight", "experts.mask.unet.out.2.weight"),
        ("model.text_confidence_predictor.diffusion_model.out.2.bias", "experts.text.diffuser.out.2.bias"),
        ("cond_stage_model.seg_mask_cond_stage_model.linear.weight", "experts.mask.encoder.linear.weight"),
        ("first_stage_model.quant_conv.bias", "vae.quant_conv.bias"),
        ("betas", None),
        ("cond_stage_model.text_cond_stage_model.transformer.to_logits.bias", None),
    ],
)
def test_our_name(official, ours):
    assert our_name(official) == ours


# --- importing, with files that have shapes but no weights ---------------------------------------------------------------


def uni_modal(size, kind):
    """The keys of a uni-modal or vae file, from those of the "codiff" file of the same size."""
    official = {"mask": "seg_mask", "text": "text"}.get(kind)
    starts = {
        f"model.{official}_unet.": "model.",
        f"cond_stage_model.{official}_cond_stage_model.": "cond_stage_model.",
        "first_stage_model.": "" if kind == "vae" else "first_stage_model.",
    }
    found = {key: shape for key, shape in KEYS[size].items() if kind != "vae" and "." not in key}
    for start, new in starts.items():
        found |= {new + key.removeprefix(start): s for key, s in KEYS[size].items() if key.startswith(start)}
    return found | ({"loss.logvar": [1]} if kind == "vae" else {})


def weight(file, key):
    """One number that tells its file and its key."""
    if key == "alphas_cumprod":
        return torch.from_numpy(Schedule().alpha_bars()).float()
    return torch.tensor(zlib.crc32(f"{file}/{key}".encode()))


SHAPES = {}  # as repr of a model -> names and shapes


def shapes_once(config):
    """What `model_shapes` says, which builds every module of the released model for it."""
    key = repr(config)
    if key not in SHAPES:
        SHAPES[key] = model_shapes(config)
    return dict(SHAPES[key])


class Drawn(Tensors):
    """Of a file that is not there."""

    sha256 = "0" * 64

    def __init__(self, found, name):
        super().__init__(None, found, {})
        self.name = name

    def __getitem__(self, key):
        return weight(self.name, key)


@pytest.fixture
def files(monkeypatch):
    """Name -> keys and shapes, of the files there are."""
    there = {}
    monkeypatch.setattr(module, "model_shapes", shapes_once)

    def opened(path, sha256=""):
        shapes = {key: tuple(shape) for key, shape in there[path.name].items()}
        return Drawn({key: Stored("float32", shape, 0, 0) for key, shape in shapes.items()}, path.name)

    monkeypatch.setattr(source, "open_tensors", opened)
    return there


def names(*files):
    return [Path(name) for name in files]


@pytest.mark.parametrize("size", SIZES)
def test_a_codiff_file_alone_is_enough(size, files):
    files["a.ckpt"] = KEYS[size]
    checkpoint = import_published(names("a.ckpt"))
    described = checkpoint.description
    assert described.name == f"collaborative-diffusion-{size}"
    assert (described.image_size, described.latent_shape) == (int(size), (3, 64, 64))
    assert described.latent_scale == {"512": 0.141, "256": 0.058}[size]
    assert described.influence == Influence("cosine", 2.0)
    assert described.schedule.prediction == "eps"
    assert [modality.name for modality in described.modalities] == ["mask", "text"]
    assert len(described.vocabularies["bert-base-uncased.txt"]) == 30522
    assert set(checkpoint.weights) == set(checkpoint.shapes) == set(model_shapes(SIZES[size].model))
    assert described.provenance == {"checkpoints": [{"file": "a.ckpt", "sha256": "0" * 64}]}


@pytest.mark.parametrize(("kind", "name"), [("mask", "mask"), ("text", "text")])
def test_a_branch_alone_is_a_model_without_dynamic_diffusers(kind, name, files):
    files["a.ckpt"] = uni_modal("512", kind)
    checkpoint = import_published(names("a.ckpt"))
    (expert,) = checkpoint.description.config.experts.items()
    assert (expert[0], expert[1].diffuser) == (name, None)
    assert set(checkpoint.weights) == set(model_shapes(checkpoint.description.config))
    assert bool(checkpoint.description.vocabularies) == (name == "text")


def test_a_branch_comes_under_the_trained_dynamic_diffusers(files):
    files |= {"whole.ckpt": KEYS["512"], "text.ckpt": uni_modal("512", "text")}
    weights = import_published(names("whole.ckpt", "text.ckpt")).weights
    mine = weight("text.ckpt", "model.diffusion_model.out.2.bias")
    assert weights["experts.text.unet.out.2.bias"] == mine
    assert weights["experts.text.encoder.transformer.norm.bias"] == weight(
        "text.ckpt", "cond_stage_model.transformer.norm.bias"
    )
    for name, key in (
        ("experts.text.diffuser.out.2.bias", "model.text_confidence_predictor.diffusion_model.out.2.bias"),
        ("experts.mask.unet.out.2.bias", "model.seg_mask_unet.diffusion_model.out.2.bias"),
        ("vae.quant_conv.bias", "first_stage_model.quant_conv.bias"),
    ):
        assert weights[name] == weight("whole.ckpt", key)


def test_the_autoencoder_is_the_first_files_or_a_vae_files(files):
    files |= {"mask.ckpt": uni_modal("256", "mask"), "text.ckpt": uni_modal("256", "text")}
    files |= {"vae.ckpt": uni_modal("256", "vae")}
    both = import_published(names("mask.ckpt", "text.ckpt"))
    assert both.weights["vae.quant_conv.bias"] == weight("mask.ckpt", "first_stage_model.quant_conv.bias")
    assert [expert.diffuser for expert in both.description.config.experts.values()] == [None, None]
    for order in (("mask.ckpt", "vae.ckpt"), ("vae.ckpt", "mask.ckpt")):
        found = import_published(names(*order)).weights["vae.quant_conv.bias"]
        assert found == weight("vae.ckpt", "quant_conv.bias")


OUT = "model.text_unet.diffusion_model.out.2.bias"
BROKEN = {
    "missing": (lambda k: {n: s for n, s in k.items() if n != OUT}, "experts.text.unet.out.2.bias is missing"),
    "surplus": (lambda k: k | {"a.stranger": [1]}, "a.stranger is surplus"),
    "shape": (lambda k: k | {OUT: [4]}, rf"{OUT} is \[4\], expected \[3\]"),
    "many": (lambda k: {n: s for n, s in k.items() if "text_unet" not in n}, "is missing; and 683 more"),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_fits_no_size_is_refused_with_the_nearest(fault, size, files):
    spoil, words = BROKEN[fault]
    files["a.ckpt"] = spoil(KEYS[size])
    with pytest.raises(BadArtefact, match=f"a.ckpt: a codiff file that is nearest to the {size} model, but .*{words}"):
        import_published(names("a.ckpt"))


def test_files_of_two_sizes_are_refused(files):
    files |= {"whole.ckpt": KEYS["512"], "text.ckpt": uni_modal("256", "text")}
    with pytest.raises(BadArtefact, match="text.ckpt: it is of the 256 model, whole.ckpt of the 512 model"):
        import_published(names("whole.ckpt", "text.ckpt"))


def test_an_autoencoder_alone_is_refused(files):
    files["vae.ckpt"] = uni_modal("512", "vae")
    with pytest.raises(BadArtefact, match="an autoencoder alone; add one with a branch"):
        import_published(names("vae.ckpt"))


def test_weights_of_something_else_are_refused(files):
    files["bert.ckpt"] = {"embeddings.word_embeddings.weight": [30522, 768]}
    with pytest.raises(BadArtefact, match="none of its 1 keys is of Collaborative Diffusion, e.g. embeddings"):
        import_published(names("bert.ckpt"))


def test_another_noise_schedule_is_refused(files, monkeypatch):
    files["a.ckpt"] = KEYS["512"]
    monkeypatch.setattr(source, "Schedule", lambda: Schedule(beta_end=0.012))
    with pytest.raises(BadArtefact, match="another noise schedule"):
        import_published(names("a.ckpt"))


def test_the_vocabulary_is_berts():
    path = Path(module.__file__).with_name(module.VOCABULARY)
    assert sha256(path) == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
