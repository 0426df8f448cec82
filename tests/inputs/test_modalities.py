import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.errors import BadArtefact, BadInput
from cdiff_rt.inputs.modalities import KINDS, read_label_map, read_words
from cdiff_rt.inputs.palette import PALETTE
from cdiff_rt.manifest import Modality

LABELS = Modality("mask", "labels", decays=True, anchor=False, size=32, classes=19)
WORDS = Modality("text", "words", decays=False, anchor=True, tokens=8, vocabulary="vocab.txt")


@pytest.fixture(autouse=True)
def notices(caplog):
    caplog.set_level(logging.INFO, "cdiff_rt")
    return caplog


def test_labels_become_one_hot_per_class_in_row_order(bundle):
    labels = np.arange(1024).reshape(32, 32) % 19
    one_hot = read_label_map(labels, LABELS, bundle)
    assert one_hot.shape == (1, 19, 1024) and one_hot.dtype == np.float32
    np.testing.assert_array_equal(one_hot[0], np.arange(19)[:, None] == labels.reshape(-1))


def test_a_large_mask_is_read_at_the_pixels_of_the_reference(bundle):
    labels = np.zeros((512, 512), np.uint8)
    labels[8::16, 8::16] = 7  # what Pillow's NEAREST takes of 512 for 32
    assert read_label_map(labels, LABELS, bundle)[0, 7].all()


def test_file_array_and_string_path_give_the_same(mask, mask_file, bundle):
    expected = read_label_map(mask, LABELS, bundle)
    for value in (mask_file, str(mask_file)):
        np.testing.assert_array_equal(read_label_map(value, LABELS, bundle), expected)


def test_a_square_mask_is_told_without_a_warning(mask_file, bundle, notices):
    read_label_map(mask_file, LABELS, bundle)
    (record,) = notices.records
    assert record.levelname == "INFO"
    assert record.getMessage() == "mask face.png: 128x128, grey PNG, pixel values are labels, 9 classes"


def test_a_square_array_is_not_told(mask, bundle, notices):
    read_label_map(mask, LABELS, bundle)
    assert notices.messages == []


def test_of_a_wide_mask_the_centre_is_used_and_that_is_told(mask, tmp_path, bundle, notices):
    path = tmp_path / "wide.png"
    Image.fromarray(np.pad(mask, ((0, 0), (20, 30)))).save(path)
    found = read_label_map(path, LABELS, bundle)
    centre = np.pad(mask, ((0, 0), (20, 30)))[:, 25:153]
    np.testing.assert_array_equal(found, read_label_map(centre, LABELS, bundle))
    assert "mask wide.png: 178x128 is not square, its centre is used" in notices.messages


def test_a_mask_of_one_label_is_warned_about(bundle, notices):
    read_label_map(np.full((64, 64), 13), LABELS, bundle)
    assert ("cdiff_rt", logging.WARNING, "mask array 64x64: every pixel has label 13") in notices.record_tuples


def test_words_become_ids(bundle, notices):
    ids = read_words("This man has a beard.", WORDS, bundle)
    assert ids.shape == (1, 8) and ids.dtype == np.int64
    pieces = bundle.path("vocab.txt").read_text().split("\n")
    assert [pieces[i] for i in ids[0]] == ["[CLS]", "this", "man", "has", "a", "beard", ".", "[SEP]"]
    assert notices.messages == []


def test_a_text_that_no_model_can_read_is_refused(bundle):
    with pytest.raises(BadInput, match="text: control character U[+]0000 at position 1"):
        read_words("a\x00b", WORDS, bundle)


@pytest.mark.parametrize("value", [Path("sentence.txt"), np.zeros((4, 4), int)])
def test_only_a_string_is_a_text(value, bundle):
    with pytest.raises(BadInput, match="give a sentence"):
        read_words(value, WORDS, bundle)


@pytest.mark.parametrize("text", ["Ein Mann", "男", "😀", "רע", "%s {0} ../../x", "-x", "a\nb\tc", "a" * 4096])
def test_texts_of_any_script_are_read(text, bundle):
    assert read_words(text, WORDS, bundle).shape == (1, 8)


def test_unknown_words_are_named_with_what_the_bundle_says_for_them(bundle, notices):
    read_words("Purple man with GREY hair", bundle.manifest.modalities[1], bundle)
    (message,) = notices.messages
    assert "text: the model never learned 'purple', 'with' (say 'has'), 'grey' (say 'gray'); such words" in message
    assert "; its words are a, and, beard, black, blond," in message and notices.records[0].levelno == logging.WARNING


def test_a_bundle_without_a_list_of_synonyms_suggests_what_is_spelt_alike(bundle, notices):
    read_words("A blonde lady", WORDS, bundle)
    assert "never learned 'blonde' (say 'blond'), 'lady'; such words" in notices.text


def test_a_text_that_is_cut_is_warned_about(bundle, notices):
    read_words("a man a man a man a man", WORDS, bundle)
    assert notices.messages == ["text: too long, 6 word pieces are read and the last 2 left out"]


def test_the_vocabulary_is_the_bundles(bundle):
    other = replace(bundle, content={"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nghost\n"})
    ids = read_words("ghost", WORDS, other)
    assert ids.tolist() == [[2, 4, 3, 0, 0, 0, 0, 0]]


NUMBERS = Modality("sketch", "numbers", decays=True, anchor=False, tokens=2, width=3)


@pytest.mark.parametrize(
    "value", ["1,2,3,4,5,6", " 1, 2,3.0 ,4e0,5,6", np.arange(1, 7), np.arange(1.0, 7).reshape(2, 3)], ids=str
)
def test_numbers_become_the_rows_that_an_encoder_takes(value, bundle):
    read = KINDS["numbers"].read(value, NUMBERS, bundle)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, [[[1, 2, 3], [4, 5, 6]]])


def test_numbers_are_read_from_a_file(bundle, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6))
    read = KINDS["numbers"].read(str(tmp_path / "a.npy"), NUMBERS, bundle)
    np.testing.assert_array_equal(read, [[[0, 1, 2], [3, 4, 5]]])
    assert KINDS["numbers"].show(str(tmp_path / "a.npy")) == "a.npy"
    assert KINDS["numbers"].show("1,2") == "1,2"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1,2,3", r"shape \(3,\); it takes 2 x 3 numbers"),
        ("1,2,3,4,5,six", "'1,2,3,4,5,six'; give numbers with commas"),
        ("", "give numbers with commas"),
        ("1,2,3,4,5,nan", "some numbers are not finite"),
        ("1,2,3,4,5,1e300", "too large for float32"),
        (np.full((2, 3), np.inf), "some numbers are not finite"),
        (np.array([["a"] * 3] * 2), "it takes 2 x 3 numbers"),
        ("/nowhere/a.npy", "no such file"),
    ],
    ids=str,
)
def test_what_is_not_as_many_numbers_is_refused_in_words(value, words, bundle):
    with pytest.raises(BadInput, match=f"sketch.*{words}"):
        KINDS["numbers"].read(value, NUMBERS, bundle)


def test_a_mask_is_drawn_in_the_colours_of_the_palette():
    labels = np.array([[0, 1, 13], [17, 18, 4]])
    modality = Modality("mask", "labels", decays=True, anchor=False, size=2, classes=19)
    draw = KINDS["labels"].draw
    assert draw is not None and KINDS["words"].draw is None
    np.testing.assert_array_equal(draw(labels, modality), np.array(PALETTE, np.uint8)[labels[:, :2]])


def test_a_vocabulary_has_no_more_pieces_than_the_network_has_embeddings(bundle):
    """A backend that is asked for an embedding beyond the last reads whatever lies there."""
    whole = bundle.content["vocab.txt"]
    longer = replace(bundle, content={**bundle.content, "vocab.txt": whole + b"surplus\n"})
    count = len(whole.splitlines())
    with pytest.raises(BadArtefact, match=f"vocab.txt: {count + 1} pieces, but the network knows {count}; take that"):
        read_words("a man", bundle.manifest.modalities[1], longer)
    shorter = replace(bundle, content={**bundle.content, "vocab.txt": whole[: whole.rindex(b"\n", 0, -1) + 1]})
    assert read_words("a man", bundle.manifest.modalities[1], shorter).max() < count


def test_where_nothing_is_known_of_the_network_its_vocabulary_is_taken(bundle):
    silent = replace(bundle, manifest=replace(bundle.manifest, source={"experts": []}))
    assert read_words("a man", bundle.manifest.modalities[1], silent).shape == (1, 32)
