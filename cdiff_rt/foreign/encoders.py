"""What makes an expert's condition of a sentence or an array: text encoders of transformers, ONNX files, modules."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cdiff_rt.errors import BadArtefact, BadRequest, check_type, named_as
from cdiff_rt.extras import needed
from cdiff_rt.foreign.configs import CONFIG, loaded, read_config, reading, why_no_folder
from cdiff_rt.foreign.modules import as_function
from cdiff_rt.foreign.onnx_files import open_encoder
from cdiff_rt.inputs import subwords

if TYPE_CHECKING:
    from torch import nn

# The class that its configuration names -> that which is loaded, and the tokenizer of such models.
TEXT_ENCODERS = {
    "CLIPTextModel": ("CLIPTextModel", "CLIPTokenizerFast"),
    "CLIPTextModelWithProjection": ("CLIPTextModelWithProjection", "CLIPTokenizerFast"),
    "T5EncoderModel": ("T5EncoderModel", "T5TokenizerFast"),
    "T5ForConditionalGeneration": ("T5EncoderModel", "T5TokenizerFast"),
}
KNOWN = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
OTHERS = "give cdiff_rt.Encoder of a torch.nn.Module of your own, or an ONNX file (docs/own-models.md)"
LARGEST_TOKENIZER = 2**26  # bytes
LONGEST = 2**16  # tokens


@dataclass(frozen=True, eq=False)
class Encoder:
    """What makes a condition: `function` of [B, *takes] float32, or with a `tokenizer` of a sentence's [B, tokens] int64.

    The function is a torch.nn.Module or takes and returns arrays. `tokenizer` are the bytes of a tokenizer.json, which
    says how it pads; `knows` is how many tokens the function has embeddings of, if that is known.
    """

    function: Callable[..., Any]
    takes: tuple[int, ...]
    tokenizer: bytes = b""
    knows: int | None = None

    @classmethod
    def of(
        cls, given: "Self | str | Path", tokens: int | None = None, tokenizer: str | Path | None = None
    ) -> "Encoder":
        """One as it is; an ONNX file's; or that of a folder, of transformers or of a pipeline that holds one.

        Raises BadRequest, BadArtefact, BadEnvironment.
        """
        check_type("encoder", given, cls | str | Path, "give a cdiff_rt.Encoder, an ONNX file or a folder")
        if isinstance(given, Encoder):
            return given
        path = Path(given)
        if path.suffix == ".onnx":
            found = open_encoder(path)
            if found.given.dtype != "int64" and tokenizer is None:
                return cls(found, found.given.shape)
            beside = Path(tokenizer or path.parent)
            return cls(found, *read_tokenizer(beside, found.given.shape[0] if found.given.shape else None))
        return _of_folder(path, tokens, Path(tokenizer) if tokenizer else None)

    def ids(self, sentence: str) -> np.ndarray:
        """[1, tokens] int64. Raises BadArtefact."""
        return np.array([subwords.encode(self.tokenizer, subwords.FILE, sentence, self.takes[0], self.knows).ids])

    def __call__(self, inputs: np.ndarray, condition: tuple[int, ...]) -> np.ndarray:
        """[B, ...] -> [B, *condition]. Raises BadRequest."""
        given = inputs.reshape(-1, *self.takes)
        with named_as("encoder,"):
            found = np.asarray(as_function(self.function)(given))
        if found.shape != (len(given), *condition) or found.dtype.kind != "f":
            seen = f"it makes {found.dtype} of shape {found.shape[1:]}, and its expert takes {condition}"
            raise BadRequest("encoder", seen, "take the encoder that the expert was trained with")
        if not np.isfinite(found).all():
            raise BadRequest("encoder", "it makes numbers that are not finite", "keep it in float32")
        return found.astype(np.float32, copy=False)


def check_encoder(name: str, encoder: Any, condition: tuple[int, ...] | None) -> None:
    """Raises BadRequest for one that cannot make the condition of an expert of this name."""
    what, remedy = f"expert {name}, encoder", "give a cdiff_rt.Encoder"
    check_type(what, encoder, Encoder, remedy)
    if not callable(encoder.function) or not all(isinstance(size, int) and size > 0 for size in encoder.takes):
        raise BadRequest(what, f"its function cannot be called, or it takes {encoder.takes!r:.80}", remedy)
    if condition is None:
        raise BadRequest(what, "its expert has no condition", "leave it out, or say condition=shape")
    if encoder.tokenizer and (len(encoder.takes) != 1 or math.prod(condition) % encoder.takes[0]):
        seen = f"it takes tokens {encoder.takes}, its expert a condition {condition}"
        raise BadRequest(what, seen, "let it make numbers for each token, or give the condition as an array")


def text_module(model: "nn.Module") -> "nn.Module":
    """A text encoder of transformers as a function of ids, whose last layer's states it gives."""
    from torch import Tensor, nn

    class LastStates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(input_ids=ids).last_hidden_state

    return LastStates().eval().requires_grad_(False)


def _of_folder(folder: Path, tokens: int | None, tokenizer: Path | None) -> Encoder:
    place = next(
        (
            p
            for p in (folder, folder / "text_encoder", folder.parent / "text_encoder")
            if _architecture(p) in TEXT_ENCODERS
        ),
        None,
    )
    if place is None:
        if found := _architecture(folder / "text_encoder") or _architecture(folder):
            raise BadArtefact(f"encoder {folder}", f"its class is {found!r:.80}, not {' or '.join(KNOWN)}", OTHERS)
        raise BadArtefact(f"encoder {folder}", *why_no_folder(folder, f"{CONFIG}, in it or in text_encoder of it,"))
    config = read_config(place / CONFIG)
    with needed(f"encoder {folder}", "compose"):
        import transformers
    name, fast = TEXT_ENCODERS[config["architectures"][0]]
    with _without_bars(transformers.utils.logging):
        model = loaded(getattr(transformers, name), place, "transformers", attn_implementation="eager")
    beside = place.parent / place.name.replace("text_encoder", "tokenizer")
    at = tokenizer or (beside if beside.is_dir() and beside != place else place)
    most = config.get("max_position_embeddings")
    ids = read_tokenizer(at, tokens, fast, most if isinstance(most, int) else None)
    return Encoder(text_module(model), *ids, knows=config.get("vocab_size"))


@contextmanager
def _without_bars(logging: Any) -> Iterator[None]:
    """Without the library's bars of progress, which are none of a command's output."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _architecture(folder: Path) -> str | None:
    """The class of a model of transformers, or None where there is none."""
    if not (folder / CONFIG).is_file():
        return None
    config = read_config(folder / CONFIG)
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else config.get("_class_name")


def read_tokenizer(
    place: Path, tokens: int | None, fast: str | None = None, most: int | None = None
) -> tuple[tuple[int], bytes]:
    """How many tokens it makes of a sentence, and the bytes of a tokenizer.json that does. Raises BadRequest, BadArtefact.

    `place` is such a file, or a folder that has one; or else what transformers' tokenizer `fast` is made of.
    """
    folder, what = (place.parent if place.is_file() else place), f"tokenizer {place}"
    file = place if place.is_file() else place / subwords.FILE
    config = _config_of(folder)
    if file.is_file():
        with file.open("rb") as opened:
            content = opened.read(LARGEST_TOKENIZER)
    elif fast and folder.is_dir():
        with needed(what, "compose"):
            import transformers
        with reading(folder, "transformers"):
            made = getattr(transformers, fast).from_pretrained(folder, local_files_only=True)
        content = made.backend_tokenizer.to_str().encode()
    else:
        raise BadArtefact(what, f"there is no {subwords.FILE}", "give --tokenizer, or put it beside the encoder")
    made = subwords.read_tokenizer(content, str(place))
    length = tokens or (made.padding or {}).get("length") or config.get("model_max_length")
    if not isinstance(length, int) or not 0 < length <= LONGEST:
        raise BadRequest("tokens", f"nothing says how many {what} makes of a sentence", "say how many")
    if most is not None and length > most:
        raise BadRequest("tokens", f"{length}, and the encoder knows {most} places", "say fewer tokens")
    return (length,), _padding(what, content, config, length)


def _config_of(folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer say of it; a token may be told with its ways."""
    found: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        found |= read_config(folder / file) if (folder / file).is_file() else {}
    pad = found.get("pad_token")
    return found | {"pad_token": pad.get("content") if isinstance(pad, dict) else pad}


def _padding(what: str, content: bytes, config: dict[str, Any], length: int) -> bytes:
    """The tokenizer.json of one that cuts and pads to this length."""
    made = subwords.read_tokenizer.__wrapped__(content, what)  # one of its own, for it is changed
    told = made.padding or {}
    pad = config.get("pad_token") or told.get("pad_token")
    number = made.token_to_id(pad) if isinstance(pad, str) else None
    if number is None:
        raise BadArtefact(what, f"nothing says how it pads ({pad!r:.80})", "name pad_token in tokenizer_config.json")
    made.enable_padding(pad_id=number, pad_token=pad, length=length, direction=told.get("direction", "right"))
    made.enable_truncation(length)
    return made.to_str().encode()
