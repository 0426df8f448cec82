"""What a scheduler's configuration means, and what a command may say instead."""

import numpy as np
import pytest

from cdiff_rt import Parameterisation, Schedule
from cdiff_rt.errors import BadRequest
from cdiff_rt.foreign.schedulers import form_of, read_betas, told

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
LATENT = Schedule(1000, 0.00085, 0.012)


@pytest.mark.parametrize(
    ("config", "form"),
    [
        (SD, Parameterisation("eps", schedule=LATENT)),
        (SD | {"prediction_type": "v_prediction"}, Parameterisation("v", schedule=LATENT)),
        (SD | {"prediction_type": "sample"}, Parameterisation("x0", schedule=LATENT)),
        ({}, Parameterisation("eps", schedule=Schedule(1000, 1e-4, 0.02, betas="linear"))),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, Parameterisation("flow", "flow", time_scale=1000)),
        (SD | {"prediction_type": "flow_prediction", "num_train_timesteps": 500}, Parameterisation("flow", "flow", time_scale=500)),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.6}, Parameterisation("edm", "sigma", sigma_data=0.6)),
    ],
)  # fmt: skip
def test_a_configuration_says_what_is_predicted_of_which_noise(config, form):
    assert form_of(config) == form


def test_given_betas_and_an_end_in_pure_noise():
    betas = np.linspace(0.001, 0.02, 40)
    assert form_of({"trained_betas": betas.tolist()}).schedule == Schedule(40, given=tuple(np.cumprod(1 - betas)))
    zero = form_of(SD | {"rescale_betas_zero_snr": True}).schedule.alpha_bars()
    assert zero[0] == pytest.approx(LATENT.alpha_bars()[0], abs=1e-7) and 0 < zero[-1] < 1e-10


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"prediction_type": "score", "_class_name": "MyScheduler"}, "prediction_type: 'score' of MyScheduler is not known"),
        ({"beta_schedule": "laplace"}, "beta_schedule: 'laplace' of a scheduler is not known here; say it yourself"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "prediction_type: 'v_prediction' of EDM"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_in_words(config, words):
    with pytest.raises(BadRequest) as caught:
        form_of(config)
    assert str(caught.value).startswith(words)


def test_words_go_before_what_the_scheduler_says():
    assert told(None) is None
    assert told(SD) == Parameterisation("eps", schedule=LATENT)
    assert told(SD, predicts="v", whole_timesteps=True) == Parameterisation("v", "vp", LATENT, True)
    assert told(SD, betas="linear") == Parameterisation("eps", schedule=Schedule(1000, 1e-4, 0.02, betas="linear"))
    assert told(None, predicts="flow", time_scale=1000.0) == Parameterisation("flow", "flow", time_scale=1000.0)
    assert told(None, predicts="x0", space="sigma") == Parameterisation("x0", "sigma")
    assert read_betas("linear:0.001:0.01:100") == Schedule(100, 0.001, 0.01, betas="linear")


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ({"predicts": "eps"}, "betas: nothing says its schedule of noise; write e.g. linear:0.0001:0.02:1000"),
        ({"betas": "linear"}, "predicts: nothing says what it predicts"),
        ({"predicts": "noise", "betas": "linear"}, "predicts: 'noise'; choose one of eps, v, x0, flow, edm"),
        ({"predicts": "eps", "betas": "linear:0.1"}, None),
        ({"predicts": "eps", "betas": "cosine"}, "betas: 'cosine'; write KIND:START:END:STEPS, KIND one of scaled_linear"),
        ({"predicts": "eps", "betas": "linear:0:0.02"}, "betas: 'linear:0:0.02'"),
        ({"predicts": "eps", "betas": "linear:0.1:0.2:1e9"}, "betas: "),
        ({"predicts": "eps", "betas": "linear:0.1:0.2:10:1"}, "betas: "),
        ({"predicts": "v", "space": "flow"}, "space: flow of a denoiser that predicts v"),
    ],
)  # fmt: skip
def test_words_that_say_too_little_or_nothing_are_refused(words, refusal):
    if refusal is None:
        assert told(None, **words) is not None
        return
    with pytest.raises(BadRequest) as caught:
        told(None, **words)
    assert str(caught.value).startswith(refusal)
