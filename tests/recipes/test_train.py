import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cdiff_rt.images import nearest
from cdiff_rt.nets.autoencoder import AutoencoderConfig
from cdiff_rt.nets.collaborative import CollaborativeModel, ModelConfig
from recipes.faces import train
from recipes.faces.config import FACES_128, MASK_SIZE, SCHEDULE, VOCABULARY
from recipes.faces.data import HELD_OUT, Portraits, token_ids
from recipes.faces.painter import portrait
from recipes.faces.training import Plan
from tests.tiny import CONFIG, tiny_model

VAE = AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=16, patch=4, linear=True)


@pytest.fixture(scope="module")
def images():
    pixels = np.stack([portrait(seed, 64).image for seed in range(6)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def psnr(image, reference):
    return -10 * torch.log10(F.mse_loss(image, reference) / 4).item()


def test_the_autoencoder_starts_at_the_principal_components_of_blocks(images):
    torch.manual_seed(0)
    model = CollaborativeModel(ModelConfig({}, VAE))
    train.start_at_pca(model, images)
    with torch.no_grad():
        mean, logvar = model.vae.encode(images)
        again = model.vae.decode(mean)
    colour = images.mean((0, 2, 3), keepdim=True)
    blocks = (images - colour).unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 192)
    centred = blocks - blocks.mean(0)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:16]
    projected = (blocks @ basis.T @ basis).reshape(6, 8, 8, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(6, 3, 64, 64)
    assert (again - (projected + colour)).abs().max() < 1e-3
    assert psnr(again, images) > psnr(colour.expand_as(images), images) + 8
    assert torch.allclose(logvar, torch.full_like(logvar, -6))


def test_x_t_and_v_say_what_x_0_is(generator):
    z = torch.randn(64, 3, 4, 4, generator=generator)
    x, t, v = train.diffuse(z, generator)
    a = torch.from_numpy(SCHEDULE.alpha_bars())[t].float()[:, None, None, None]
    assert torch.allclose(a.sqrt() * x - (1 - a).sqrt() * v, z, atol=1e-5)
    noise = (1 - a).sqrt() * x + a.sqrt() * v
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(1, abs=0.1)
    assert len(t.unique()) > 32
    assert 0 <= t.min() <= t.max() < SCHEDULE.train_steps


def test_mask_tokens_start_as_orthogonal_waves():
    linear = nn.Linear(MASK_SIZE**2, 64)
    train.start_at_cosines(linear)
    gram = linear.weight @ linear.weight.T
    assert torch.allclose(gram, 0.35**2 * torch.eye(64), atol=1e-5)
    assert linear.weight[0].std() < 1e-6  # the mean
    assert linear.bias.abs().max() == 0


def test_a_network_whose_last_layer_is_zeroed_predicts_zero():
    expert = tiny_model().experts["mask"]
    train.zero_weights(expert.unet.out[2])
    x, rows = torch.randn(1, 3, 8, 8), expert.time(torch.tensor([5]))
    out, logit = expert(x, rows, expert.condition(torch.rand(1, 5, 16)))
    assert out.abs().max() == 0
    assert logit.abs().max() > 0


def portraits(first_seed):
    """Four to train on and the held-out rest."""
    count = HELD_OUT + 4
    rng = np.random.default_rng(first_seed)
    images = rng.integers(0, 256, (count, 128, 128, 3), np.uint8)
    labels = rng.integers(0, 19, (count, 128, 128), np.uint8)
    return Portraits(images, labels, ["This man has a long beard."] * count, [{}] * count, first_seed)


def stage(folder, first_seed=0):
    return train.Stage(Plan("mask", folder, 1, False, 0, 4), portraits(first_seed), CollaborativeModel(FACES_128))


@pytest.fixture
def work(tmp_path):
    torch.manual_seed(0)
    train.save_weights(CollaborativeModel(FACES_128), tmp_path, "vae")
    return tmp_path


def test_latents_have_unit_spread_and_are_encoded_once(work):
    latents = train.encode_all(stage(work)).latents
    assert latents.shape == (4, 16, 16, 16)
    assert latents.std() == pytest.approx(1, abs=1e-5)
    made = (work / "latents.safetensors").stat().st_mtime_ns
    assert torch.equal(train.encode_all(stage(work)).latents, latents)
    assert (work / "latents.safetensors").stat().st_mtime_ns == made


def test_latents_are_encoded_again_for_other_portraits_or_another_autoencoder(work):
    first = train.encode_all(stage(work)).latents
    others = train.encode_all(stage(work, first_seed=1)).latents
    train.save_weights(CollaborativeModel(FACES_128), work, "vae")
    another = train.encode_all(stage(work, first_seed=1)).latents
    assert not torch.equal(first, others)
    assert not torch.equal(others, another)


@pytest.mark.parametrize("again", [False, True])
def test_a_stage_begins_fresh_or_with_the_weights_that_are_there(again, work):
    given = train.Stage(stage(work).plan, portraits(0), CollaborativeModel(FACES_128), again)
    begun = []
    train.begin(given, ["vae"], lambda: begun.append("fresh"))
    saved = train.load_file(work / "vae.safetensors")["encoder.conv_in.weight"]
    assert begun == ([] if again else ["fresh"])
    assert torch.equal(given.model.vae.encoder.conv_in.weight, saved) == again


@pytest.fixture
def examples():
    masks = torch.arange(4 * 1024).reshape(4, 1024) % 19
    words = torch.from_numpy(token_ids(["This man has a long beard."] * 4))
    return train.Examples(torch.zeros(4, 3, 8, 8), {"mask": masks, "text": words})


def test_mask_condition_is_one_hot(examples, generator):
    one_hot = examples.condition("mask", torch.tensor([2, 0]), generator)
    assert one_hot.shape == (2, 19, 1024)
    assert torch.equal(one_hot.argmax(1), examples.conditions["mask"][[2, 0]])
    assert one_hot.sum() == 2 * 1024


def test_some_words_are_hidden_but_never_the_frame(examples, generator):
    indices = torch.zeros(3000, dtype=torch.long)
    seen, given = examples.condition("text", indices, generator), examples.conditions["text"][indices]
    words = given >= 4
    assert torch.equal(seen[~words], given[~words])
    hidden = seen != given
    assert set(seen[hidden].tolist()) == {VOCABULARY.index("[UNK]")}
    assert hidden[words].float().mean() == pytest.approx(train.UNKNOWN_WORDS, rel=0.3)


def test_masks_are_read_as_the_runtime_reads_them():
    given = portraits(0)
    read = train.conditions_of(given, slice(2, 4))["mask"]
    assert np.array_equal(read, [nearest(label, MASK_SIZE).ravel() for label in given.labels[2:4]])


def tiny_examples():
    torch.manual_seed(0)
    conditions = {"mask": torch.randint(5, (8, 16)), "text": torch.randint(4, 12, (8, 6))}
    return train.Examples(torch.randn(8, 3, 8, 8), conditions)


def test_diffusers_learn_and_nothing_else_does(monkeypatch, generator):
    monkeypatch.setattr(train, "MASK_CLASSES", 5)
    model = CollaborativeModel(CONFIG).requires_grad_(False)
    for expert in model.experts.values():
        expert.diffuser.requires_grad_(True)
    train.diffusers_loss(model.experts, tiny_examples())(torch.arange(8), generator).backward()
    touched = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    assert {name.split(".")[2] for name in touched} == {"diffuser"}
    assert {name.split(".")[1] for name in touched} == {"mask", "text"}


def test_one_expert_has_all_the_influence(monkeypatch):
    monkeypatch.setattr(train, "MASK_CLASSES", 5)
    expert, examples = tiny_model().experts["mask"], tiny_examples()
    alone = train.branch_loss(expert, "mask", examples)
    fused = train.diffusers_loss(nn.ModuleDict({"mask": expert}), examples)
    one, two = (loss(torch.arange(8), torch.Generator().manual_seed(3)) for loss in (alone, fused))
    assert one.item() == pytest.approx(two.item(), rel=1e-5)
