import numpy as np
import pytest
import torch

from cdiff_rt.inputs.images import nearest
from cdiff_rt.nets.collaborative import CollaborativeModel
from recipes.faces import examples as module
from recipes.faces.config import FACES_128, MASK_SIZE, VOCABULARY
from recipes.faces.data import token_ids
from recipes.faces.examples import Examples, conditions_of, encode_all
from recipes.faces.weights import save_weights
from tests.recipes.random_portraits import portraits, stage


def test_latents_have_unit_spread_and_are_encoded_once(work):
    latents = encode_all(stage(work)).latents
    assert latents.shape == (4, 16, 16, 16)
    assert latents.std() == pytest.approx(1, abs=1e-5)
    made = (work / "latents.safetensors").stat().st_mtime_ns
    assert torch.equal(encode_all(stage(work)).latents, latents)
    assert (work / "latents.safetensors").stat().st_mtime_ns == made


def test_latents_are_encoded_again_for_other_portraits_or_another_autoencoder(work):
    first = encode_all(stage(work)).latents
    others = encode_all(stage(work, first_seed=1)).latents
    save_weights(CollaborativeModel(FACES_128), work, "vae")
    another = encode_all(stage(work, first_seed=1)).latents
    assert not torch.equal(first, others)
    assert not torch.equal(others, another)


@pytest.fixture
def examples():
    masks = torch.arange(4 * 1024).reshape(4, 1024) % 19
    words = torch.from_numpy(token_ids(["This man has a long beard."] * 4))
    return Examples(torch.zeros(4, 3, 8, 8), {"mask": masks, "text": words})


def test_mask_condition_is_one_hot(examples, generator):
    one_hot = examples.condition("mask", torch.tensor([2, 0]), generator, rough=False)
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
    assert hidden[words].float().mean() == pytest.approx(module.UNKNOWN_WORDS, rel=0.3)


def test_masks_are_read_as_the_runtime_reads_them():
    given = portraits(0)
    read = conditions_of(given, slice(2, 4))["mask"]
    assert np.array_equal(read, [nearest(label, MASK_SIZE).ravel() for label in given.labels[2:4]])


def test_some_masks_are_redrawn_and_the_others_stay(generator):
    masks = torch.zeros(400, 32, 32, dtype=torch.uint8)
    masks[:, 8:24, 8:24] = 1
    seen = module.redraw(masks.flatten(1), generator)
    changed = (seen != masks.flatten(1)).any(1).float().mean()
    assert 0.8 * module.FREEHAND_MASKS < changed <= 1.2 * module.FREEHAND_MASKS


def test_conditions_for_an_evaluation_are_left_as_they_are(examples, generator):
    indices = torch.arange(4).repeat(50)
    assert torch.equal(
        examples.condition("text", indices, generator, rough=False), examples.conditions["text"][indices]
    )
