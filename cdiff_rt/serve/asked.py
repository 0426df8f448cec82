"""A request as a row of jobs and what a server adds: settings are spelled as on the command line, files are contents."""

import base64
import binascii
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cdiff_rt.controls import Regions, read_regions, read_weights
from cdiff_rt.editing import inversion
from cdiff_rt.errors import BadInput, BadRequest, check_choice, check_range, real, whole
from cdiff_rt.inputs.inpainting import Inpainting
from cdiff_rt.inputs.modalities import Condition
from cdiff_rt.inputs.palette import ORDERS
from cdiff_rt.jobs.rows import KEYS, Defaults, Row, job_of
from cdiff_rt.manifest import Manifest
from cdiff_rt.serve.limits import DEADLINES, MOST_PARTIAL
from cdiff_rt.serve.refusals import Refused
from cdiff_rt.settings import Settings, unknown_argument

Operation = Literal["generate", "edit"]
SOURCE = "source_"  # before a condition's name: what the picture shows as it is
# What a server knows beside conditions and settings, and of what type each is. OpenAI's come first.
OPENAI: dict[str, type] = dict.fromkeys(("prompt", "model", "size", "quality", "response_format", "output_format"), str)
OPENAI |= dict.fromkeys(("background", "moderation", "user"), str)
OPENAI |= {"n": int, "stream": bool, "partial_images": int, "output_compression": int}
OF_ALL: dict[str, type] = OPENAI | {"deadline": float}
OF: dict[Operation, dict[str, type]] = {
    "generate": {"inpaint": bytes, "keep": bytes},
    "edit": {"image": bytes, "strength": float, "alphas": str, "keep": str},
}
QUALITIES = {"auto": None, "standard": None, "low": "turbo", "medium": "fast", "high": "exact", "hd": "exact"}  # tiers
SAMPLERS = ("tier", "solver", "steps")
# kind of condition -> texts that are themselves the condition; any other text is a file's content
PLAIN = {"words": re.compile(".*", re.DOTALL), "numbers": re.compile(r"[\d\s.,eE+-]*"), "nothing": re.compile("(?s).*")}
ORDER = re.compile(r"\d{1,9}=[\w-]{1,80}(,\d{1,9}=[\w-]{1,80})*")
NO_FILES = "a request names no files: send the content itself as base64, or as a file of a form"


@dataclass(frozen=True)
class Asked:
    """One request, checked as far as that is possible without reading a picture."""

    op: Operation
    settings: Settings
    conditions: dict[str, Condition]
    more: dict[str, Any]  # of `Pipeline.edit` or `generate`
    steps: int  # that will be counted
    stream: bool = False
    previews: int = 0
    deadline: float | None = None  # seconds
    prompt: str = ""  # for whoever logs it


def kinds_of(manifest: Manifest) -> dict[str, type]:
    """The types of the fields that are neither conditions nor settings."""
    sources = {f"{SOURCE}{modality.name}": str for modality in manifest.modalities}
    return OF_ALL | OF["generate"] | OF["edit"] | sources


def asked_of(body: Mapping[str, Any], manifest: Manifest, op: Operation) -> Asked:
    """Raises BadRequest, BadInput, Refused."""
    row = {name: value for name, value in body.items() if value is not None}
    conditions = [modality.name for modality in manifest.modalities]
    sources = [f"{SOURCE}{name}" for name in conditions if op == "edit"]
    known = [*conditions, *KEYS, *OF_ALL, *OF[op], *sources]
    if unknown := [name for name in row if name not in known]:
        raise unknown_argument(unknown[0], known)
    ours = (name for name in (*OF_ALL, *OF[op], *sources) if name not in conditions)  # which may have such a name
    own = {name: row.pop(name) for name in ours if name in row}
    _check_openai(own, manifest)
    _translate(row, own, manifest)
    job = job_of(Row(1, 1, lambda: _with_contents(row, manifest)), Path(), manifest, Defaults())
    settings = replace(job.settings, batch=own.get("n", 1)) if op == "generate" else job.settings
    more, steps = _generation(own, settings) if op == "generate" else _edit(own, settings, manifest)
    stream, previews = own.get("stream", False), whole("partial_images", own.get("partial_images", 0))
    if not isinstance(stream, bool):
        raise BadRequest("stream", f"{stream!r:.80}", "give true or false")
    check_range("partial_images", previews, 0, MOST_PARTIAL)
    if previews and not manifest.image_size:
        raise BadRequest("partial_images", f"{manifest.name} decodes no images", "leave it out")
    deadline = real("deadline", own["deadline"]) if "deadline" in own else None
    if deadline is not None:
        check_range("deadline", deadline, *DEADLINES)
    prompt = " ".join(value for value in job.conditions.values() if isinstance(value, str))
    return Asked(op, settings, job.conditions, more, steps, stream, previews, deadline, prompt)


def _check_openai(own: Mapping[str, Any], manifest: Manifest) -> None:
    """What OpenAI's clients may send, as far as it is true here."""
    size = f"{manifest.image_size}x{manifest.image_size}"
    choices = {
        "size": ("auto", size),
        "response_format": ("b64_json",),
        "output_format": ("png",),
        "background": ("auto", "opaque"),
        "moderation": ("auto", "low"),
        "quality": tuple(QUALITIES),
    }
    for name in (name for name in (*choices, "model", "user", "prompt") if name in own):
        if not isinstance(own[name], str):
            raise BadRequest(name, f"{own[name]!r:.80}", "give a text")
        if name in choices:
            check_choice(name, own[name], choices[name])
    if own.get("model", manifest.name) != manifest.name:
        raise Refused(404, "model_not_found", "model", f"{own['model']!r:.80}", f"here is {manifest.name}")
    if own.get("output_compression", 100) != 100:
        raise BadRequest("output_compression", f"{own['output_compression']!r:.80}", "leave it out: PNG loses nothing")


def _translate(row: dict[str, Any], own: Mapping[str, Any], manifest: Manifest) -> None:
    """What has another name for OpenAI, put where a row has it."""
    words = next((modality.name for modality in manifest.modalities if modality.kind == "words"), None)
    if "prompt" in own:
        if words is None or words in row:
            seen = f"{words} is given too" if words else f"{manifest.name} reads no sentences"
            raise BadRequest("prompt", seen, "leave one out" if words else "leave it out")
        row[words] = own["prompt"]
    if (tier := QUALITIES.get(own.get("quality", "auto"))) is not None:
        if given := next((name for name in SAMPLERS if name in row), None):
            raise BadRequest("quality", f"{given} is given too", "leave one out")
        row["tier"] = tier
    if row.get("seed") == "random":
        row["seed"] = secrets.randbelow(2**32)


def _with_contents(row: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """A row in which nothing is a path. Raises BadInput, BadRequest."""
    kinds = {modality.name: modality.kind for modality in manifest.modalities}
    found = {name: _condition(name, value, kinds[name]) if name in kinds else value for name, value in row.items()}
    if "influence" in row:
        found["influence"] = read_weights("influence", row["influence"], None)
    if "region" in row:
        found["region"] = _regions(row["region"])
    labels = row.get("labels")
    if isinstance(labels, str) and labels not in ORDERS and not ORDER.fullmatch(labels):
        remedy = f"give {' or '.join(ORDERS)}, or such as 0=background,17=hair; {NO_FILES}"
        raise BadRequest("labels", f"{labels!r:.80} is no order", remedy)
    return found


def _condition(name: str, value: Any, kind: str) -> Any:
    plain = PLAIN.get(kind)
    return value if isinstance(value, str) and plain and plain.fullmatch(value) else content_of(name, value)


def _regions(value: Any) -> Regions:
    regions = read_regions("region", value)
    return tuple(replace(each, map=content_of(f"region of {each.condition}", each.map)) for each in regions)


def content_of(name: str, value: Any) -> bytes:
    """A file of a form, or what base64 says, with or without `data:` before it. Raises BadInput."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise BadInput(name, f"{value!r:.80}", "give a string of base64, or one file of a form")
    try:
        return base64.b64decode(re.sub(r"^data:[^,]{0,200};base64,", "", value), validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(name, f"{value!r:.80} is not base64", NO_FILES) from None


def _generation(own: Mapping[str, Any], settings: Settings) -> tuple[dict[str, Any], int]:
    if ("inpaint" in own) != ("keep" in own):
        raise BadRequest("inpaint", "it is alone, or keep is", "inpaint and keep go together")
    painted = (content_of(name, own[name]) for name in ("inpaint", "keep") if name in own)
    return {"inpaint": Inpainting(*painted)} if "inpaint" in own else {}, settings.sampling().steps


def _edit(own: Mapping[str, Any], settings: Settings, manifest: Manifest) -> tuple[dict[str, Any], int]:
    if own.get("n", 1) != 1:
        raise BadRequest("n", f"{own['n']!r:.80} for an edit", "leave it out: there is an image for each of alphas")
    if "image" not in own:
        raise BadRequest("image", "none is given", "send the picture that is to be edited")
    alphas = own.get("alphas", [1.0])
    alphas = inversion.read_alphas(alphas) if isinstance(alphas, str) else alphas
    strength, alphas = inversion.check(settings, own.get("strength", 1.0), alphas)
    kinds = {f"{SOURCE}{modality.name}": modality.kind for modality in manifest.modalities}
    source = {name.removeprefix(SOURCE): _condition(name, own[name], kinds[name]) for name in kinds if name in own}
    keep = own.get("keep", "")
    if not isinstance(keep, str):
        raise BadRequest("keep", f"{keep!r:.80}", "give labels with commas between them, or all")
    image = content_of("image", own["image"])
    more = {"image": image, "source": source, "strength": strength, "alphas": alphas, "keep": keep}
    return more, inversion.calls(settings.sampling().steps, strength)
