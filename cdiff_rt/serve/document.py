"""The OpenAPI document, made of the same tables as the command's options, and a page of it that needs no other site."""

import html
from typing import Any

from cdiff_rt.jobs.rows import KEYS
from cdiff_rt.manifest import Manifest
from cdiff_rt.serve.asked import OF_ALL, QUALITIES, SOURCE
from cdiff_rt.serve.body import FORM, JSON
from cdiff_rt.serve.limits import DEADLINES, MOST_PARTIAL
from cdiff_rt.settings import ABOUT, LARGEST_BATCH, LARGEST_SEED, SETTINGS
from cdiff_rt.version import __version__

TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
FILE = {"type": "string", "description": "A file's content: base64, or a file of a form. No path or address is read."}
TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "object"}]}
OPENAIS = "As OpenAI has it."
DOES = {
    "prompt": "The sentence, by OpenAI's name.",
    "model": "The name of the model that is served.",
    "n": "How many images; of one seed, counted from `first` on.",
    "quality": "A tier by OpenAI's names: low is turbo, medium is fast, high is exact.",
    "stream": "Answer with server-sent events, by OpenAI's names.",
    "partial_images": "With stream, so many previews of the first image on the way.",
    "deadline": "Seconds after which a request that still waits is refused with 504; also as the header X-Deadline.",
    "inpaint": "A picture of which a part is to stay.",
    "image": "The picture that is to be edited: PNG, JPEG or WebP.",
    "strength": "Edit only this last share of the steps.",
    "alphas": "An image for each, 0 the input and 1 the edit: 0,0.5,1.",
}
CLIENTS = {"400": "a parameter is wrong", "408": "too slow", "413": "too large", "415": "neither JSON nor a form"}
CLIENTS |= {"401": "no token", "403": "another site's page", "404": "no such model or job", "421": "not this host"}
CLIENTS |= {"422": "a picture or a sentence cannot be used"}
ENDPOINTS = {  # path -> method -> what it does, what it answers, its body, and what of `Service` it is
    "/v1/images/generations": {"post": ("Make images.", "200", "generate", "generations")},
    "/v1/images/edits": {"post": ("Change a picture.", "200", "edit", "edits")},
    "/v1/jobs": {
        "get": ("All jobs.", "200", "", "jobs"),
        "post": ("As both above, without waiting; with an image it is an edit.", "202", "job", "new_job"),
    },
    "/v1/jobs/{id}": {
        "get": ("What a job has come to.", "200", "", "job"),
        "delete": ("Cancel and forget a job.", "200", "", "cancel_job"),
    },
    "/v1/jobs/{id}/result": {"get": ("Its images, as those above.", "200", "", "job_result")},
    "/v1/models": {"get": ("The model that is served.", "200", "", "models")},
    "/v1/models/{id}": {"get": ("The model of that name.", "200", "", "model")},
    "/v2/health/live": {"get": ("Whether the server answers.", "200", "", "live")},
    "/v2/health/ready": {"get": ("Whether it takes requests; 503 if not.", "200", "", "ready_now")},
    "/metrics": {"get": ("Counters, for Prometheus.", "200", "", "told_metrics")},
    "/openapi.json": {"get": ("This document.", "200", "", "openapi")},
    "/docs": {"get": ("This document as a page.", "200", "", "docs")},
}


def openapi(manifest: Manifest) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for path, methods in ENDPOINTS.items():
        for method, (does, success, body, _) in methods.items():
            paths.setdefault(path, {})[method] = _operation(path, does, success, body)
    fields = {"generate": _generation(manifest), "edit": _edit(manifest)}
    fields["job"] = {**fields["generate"], **fields["edit"], "keep": {"type": "string"}}
    schemas = {name: {"type": "object", "properties": of, "additionalProperties": False} for name, of in fields.items()}
    schemas["edit"]["required"] = ["image"]
    token = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "cdiff-rt", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": token},
        "security": [{}, {"token": []}],
    }


def _operation(path: str, does: str, success: str, body: str) -> dict[str, Any]:
    answers = {success: {"description": "Done."}}
    told: dict[str, Any] = {"summary": does, "responses": answers}
    if "{id}" in path:
        told["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
        answers |= {code: {"description": why} for code, why in (("404", "unknown"), ("409", "not ready"))}
    if body:
        schema = {"schema": {"$ref": f"#/components/schemas/{body}"}}
        told["requestBody"] = {"required": True, "content": {JSON: schema, FORM: schema}}
        answers |= {code: {"description": why} for code, why in CLIENTS.items()}
        answers["503"] = {"description": "The queue is full, or the server ends; Retry-After says when to ask again."}
        answers["504"] = {"description": "It waited longer than its deadline, and was not begun."}
    return told


def _generation(manifest: Manifest) -> dict[str, Any]:
    own = {"inpaint": FILE | {"description": DOES["inpaint"]}, "keep": FILE | {"description": "Its white part stays."}}
    return _shared(manifest) | own


def _edit(manifest: Manifest) -> dict[str, Any]:
    sources = {f"{SOURCE}{name}": value for name, value in _conditions(manifest).items()}
    strength = {"type": "number", "minimum": 0, "maximum": 1, "description": DOES["strength"]}
    alphas = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "number"}}]}
    own = {"image": FILE | {"description": DOES["image"]}, "strength": strength, "keep": {"type": "string"}}
    own["alphas"] = alphas | {"description": DOES["alphas"]}
    return {name: value for name, value in _shared(manifest).items() if name != "first"} | sources | own


def _conditions(manifest: Manifest) -> dict[str, Any]:
    plain = {"type": "string"}
    kinds = {modality.name: modality.kind for modality in manifest.modalities}
    return {name: plain if kind == "words" else FILE for name, kind in kinds.items() if kind != "nothing"}


def _shared(manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: {"type": TYPES[kind], "description": DOES.get(name, OPENAIS)} for name, kind in OF_ALL.items()
    }
    found["n"] |= {"minimum": 1, "maximum": LARGEST_BATCH}
    found["partial_images"] |= {"minimum": 0, "maximum": MOST_PARTIAL}
    found["deadline"] |= {"minimum": DEADLINES[0], "maximum": DEADLINES[1]}
    found["quality"]["enum"] = list(QUALITIES)
    return found | {name: _setting(name) for name in KEYS} | _conditions(manifest)


def _setting(name: str) -> dict[str, Any]:
    """As the command's option of that name says it."""
    about = ABOUT[name]
    if isinstance(SETTINGS[name].default, tuple):
        return TEXTS | {"description": about.does}
    told: dict[str, Any] = {"type": TYPES[about.value_type], "description": about.does}
    if about.bounds:
        told |= {"minimum": about.bounds[0], "maximum": about.bounds[1]}
    if about.choices:
        told["enum"] = list(about.choices())
    if name == "seed":
        whole = {"type": "integer", "minimum": 0, "maximum": LARGEST_SEED}
        told = {"anyOf": [whole, {"const": "random"}], "description": about.does}
    return told


def page(told: dict[str, Any]) -> str:
    """The document in plain HTML."""
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>cdiff-rt</title>"]
    parts.append("<style>body{font:16px sans-serif;max-width:60em;margin:2em auto}td{padding:.2em 1em .2em 0}</style>")
    parts.append("<h1>cdiff-rt</h1><p>The document for programs is at <a href=/openapi.json>/openapi.json</a>.<table>")
    for path, methods in told["paths"].items():
        parts += [_row(f"{method.upper()} {path}", each["summary"]) for method, each in methods.items()]
    for name, schema in told["components"]["schemas"].items():
        parts.append(f"</table><h2>Body of {html.escape(name)}</h2><table>")
        parts += [_row(field, each.get("description", "")) for field, each in schema["properties"].items()]
    return "".join([*parts, "</table>"])


def _row(*cells: str) -> str:
    return f"<tr><td><code>{html.escape(cells[0])}</code><td>{html.escape(cells[1])}"
