"""A sentence as the tokenizer reads it that a model was trained with: a `tokenizer.json`, by the library `tokenizers`."""

import functools
from typing import Any

from cdiff_rt.errors import BadArtefact
from cdiff_rt.extras import needed
from cdiff_rt.inputs.wordpiece import Tokens

FILE = "tokenizer.json"  # and what the names of such files in a bundle end with
TAKE = "take the tokenizer.json that the model was trained with"


@functools.lru_cache(maxsize=8)
def read_tokenizer(content: bytes, name: str) -> Any:
    """It says itself how it pads, and how many tokens it reads. Raises BadArtefact, BadEnvironment."""
    with needed(f"tokenizer {name}", "text"):
        from tokenizers import Tokenizer
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the library's own share no base class but this
        reason = " ".join(str(error).split())[:120]
        raise BadArtefact(f"tokenizer {name}", f"it cannot be read ({reason})", TAKE) from error


def encode(content: bytes, name: str, text: str, length: int, knows: int | None = None) -> Tokens:
    """`length` ids in all, below what the network `knows`. Raises BadArtefact, BadEnvironment."""
    tokenizer = read_tokenizer(content, name)
    found = tokenizer.encode(text)
    if len(found.ids) != length:
        raise BadArtefact(f"tokenizer {name}", f"it makes {len(found.ids)} tokens, the model takes {length}", TAKE)
    if knows is not None and max(found.ids) >= knows:  # a backend may read past its weights
        raise BadArtefact(f"tokenizer {name}", f"it makes token {max(found.ids)}, the model knows {knows}", TAKE)
    unknown_id = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")
    said = [i for i, mark in enumerate(found.special_tokens_mask) if not mark]
    unknown = [text[slice(*found.offsets[i])] for i in said if found.ids[i] == unknown_id]
    dropped = sum(part.special_tokens_mask.count(0) for part in found.overflowing)
    return Tokens(list(found.ids), list(dict.fromkeys(unknown)), dropped, len(unknown) < len(said))
