"""The server as a process: how it begins and ends, and what it keeps up under more than it can do."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cdiff_rt.bench.serving import load
from cdiff_rt.serve.limits import Limits
from tests.serve import servers

ROOT = Path(__file__).parents[2]
GENERATIONS = "/v1/images/generations"
BODY = {"prompt": "This man has a long beard.", "tier": "turbo"}
COMMAND = [sys.executable, "-m", "cdiff_rt", "serve", "--port", "0"]
STANDIN = """
import sys
from functools import partial
from cdiff_rt.serve.guard import Rules
from cdiff_rt.bench.serving import load
from cdiff_rt.serve.limits import Limits
from cdiff_rt.serve.server import serve
from cdiff_rt.notes import log
from tests.serve import standin
import logging
if __name__ == "__main__":
    logging.basicConfig()
    log.setLevel(logging.INFO)
    sys.exit(serve(partial(standin.opened, 0.02), host="127.0.0.1", port=0, rules=Rules(), limits=Limits()))
"""


@contextmanager
def process(command):
    """A server in a process of its own, and its address; it is ended with the block."""
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        try:
            lines = iter(running.stderr.readline, "")
            address = next(found[0] for line in lines if (found := re.search(r"http://[\d.:]+", line)))
            threading.Thread(target=lambda: running.stderr.read(), daemon=True).start()
            yield running, address
        finally:
            running.kill()


@pytest.fixture
def standin_process(tmp_path):
    (tmp_path / "server.py").write_text(STANDIN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["env", f"PYTHONPATH={environment['PYTHONPATH']}", sys.executable, str(tmp_path / "server.py")]
    with process(command) as made:
        yield made


@pytest.mark.slow
def test_what_was_accepted_is_finished_after_a_signal_and_the_server_is_not_ready_meanwhile(standin_process):
    running, address = standin_process
    job = httpx.post(f"{address}/v1/jobs", json={"prompt": "a man", "steps": 40}).json()["id"]
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(servers.ask, address, prompt="a man", steps=20) for _ in range(3)]
        while servers.metric(httpx.get(f"{address}/metrics").text, "cdiff_requests_waiting") < 3:
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert httpx.get(f"{address}/v2/health/ready").status_code == 503
        assert servers.ask(address, prompt="a man").json()["error"]["code"] == "draining"
        assert [each.result().status_code for each in waiting] == [200, 200, 200]
    assert running.poll() is None  # until the job is fetched, or for a while
    assert httpx.get(f"{address}/v1/jobs/{job}/result").status_code == 200
    assert running.wait(15) == 0


@pytest.mark.slow
def test_a_second_signal_stops_at_once(standin_process):
    running, address = standin_process
    httpx.post(f"{address}/v1/jobs", json={"prompt": "a man", "steps": 500})
    running.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert running.poll() is None
    began = time.monotonic()
    running.send_signal(signal.SIGTERM)
    assert running.wait(9) == 128 + signal.SIGTERM and time.monotonic() - began < 8


@pytest.mark.slow
def test_the_command_serves_and_its_engine_ends_with_it():
    with process(COMMAND) as (running, address):
        assert httpx.post(f"{address}{GENERATIONS}", json=BODY, timeout=60).status_code == 200
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        assert children
        running.kill()
        running.wait()
        until = time.monotonic() + 5
        while time.monotonic() < until and any(map(alive, children)):
            time.sleep(0.05)
        assert not any(map(alive, children))


def alive(process_id):
    try:
        return "Z" not in Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# --- long ------------------------------------------------------------------------------------------------------------


def kilobytes(process_id="self"):
    """Of memory that is resident."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process_id}/status").read_text())[1])


def soak(service, address, requests, clients=8, *, kill_at=(), leak=None):
    """Requests of several clients, some of which leave; whether each of the others got its own image, and how memory grew."""
    expected = {seed: servers.ask(address, prompt="a man", steps=5, seed=seed).json()["data"] for seed in range(20)}
    chance, lock, grown, counts = random.Random(0), threading.Lock(), [], {"made": 0, "left": 0, "retried": 0}
    todo = iter(range(requests))

    def one(asking, number):
        seed, leaves = number % 20, chance.random() < 0.2
        while True:
            try:
                body = {"prompt": "a man", "steps": 5, "seed": seed}
                answer = asking.post(f"{address}{GENERATIONS}", json=body, timeout=0.005 if leaves else 60)
            except httpx.TimeoutException:
                return "left"
            if answer.status_code == 503:  # as its Retry-After says, but sooner
                counts["retried"] += 1
                time.sleep(0.02)
                continue
            assert answer.status_code == 200 and answer.json()["data"] == expected[seed], answer.text[:300]
            return "made"

    def numbers():
        while True:
            with lock:
                number = next(todo, None)
            if number is None:
                return
            yield number

    def client():
        with httpx.Client() as asking:
            for number in numbers():
                if number in kill_at:
                    service.worker._process.kill()
                if leak is not None:
                    leak.append(bytes(100_000))
                came_to = one(asking, number)
                with lock:
                    counts[came_to] += 1
                    grown.append(kilobytes() + kilobytes(service.worker._process.pid))

    with ThreadPoolExecutor(clients) as pool:
        for each in [pool.submit(client) for _ in range(clients)]:
            each.result()
    half = grown[len(grown) // 2 :]
    tenth = max(len(half) // 10, 1)
    slope = (sum(half[-tenth:]) - sum(half[:tenth])) / tenth / 1024
    return counts, slope


@pytest.mark.long
@pytest.mark.parametrize("leaking", [False, True])
def test_nothing_is_lost_doubled_or_wrong_while_clients_leave_and_the_worker_is_killed(leaking):
    with servers.service(0.001, Limits(queue=4)) as service, servers.listening(service) as address:
        counts, slope = soak(service, address, 2000, kill_at=(400, 800), leak=[] if leaking else None)
        assert counts["made"] + counts["left"] == 2000 and counts["made"] > 1000
        told = service.metrics.text().decode()
        completed = servers.metric(told, 'cdiff_requests_total{op="generate",outcome="completed"}')
        cancelled = servers.metric(told, 'cdiff_requests_total{op="generate",outcome="cancelled"}')
        assert counts["made"] + 20 <= completed and completed + cancelled <= 2020
        assert servers.metric(told, "cdiff_worker_restarts_total") == 2 and service.worker.idle
        assert (slope < 20) != leaking, f"{slope:.1f} MB"


@pytest.mark.long
def test_with_ten_times_what_it_can_do_the_queue_stays_short_and_refusals_are_quick():
    """A request takes 100 ms at least, and 24 clients ask for 100 a second. The time of one is that under the load."""
    queue, longest, services, done = 4, [0], [], threading.Event()
    with servers.service(0.01, Limits(queue=queue)) as service, servers.listening(service) as address:

        def watch():
            while not done.wait(0.005):
                longest[0] = max(longest[0], len(service.worker._waiting))
                services.append(service.worker._service)

        watching = threading.Thread(target=watch)
        watching.start()
        found = load(address, BODY, clients=24, seconds=60)
        done.set()
        watching.join()
    assert found.seconds.keys() == {200, 503} and 0 < longest[0] <= queue, str(found)
    assert found.quantile(503, 0.99) < 0.05 and len(found.seconds[503]) > 9 * len(found.seconds[200]), str(found)
    one = sorted(set(services))[int(0.99 * len(set(services)))]
    assert found.quantile(200, 0.99) <= (queue + 1) * one and found.recovered < 2 * one, f"{found}; one: {one:.3f} s"
