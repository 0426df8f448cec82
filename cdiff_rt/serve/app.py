"""The addresses of the server, and what each answers."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from cdiff_rt.errors import CdiffError, as_told
from cdiff_rt.jobs.table import value_of
from cdiff_rt.serve import document
from cdiff_rt.serve.asked import Operation, asked_of, kinds_of
from cdiff_rt.serve.body import body_of
from cdiff_rt.serve.engine import Ready
from cdiff_rt.serve.limits import KEPT_BYTES, Limits
from cdiff_rt.serve.metrics import Metrics
from cdiff_rt.serve.refusals import Refused, answer, error_body, refusal, status_of
from cdiff_rt.serve.worker import Work, Worker

EVENTS: dict[Operation, str] = {"generate": "image_generation", "edit": "image_edit"}  # OpenAI's names begin so
# Which OpenAI's events always tell.
NO_TOKENS = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 0)
USAGE = NO_TOKENS | {"input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}


class Service:
    """A worker, its model, and the jobs whose results wait."""

    def __init__(self, worker: Worker, ready: Ready, limits: Limits, metrics: Metrics, *, log_prompts: bool) -> None:
        self.worker, self.ready, self.limits, self.metrics = worker, ready, limits, metrics
        self.manifest, self.draining, self.started = ready.manifest, False, int(time.time())
        self._log_prompts, self._jobs = log_prompts, dict[str, Work]()

    @property
    def drained(self) -> bool:
        """Whether all that was taken is made, and fetched."""
        return self.worker.idle and all(work.fetched for work in self._jobs.values())

    # --- making ----------------------------------------------------------------------------------------------------------

    async def generations(self, request: Request) -> Response:
        return await self._wait(request, await self._take(request, "generate"))

    async def edits(self, request: Request) -> Response:
        return await self._wait(request, await self._take(request, "edit"))

    async def _take(self, request: Request, op: Operation | None) -> Work:
        """A request, in the queue. Of a job, `op` follows from whether there is a picture to edit."""
        if self.draining:
            self.metrics.rejected.labels("draining").inc()
            remedy = "ask another server, or this one later"
            raise Refused(503, "draining", "server", "it ends, and takes nothing new", remedy, Retry_After="10")
        self.worker.check_room()  # before the body is read
        try:
            body = await body_of(request, kinds_of(self.manifest), self.limits.body)
            if (header := request.headers.get("x-deadline")) and "deadline" not in body:
                body["deadline"] = value_of("deadline", header, float)
            asked = asked_of(body, self.manifest, op or ("edit" if "image" in body else "generate"))
        except CdiffError as error:
            self.metrics.rejected.labels(status_of(error)[1]).inc()
            raise
        work = Work(asked)
        self.worker.submit(work)
        told = {"op": asked.op, "work": work.id, "images": asked.settings.batch, "steps": asked.steps}
        request.state.log |= told | ({"prompt": asked.prompt} if self._log_prompts else {})
        if asked.deadline is not None:
            seen, remedy = f"it waited {asked.deadline:g} s and was not begun", "give it longer, or ask when less waits"
            late = Refused(504, "deadline", "deadline", seen, remedy)
            work.timer = asyncio.get_running_loop().call_later(asked.deadline, self.worker.cancel, work, late)
        return work

    async def _wait(self, request: Request, work: Work) -> Response:
        """What became of it, or a stream of that; a client that goes takes its request along."""
        work.listener = asyncio.create_task(self._cancel_when_left(request, work))
        events = work.events()
        try:
            first = await anext(events, None)  # what is wrong with a picture is known before the first step
            if work.asked.stream and not (first is None and work.error):
                return StreamingResponse(self._stream(work, first, events), media_type="text/event-stream")
            async for _ in events:
                pass
        except asyncio.CancelledError:
            self.worker.cancel(work)
            raise
        work.listener.cancel()
        return self._result(work)

    async def _cancel_when_left(self, request: Request, work: Work) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.worker.cancel(work)

    def _result(self, work: Work) -> Response:
        if work.made is None:
            assert work.error is not None
            raise work.error
        files = [{"b64_json": _base64(content)} for content in work.made.files]
        told = {"seed": work.made.seed, "warnings": work.made.warnings, "model": self.manifest.name}
        return answer({"created": int(time.time()), "data": files} | self._format() | told)

    def _format(self) -> dict[str, Any]:
        size = self.manifest.image_size
        return {"output_format": "png" if size else "npz", "size": f"{size}x{size}", "background": "opaque"}

    async def _stream(self, work: Work, first: bytes | None, events: AsyncIterator[bytes]) -> AsyncIterator[str]:
        name = EVENTS[work.asked.op]
        common = self._format() | {"created_at": int(work.created), "quality": "auto"}
        preview, shown = first, 0
        try:
            while preview is not None:
                if preview:
                    told = {"b64_json": _base64(preview), "partial_image_index": shown}
                    yield _event(f"{name}.partial_image", **told, **common)
                    shown += 1
                preview = await anext(events, None)
            if work.error:
                yield f"event: error\ndata: {json.dumps(error_body(work.error))}\n\n"
            elif work.made:
                common |= {"seed": work.made.seed, "warnings": work.made.warnings, "usage": USAGE}
                for content in work.made.files:
                    yield _event(f"{name}.completed", b64_json=_base64(content), **common)
        finally:
            self.worker.cancel(work)

    # --- jobs ------------------------------------------------------------------------------------------------------------

    async def new_job(self, request: Request) -> Response:
        work = await self._take(request, None)
        self._forget()
        self._jobs[work.id] = work
        return answer(self._told(work), 202, {"location": f"/v1/jobs/{work.id}"})

    async def jobs(self, request: Request) -> Response:
        self._forget()
        return answer({"object": "list", "data": [self._told(work) for work in self._jobs.values()]})

    async def job(self, request: Request) -> Response:
        return answer(self._told(self._job(request)))

    async def job_result(self, request: Request) -> Response:
        work = self._job(request)
        if not work.over:
            seen = f"it is {work.state}"
            raise Refused(409, "not_ready", "job", seen, "ask for its status until it is completed", Retry_After="1")
        work.fetched = True
        return self._result(work)

    async def cancel_job(self, request: Request) -> Response:
        work = self._job(request)
        work.fetched = True
        self.worker.cancel(work)
        del self._jobs[work.id]
        return answer({"id": work.id, "object": "job", "deleted": True})

    def _job(self, request: Request) -> Work:
        self._forget()
        id_ = request.path_params["id"]
        if id_ not in self._jobs:
            remedy = f"a result stays for {self.limits.keep:g} s"
            raise Refused(404, "job_not_found", "job", f"there is no {id_!r:.80}", remedy)
        return self._jobs[id_]

    def _told(self, work: Work) -> dict[str, Any]:
        told = {"id": work.id, "object": "job", "op": work.asked.op, "status": work.state, "created": int(work.created)}
        told["progress"] = {"done": work.done, "of": work.asked.steps}
        return told | (error_body(work.error) if work.error else {})

    def _forget(self) -> None:
        """Results that are too old, and the oldest while all take too much memory."""
        now, size = time.monotonic(), 0
        for work in sorted((work for work in self._jobs.values() if work.over), key=lambda work: -work.ended):
            size += work.made.size if work.made else 0
            if now - work.ended > self.limits.keep or size > KEPT_BYTES:
                del self._jobs[work.id]

    # --- about the server ------------------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        return answer({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["id"] != self.manifest.name:
            seen = f"{request.path_params['id']!r:.80}"
            raise Refused(404, "model_not_found", "model", seen, f"here is {self.manifest.name}")
        return answer(self._model())

    def _model(self) -> dict[str, Any]:
        kinds = {modality.name: modality.kind for modality in self.manifest.modalities}
        told = {"id": self.manifest.name, "object": "model", "created": self.started, "owned_by": "cdiff-rt"}
        return told | {"conditions": kinds, "identity": self.ready.identity}

    async def live(self, request: Request) -> Response:
        return answer({"live": True})

    async def ready_now(self, request: Request) -> Response:
        ready = self.worker.alive and not self.draining
        return answer({"ready": ready}, 200 if ready else 503)

    async def told_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        return answer(document.openapi(self.manifest))

    async def docs(self, request: Request) -> Response:
        policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(document.page(document.openapi(self.manifest)), headers=policy)

    def app(self) -> Starlette:
        table = ((path, *each) for path, methods in document.ENDPOINTS.items() for each in methods.items())
        routes = [Route(path, getattr(self, told[-1]), methods=[method.upper()]) for path, method, told in table]
        handlers: Any = {
            CdiffError: _refuse,
            HTTPException: _no_such_thing,
            ClientDisconnect: _gone,
            Exception: _refuse,
        }
        return Starlette(routes=routes, exception_handlers=handlers)


async def _refuse(request: Request, error: Exception) -> Response:
    told = as_told(error)
    status, code = status_of(told)
    where = {"error": told.seen.partition(": ")[0]} if status >= 500 else {}  # what comes behind may quote a sentence
    request.state.log |= {"code": code} | where
    return refusal(told)


async def _no_such_thing(request: Request, error: HTTPException) -> Response:
    seen, allowed = f"{request.method} {request.url.path!r:.80}", error.headers or {}
    headers = {name.replace("-", "_"): value for name, value in allowed.items()}
    return refusal(Refused(error.status_code, "not_found", "address", f"there is no {seen}", "see /docs", **headers))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def _event(kind: str, **told: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | told)}\n\n"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
