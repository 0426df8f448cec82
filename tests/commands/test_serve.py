import socket

import pytest

from tests.command_line import check_refused, run

VARIABLE, TOKEN = "CDIFF_RT_TOKEN", "a-token-that-nobody-guesses"


@pytest.fixture
def served(monkeypatch):
    """What the server would have been started with."""
    found = []
    monkeypatch.setattr("cdiff_rt.serve.server.serve", lambda opened, **how: found.append(how) or 0)
    monkeypatch.delenv(VARIABLE, raising=False)
    return found


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "faces.example.org"])
def test_others_are_let_in_by_a_token_only(host, served, monkeypatch, tmp_path):
    check_refused(run("serve", "--host", host), 2, "there is no token", "--token-file")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert run("serve", "--host", host, "--token-file", tmp_path / "token").exit_code == 0
    monkeypatch.setenv(VARIABLE, TOKEN)
    assert run("serve", "--host", host).exit_code == 0
    assert [how["rules"].token for how in served] == [TOKEN, TOKEN]


def test_on_this_machine_no_token_is_needed_and_options_arrive(served):
    assert run("serve", "--host", "localhost").exit_code == run("serve").exit_code == 0
    assert run("serve", "--queue", 3, "--keep", 5, "--largest-body", 2, "--log-prompts", "--port", 0).exit_code == 0
    *_, last = served
    assert (last["limits"].queue, last["limits"].keep, last["limits"].body) == (3, 5.0, 2**21)
    assert last["log_prompts"] and last["port"] == 0 and last["rules"].token is None


@pytest.mark.parametrize("token", ["", "short", "with a space in the middle", "é" * 20, "a\nb" * 10])
def test_a_token_that_is_none_is_refused(token, served, tmp_path, monkeypatch):
    (tmp_path / "token").write_text(token)
    result = run("serve", "--token-file", tmp_path / "token")
    check_refused(result, 3, "token")
    assert served == []
    if token:
        monkeypatch.setenv(VARIABLE, token)
        check_refused(run("serve"), 3, VARIABLE)


def test_a_token_is_never_told(served, tmp_path):
    (tmp_path / "token").write_text("secret 1234567890 secret")
    assert "secret" not in run("serve", "--token-file", tmp_path / "token").stderr.replace(
        "import secrets", ""
    ).replace("secrets.token", "")


def test_a_port_that_is_taken_and_a_model_that_is_none_are_told_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        check_refused(run("serve", "--port", taken.getsockname()[1]), 2, "address", "--port")
    check_refused(run("serve", "--port", 0, "--model", tmp_path), 4, "manifest")
