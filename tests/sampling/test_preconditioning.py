"""Denoisers whose answer is known: whatever they predict, in whatever space, the host's v is the same."""

import numpy as np
import pytest

from cdiff_rt.errors import BadRequest
from cdiff_rt.sampling.preconditioning import A_OUT, A_X, C_IN, TIME, Parameterisation
from cdiff_rt.sampling.schedule import Schedule
from tests.denoisers import Gaussian

HOSTS = {
    "scaled linear": Schedule(prediction="v"),
    "linear": Schedule(1000, 1e-4, 0.02, "v", "linear"),
    "100 steps": Schedule(100, 0.001, 0.15, "v"),
}
LINEAR, COSINE = Schedule(1000, 1e-4, 0.02, betas="linear"), Schedule(betas="squaredcos_cap_v2")
FORMS = [
    *(Parameterisation(predicts, "vp", schedule) for predicts in ("eps", "v", "x0") for schedule in (LINEAR, COSINE)),
    *(Parameterisation(predicts, space) for predicts in ("eps", "x0", "flow") for space in ("flow", "sigma")),
    Parameterisation("flow", "vp", COSINE),
    Parameterisation("edm", "sigma", sigma_data=0.5),
    Parameterisation("edm", "sigma", sigma_data=2.0),
    Parameterisation("flow", "flow", time_scale=1000.0),
    Parameterisation("x0", "vp", Schedule(given=tuple(np.linspace(0.9999, 0.0, 500)))),
]
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.predicts}-{form.space}-{form.time_scale:g}")
def test_every_form_of_a_denoiser_is_the_same_v(form, host):
    known, bars = Gaussian(0.7, 0.4), HOSTS[host].alpha_bars()[1::7]
    table = form.table(bars)
    for (c_in, time, a_x, a_out), bar in zip(table, bars, strict=True):
        alpha, sigma = np.sqrt(bar), np.sqrt(1 - bar)
        x = alpha * 0.7 + RNG.standard_normal(50)
        x0 = known.x0(x, alpha, sigma)
        found = a_x * x + a_out * known.predict(form, c_in * x, time)
        np.testing.assert_allclose(found, (alpha * x - x0) / sigma, rtol=1e-7, atol=1e-7)


def test_a_denoiser_like_the_host_is_left_as_it_is():
    schedule = Schedule(prediction="v")
    table = Parameterisation("v", "vp", schedule).table(schedule.alpha_bars()[[1, 500, 999]])
    np.testing.assert_allclose(table[:, [C_IN, A_X, A_OUT]], [[1, 0, 1]] * 3, atol=1e-12)
    np.testing.assert_allclose(table[:, TIME], [1, 500, 999], atol=1e-6)


def test_times_are_fractions_or_whole_as_the_denoiser_wants():
    bars = Schedule().alpha_bars()[[10, 300, 700]]
    at = Parameterisation("eps", "vp", LINEAR).table(bars)[:, TIME]
    whole = Parameterisation("eps", "vp", LINEAR, whole_timesteps=True).table(bars)[:, TIME]
    assert (at != np.rint(at)).all() and (whole == np.rint(at)).all()


def test_times_of_the_other_spaces_are_theirs():
    """u = sigma / (alpha + sigma); sigma on top of the data; a quarter of its logarithm (Karras et al., table 1)."""
    bars = np.array([0.5, 0.9])
    ratio = np.sqrt((1 - bars) / bars)
    assert Parameterisation("flow", "flow").table(bars)[0, TIME] == pytest.approx(0.5)
    np.testing.assert_allclose(Parameterisation("x0", "sigma").table(bars)[:, TIME], ratio)
    np.testing.assert_allclose(Parameterisation("edm", "sigma").table(bars)[:, TIME], np.log(ratio) / 4)


def test_noise_that_a_denoiser_never_saw_is_refused_with_the_numbers():
    short = Parameterisation("eps", "vp", Schedule(given=tuple(np.linspace(0.999, 0.1, 100))))
    with pytest.raises(BadRequest, match=r"down to alpha_bar 0.05\d*, and this denoiser was trained down to 0.100000"):
        short.table(np.array([0.9, 0.05]))
    short.table(np.array([0.9, 0.1]))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (("noise", "vp"), "predicts: 'noise'; choose one of eps, v, x0, flow, edm"),
        (("eps", "ve"), "space: 've'; choose one of vp, flow, sigma"),
        (("v", "flow"), "space: flow of a denoiser that predicts v; take vp"),
        (("edm", "vp"), "space: vp of a denoiser that predicts edm; take sigma"),
    ],
)
def test_a_form_that_is_none_is_refused(how, words):
    with pytest.raises(BadRequest) as caught:
        Parameterisation(*how)
    assert str(caught.value) == words
