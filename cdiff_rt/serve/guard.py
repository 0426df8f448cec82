"""What every request passes before anything reads it: who may ask, how large and how slow a request may be, and its line
in the log."""

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cdiff_rt.errors import CdiffError
from cdiff_rt.serve.limits import BODY_SECONDS, Limits
from cdiff_rt.serve.refusals import Refused, refusal, status_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
OPEN = ("/v2/health/live", "/v2/health/ready")  # without a token, for whoever watches
requests_log = logging.getLogger("cdiff_rt.requests")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Rules:
    """Who may ask."""

    hosts: Collection[str] = ()  # that a request may be for, without ports; those of this machine always may
    any_host: bool = False
    token: str | None = None


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: Application, rules: Rules, limits: Limits, body_seconds: float = BODY_SECONDS) -> None:
        self._app, self._rules, self._limits, self._body_seconds = app, rules, limits, body_seconds

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Passage(self._app, self._rules, self._limits, self._body_seconds).pass_(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)


class _Passage:
    """One request on its way through."""

    def __init__(self, app: Application, rules: Rules, limits: Limits, body_seconds: float) -> None:
        self._app, self._rules, self._limits = app, rules, limits
        self._began, self._end_of_body = time.monotonic(), time.monotonic() + body_seconds
        self._read, self._whole, self._status = 0, False, 499  # of a client that went away

    async def pass_(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        id_ = given if PLAIN_ID.fullmatch(given) else uuid.uuid4().hex
        told: dict[str, Any] = scope.setdefault("state", {})
        told["log"] = {"request_id": id_}
        receive_, send_ = self._receiving(receive), self._sending(send, id_)
        try:
            self._check(scope, headers)
            await self._app(scope, receive_, send_)
        except CdiffError as error:  # the guard's own
            told["log"]["code"] = status_of(error)[1]
            await refusal(error)(scope, receive_, send_)
        except Exception:  # noqa: BLE001 - one request's fault is no other's; the application has answered
            told["log"]["level"] = "error"
        finally:
            self._log(scope, told["log"])

    def _check(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> None:
        """Raises Refused."""
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname if _is_plain(host) else None
        if not name or not (self._rules.any_host or name in self._rules.hosts or is_loopback(name)):
            remedy = "call this server by its own name, or start it with --allow-host"
            raise Refused(421, "bad_host", "host", f"{host!r:.80}", remedy)
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise Refused(403, "bad_origin", "origin", f"{origin!r:.80}", "pages of other sites may not ask")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise Refused(403, "bad_origin", "origin", "a page of another site", "such may not ask")
        if self._rules.token and scope["path"] not in OPEN:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(token.strip().encode(), self._rules.token.encode())
            if not right or scheme.lower() != "bearer":
                remedy = "send `Authorization: Bearer TOKEN`"
                raise Refused(401, "bad_token", "token", "it is missing or wrong", remedy, WWW_Authenticate="Bearer")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > self._limits.body:
            self._refuse_size(length)

    def _refuse_size(self, seen: str) -> None:
        raise Refused(413, "too_large", "body", f"{seen[:20]} bytes", f"send at most {self._limits.body}")

    def _receiving(self, receive: Receive) -> Receive:
        async def limited() -> Message:
            if self._whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(self._end_of_body - time.monotonic(), 0.001))
            except TimeoutError:
                seen = f"it is not there after {time.monotonic() - self._began:.0f} s"
                raise Refused(408, "too_slow", "body", seen, "send it faster") from None
            self._read += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._read > self._limits.body:
                self._refuse_size(str(self._read))
            return message

        return limited

    def _sending(self, send: Send, id_: str) -> Send:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id_.encode())]
                message["headers"] += [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
                if self._status >= 400 and self._status != 503 and not self._whole:
                    message["headers"].append((b"connection", b"close"))  # what else it sends, nobody reads
            await send(message)

        return marked

    def _log(self, scope: MutableMapping[str, Any], told: dict[str, Any]) -> None:
        if requests_log.isEnabledFor(logging.INFO):
            line = {"ts": round(time.time(), 3), "level": "info", "event": "request", **told}
            line |= {"method": scope["method"], "status": self._status}
            line |= {"path": scope["path"][:200], "seconds": round(time.monotonic() - self._began, 4)}
            requests_log.info(json.dumps(line))


def _is_plain(host: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9.-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?", host))


def log_requests() -> None:
    """To stderr, a line of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    requests_log.handlers[:], requests_log.propagate = [handler], False
    requests_log.setLevel(logging.INFO)
