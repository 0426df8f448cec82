from dataclasses import replace

import numpy as np
import pytest

from cdiff_rt import exam as exam_module
from cdiff_rt.bench import drift as module
from cdiff_rt.bench.drift import measure, relative_error
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.tiers import TIERS, Sampling
from tests.coded_exam import write_coded_exam


@pytest.fixture(autouse=True)
def exam(tmp_path, monkeypatch):
    """The coded exam in place of the one that comes with faces-128."""
    monkeypatch.setattr(exam_module, "EXAMS", tmp_path / "exams")
    return write_coded_exam(tmp_path / "exams" / "faces-128")


@pytest.fixture
def short(monkeypatch):
    """The exact tier in 5 steps, so that tests take seconds."""
    monkeypatch.setitem(TIERS, "exact", Sampling(steps=5))


def test_a_relative_error_by_hand():
    assert relative_error(np.array([3.0, 5.0]), np.array([3.0, 4.0])) == pytest.approx(0.2)


def test_the_exact_way_does_not_drift_from_itself(short):
    """But it does with other noise in its steps."""
    drift = measure("faces-128", "onnxruntime", how=TIERS["exact"], pairs=2)
    ours, scale = drift.rows
    assert ours.against == "exact: ddim, 5 steps, eta 1" and scale.name == f"{ours.name} with other noise, for scale"
    assert not ours.error.any() and np.isinf(ours.psnr).all() and ours.ssim == pytest.approx(1)
    assert len(scale.error) == 2 and (scale.error > 0.05).all() and (scale.psnr < 40).all() and (scale.ssim < 1).all()


@pytest.mark.slow
def test_a_seed_is_the_same_picture_in_every_tier():
    """For its noise is the same path: nearer than the exact tier's images are to each other with other noise."""
    for tier in ("fast", "turbo"):
        ours, other = measure("faces-128", "onnxruntime", how=TIERS[tier], pairs=3).rows
        assert (ours.error < other.error / 2).all() and (ours.psnr > other.psnr + 5).all()


def test_x_T_is_the_same_and_the_noise_of_the_steps_another(short, monkeypatch):
    calls, real = [], Pipeline.generate
    monkeypatch.setattr(
        Pipeline,
        "generate",
        lambda self, settings, **given: calls.append((settings, given)) or real(self, settings, **given),
    )
    measure("faces-128", "onnxruntime", how=Sampling("dpmpp-2m-sde", 4), pairs=2)
    assert [settings.seed for settings, _ in calls] == [module.SEED] * 4 + [module.OTHER_SEED] * 2
    for number in (0, 1):
        first, *others = (given["x_T"] for _, given in calls[number::2])
        assert all(np.array_equal(first, other) for other in others)


@pytest.mark.slow
def test_a_solver_of_the_ode_is_measured_by_its_answer(monkeypatch, short):
    """Against as many steps as it takes, here 8; the nearer, the more steps it takes itself."""
    real = Pipeline.from_pretrained

    def with_a_short_schedule(*args, **settings):
        pipeline = real(*args, **settings)
        reference = Sampling("dpmpp-2m", pipeline.manifest.schedule.train_steps - 1, 0.0)
        generate = pipeline.generate
        monkeypatch.setattr(
            pipeline,
            "generate",
            lambda settings, **given: generate(
                replace(settings, steps=40) if settings.steps == reference.steps else settings, **given
            ),
        )
        return pipeline

    monkeypatch.setattr(Pipeline, "from_pretrained", with_a_short_schedule)
    errors = [
        measure("faces-128", "onnxruntime", how=Sampling("dpmpp-2m", n, 0.0), pairs=2).rows[0].error
        for n in (6, 12, 40)
    ]
    assert (errors[0] > 1.5 * errors[1]).all() and (errors[1] > 0).all() and not errors[2].any()
