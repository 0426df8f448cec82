import numpy as np
import pytest

from cdiff_rt.errors import BadRequest
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import C_HIST, SOLVERS, ddim
from cdiff_rt.sampling.tiers import TIERS, Sampling, sampling

ETAS = {name: solver.only_eta for name, solver in SOLVERS.items() if solver.only_eta is not None}


def test_without_any_wish_sampling_is_the_references():
    assert sampling() == TIERS["exact"] == Sampling("ddim", 50, 1.0)


@pytest.mark.parametrize("name", TIERS)
def test_a_tier_is_its_settings_and_knows_its_name(name):
    assert sampling(name) == TIERS[name]
    assert TIERS[name].tier == name
    assert str(TIERS[name]).startswith(f"{name}: {TIERS[name].solver}, {TIERS[name].steps} steps")


def test_own_settings_stand_beside_the_exact_ones():
    assert sampling(steps=25) == Sampling("ddim", 25, 1.0)
    assert sampling(eta=0.0) == Sampling("ddim", 50, 0.0)
    assert sampling(steps=25).tier is None
    assert str(sampling(steps=25)) == "ddim, 25 steps, eta 1"
    assert str(sampling(temperature=0.5)) == "ddim, 50 steps, eta 1, temperature 0.5"


@pytest.mark.parametrize(("solver", "eta"), ETAS.items())
def test_a_solver_brings_its_eta(solver, eta):
    assert sampling(solver=solver, steps=8) == Sampling(solver, 8, eta)


@pytest.mark.parametrize(("solver", "eta"), ETAS.items())
def test_another_eta_than_the_solvers_is_refused(solver, eta):
    with pytest.raises(BadRequest, match=f"^eta: .* with {solver}, which is for {eta:g}"):
        sampling(solver=solver, eta=0.5).table(Schedule())


@pytest.mark.parametrize("own", [{"solver": "ddim"}, {"steps": 50}, {"eta": 1.0}, {"temperature": 1.0}])
def test_a_tier_with_settings_of_ones_own_is_refused(own):
    with pytest.raises(BadRequest, match=f"^tier: fast and {next(iter(own))} of your own"):
        sampling("fast", **own)


def test_what_is_not_known_is_refused_with_what_is():
    with pytest.raises(BadRequest, match="^tier: 'slow'; choose one of exact, fast, turbo"):
        sampling("slow")
    with pytest.raises(BadRequest, match=f"^solver: 'euler'; choose one of {', '.join(SOLVERS)}"):
        sampling(solver="euler").table(Schedule())


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"eta": -0.1}, "eta: -0.1 is outside 0-1"), ({"eta": float("nan")}, "eta: nan"), ({"steps": 0}, "steps: 0")],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(BadRequest, match=f"^{words}"):
        sampling(**settings).table(Schedule())


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"solver": "dpmpp-2m", "steps": 8}])
def test_a_temperature_of_no_noise_is_refused(settings):
    with pytest.raises(BadRequest, match="^temperature: 0.5, but no step adds noise"):
        sampling(temperature=0.5, **settings).table(Schedule())
    sampling(temperature=1.0, **settings).table(Schedule())


def test_a_table_is_the_solvers():
    np.testing.assert_array_equal(sampling(steps=10).table(Schedule()).coefficients, ddim(Schedule(), 10).coefficients)
    fast = TIERS["fast"].table(Schedule())
    assert len(fast.coefficients) == TIERS["fast"].steps and fast.coefficients[2, C_HIST]


def test_fast_tiers_visit_some_of_the_exact_ones_timesteps():
    exact = TIERS["exact"].table(Schedule()).timesteps
    for tier in TIERS.values():
        timesteps = tier.table(Schedule()).timesteps
        assert set(timesteps) <= set(exact) and timesteps[0] == exact[0]
