from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cdiff_rt.sampling.experts import Experts

X = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
ROWS = [np.arange(10.0).reshape(5, 2), 100 + np.arange(15.0).reshape(5, 3)]
CONTEXTS = [np.full((2, 4, 6), 0.5), np.full((2, 7, 6), 0.25)]


def engine(x, projections, context):
    assert len(projections) == 1
    return {"out": x * projections.sum(), "logit": x[:, :1] + context.sum()}


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("step", [0, 4])
def test_every_expert_gets_its_own_context_and_the_steps_row(step, side_by_side):
    with ThreadPoolExecutor(2) as pool:
        experts = Experts(("a", "b"), [engine, engine], CONTEXTS, ROWS, pool.map if side_by_side else map)
        outs, logits = experts(X, step)
    np.testing.assert_array_equal(outs, [X * ROWS[0][step].sum(), X * ROWS[1][step].sum()])
    np.testing.assert_array_equal(logits, [X[:, :1] + 24, X[:, :1] + 21])
