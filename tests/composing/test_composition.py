"""Denoisers whose answers are known, composed: what comes out follows from formulas."""

from dataclasses import replace

import numpy as np
import pytest

from cdiff_rt import Expert, Parameterisation, Schedule, calibrate, compose
from cdiff_rt.errors import BadArtefact, BadRequest
from cdiff_rt.sampling import noise
from cdiff_rt.sampling.superposition import Superposition
from tests.denoisers import Gaussian
from tests.learning.told import SHAPE, X0, of, pairs, told

LINEAR, COSINE = Schedule(1000, 1e-4, 0.02, betas="linear"), Schedule(betas="squaredcos_cap_v2")
FORMS = {
    "eps": Parameterisation("eps", "vp", LINEAR),
    "v": Parameterisation("v", "vp", COSINE),
    "x0": Parameterisation("x0", "vp", COSINE),
    "flow": Parameterisation("flow", "flow", time_scale=1000.0),
    "edm": Parameterisation("edm", "sigma"),
    "k-diffusion": Parameterisation("x0", "sigma"),
}


def expert(form, data, prior=None):
    """With a `prior`, its influence is the probability that x_t is its data's."""

    def denoise(x, time):
        return data.predict(form, x.astype(np.float64), np.float64(time[0]))

    def logit(x, alpha_bar):
        return np.log(prior) + data.log_density(x, alpha_bar)

    return Expert(denoise, form, logit=logit if prior else None)


def distance(samples, components, alpha_bar):
    """Kolmogorov and Smirnov's, from the mixture of N(mean, spread^2) that was noised to alpha_bar."""
    from math import erf

    x = np.sort(samples.ravel())
    known = np.zeros(len(x))
    for prior, data in components:
        spread = np.sqrt(alpha_bar * data.spread**2 + 1 - alpha_bar)
        known += prior * np.array([1 + erf(z / 2**0.5) for z in (x - np.sqrt(alpha_bar) * data.mean) / spread]) / 2
    steps = np.arange(len(x) + 1) / len(x)
    return max(np.abs(known - steps[:-1]).max(), np.abs(known - steps[1:]).max())


MIXTURES = {
    "eps and v": [("eps", 0.5, Gaussian(-1.0, 0.3)), ("v", 0.5, Gaussian(1.0, 0.3))],
    "x0, flow and edm": [
        ("x0", 0.2, Gaussian(-1.5, 0.2)),
        ("flow", 0.5, Gaussian(0.0, 0.4)),
        ("edm", 0.3, Gaussian(1.2, 0.1)),
    ],
    "two that overlap": [("edm", 0.7, Gaussian(0.2, 0.5)), ("eps", 0.3, Gaussian(-0.4, 0.8))],
    "all six": [(form, 1 / 6, Gaussian(i - 2.5, 0.25)) for i, form in enumerate(FORMS)],
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_experts_mixed_by_the_posterior_sample_the_mixture(mixture):
    """Decentralized Diffusion Models (McAllister et al. 2025): influence is p(k | x_t), which is exact."""
    parts = MIXTURES[mixture]
    pipeline = compose(
        {f"part{i}": expert(FORMS[form], data, p) for i, (form, p, data) in enumerate(parts)}, (1, 20_000)
    )
    made = pipeline.generate(solver="dpmpp-2m", steps=100, seed=1).latents
    components = [(p, data) for _, p, data in parts]
    end = pipeline.manifest.schedule.alpha_bars()[0]
    # Of 20,000 draws, 0.0115 is exceeded with probability 0.01.
    assert distance(made, components, end) < 0.0115
    assert distance(made, [(1.0, components[0][1])], end) > 0.05


@pytest.mark.parametrize("forms", [("eps", "v"), ("flow", "edm"), ("x0", "k-diffusion"), tuple(FORMS)], ids="+".join)
def test_one_model_told_in_several_ways_mixes_to_itself(forms):
    data = Gaussian(0.4, 0.6)
    whole = compose({form: expert(FORMS[form], data) for form in forms}, (2, 8, 8), schedule=LINEAR)
    alone = compose({forms[0]: expert(FORMS[forms[0]], data)}, (2, 8, 8), schedule=LINEAR)
    one, other = (pipeline.generate(steps=25, eta=0.0).latents for pipeline in (alone, whole))
    np.testing.assert_allclose(other, one, atol=2e-5)


def test_the_loop_is_one_in_float64_by_hand():
    """DDIM at eta 0 (Song et al. 2021, eq. 12) of the mean of two, in x_0 and eps."""
    one, two = Gaussian(-0.5, 0.3), Gaussian(0.8, 0.9)
    pipeline = compose({"one": expert(FORMS["eps"], one), "two": expert(FORMS["flow"], two)}, (2, 8, 8))
    found = pipeline.generate(steps=20, eta=0.0, seed=3).latents
    bars = pipeline.manifest.schedule.alpha_bars()
    timesteps = pipeline.manifest.schedule.timesteps(20)[::-1]
    x = noise.normal(3, range(1), 0, (2, 8, 8)).astype(np.float64)
    for a, b in zip(bars[timesteps], [*bars[timesteps[1:]], bars[0]], strict=True):
        alpha, sigma = np.sqrt(a), np.sqrt(1 - a)
        x0 = (one.x0(x, alpha, sigma) + two.x0(x, alpha, sigma)) / 2
        x = np.sqrt(b) * x0 + np.sqrt(1 - b) * (x - alpha * x0) / sigma
    np.testing.assert_allclose(found, x, atol=1e-6 * np.abs(x).max() + 4e-6)


def test_conditions_reach_their_experts_in_their_shape_and_batch():
    seen = []

    def denoise(x, time, condition):
        seen.append((x.shape, time.shape, condition))
        return x

    pipeline = compose({"style": Expert(denoise, condition=(2, 3)), "label": Expert(denoise, condition=())}, (1, 4))
    pipeline.generate(style=np.arange(6), label=7, steps=1, batch=2)
    (x, time, style), (_, _, label) = seen
    assert (x, time) == ((2, 1, 4), (2,))
    np.testing.assert_array_equal(style, [np.arange(6).reshape(2, 3)] * 2)
    np.testing.assert_array_equal(label, [7, 7])


def test_guidance_is_two_weights_and_an_expert_without_condition_always_takes_part():
    nothing = Expert(lambda x, time: np.zeros_like(x), FORMS["x0"])
    conditional = Expert(lambda x, time, c: np.zeros_like(x) + c[:, 0, 0, None, None], FORMS["x0"], condition=(1, 1))
    pipeline = compose({"cond": conditional, "uncond": nothing}, (1, 4))
    seen = []
    guided = {"influence": {"cond": 3, "uncond": -2}, "sharpness": 0.0}
    pipeline.generate(cond=0.5, steps=2, eta=0.0, callback_on_step_end=seen.append, **guided)
    for state in seen:
        np.testing.assert_allclose(state.x0, 1.5, atol=1e-4)
    alone = pipeline.generate(steps=2, eta=0.0).latents
    np.testing.assert_allclose(alone, pipeline.generate(cond=0.5, without=["cond"], steps=2, eta=0.0).latents)
    with pytest.raises(BadRequest, match="without: it leaves no condition"):
        pipeline.generate(cond=0.5, without=["cond", "uncond"])


def test_an_expert_without_weight_is_not_called():
    calls = {"a": 0, "b": 0}

    def counted(name):
        def denoise(x, time):
            calls[name] += 1
            return x

        return Expert(denoise)

    pipeline = compose({name: counted(name) for name in calls}, (1, 4))
    pipeline.generate(steps=10, influence=["a=1@0-0.5", "b=1@0.5-1"])
    assert sum(calls.values()) == 10 and min(calls.values()) >= 4


def test_pixels_are_images_as_they_are_and_latents_by_a_decoder(tmp_path):
    grey = Expert(lambda x, time: np.full_like(x, 0.5), Parameterisation("x0", "vp", LINEAR))
    pixels = compose({"grey": grey}, (3, 8, 8), image_size=8).generate(steps=2, eta=0.0)
    assert np.abs(pixels.images.astype(int) - 191).max() <= 6
    decoded = compose(
        {"grey": grey}, (1, 4, 4), image_size=8, decode=lambda z: np.repeat(np.kron(z, np.ones((2, 2))), 3, axis=1)
    ).generate(steps=2, eta=0.0)
    assert np.abs(decoded.images.astype(int) - 191).max() <= 6 and decoded.images.shape == (1, 8, 8, 3)
    (path,) = pixels.save(tmp_path)
    assert path.suffix == ".png" and decoded.parameters["backend"] == "python"


def test_the_host_ends_as_the_least_noisy_expert_does():
    short = Parameterisation("eps", "vp", Schedule(1000, 1e-4, 0.01, betas="linear"))
    experts = {"short": Expert(lambda x, t: x, short), "long": Expert(lambda x, t: x, FORMS["v"])}
    assert compose(experts, (1, 4)).manifest.schedule == Schedule(1000, 1e-4, 0.01, "v", "linear")
    assert compose({"flow": Expert(lambda x, t: x, FORMS["flow"])}, (1, 4)).manifest.schedule.prediction == "v"


@pytest.mark.parametrize(
    ("denoise", "words"),
    [
        (
            lambda x, time: x[:1, :, :2],
            "expert a: it returned float32 of shape (1, 1, 2); return floating-point numbers",
        ),
        (lambda x, time: x.astype(int), "expert a: it returned int64 of shape (1, 1, 4)"),
        (lambda x, time: None, "expert a: it returned object of shape ()"),
        (lambda x, time: x * np.nan, "expert a: it returned numbers that are not finite"),
    ],
)
def test_a_function_that_returns_something_else_is_refused(denoise, words):
    with pytest.raises(BadRequest) as caught:
        compose({"a": Expert(denoise)}, (1, 4)).generate(steps=1)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("experts", "how", "words"),
    [
        ({"a": lambda x, t: x}, {}, "expert a: a function; give a cdiff_rt.Expert, which says what it predicts"),
        ({"a": Expert(None)}, {}, "expert a: its denoise or logit cannot be called"),
        ({"steps": Expert(lambda x, t: x)}, {}, "expert steps: that is the name of a setting"),
        ({"": Expert(lambda x, t: x)}, {}, "experts: '' cannot be a name"),
        ([Expert(lambda x, t: x)], {}, "experts: a list; give a dict from names to cdiff_rt.Expert"),
        ({}, {}, "experts: there are none"),
        ({"a": Expert(lambda x, t: x)}, {"image_size": 8}, "decode: none, and latents [1, 4] for images of 8 pixels"),
        (
            {"a": Expert(lambda x, t: x, Parameterisation("eps", schedule=Schedule(1000, 1e-4, 0.01, betas="linear")))},
            {"schedule": COSINE},
            "expert a, schedule: it goes down to alpha_bar 0.000000, and this denoiser was trained down to 0.0063",
        ),
        (
            {"a": Expert(lambda x, t: x, Parameterisation("eps", schedule=Schedule(0)))},
            {},
            "expert a, schedule: Schedule(train_steps=0,",
        ),
        (
            {"a": Expert(lambda x, t: x, Parameterisation("eps", schedule=Schedule(100, "x")))},
            {},
            "expert a, schedule: Schedule(train_steps=100, beta_start='x'",
        ),
        (
            {"a": Expert(lambda x, t: x)},
            {"schedule": Schedule(given=(0.5, 0.9))},
            "schedule: Schedule(train_steps=1000",
        ),
        (
            {"a": Expert(lambda x, t: x)},
            {"schedule": "cosine"},
            "schedule: 'cosine' is none of noise that grows; give a",
        ),
        (
            {"a": Expert(lambda x, t: x, condition=(0,))},
            {},
            "expert a: its condition is (0,), its latent_shape None; give",
        ),
        ({"a": Expert(lambda x, t: x, condition=5)}, {}, "expert a: its condition is 5, its latent_shape None; give"),
        (
            {"a": Expert(lambda x, t: x, form="eps")},
            {},
            "expert a: its form is a str; give a cdiff_rt.Parameterisation",
        ),
        (
            {"a": Expert(lambda x, t: x)},
            {"decode": lambda z: z},
            "image_size: none, and something decodes; say how many",
        ),
        ({"a": Expert(lambda x, t: x)}, {"decode": 5, "image_size": 8}, "decode: a int; give a function, a module, or"),
        (
            {"a": Expert(lambda x, t: x, latent_shape=(2, 4))},
            {},
            "expert a: its latents are [2, 4], those asked for [1, 4]",
        ),
        (
            {"a": Expert(lambda x, t: x, condition=(2,), fixed=np.ones(3))},
            {},
            "expert a, fixed: it is of shape (3,), its",
        ),
    ],
)
def test_what_cannot_be_composed_is_refused_in_words(experts, how, words):
    with pytest.raises(BadRequest) as caught:
        compose(experts, (1, 4), **how)
    assert str(caught.value).startswith(words)


def test_a_logit_of_another_shape_is_refused():
    wrong = Expert(lambda x, time: x, logit=lambda x, alpha_bar: np.zeros((3, 1, 5)))
    with pytest.raises(
        BadRequest, match=r"expert a: its logit has the shape \(3, 1, 5\); return \(1,\), or what broadcasts"
    ):
        compose({"a": wrong}, (1, 4)).generate(steps=1)


def test_what_a_function_raises_is_raised_and_the_pipeline_stays_usable():
    fails = [True]

    def denoise(x, time):
        if fails.pop():
            raise ZeroDivisionError("mine")
        fails.append(False)
        return x

    pipeline = compose({"a": Expert(denoise)}, (1, 4))
    with pytest.raises(ZeroDivisionError, match="mine"):
        pipeline.generate(steps=1)
    fails.append(False)
    assert pipeline.generate(steps=1).latents.shape == (1, 1, 4)


def counted(served, name, level, favourite):
    """An expert that says what it is by its answer, and is favoured by some images."""

    def denoise(x, time):
        served.setdefault(name, []).append(len(x))
        return np.full_like(x, level)

    def logit(x, alpha_bar):
        return np.array([5.0 if image in favourite else -float(level) for image in range(len(x))])

    return Expert(denoise, FORMS["x0"], logit=logit)


def test_of_eight_experts_an_image_calls_the_two_of_most_influence():
    served = {}
    favourites = {0: [0, 1], 3: [0], 5: [1, 2]}
    experts = {f"e{i}": counted(served, f"e{i}", i / 8, favourites.get(i, [])) for i in range(8)}
    seen = []
    pipeline = compose(experts, (1, 4), top_k=2)
    pipeline.generate(steps=4, eta=0.0, batch=3, callback_on_step_end=seen.append)
    # Images 0, 1 and 2 call 0 and 3, 0 and 5, 5 and 0, which comes first among the rest.
    assert served == {"e0": [3] * 4, "e3": [1] * 4, "e5": [2] * 4}
    shares = seen[0].influence[:, :, 0, 0]
    np.testing.assert_allclose(shares[[0, 3], 0], 0.5)
    np.testing.assert_allclose(shares[[0, 5], 1], 0.5)
    np.testing.assert_allclose(shares[:, 2][[5, 0]], [1 / (1 + np.exp(-5.0)), 1 / (1 + np.exp(5.0))], rtol=1e-5)
    assert (shares.sum(0) == pytest.approx(1)) and (shares > 0).sum() == 6


def test_all_of_eight_are_called_without_top_k_and_a_weight_of_zero_leaves_its_place_to_the_next():
    served = {}
    experts = {f"e{i}": counted(served, f"e{i}", i / 8, []) for i in range(8)}
    compose(experts, (1, 4)).generate(steps=2)
    assert served == {f"e{i}": [1, 1] for i in range(8)}
    served.clear()
    compose(experts, (1, 4), top_k=2).generate(steps=2, influence="e0=1@0.9-1")
    assert served == {"e0": [1], "e1": [1, 1], "e2": [1]}  # e0 is there in the second step only


@pytest.mark.parametrize(
    ("top_k", "logit", "words"),
    [
        (3, True, "top_k: 3 is outside 1-2"),
        (0, True, "top_k: 0 is outside 1-2"),
        (1.5, True, "top_k: 1.5; give a whole number"),
        (1, False, "top_k: no expert has a logit to be chosen by; give each one, or leave top_k out"),
    ],
)
def test_a_top_k_that_cannot_be_is_refused(top_k, logit, words):
    one = Expert(lambda x, t: x, logit=(lambda x, alpha_bar: 0.0) if logit else None)
    with pytest.raises(BadRequest) as caught:
        compose({"a": one, "b": one}, (1, 4), top_k=top_k)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("shape", [None, 16, (), (1, 0), (1, "a")], ids=str)
def test_latents_need_a_shape(shape):
    with pytest.raises(BadRequest, match=r"latent_shape: .*; give (one|whole numbers above 0), channels first"):
        compose({"a": Expert(lambda x, time: x)}, shape)


def test_latents_are_by_default_what_experts_were_trained_on_and_channels_must_be_theirs():
    known = Expert(lambda x, time: x, latent_shape=(1, 4))
    assert compose({"a": known, "b": Expert(lambda x, time: x)}).manifest.latent_shape == (1, 4)
    assert compose({"a": known}, (1, 9)).manifest.latent_shape == (1, 9)
    with pytest.raises(
        BadRequest, match=r"expert b: its latents are \[1, 5\], a \[1, 4\]; compose models of one latent"
    ):
        compose({"a": known, "b": Expert(lambda x, time: x, latent_shape=(1, 5))})


def test_a_condition_that_is_always_the_same_is_not_asked_for():
    seen = []
    always = Expert(lambda x, time, c: seen.append(c) or x, condition=(2, 3), fixed=np.arange(6))
    compose({"a": always}, (1, 4)).generate(steps=1, batch=2)
    np.testing.assert_array_equal(seen, [[np.arange(6).reshape(2, 3)] * 2])


@pytest.mark.parametrize(
    ("decode", "words"),
    [
        (lambda z: np.zeros((1, 8, 8, 3)), r"decode: it returned float64 of shape \(1, 8, 8, 3\); return numbers in"),
        (lambda z: np.zeros((1, 3, 8, 8), np.uint8), "decode: it returned uint8 of shape"),
    ],
)
def test_a_decoder_that_returns_something_else_is_refused(decode, words):
    with pytest.raises(BadRequest, match=words):
        compose({"a": Expert(lambda x, time: x)}, (1, 4), image_size=8, decode=decode).generate(steps=1)


# --- weights that were found -----------------------------------------------------------------------------------------

TOLD = {name: Expert(told, X0, SHAPE, logit=lambda x, bar, c: x.mean((1, 2, 3))) for name in "ab"}
ASKED = {"a": np.ones(SHAPE), "b": -np.ones(SHAPE), "steps": 4}


@pytest.fixture(scope="module")
def found(shared):
    return calibrate(compose(TOLD, SHAPE), pairs(20, {"a": of(0.1, 0), "b": of(0.4, 1)}), shared / "weights.json")


def test_weights_that_were_found_hold_unless_a_run_asks_for_others(found):
    plain, asked = compose(TOLD, SHAPE), {"nothing": (), "preset": "as-trained", "weight": "a=2"}
    wanted = {"nothing": found, "preset": "as-trained", "weight": (found, "a=2")}
    wanted = {way: plain.generate(**ASKED, influence=how).latents for way, how in wanted.items()}
    for given in (found, found.file, replace(found, file="", content=b"")):
        made = compose(TOLD, SHAPE, influence=given)
        for way, how in asked.items():
            assert np.array_equal(made.generate(**ASKED, influence=how).latents, wanted[way])
    assert np.abs(wanted["nothing"] - wanted["preset"]).max() > 0.1
    made = compose(TOLD, SHAPE, influence=found).generate(**ASKED)
    assert made.parameters["adjustment"]["calibrated"] == "calibrated.json" and "influence" not in made.parameters
    once = compose(TOLD, SHAPE, influence=found).generate(**ASKED, influence=found)
    assert "calibrated" not in once.parameters["adjustment"]


def test_of_fewer_experts_the_weights_are_those_of_least_error_for_these(found):
    asked = {"a": ASKED["a"], "steps": 4}
    alone = compose({"a": TOLD["a"]}, SHAPE, influence=found).generate(**asked)
    assert np.array_equal(alone.latents, compose(TOLD, SHAPE, influence=found).generate(**asked).latents)


@pytest.mark.parametrize(
    ("names", "how", "words"),
    [
        ("abc", {}, "influence: weights.json knows no c; it is of a, b"),
        ("ab", {"latent_shape": (2, 4, 8)}, "influence: weights.json is of latents [8, 8], these are [4, 8]"),
        ("ab", {"schedule": COSINE}, "influence: weights.json knows noise down to alpha_bar"),
        ("ab", {"influence": 3}, "influence: a int; give what calibrate found"),
        ("ab", {"top_k": 1}, "influence: weights that were found, and top_k; give one of them"),
        ("ab", {"mixing": Superposition("or")}, "influence: weights that were found, and mixing"),
        ("ab", {"influence": "nowhere.json"}, "calibration nowhere.json: there is no such file"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_words(names, how, words, found, shared, monkeypatch):
    monkeypatch.chdir(shared)
    experts = {name: replace(TOLD["a"], form=FORMS["flow"]) for name in names}
    with pytest.raises(BadRequest) as caught:
        compose(experts, **{"latent_shape": SHAPE, "influence": "weights.json", **how})
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_a_damaged_file_of_weights_is_told_in_a_line(tmp_path):
    (tmp_path / "weights.json").write_text("{}")
    with pytest.raises(BadArtefact, match=r"weights.json: .*; make it anew with calibrate"):
        compose(TOLD, SHAPE, influence=tmp_path / "weights.json")
