"""WordPiece with BERT's basic tokenisation, uncased: what `bert-base-uncased` does, from a vocabulary file alone."""

import functools
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cdiff_rt.errors import BadArtefact

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
PART = "##"  # before a piece that goes on with a word
LONGEST_WORD = 100  # characters; BERT calls longer words unknown
_CJK = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """`ids` has the fixed length asked for; `unknown` names the words without a piece, `dropped` counts the cut pieces."""

    ids: list[int]
    unknown: list[str]
    dropped: int
    known: bool  # whether any word, and not only a mark, has pieces


class WordPiece:
    def __init__(self, pieces: Iterable[str]) -> None:
        self.index = {piece: i for i, piece in enumerate(pieces)}

    @classmethod
    def from_file(cls, path: Path) -> "WordPiece":
        return cls.read(path.read_bytes(), path.name)

    @classmethod
    @functools.lru_cache(maxsize=8)
    def read(cls, content: bytes, name: str) -> "WordPiece":
        """One piece a line; the line number is its id. Raises BadArtefact for what is no vocabulary."""
        remedy = "take the vocabulary that the model was trained with"
        try:
            pieces = content.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise BadArtefact(f"vocabulary {name}", f"not UTF-8 text at byte {error.start}", remedy) from None
        words = cls(pieces)
        lacking = [piece for piece in (PAD, UNKNOWN, START, END) if piece not in words.index]
        if lacking:
            raise BadArtefact(f"vocabulary {name}", f"it has no {lacking[0]}", remedy)
        # A piece that stands twice has its last line for id.
        odd = next((i for i, piece in enumerate(pieces) if not piece or words.index[piece] != i), None)
        if odd is not None:
            seen = f"line {odd + 1} stands again below" if pieces[odd] else f"line {odd + 1} is empty"
            raise BadArtefact(f"vocabulary {name}", seen, remedy)
        return words

    @property
    def words(self) -> list[str]:
        """All that there are, if pieces are whole words; none of a vocabulary that has parts of words for any text."""
        whole = not any(piece.startswith(PART) for piece in self.index)
        return sorted(filter(str.isalnum, self.index)) if whole else []

    def encode(self, text: str, length: int) -> Tokens:
        """[CLS] pieces [SEP] and padding, `length` ids in all."""
        ids: list[int] = []
        unknown: list[str] = []
        known = False
        for word in split_words(text):
            pieces = self._pieces(word)
            known |= bool(pieces) and word.isalnum()
            if not pieces:
                unknown.append(word)
            ids += pieces or [self.index[UNKNOWN]]
        kept = ids[: length - 2]
        framed = [self.index[START], *kept, self.index[END]]
        padding = [self.index[PAD]] * (length - len(framed))
        return Tokens(framed + padding, list(dict.fromkeys(unknown)), len(ids) - len(kept), known)

    def _pieces(self, word: str) -> list[int]:
        """Greedy longest match from the left; empty if some part of the word has no piece."""
        ids: list[int] = []
        start = 0
        while start < len(word) <= LONGEST_WORD:
            prefix = PART if start else ""
            ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in self.index)
            end = next(ends, None)
            if end is None:
                return []
            ids.append(self.index[prefix + word[start:end]])
            start = end
        return ids


def split_words(text: str) -> list[str]:
    """Lower-case words without accents; punctuation and CJK characters stand alone."""
    decomposed = unicodedata.normalize("NFD", "".join(_spaced(text)))
    plain = "".join(c for c in decomposed if unicodedata.category(c) != "Mn").lower()
    spaced = "".join(f" {c} " if is_punctuation(c) else c for c in plain)
    return [word for word in spaced.split(" ") if word]


def _spaced(text: str) -> Iterator[str]:
    for c in text:
        if c.isspace() and not 0x1C <= ord(c) <= 0x1F:
            yield " "
        elif any(low <= ord(c) <= high for low, high in _CJK):
            yield f" {c} "
        elif ord(c) not in (0, 0xFFFD) and unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"):
            yield c


def is_punctuation(c: str) -> bool:
    code = ord(c)
    ascii_marks = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_marks or unicodedata.category(c).startswith("P")
