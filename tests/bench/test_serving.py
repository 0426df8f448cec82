import pytest

from cdiff_rt.bench.serving import load
from cdiff_rt.serve.limits import Limits
from tests.serve import servers


@pytest.mark.slow
def test_answers_are_counted_by_their_status_and_timed():
    with servers.service(0.01, Limits(queue=1)) as service, servers.listening(service) as address:
        found = load(address, {"prompt": "a man", "steps": 5}, clients=6, seconds=1)
    assert found.seconds.keys() == {200, 503} and min(found.alone, found.recovered) > 0.05
    assert found.quantile(503, 0.5) < found.alone < found.quantile(200, 0.5)
    assert str(found).startswith("alone: ") and f"503: {len(found.seconds[503])} answers" in str(found)
