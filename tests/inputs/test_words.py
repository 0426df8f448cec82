import pytest

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.wordpiece import WordPiece
from cdiff_rt.inputs.words import LONGEST_TEXT, check_text, tell_unknown

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "."]
LIST = WordPiece([*MARKS, "man", "has", "blond", "white", "beard"])
PARTS = WordPiece([*MARKS, "man", "has", "##s", "!"])
SYNONYMS = {"with": "has", "guy": "man", "blondy": "white", "pale": "blond|white"}
SYNONYMS |= {"old": "blond|white|beard"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        (" \t\n", "it is empty"),
        ("a\x00b", "control character U+0000 at position 1"),
        ("\x1b[31m", "control character U+001B at position 0"),
        ("man\x7f", "control character U+007F at position 3"),
        ("man\x9b31m", "control character U+009B at position 3"),
        ("a man \ud800", "half a character, U+D800, at position 6"),
        (b"man\xff".decode(errors="surrogateescape"), "half a character, U+DCFF, at position 3"),
        ("x" * 10_000, "10000 characters"),
        ("x" * (LONGEST_TEXT + 1), "4097 characters"),
    ],
    ids=ascii,
)
def test_a_text_that_no_model_can_read_is_refused_in_words(text, words):
    with pytest.raises(BadInput) as raised:
        check_text(text, "text")
    assert words in str(raised.value) and str(raised.value).isprintable()


@pytest.mark.parametrize(
    "text", ["a\nb\tc", "\U0001f600", "\u200b", "\u05e8\u05e2", "\u202eman", "x" * LONGEST_TEXT], ids=ascii
)
def test_others_are_not(text):
    assert check_text(text, "text") == text


def warnings_of(text, vocabulary, caplog, synonyms=SYNONYMS):
    tell_unknown(text, "text", vocabulary.encode(text, 32), vocabulary.words, synonyms)
    assert all(record.levelname == "WARNING" and record.getMessage().isprintable() for record in caplog.records)
    return caplog.messages


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\U0001f600", "'\U0001f600'"),  # emoji
        ("\u200b\u2060", r"'\u200b\u2060'"),  # nothing that is seen
        ("\u202e\u0301", "'\\u202e\u0301'"),  # marks that belong to letters that are not there
        ("\u7537", "'\u7537'"),
        ("\u05e8\u05e2 \u05e8\u05e2", "'\u05e8\u05e2'"),
        ("...", "'...'"),
        ("?! \u2014", "'?! \u2014'"),
        ("with", "'with' (say 'has')"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("vocabulary", [LIST, PARTS], ids=["list", "parts"])
def test_of_a_text_of_which_nothing_is_known_that_is_said(text, shown, vocabulary, caplog):
    (line,) = warnings_of(text, vocabulary, caplog)
    assert line.startswith(f"text: the model knows no word of it ({shown}), so the image does not follow it")


@pytest.mark.parametrize("text", ["Man has BLOND beard.", "man, has; beard!", "man has\u200b beard"], ids=ascii)
def test_of_known_words_nothing_is_said_whatever_marks_stand_between_them(text, caplog):
    assert warnings_of(text, LIST, caplog) == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("blonde", "'blonde' (say 'blond')"),  # spelt alike
        ("beards", "'beards' (say 'beard')"),
        ("Guy", "'guy' (say 'man')"),  # a synonym
        ("blondy", "'blondy' (say 'white')"),  # the bundle knows better
        ("with", "'with' (say 'has')"),  # a synonym, and not 'white'
        ("pale", "'pale' (say 'blond' or 'white')"),  # one of several
        ("old", "'old' (say 'blond', 'white' or 'beard')"),
        ("whit", "'whit'"),  # too short to guess
        ("purple", "'purple'"),
        ("\U0001f600", "'\U0001f600'"),
    ],
)
def test_an_unknown_word_is_named_with_what_to_say(word, said, caplog):
    (line,) = warnings_of(f"man {word}", LIST, caplog)
    assert f"never learned {said}; such words only disturb it" in line


def test_the_words_are_listed_where_they_are_all_there_is(caplog):
    assert warnings_of("man x", LIST, caplog)[0].endswith("; its words are beard, blond, has, man, white")


def test_and_not_of_a_vocabulary_of_parts(caplog):
    assert warnings_of("mans x", PARTS, caplog, {})[0].endswith("never learned 'x'; such words only disturb it")


def test_no_more_than_a_few_are_named(caplog):
    (line,) = warnings_of("man " + " ".join(f"word{i}" for i in range(20)), LIST, caplog)
    assert "'word7'" in line and "'word8'" not in line


def test_a_synonym_of_somebody_elses_bundle_is_no_way_into_the_terminal(caplog):
    warnings_of("man x", LIST, caplog, {"x": "\x1b[31m"})


def test_the_model_card_lists_the_words_and_synonyms_are_of_them(bundle, root):
    card = " ".join((root / "cdiff_rt" / "models" / "faces-128.md").read_text().split())
    known = WordPiece.from_file(bundle.path("vocab.txt")).words
    assert f"sentences of these words: {', '.join(known)}. " in card
    synonyms = bundle.manifest.modalities[1].synonyms
    assert {word for said in synonyms.values() for word in said.replace("|", " ").split()} <= set(known) and not set(
        synonyms
    ) & set(known)
