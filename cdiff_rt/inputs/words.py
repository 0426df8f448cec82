"""What is said about a sentence before a model reads it: why it cannot be read, and which of its words are not known."""

import unicodedata
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.wordpiece import Tokens, is_punctuation
from cdiff_rt.notes import log

LONGEST_TEXT = 4096  # characters
MOST_NAMED = 8  # unknown words in a warning
SHORTEST_GUESS, CLOSE = 5, 0.85  # letters of a word that may be a slip of the pen; likeness to what was meant


def check_text(text: str, name: str) -> str:
    """Raises BadInput for one that no model can read."""
    if not text.strip():
        raise BadInput(name, "it is empty", "describe the image, or leave the option out")
    if len(text) > LONGEST_TEXT:
        raise BadInput(name, f"{len(text)} characters", f"use at most {LONGEST_TEXT}")
    for place, c in enumerate(text):
        if unicodedata.category(c) == "Cs":
            raise BadInput(name, f"half a character, U+{ord(c):04X}, at position {place}", "write the text in UTF-8")
        if unicodedata.category(c) == "Cc" and c not in "\t\n\r":
            raise BadInput(name, f"control character U+{ord(c):04X} at position {place}", "remove it")
    return text


def tell_unknown(text: str, name: str, tokens: Tokens, words: Sequence[str], synonyms: Mapping[str, str]) -> None:
    """Warns of what the model reads as noise, or not at all. `words` are those that it knows, if that can be told."""
    strange = [word for word in tokens.unknown if not all(map(is_punctuation, word))]
    named = ", ".join(repr(word) + instead_of(word, words, synonyms) for word in strange[:MOST_NAMED])
    listed = f"; its words are {', '.join(words)}" if words else ""
    if not tokens.known:
        shown = named or repr(text[:40])
        log.warning("%s: the model knows no word of it (%s), so the image does not follow it%s", name, shown, listed)
    elif strange:
        log.warning("%s: the model never learned %s; such words only disturb it%s", name, named, listed)
    if tokens.dropped:
        read = len(tokens.ids) - 2  # without the marks of beginning and end
        log.warning("%s: too long, %d word pieces are read and the last %d left out", name, read, tokens.dropped)


def instead_of(word: str, words: Sequence[str], synonyms: Mapping[str, str]) -> str:
    """What to say for a word, in brackets, if anything is like it."""
    close = get_close_matches(word, words, 1, CLOSE) if len(word) >= SHORTEST_GUESS else []
    say = synonyms.get(word) or next(iter(close), "")
    *others, last = map(repr, say.split("|"))
    return f" (say {', '.join(others)} or {last})" if others else f" (say {last})" if say else ""
