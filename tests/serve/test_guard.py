"""Who may ask, how large and how slow a request may be; request ids, and what the log says."""

import json
import logging
import socket
import time

import httpx
import pytest

from cdiff_rt.serve.guard import Rules, is_loopback, requests_log
from tests.serve import servers

GENERATIONS = "/v1/images/generations"
BODY = {"prompt": "This man has a long beard.", "steps": 5}
TOKEN = "a-token-that-nobody-guesses"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "[::1]:8000", "LocalHost", "127.3.2.1"])
def test_this_machines_own_names_are_answered(host, client):
    assert client.get("/v2/health/live", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "localhost@evil.example", "a b", "", "[x]"]
)
def test_a_name_that_was_pointed_here_is_not(host, client):
    refused = client.post(GENERATIONS, json=BODY, headers={"host": host})
    assert refused.status_code == 421 and refused.json()["error"]["code"] == "bad_host"


def test_names_that_were_allowed_are_answered_and_all_where_the_server_cannot_know_its_own(service):
    for rules, host, status in [
        (Rules({"faces.example"}), "faces.example:80", 200),
        (Rules({"faces.example"}), "other.example", 421),
        (Rules(any_host=True, token=TOKEN), "other.example", 200),
    ]:
        with servers.client(service, rules) as asking:
            assert asking.get("/v2/health/live", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example", "content-type": "text/plain"},
    ],
    ids=str,
)
def test_a_page_of_another_site_is_refused(headers, client):
    for method in ("POST", "GET", "OPTIONS", "DELETE"):
        refused = client.request(method, GENERATIONS, json=BODY, headers=headers)
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "bad_origin"
        assert not [name for name in refused.headers if name.startswith("access-control")]


def test_a_page_of_this_server_may_ask(client):
    own = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
    assert client.post(GENERATIONS, json=BODY, headers=own).status_code == 200


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", "Bearer é"])
def test_a_token_is_asked_for(given, service):
    with servers.client(service, Rules(token=TOKEN)) as asking:
        headers = {} if given is None else {"authorization": given.encode()}
        for path in ("/v1/models", "/metrics", "/docs", "/v1/jobs", "/nothing"):
            refused = asking.get(path, headers=headers)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert asking.get("/v2/health/ready").status_code == 200
        assert asking.get("/v1/models", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_request_has_an_id(client):
    assert client.get("/v1/models", headers={"x-request-id": "mine-1.2_3"}).headers["x-request-id"] == "mine-1.2_3"
    for bad in ("a b", "x" * 200, "a\tb"):
        assert len(client.get("/nothing", headers={"x-request-id": bad}).headers["x-request-id"]) == 32


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(requests_log, "propagate", True)
    monkeypatch.setattr(requests_log, "handlers", [])
    caplog.set_level(logging.INFO, requests_log.name)
    return lambda: [json.loads(each.message) for each in caplog.records if each.name == requests_log.name]


def test_the_log_has_a_line_of_json_for_each_request_without_its_sentence(client, service, lines, monkeypatch):
    client.post(GENERATIONS, json=BODY, headers={"x-request-id": "one"})
    client.post(GENERATIONS, json={"prompt": BODY["prompt"], "steps": 0})
    client.get("/v1/models%0a{}")
    made, refused, _ = lines()
    assert (made["request_id"], made["status"], made["op"], made["steps"]) == ("one", 200, "generate", 5)
    assert refused["status"] == 400 and "beard" not in json.dumps(lines())
    monkeypatch.setattr(service, "_log_prompts", True)
    client.post(GENERATIONS, json=BODY)
    assert lines()[-1]["prompt"] == BODY["prompt"]


def test_an_error_that_nobody_foresaw_is_one_requests(client, service, lines, monkeypatch):
    monkeypatch.setattr(service.worker, "check_room", lambda: 1 / 0)
    failed = client.post(GENERATIONS, json=BODY)
    assert failed.status_code == 500 and failed.json()["error"]["message"].startswith("unforeseen: ZeroDivisionError")
    monkeypatch.undo()
    assert client.post(GENERATIONS, json=BODY).status_code == 200


@pytest.mark.parametrize("length", ["-1", "1e9", "9" * 30, str(2**20 + 1)])
def test_a_length_that_is_too_large_or_none_is_refused_before_the_body(length, service):
    with servers.listening(service) as address, raw(address) as connection:
        connection.sendall(
            f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        assert connection.recv(4096).split()[1] in (b"413", b"400")


# --- slow clients, on real sockets -----------------------------------------------------------------------------------


def raw(address):
    _, _, port = address.rpartition(":")
    return socket.create_connection(("127.0.0.1", int(port)), timeout=5)


def test_a_body_that_drips_is_refused(service):
    with servers.listening(service, body_seconds=0.3) as address, raw(address) as connection:
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        connection.sendall(head.encode())
        began = time.monotonic()
        for _ in range(3):
            connection.sendall(b" ")
            time.sleep(0.05)
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408") and b"connection: close" in answer
        assert 0.25 < time.monotonic() - began < 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: lo", b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET"]
)
def test_a_head_that_drips_ends_the_connection(sent, service, monkeypatch):
    monkeypatch.setattr("cdiff_rt.serve.server.HEAD_SECONDS", 0.3)
    with servers.listening(service) as address, raw(address) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        try:
            for _ in range(40):
                connection.sendall(b"a" if sent else b"")
                time.sleep(0.05)
                connection.setblocking(False)
                try:
                    if connection.recv(4096) == b"":
                        break
                except BlockingIOError:
                    pass
                connection.setblocking(True)
        except OSError:
            pass
        assert 0.2 < time.monotonic() - began < 1.5


@pytest.mark.slow
def test_a_client_that_does_not_read_is_left(service, monkeypatch):
    monkeypatch.setattr("cdiff_rt.serve.server.READ_SECONDS", 0.3)
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with servers.listening(service) as address, raw(address) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(request * 1000)  # whose answers are more than a system keeps for a client
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                connection.sendall(b"x")
            except OSError:
                break
        else:
            raise AssertionError("the connection is still there")
        assert httpx.get(f"{address}/v2/health/live").status_code == 200


@pytest.mark.slow
def test_two_requests_at_once_on_one_connection_are_answered_in_turn(service):
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with servers.listening(service) as address, raw(address) as connection:
        connection.sendall(request * 3)
        time.sleep(0.3)
        assert connection.recv(65536).count(b'{"live": true}') == 3


def test_addresses_of_this_machine():
    assert all(map(is_loopback, ("127.0.0.1", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.evil.example")))
