"""A server under load: `python -m cdiff_rt.bench.serving --address http://127.0.0.1:8000 --clients 8 --seconds 60`.

Every client asks again as soon as it has an answer, or when a while has passed since it was refused.
"""

import argparse
import http.client
import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

from cdiff_rt.bench.startup import TEXT

PATH = "/v1/images/generations"
ALONE = 5  # requests by which the time of one is found
PAUSE = 0.15  # seconds after a refusal


@dataclass
class Load:
    """Seconds of each answer, by its status."""

    alone: float  # of one request while there is no other, the median
    recovered: float = 0.0  # of one after the load
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def quantile(self, status: int, share: float) -> float:
        return float(np.quantile(self.seconds.get(status, [0.0]), share))

    def __str__(self) -> str:
        lines = [f"alone: {1000 * self.alone:.0f} ms"]
        for status, found in sorted(self.seconds.items()):
            shares = (f"p{100 * share:.0f} {1000 * self.quantile(status, share):.0f} ms" for share in (0.5, 0.99))
            lines.append(f"{status}: {len(found)} answers, {', '.join(shares)}")
        return "\n".join([*lines, f"after the load: {1000 * self.recovered:.0f} ms"])


def ask(address: str, body: dict[str, object]) -> tuple[int, float]:
    """Status and seconds of a request on a connection of its own."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=600)
    try:
        connection.request("POST", PATH, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, time.perf_counter() - began
    finally:
        connection.close()


def load(address: str, body: dict[str, object], clients: int, seconds: float) -> Load:
    found = Load(float(np.median([ask(address, body)[1] for _ in range(ALONE)])))
    end, lock = time.perf_counter() + seconds, threading.Lock()

    def client() -> None:
        while time.perf_counter() < end:
            status, took = ask(address, body)
            with lock:
                found.seconds.setdefault(status, []).append(took)
            if status != 200:
                time.sleep(PAUSE)

    together(threading.Thread(target=client) for _ in range(clients))
    found.recovered = ask(address, body)[1]
    return found


def together(threads: Iterable[threading.Thread]) -> None:
    started = list(threads)
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tier", default="turbo")
    how = parser.parse_args()
    print(load(how.address, {"prompt": TEXT, "tier": how.tier}, how.clients, how.seconds))


if __name__ == "__main__":
    main()
