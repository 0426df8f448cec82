"""The addresses: what OpenAI's client asks, jobs, health, and errors in one shape with the words of the command line."""

import base64
import io
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from cdiff_rt.serve.asked import asked_of
from tests import bad_files
from tests.command_line import run
from tests.serve import servers, standin

SENTENCE = "This man has a long beard."
QUICK = {"prompt": SENTENCE, "tier": "turbo"}
GENERATIONS, EDITS, JOBS = "/v1/images/generations", "/v1/images/edits", "/v1/jobs"


def png(array):
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()


def coded(content):
    return base64.b64encode(content).decode()


def pixels(told):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(told))))


def error_of(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]


@pytest.fixture
def ours(service):
    """The unmodified client of OpenAI's, asking a server that listens."""
    with servers.listening(service) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)


@pytest.fixture
def photo():
    return png(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8))


# --- OpenAI's client -------------------------------------------------------------------------------------------------


def test_openais_client_makes_images(ours, mask):
    more = {"tier": "turbo", "seed": 3, "mask": coded(png(mask)), "influence": {"text": 2}}
    made = ours.images.generate(prompt=SENTENCE, n=2, size="128x128", response_format="b64_json", extra_body=more)
    first, second = (pixels(each.b64_json) for each in made.data)
    assert first.shape == (128, 128, 3) and not np.array_equal(first, second) and made.seed == 3
    record = json.loads(Image.open(io.BytesIO(base64.b64decode(made.data[1].b64_json))).text["cdiff_rt"])
    assert (record["seed"], record["image"], record["influence"], record["tier"]) == (3, 1, ["text=2"], "turbo")


def test_openais_client_streams(ours):
    asked = {"prompt": SENTENCE, "stream": True, "partial_images": 2, "extra_body": {"steps": 8}}
    *partial, completed = list(ours.images.generate(**asked))
    assert [each.type for each in partial] == ["image_generation.partial_image"] * 2
    assert [each.partial_image_index for each in partial] == [0, 1]
    assert (completed.type, completed.usage.total_tokens) == ("image_generation.completed", 0)
    assert all(pixels(each.b64_json).shape == (128, 128, 3) for each in [*partial, completed])
    whole = ours.images.generate(prompt=SENTENCE, extra_body={"steps": 8})
    assert np.array_equal(pixels(completed.b64_json), pixels(whole.data[0].b64_json))
    assert not np.array_equal(pixels(partial[0].b64_json), pixels(partial[1].b64_json))


def test_openais_client_edits(ours, photo, mask):
    more = {"tier": "turbo", "alphas": "0,1", "source_text": "a man", "source_mask": coded(png(mask))}
    made = ours.images.edit(image=("face.png", photo), mask=("m.png", png(mask)), prompt=SENTENCE, extra_body=more)
    assert len(made.data) == 2
    record = json.loads(Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json))).text["cdiff_rt"])
    assert record["edit"]["alphas"] == [0.0, 1.0] and record["inputs"]["image"]["file"] == "face.png"
    events = ours.images.edit(image=photo, prompt=SENTENCE, stream=True, partial_images=1, extra_body=more)
    assert [each.type for each in events] == ["image_edit.partial_image", *["image_edit.completed"] * 2]


def test_openais_client_gets_our_errors_as_its_own(ours):
    with pytest.raises(openai.BadRequestError, match="steps: 0 is outside") as refused:
        ours.images.generate(prompt=SENTENCE, extra_body={"steps": 0})
    assert refused.value.code == "bad_request" and refused.value.param == "steps"
    with pytest.raises(openai.NotFoundError, match="here is faces-128"):
        ours.images.generate(prompt=SENTENCE, model="gpt-image-1")
    with pytest.raises(openai.UnprocessableEntityError, match="not an image|cannot be read"):
        list(ours.images.generate(prompt=SENTENCE, stream=True, extra_body={"mask": coded(b"no picture")}))
    assert [model.id for model in ours.models.list()] == ["faces-128"] and ours.models.retrieve("faces-128").created


# --- what is accepted and refused ------------------------------------------------------------------------------------


def test_json_and_a_form_with_the_same_content_make_the_same_image(client, mask):
    content = png(mask)
    body = QUICK | {"mask": coded(content), "region": [f"text={coded(png(mask * 13))}:at-least=0.5"]}
    as_json = client.post(GENERATIONS, json=body)
    fields = {"prompt": SENTENCE, "quality": "low", "influence[text]": "1", "region": body["region"][0]}
    as_form = client.post(GENERATIONS, data=fields, files={"mask": ("m.png", content)})
    as_url = client.post(GENERATIONS, json=body | {"mask": f"data:image/png;base64,{coded(content)}"})
    images = [pixels(each.json()["data"][0]["b64_json"]) for each in (as_json, as_form, as_url)]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


MASKS = {name: row for name, row in bad_files.MASKS.items() if name not in bad_files.NO_FILES}


@pytest.mark.parametrize("name", MASKS)
def test_a_bad_mask_is_refused_in_the_words_of_the_command_line(name, tmp_path, client):
    write, words = MASKS[name]
    write(path := tmp_path / "bad.png")
    content = path.read_bytes()
    error = error_of(client.post(GENERATIONS, data=QUICK, files={"mask": (path.name, content)}), 422)
    assert error["code"] == "bad_input" and [word for word in words if word not in error["message"]] == []
    told = run("generate", "--mask", path, "--text", SENTENCE, "--tier", "turbo", "--out", tmp_path / "out")
    assert told.stderr.splitlines()[-1] == f"error: {' '.join(error['message'].split())}"


TEXTS = {
    "empty": ("", "it is empty"),
    "spaces": ("  \t ", "it is empty"),
    "too long": ("a" * 4097, "4097 characters; use at most 4096"),
    "NUL": ("a\0b", "control character U+0000 at position 1"),
    "half a character": ("a\ud800", "half a character, U+D800, at position 1"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_bad_sentence_is_refused_in_the_words_of_the_command_line(name, client):
    text, words = TEXTS[name]
    body = json.dumps({"text": text}).encode()
    response = client.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
    assert error_of(response, 422)["message"].startswith(f"text: {words}")


def test_half_a_character_in_a_name_is_told_all_the_same(client):
    body = json.dumps({"text": SENTENCE, "influence": {"\ud800": "x"}}).encode()
    refused = client.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
    assert error_of(refused, 400)["message"].startswith("influence of \ud800: 'x' is no number")


@pytest.mark.parametrize("text", ["محمد 👨‍🦰 é", "../../x %s -rf", "word " * 200])
def test_an_odd_sentence_is_made_and_warned_of(text, client):
    told = client.post(GENERATIONS, json=QUICK | {"prompt": text}).json()
    assert len(told["data"]) == 1 and any("text: " in each for each in told["warnings"])


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({"steps": 1.5}, 400, "steps: 1.5; give a whole number"),
        ({"steps": 1001}, 400, "steps: 1001"),
        ({"seed": -1}, 400, "seed: -1 is outside 0-2^63-1"),
        ({"seed": 2**63}, 400, "seed"),
        ({"eta": -1}, 400, "eta: -1.0 is outside 0-1"),
        ({"n": 0}, 400, "batch: 0 is outside 1-256"),
        ({"n": 257}, 400, "batch: 257 is outside 1-256"),
        ({"num_inference_steps": 10}, 400, "it is called steps here"),
        ({"size": "1024x1024"}, 400, "size: '1024x1024'; choose one of auto, 128x128"),
        ({"quality": "high", "steps": 3}, 400, "quality: steps is given too"),
        ({"text": "a man"}, 400, "prompt: text is given too"),
        ({"response_format": "url"}, 400, "response_format"),
        ({"inpaint": ""}, 400, "inpaint and keep go together"),
        ({"stream": "yes"}, 400, "stream: 'yes'; give true or false"),
        ({"deadline": "soon"}, 400, "deadline: 'soon'; give a number"),
        ({"mask": "examples/1.png"}, 422, "mask: 'examples/1.png' is not base64; a request names no files"),
        ({"mask": "https://example.org/mask.png"}, 422, "is not base64; a request names no files"),
        ({"mask": "file:///etc/passwd"}, 422, "is not base64; a request names no files"),
        ({"mask": 7}, 422, "mask: 7; give a string of base64"),
        ({"region": "text=examples/1.png:only"}, 422, "region of text: 'examples/1.png' is not base64"),
        ({"labels": "../../etc/passwd"}, 400, "is no order; give celebamask"),
        ({"labels": "pyproject.toml"}, 400, "is no order; give celebamask"),
        ({"influence": "found.json"}, 400, "influence: 'found.json'; write a condition's weight"),
        ({"influence": ["found.json"]}, 400, "influence: 'found.json'"),
        ({"influence": {"found.json": 1}}, 400, "faces-128 knows mask, text"),
        ({"id": "a", "meta": 1}, 400, "argument: 'id'"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_bad_request_is_refused(more, status, words, client):
    tier = {} if {"steps", "eta", "quality"} & more.keys() else {"tier": "turbo"}
    error = error_of(client.post(GENERATIONS, json={"prompt": SENTENCE} | tier | more), status)
    assert words in error["message"] and error["type"] == "invalid_request_error"


def test_no_file_of_the_server_is_opened_for_a_name_that_a_client_gives(client, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("order.txt", "found.json", "mask.png"):
        (tmp_path / name).write_text("0=background")
    opened = []
    real = open
    monkeypatch.setattr("builtins.open", lambda file, *a, **k: opened.append(str(file)) or real(file, *a, **k))
    for more in ({"labels": "order.txt"}, {"influence": "found.json"}, {"mask": "mask.png"}, {"mask": "../mask.png"}):
        assert client.post(GENERATIONS, json=QUICK | more).status_code in (400, 422)
    assert [name for name in opened if name.startswith((str(tmp_path), "order", "found", "mask", ".."))] == []


def test_an_edit_needs_a_picture_and_a_condition(client, photo):
    assert "image: none is given" in error_of(client.post(EDITS, json={"prompt": SENTENCE}), 400)["message"]
    assert "conditions: none given" in error_of(client.post(EDITS, json={"image": coded(photo)}), 400)["message"]
    two = [("image[]", ("a.png", photo)), ("image[]", ("b.png", photo))]
    refused = client.post(EDITS, data={"prompt": SENTENCE}, files=two)
    assert "one file of a form" in error_of(refused, 422)["message"]
    several = error_of(client.post(EDITS, data={"prompt": SENTENCE, "n": "2"}, files={"image": photo}), 400)
    assert several["message"].startswith("n: 2 for an edit")


def test_a_condition_may_have_the_name_of_a_field_of_openais(bundle):
    modalities = tuple(
        replace(each, name={"text": "size"}.get(each.name, each.name)) for each in bundle.manifest.modalities
    )
    named = SimpleNamespace(**vars(bundle.manifest) | {"modalities": modalities})
    named.networks = {**bundle.manifest.networks, "condition.size": bundle.manifest.networks["condition.text"]}
    asked = asked_of({"size": SENTENCE, "n": 2}, named, "generate")
    assert (asked.conditions, asked.settings.batch) == ({"size": SENTENCE}, 2)


def test_a_random_seed_is_told(client):
    seeds = {client.post(GENERATIONS, json=QUICK | {"seed": "random"}).json()["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert client.post(GENERATIONS, json=QUICK).json()["seed"] == 0


def test_an_inpainting_comes_as_two_pictures(client, photo):
    keep = png(np.full((128, 128), 255, np.uint8))
    made = client.post(GENERATIONS, json=QUICK | {"inpaint": coded(photo), "keep": coded(keep)})
    assert made.status_code == 200 and len(made.json()["data"]) == 1


# --- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "bad_json"),
        (b"[]", "application/json", 400, "bad_json"),
        (b"\xff", "application/json", 400, "bad_json"),
        (b'{"steps": NaN}', "application/json", 400, "bad_json"),
        (b'{"seed": 1, "seed": 2}', "application/json", 400, "bad_json"),
        (b"[" * 100_000, "application/json", 400, "bad_json"),
        (b'{"prompt": "a"}', "text/plain", 415, "bad_content_type"),
        (b"prompt=a", "application/x-www-form-urlencoded", 415, "bad_content_type"),
        (b"rubbish", "multipart/form-data", 400, "bad_form"),
        (b"rubbish", "multipart/form-data; boundary=x", 400, "bad_form"),
        (b"a" * (2**20 + 1), "application/json", 413, "too_large"),
    ],
    ids=lambda value: f"{value[:12]!r}" if isinstance(value, bytes) else str(value),
)
def test_a_body_that_is_none_is_refused(content, kind, status, code, client):
    response = client.post(GENERATIONS, content=content, headers={"content-type": kind})
    assert error_of(response, status)["code"] == code


def test_a_body_without_a_length_is_counted_as_it_comes(client):
    parts = (b" " * 2**16 for _ in range(20))
    response = client.post(GENERATIONS, content=parts, headers={"content-type": "application/json"})
    assert error_of(response, 413)["code"] == "too_large"


# --- jobs ------------------------------------------------------------------------------------------------------------


def until(client, job, *states):
    for _ in range(500):
        told = client.get(f"{JOBS}/{job}").json()
        if told["status"] in states:
            return told
        time.sleep(0.01)
    raise AssertionError(told)


def test_a_job_is_made_without_anybody_waiting(client):
    queued = client.post(JOBS, json=QUICK)
    job = queued.json()["id"]
    assert queued.status_code == 202 and queued.headers["location"] == f"{JOBS}/{job}"
    told = until(client, job, "completed")
    assert told["progress"] == {"done": 10, "of": 10} and told["op"] == "generate"
    assert job in [each["id"] for each in client.get(JOBS).json()["data"]]
    made, direct = client.get(f"{JOBS}/{job}/result").json(), client.post(GENERATIONS, json=QUICK).json()
    assert made["data"] == direct["data"]
    assert client.delete(f"{JOBS}/{job}").json()["deleted"]
    assert error_of(client.get(f"{JOBS}/{job}"), 404)["code"] == "job_not_found"


def test_a_job_with_a_picture_is_an_edit_and_one_that_fails_says_why(client, photo):
    fields = {"prompt": SENTENCE, "tier": "turbo", "source_text": "a man"}
    job = client.post(JOBS, data=fields, files={"image": photo}).json()
    assert job["op"] == "edit" and until(client, job["id"], "completed")["progress"] == {"done": 20, "of": 20}
    bad = client.post(JOBS, json=QUICK | {"mask": coded(b"no picture")}).json()["id"]
    assert until(client, bad, "failed")["error"]["code"] == "bad_input"
    assert error_of(client.get(f"{JOBS}/{bad}/result"), 422)["code"] == "bad_input"


@pytest.mark.slow
def test_a_running_job_is_cancelled_after_its_step(slow):
    with servers.client(slow) as client:
        job = client.post(JOBS, json={"prompt": SENTENCE, "steps": 500}).json()["id"]
        until(client, job, "running")
        assert error_of(client.get(f"{JOBS}/{job}/result"), 409)["code"] == "not_ready"
        client.delete(f"{JOBS}/{job}")
        began = time.monotonic()
        assert client.post(GENERATIONS, json={"prompt": SENTENCE, "steps": 1}).status_code == 200
        assert time.monotonic() - began < 4.0  # and not 500 steps of 20 ms


def test_results_are_forgotten_when_they_are_old_or_too_large(service, client, monkeypatch):
    job = client.post(JOBS, json=QUICK).json()["id"]
    until(client, job, "completed")
    monkeypatch.setattr("cdiff_rt.serve.app.KEPT_BYTES", 10)
    assert error_of(client.get(f"{JOBS}/{job}"), 404)["code"] == "job_not_found"
    monkeypatch.undo()
    job = client.post(JOBS, json=QUICK).json()["id"]
    until(client, job, "completed")
    service._jobs[job].ended -= 61
    assert client.get(f"{JOBS}/{job}").status_code == 404


# --- overload, deadlines, clients that leave -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(slow):
    with servers.client(slow) as client:
        jobs = [client.post(JOBS, json={"prompt": SENTENCE, "steps": 100}).json()["id"] for _ in range(5)]
        times = []
        for _ in range(20):
            began = time.monotonic()
            refused = client.post(GENERATIONS, json=QUICK)
            times.append(time.monotonic() - began)
            assert error_of(refused, 503)["code"] == "queue_full" and int(refused.headers["retry-after"]) >= 1
        assert sorted(times)[len(times) // 2] < 0.05
        assert servers.metric(client.get("/metrics").text, 'cdiff_rejected_total{reason="queue_full"}') >= 20
        assert servers.metric(client.get("/metrics").text, "cdiff_requests_waiting") == 4
        for job in jobs:
            client.delete(f"{JOBS}/{job}")


@pytest.mark.slow
def test_a_request_that_waited_too_long_is_not_begun(slow, slow_address):
    job = httpx.post(f"{slow_address}{JOBS}", json={"prompt": SENTENCE, "steps": 500}).json()["id"]
    began = time.monotonic()
    late = httpx.post(f"{slow_address}{GENERATIONS}", json=QUICK, headers={"x-deadline": "0.2"})
    assert error_of(late, 504)["code"] == "deadline" and 0.2 <= time.monotonic() - began < 5  # of 10 s
    assert httpx.get(f"{slow_address}{JOBS}/{job}").json()["status"] == "running"
    httpx.delete(f"{slow_address}{JOBS}/{job}")


@pytest.mark.slow
def test_a_client_that_leaves_frees_the_worker_within_a_step(slow, slow_address):
    for more in ({}, {"stream": True, "partial_images": 1}):
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{slow_address}{GENERATIONS}", json={"prompt": SENTENCE, "steps": 500} | more, timeout=0.4)
        began = time.monotonic()
        while not slow.worker.idle and time.monotonic() - began < 5:
            time.sleep(0.005)
        assert time.monotonic() - began < 4.0  # of 10 s


@pytest.mark.slow
def test_a_process_that_dies_is_started_anew_and_its_request_is_made(slow, slow_address):
    expected = servers.ask(slow_address, prompt=SENTENCE, steps=40).json()["data"]
    found = []
    thread = threading.Thread(target=lambda: found.append(servers.ask(slow_address, prompt=SENTENCE, steps=40)))
    thread.start()
    time.sleep(0.3)
    slow.worker._process.kill()
    thread.join()
    assert found[0].json()["data"] == expected and slow.worker.alive


@pytest.mark.slow
def test_a_request_that_kills_every_process_is_refused(slow_address):
    error = error_of(servers.ask(slow_address, prompt=standin.DEADLY), 500)
    assert error["code"] == "worker_died" and error["type"] == "server_error"
    assert servers.ask(slow_address, prompt=SENTENCE, steps=1).status_code == 200


# --- about the server ------------------------------------------------------------------------------------------------


def test_health_and_metrics(service, client):
    assert client.get("/v2/health/live").json() == {"live": True} and client.get("/v2/health/ready").status_code == 200
    client.post(GENERATIONS, json=QUICK | {"n": 3})
    told = client.get("/metrics").text
    assert servers.metric(told, 'cdiff_requests_total{op="generate",outcome="completed"}') >= 1
    assert servers.metric(told, 'cdiff_step_seconds_count{backend="onnxruntime"}') >= 10
    assert servers.metric(told, "cdiff_build_info") == 1 and servers.metric(told, 'cdiff_batch_size_bucket{le="4.0"}')
    assert SENTENCE not in told


def test_what_is_not_there_is_told_in_the_same_shape(client):
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error_of(client.get(GENERATIONS), 405)["message"].startswith("address: there is no GET")
    assert error_of(client.get("/v1/../../etc/passwd"), 404) and error_of(client.get("/%2e%2e/%2e%2e/etc/passwd"), 404)


def test_a_server_that_ends_takes_nothing_new(service, client, monkeypatch):
    monkeypatch.setattr(service, "draining", True)
    assert client.get("/v2/health/ready").status_code == 503 and client.get("/v2/health/live").status_code == 200
    refused = client.post(GENERATIONS, json=QUICK)
    assert error_of(refused, 503)["code"] == "draining" and refused.headers["retry-after"]


@pytest.mark.slow
def test_the_embedded_model_makes_the_images_of_the_command_line(tmp_path, pipeline):
    """On its own backend, in a process of its own."""
    from functools import partial

    from cdiff_rt.pipeline import Pipeline

    with servers.service(open_pipeline=partial(Pipeline.from_pretrained)) as real, servers.client(real) as client:
        told = client.post(GENERATIONS, json=QUICK | {"seed": 5}).json()["data"][0]["b64_json"]
    run("--quiet", "generate", "--text", SENTENCE, "--tier", "turbo", "--seed", "5", "--out", tmp_path / "face.png")
    assert base64.b64decode(told) == Path(tmp_path / "face.png").read_bytes()
