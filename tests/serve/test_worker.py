"""The queue, and what becomes of a request when the process that makes it does something that nobody foresaw."""

import asyncio
from functools import partial

import pytest

from cdiff_rt.errors import BadEnvironment
from cdiff_rt.manifest import Bundle
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.serve.asked import asked_of
from cdiff_rt.serve.metrics import Metrics
from cdiff_rt.serve.worker import Work, Worker
from tests.serve import servers, standin


def changing(marker, **how):
    """Another model each time."""
    count = len(marker.read_text())
    marker.write_text("x" * (count + 1))
    pipeline = standin.opened(**how)
    pipeline.bundle = Bundle(**{**vars(pipeline.bundle), "manifest_hash": str(count)})
    return pipeline


def missing() -> Pipeline:
    raise BadEnvironment("library", "it is not there", "install it")


def dying() -> Pipeline:
    standin.os._exit(1)


@pytest.mark.parametrize(("opens", "words"), [(missing, "it is not there"), (dying, "died while it started")])
def test_a_pipeline_that_does_not_open_is_told_at_the_start(opens, words):
    worker = Worker(opens, 1, Metrics())
    with pytest.raises(BadEnvironment, match=words):
        worker.start()
    worker.close()


async def outcome(worker, ready, **more):
    work = Work(asked_of({"text": "a man", "steps": 5} | more, ready.manifest, "generate"))
    worker.submit(work)
    steps = [event async for event in work.events()]
    return work, len(steps)


@pytest.mark.slow
def test_what_cannot_be_sent_fails_and_the_next_request_is_made():
    with servers.service() as service:

        async def both():
            broken = Work(asked_of({"text": "a man"}, service.manifest, "generate"))
            object.__setattr__(broken.asked, "more", {"callback": lambda: None})  # which no process can be sent
            service.worker.submit(broken)
            async for _ in broken.events():
                pass
            return broken, await outcome(service.worker, service.ready)

        broken, (work, steps) = asyncio.run(both())
    assert broken.state == "failed" and str(broken.error).startswith("unforeseen: ")
    assert (work.state, steps, work.asked.conditions) == ("completed", 5, {})


@pytest.mark.slow
def test_a_process_that_opens_another_model_makes_nothing(tmp_path):
    marker = tmp_path / "opened"
    marker.write_text("")
    with servers.service(open_pipeline=partial(changing, marker)) as service:
        service.worker._process.kill()
        work, _ = asyncio.run(outcome(service.worker, service.ready))
        assert work.state == "failed" and not service.worker.alive and len(marker.read_text()) == 3
