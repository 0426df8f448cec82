"""What a request gets that is not served: a status, a code, and the words of the command line."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from cdiff_rt.errors import BadArtefact, BadEnvironment, BadInput, BadRequest, CdiffError, OutOfResource

# kind of error -> status, code and OpenAI's type; those that come first are of the narrower kinds
STATUS: dict[type[CdiffError], tuple[int, str]] = {
    BadRequest: (400, "bad_request"),
    BadInput: (422, "bad_input"),
    BadArtefact: (500, "bad_artefact"),
    BadEnvironment: (500, "bad_environment"),
    OutOfResource: (503, "out_of_resource"),
    CdiffError: (500, "unforeseen"),
}


class Refused(CdiffError):
    """What only a server refuses."""

    def __init__(self, status: int, code: str, what: str, seen: str, remedy: str, **headers: str) -> None:
        super().__init__(what, seen, remedy)
        self.status, self.code = status, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def status_of(error: CdiffError) -> tuple[int, str]:
    if isinstance(error, Refused):
        return error.status, error.code
    return next(told for kind, told in STATUS.items() if isinstance(error, kind))


def error_body(error: CdiffError) -> dict[str, Any]:
    """In OpenAI's shape. `param` is what was wrong, as far as that is one word."""
    status, code = status_of(error)
    kind = "invalid_request_error" if status < 500 else "server_error"
    param = error.what.split()[0] if error.what else None
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII, since half a character in a name would otherwise be no UTF-8."""
    return Response(json.dumps(content), status, dict(headers or {}), "application/json")


def refusal(error: CdiffError) -> Response:
    return answer(error_body(error), status_of(error)[0], getattr(error, "headers", {}))
