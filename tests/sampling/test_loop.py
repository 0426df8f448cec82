import numpy as np

from cdiff_rt.sampling.fusion import Adjustment
from cdiff_rt.sampling.loop import KnownRegion, sample
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import ddim

STEPS = 4
PLAIN = Adjustment(np.ones((STEPS, 2)), np.zeros((STEPS, 2)), np.ones((STEPS, 2)), np.ones((STEPS, 2)))
X = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)


def silent(i):
    return np.zeros_like(X)


class Blind:
    """Experts that always answer the same."""

    modalities = ("mask", "text")

    def __init__(self, outs):
        self.answer = outs, np.zeros((2, 2, 1, 4, 4), np.float32)

    def __call__(self, x, step, present):
        return self.answer


def test_experts_that_know_the_noise_lead_back_to_the_image():
    alpha_bars = Schedule().alpha_bars()
    image, eps = np.random.default_rng(1).standard_normal((2, *X.shape)).astype(np.float32)
    table = ddim(Schedule(), STEPS, eta=0.0)

    def experts(x, step, present):  # each is off by as much as the other, so that their mean is right
        return np.stack([eps - 1, eps + 1]), np.zeros((2, 2, 1, 4, 4), np.float32)

    def mixed(a):
        return np.float32(np.sqrt(a)) * image + np.float32(np.sqrt(1 - a)) * eps

    found = sample(experts, mixed(alpha_bars[table.timesteps[0]]), silent, table, PLAIN)
    np.testing.assert_allclose(found, mixed(alpha_bars[0]), atol=1e-4)


def test_noise_is_asked_for_once_a_step_in_order():
    asked = []

    def noise(i):
        asked.append(i)
        return np.zeros_like(X)

    sample(
        lambda x, step, present: (np.stack([x, x]), np.zeros((2, 2, 1, 4, 4), np.float32)),
        X,
        noise,
        ddim(Schedule(), 4),
        PLAIN,
    )
    assert asked == [0, 1, 2, 3]


def test_the_loop_stays_in_float32():
    seen, known = [], KnownRegion(X[:1], np.ones((4, 4), np.float32), silent)
    experts = Blind(np.zeros((2, *X.shape), np.float32))
    sample(experts, X, silent, ddim(Schedule(), STEPS), PLAIN, seen.append, known)
    arrays = (array for state in seen for array in (state.x, state.x0, state.influence, state.predictions))
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def test_a_callback_sees_each_branchs_own_prediction_by_name():
    outs = np.random.default_rng(3).standard_normal((2, *X.shape)).astype(np.float32)
    seen = []
    sample(Blind(outs), X, silent, ddim(Schedule(), STEPS), PLAIN, seen.append)
    assert [state.modalities for state in seen] == [("mask", "text")] * STEPS
    np.testing.assert_array_equal(seen[-1].predictions, outs)


def test_a_known_region_begins_each_step_as_q_of_x_t_and_the_rest_is_free():
    keep = np.zeros((4, 4), np.float32)
    keep[:, :2] = 1
    image, eps = np.random.default_rng(4).standard_normal((2, *X.shape)).astype(np.float32)
    table, seen = ddim(Schedule(), STEPS), []

    class Watching(Blind):
        def __call__(self, x, step, present):
            seen.append(x)
            return self.answer

    sample(
        Watching(np.zeros((2, *X.shape), np.float32)),
        X,
        silent,
        table,
        PLAIN,
        None,
        KnownRegion(image, keep, lambda i: eps),
    )
    for x, a in zip(seen, table.alpha_bars, strict=True):
        np.testing.assert_allclose(x[..., :2], (a**0.5 * image + (1 - a) ** 0.5 * eps)[..., :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(seen[0][..., 2:], X[..., 2:])
