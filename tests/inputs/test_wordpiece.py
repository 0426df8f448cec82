import pytest

from cdiff_rt.errors import BadArtefact
from cdiff_rt.inputs.wordpiece import WordPiece, split_words

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "un", "##aff", "##able", "una", "##ffable", "man", ",", "中", "cafe"]
PAD, UNK, CLS, SEP, A, UN, AFF, ABLE, UNA, FFABLE, MAN, COMMA, CHINA, CAFE = range(len(PIECES))


@pytest.fixture
def words() -> WordPiece:
    return WordPiece(PIECES)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a man", [CLS, A, MAN, SEP, PAD, PAD]),
        ("", [CLS, SEP, PAD, PAD, PAD, PAD]),
        ("A MAN", [CLS, A, MAN, SEP, PAD, PAD]),
        ("a,a", [CLS, A, COMMA, A, SEP, PAD]),
        ("a man a man", [CLS, A, MAN, A, MAN, SEP]),
        ("Café", [CLS, CAFE, SEP, PAD, PAD, PAD]),
        ("Cafe\u0301", [CLS, CAFE, SEP, PAD, PAD, PAD]),
        ("a中a", [CLS, A, CHINA, A, SEP, PAD]),
        ("unaffable", [CLS, UNA, FFABLE, SEP, PAD, PAD]),  # una ##ffable, not the shorter un ##aff ##able
        ("unaff", [CLS, UNK, SEP, PAD, PAD, PAD]),  # greedy takes una, then nothing fits: no way back to un ##aff
        ("manable man", [CLS, MAN, ABLE, MAN, SEP, PAD]),
        ("able", [CLS, UNK, SEP, PAD, PAD, PAD]),  # ##able continues words, it begins none
        ("ax", [CLS, UNK, SEP, PAD, PAD, PAD]),
    ],
)
def test_ids_are_framed_and_padded(words, text, ids):
    assert words.encode(text, 6).ids == ids


def test_long_texts_are_cut_and_the_dropped_pieces_counted(words):
    tokens = words.encode("a man " * 10, 6)
    assert (tokens.ids, tokens.dropped) == ([CLS, A, MAN, A, MAN, SEP], 16)


def test_a_text_that_just_fits_drops_nothing(words):
    assert words.encode("a man a man", 6).dropped == 0


def test_each_unknown_word_is_named_once_in_order(words):
    tokens = words.encode("purple man, Green purple man", 16)
    assert tokens.unknown == ["purple", "green"]
    assert tokens.ids.count(UNK) == 3


@pytest.mark.parametrize(("length", "known"), [(100, True), (101, False)])
def test_words_over_100_characters_are_unknown(length, known):
    words = WordPiece([*PIECES, "##a"])
    assert (words.encode("a" * length, 128).unknown == []) is known


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 5$!", ["it", "'", "s", "5", "$", "!"]),
        ("tabs\tand\nlines\u3000too", ["tabs", "and", "lines", "too"]),
        ("Ünïcödé İstanbul", ["unicode", "istanbul"]),
        ("soft\u00adhyphen zero\u200bwidth", ["softhyphen", "zerowidth"]),
        ("“quoted”—dash", ["“", "quoted", "”", "—", "dash"]),
        ("日本go", ["日", "本", "go"]),
        ("\u0000\ufffd", []),
        ("   ", []),
    ],
)
def test_split_words(text, expected):
    assert split_words(text) == expected


def test_a_piece_of_a_vocabulary_file_has_its_line_as_id(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in [*PIECES, "\u2028", "\x85x"]), encoding="utf-8")
    assert WordPiece.from_file(path).index == {piece: i for i, piece in enumerate([*PIECES, "\u2028", "\x85x"])}


VOCABULARY = "\n".join(PIECES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"no \[PAD\]"),
        (VOCABULARY.replace("[UNK]", "[unk]").encode(), r"no \[UNK\]"),
        (VOCABULARY.replace("[CLS]", " [CLS]").encode(), r"no \[CLS\]"),
        (VOCABULARY.replace("[SEP]", "x").encode(), r"no \[SEP\]"),
        (VOCABULARY.replace("[PAD]", "\ufeff[PAD]").encode(), r"no \[PAD\]"),
        (VOCABULARY.encode("utf-16"), "not UTF-8 text at byte 0"),
        (VOCABULARY.encode().replace(b"cafe", b"caf\xe9\n"), "not UTF-8 text at byte 68"),
        (f"{VOCABULARY}\n\n".encode(), "line 15 is empty"),
        (VOCABULARY.replace("un\n", "\n", 1).encode(), "line 6 is empty"),
        (f"{VOCABULARY}\nman".encode(), "line 11 stands again below"),
        (f"{VOCABULARY}\n[PAD]".encode(), "line 1 stands again below"),
    ],
)
def test_what_is_no_vocabulary_is_refused_in_words(content, words):
    with pytest.raises(BadArtefact, match=f"^vocabulary v.txt: .*{words}"):
        WordPiece.read(content, "v.txt")


def test_the_embedded_vocabulary_reads_its_own_sentences(bundle):
    words = WordPiece.from_file(bundle.path("vocab.txt"))
    tokens = words.encode("This man has a long beard. He is in his fifties.", 32)
    assert (tokens.unknown, tokens.dropped, len(tokens.ids)) == ([], 0, 32)


@pytest.mark.parametrize(
    ("text", "known"), [("a xyz", True), ("xyz", False), (",", False), ("", False), ("\u200b", False)]
)
def test_a_text_is_known_if_any_word_of_it_is(words, text, known):
    assert words.encode(text, 8).known is known


def test_whole_words_are_listed_unless_there_are_parts_too(words, bundle):
    assert words.words == []
    assert WordPiece(["[PAD]", "man", ",", "a"]).words == ["a", "man"]
    assert len(WordPiece.from_file(bundle.path("vocab.txt")).words) == 38
