import json

import numpy as np
import pytest

from cdiff_rt.errors import BadInput, BadRequest, CdiffError
from cdiff_rt.inputs.label_maps import LabelMap, read_labels
from cdiff_rt.inputs.label_orders import labels_by_number, order_of
from cdiff_rt.inputs.palette import CLASSES, ORDERS
from tests.label_pictures import OTHER, TABLE, example, in_order, palette_png, saved

LABELS = example(6)
THEIRS = in_order(LABELS, "bisenet")


def test_the_orders_have_the_same_classes():
    for order in ORDERS.values():
        assert sorted(order) == sorted(CLASSES) and order[:2] == CLASSES[:2]
    assert ORDERS["bisenet"].index("hair") == 17 and CLASSES[17] == "neck"


@pytest.mark.parametrize(
    "picture",
    [THEIRS, saved(THEIRS), palette_png(THEIRS, OTHER), saved(TABLE[THEIRS])],
    ids=["array", "grey", "palette", "colours"],
)
def test_a_mask_in_the_order_of_another_parser_gives_the_same_labels(picture):
    labels, how = read_labels(picture, 19, "bisenet")
    np.testing.assert_array_equal(labels, LABELS)
    assert labels.dtype == np.uint8 and how.endswith("labels bisenet" if isinstance(picture, bytes) else "")


@pytest.mark.parametrize(
    "text",
    [
        "# mine\n0 = background\n 17: Hair\n\n3\tneck # here too\n",
        "\ufeff0=background\r\n17=13\r\n3=17\r\n",
        json.dumps({"0": "background", "17": 13, "3": "neck"}),
        json.dumps([["0", "background"], ["17", "hair"], ["3", 17]]),
    ],
    ids=["lines", "Windows", "object", "pairs"],
)
def test_a_file_says_what_each_number_means(text, tmp_path):
    (tmp_path / "order.txt").write_text(text, encoding="utf-8", newline="")
    for order in (order_of("labels", tmp_path / "order.txt"), order_of("labels", "order.txt", tmp_path)):
        assert labels_by_number(order, 19) == {0: 0, 17: 13, 3: 17}
        assert order_of("labels", order) == order  # so that what a picture tells can be asked for again


@pytest.mark.parametrize("text", ["background\nhair\n", '["background", "hair"]', "0\n13\n"])
def test_classes_alone_are_those_of_the_numbers_from_0_on(text, tmp_path):
    (tmp_path / "order.txt").write_text(text)
    assert labels_by_number(order_of("labels", tmp_path / "order.txt"), 19) == {0: 0, 1: 13}


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"", BadInput, "0 bytes"),
        (b"\n# nothing\n", BadInput, "it has no line"),
        (b"\xff\xfe", BadInput, "cannot be read as text"),
        (b"0 = background\n0 = hair\n", BadInput, "is given twice"),
        (b"70000 = hair", BadInput, "is too large"),
        (b"-1 = hair", BadInput, "number = class"),
        (b"hair = 1", BadInput, "number = class"),
        (b"0 = 1 = 2", BadInput, "number = class"),
        (b"{}", BadInput, "it has no line"),
        (b"7", BadInput, "number = class"),
        (b"[[[[", BadInput, "number = class"),
        (b'{"0": {"a": 1}}', BadInput, "number = class"),
        (b"0 = \x1b[31m", BadInput, "number = class"),
        (b"0 = beard", BadRequest, "'beard'; name labels of 0-18, background"),
        (b"0 = 19", BadRequest, "'19'; name labels of 0-18"),
    ],
    ids=repr,
)
def test_what_says_no_order_is_refused_in_words(content, kind, words, tmp_path):
    (tmp_path / "order.txt").write_bytes(content)
    with pytest.raises(kind) as caught:
        labels_by_number(order_of("labels", tmp_path / "order.txt"), 19)
    assert words in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["celeba", "nowhere.txt", 3, None])
def test_what_is_neither_an_order_nor_a_file_is_refused(value):
    with pytest.raises(CdiffError, match="is no order and no file; give celebamask or bisenet"):
        order_of("labels", value)


def test_a_number_that_the_order_lacks_is_refused():
    with pytest.raises(BadInput, match="label 4 at x 2, y 0 .*--labels names 0, 3"):
        read_labels(np.array([[0, 3, 4]]), 19, "0=background,3=hair")
    with pytest.raises(BadRequest, match="'l_brow'; name labels of 0-4"):
        labels_by_number("bisenet", 5)


@pytest.mark.parametrize("form", [np.uint8, bool])
def test_the_mask_of_one_part_is_read_with_an_order(form):
    part = np.where(LABELS == 13, 255, 0).astype(np.uint8)
    picture = saved(part if form is np.uint8 else part > 0)
    np.testing.assert_array_equal(read_labels(picture, 19, "0=background,255=hair")[0], part // 255 * 13)


def test_a_label_map_is_read_once(mask_file):
    of = LabelMap(mask_file, 19)
    first = of.labels
    mask_file.unlink()
    assert of.labels is first and of.how.startswith("grey PNG")
