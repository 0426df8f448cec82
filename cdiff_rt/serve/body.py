"""The body of a request as a row: JSON, or the fields and files of a form. No path and no address is read."""

import re
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from cdiff_rt import schema
from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.traces import named
from cdiff_rt.jobs.table import value_of
from cdiff_rt.serve.limits import MOST_FIELDS
from cdiff_rt.serve.refusals import Refused

JSON, FORM = "application/json", "multipart/form-data"
BRACKETS = re.compile(r"(\w+)\[(\w*)\]")  # as clients write lists and objects in forms
LONGEST_NAME = 100  # of a file, in messages


async def body_of(request: Request, kinds: dict[str, type], largest: int) -> dict[str, Any]:
    """Its fields by name; `kinds` are those of fields that are no settings. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON:
        return _of_json(await request.body())
    if kind == FORM:
        return await _of_form(request, kinds, largest)
    remedy = f"send {JSON} or {FORM}"
    raise Refused(415, "bad_content_type", "content-type", f"{kind!r:.80}", remedy)


def _of_json(body: bytes) -> dict[str, Any]:
    try:
        row = schema.parse(body.decode())
    except ValueError as error:
        raise Refused(400, "bad_json", "body", f"not JSON ({error})"[:300], "send one object in UTF-8") from None
    if not isinstance(row, dict):
        raise Refused(400, "bad_json", "body", f"a {type(row).__name__}", "send one object")
    return row


async def _of_form(request: Request, kinds: dict[str, type], largest: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        async with request.form(max_files=MOST_FIELDS, max_fields=MOST_FIELDS, max_part_size=largest) as form:
            for key, value in form.multi_items():
                in_brackets = BRACKETS.fullmatch(key)
                name, inner = in_brackets.groups() if in_brackets else (key, None)
                _put(found, name, inner, await _read(name, value, kinds))
    except HTTPException as error:
        raise Refused(
            400, "bad_form", "body", f"not a form ({error.detail})", f"send {FORM} as RFC 7578 says"
        ) from None
    return found


async def _read(name: str, value: UploadFile | str, kinds: dict[str, type]) -> Any:
    if isinstance(value, str):
        return value_of(name, value, kinds.get(name)) if value else value
    file = re.split(r"[/\\]", value.filename or name)[-1]
    return named(await value.read(), "".join(c if c.isprintable() else "?" for c in file)[:LONGEST_NAME])


def _put(found: dict[str, Any], name: str, inner: str | None, value: Any) -> None:
    """A field that stands there several times is a list, and NAME[KEY] a part of an object."""
    if inner:
        whole = found.setdefault(name, {})
        if not isinstance(whole, dict) or inner in whole:
            raise BadInput(name, f"{inner!r:.80} stands twice, or beside a plain {name}", "give each once")
        whole[inner] = value[0] if isinstance(value, list) and len(value) == 1 else value
    elif name not in found:
        found[name] = value
    else:
        before = found[name] if isinstance(found[name], list) else [found[name]]
        found[name] = [*before, *(value if isinstance(value, list) else [value])]
