from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch

from cdiff_rt.gpu.fused_step import STORED, fuse_step, fuse_step_op, on_cuda
from cdiff_rt.sampling import fusion
from cdiff_rt.sampling.controls import MOST, SCALE
from cdiff_rt.sampling.fusion import Adjustment
from cdiff_rt.sampling.numbers import LARGEST, WIDTH, pack
from cdiff_rt.sampling.solvers import C_HIST, C_NOISE, D_OUT, D_X, SolverTable

HALF, BRAIN, SINGLE = STORED
STEPS = 3
TAKEN = 1  # of the table's rows
STARVED = -100.0  # a logit whose influence underflows in float32


@dataclass
class Step:
    """One step's tensors, and the numbers that `fuse_step` gets packed."""

    outs: torch.Tensor
    logits: torch.Tensor
    x: torch.Tensor
    hist: torch.Tensor | None
    noise: torch.Tensor | None
    numbers: torch.Tensor
    controls: torch.Tensor | None
    weights: torch.Tensor | None
    table: SolverTable
    adjust: Adjustment

    @property
    def tensors(self):
        """By name, in the order of the operation's arguments."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor | None)}

    def on(self, device):
        def moved(part):
            there = torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device=device)
            return there.copy_(part)  # .to would close the gaps over M

        return replace(self, **{name: moved(part) for name, part in self.tensors.items() if part is not None})

    def run(self):
        given = self.tensors
        needed = [given.pop(name) for name in ("outs", "logits", "x", "numbers")]
        fuse_step(*needed, **given, boosted=self.adjust.boost is not None)


def step(modalities=2, latent=(8, 8), *, batch=2, channels=3, predicted=SINGLE, stored=SINGLE, padded=False, **choices):
    """`predicted` is the type of outs and logits, `stored` of x, hist and noise; `padded` leaves gaps over M.

    In the place of modalities that are `absent` stands no number.
    """
    rng = np.random.default_rng(modalities)
    absent = list(choices.get("absent", ()))
    there = np.setdiff1d(np.arange(modalities), absent)

    def tensor(dtype, *shape, scale=1.0, offset=0.0):
        return torch.from_numpy(offset + scale * rng.standard_normal(shape)).to(dtype)

    def of_modalities(channels, **scale):
        whole = tensor(predicted, modalities, batch + padded, channels, *latent, **scale)
        whole[absent] = torch.tensor([torch.nan, torch.inf], dtype=predicted)[torch.arange(len(absent)) % 2].view(
            -1, *(1,) * (whole.ndim - 1)
        )
        return whole[:, :batch]

    def present(name, value):
        return value if choices.get(name, True) else None

    parts = {name: tensor(stored, batch, channels, *latent) for name in ("x", "hist", "noise")}
    single = {"table": rng.standard_normal((STEPS, 8)), "gains": rng.uniform(0.2, 1, (STEPS, modalities))}
    single = {name: values.astype(np.float32).astype(np.float64) for name, values in single.items()}
    table = SolverTable(np.arange(STEPS), np.ones(STEPS), single["table"])
    adjust = Adjustment(
        np.where(np.arange(modalities) == there[-1], 1.0, single["gains"]),
        np.tile(np.eye(modalities)[there[-1]], (STEPS, 1)),
        np.tile(np.where(np.arange(modalities) == 0, 1.75, 1.0), (STEPS, 1)),
        np.tile(np.isin(np.arange(modalities), there).astype(float), (STEPS, 1)),
        1.25,
        2.0 if choices.get("boosted") else None,
        of_all(modalities, there, latent) if choices.get("controlled") else None,
    )
    outs, logits = of_modalities(channels), of_modalities(1, scale=2.0, offset=100.0)  # exp of it is not finite
    if choices.get("controlled"):
        for m in there[:2]:
            logits[m].flatten(1)[:, 0] = STARVED
    return Step(
        outs,
        logits,
        parts["x"],
        present("hist", parts["hist"]),
        present("noise", parts["noise"]),
        torch.from_numpy(pack(table, adjust))[TAKEN],
        None if adjust.controls is None else torch.from_numpy(adjust.controls[TAKEN].copy()),
        present("weights", torch.full((modalities, batch, 1, *latent), torch.nan)),
        table,
        adjust,
    )


def of_all(modalities, there, latent):
    """Controls [STEPS, 3, M, *latent] of every kind: scales 0, 1, soft and below 0, and bounds on either side or none.

    The last of those that are there always has a share, which no bound limits from above; but at the first pixel the
    first two decide, whose own influence may underflow, and at the last pixel, if it is another, nobody has any room.
    """
    rng = np.random.default_rng(modalities + 100)
    shape = (STEPS, modalities, *latent)
    soft = rng.uniform(-0.5, 3, shape)
    scale = np.choose(rng.integers(0, 4, shape), [np.zeros(shape), np.ones(shape), soft, soft])
    least = np.where(rng.random(shape) < 0.5, rng.uniform(0, 1 / modalities, shape), 0)
    most = np.where(rng.random(shape) < 0.5, least + rng.uniform(0, 0.3, shape), 1)
    scale[:, there[-1]], most[:, there[-1]] = np.abs(scale[:, there[-1]]) + 0.1, 1
    scale *= np.isin(np.arange(modalities), there).reshape(-1, *(1,) * len(latent))
    values = np.stack([scale, least * (scale > 0), most * (scale > 0)], 1).astype(np.float32)
    first, last = (values.reshape(STEPS, 3, modalities, -1)[..., i] for i in (0, -1))
    first[...], first[:, MOST, there[:2]] = 0, 1
    first[:, SCALE, there[:2]] = [1, 3][: len(there)]
    last[...], last[:, :, there[-1]] = 0, 1
    return values


def expected(step):
    """What the definition makes of the step in float64: the next x and hist, and the weights."""

    def double(part):
        return 0.0 if part is None else part.to(torch.float64).cpu().numpy()

    outs, logits = double(step.outs), double(step.logits)
    adjust = fusion.of_step(step.adjust, TAKEN, outs.ndim - 1)
    weights = fusion.influence(logits, adjust)
    out = fusion.fuse(outs, weights, adjust.present)
    x, hist = fusion.update(double(step.x), out, double(step.hist), double(step.noise), step.table.coefficients[TAKEN])
    return {"x": x, "hist": hist, "weights": weights}


def check_results(step, want):
    """Within a few roundings of fp32, and to the nearest of the storage's type."""
    for name, right in want.items():
        got = getattr(step, name)
        if got is None:
            continue
        np.testing.assert_allclose(
            got.to(torch.float64).cpu(), right, rtol=2 * torch.finfo(got.dtype).eps, atol=1e-4, err_msg=name
        )
        if got.dtype != SINGLE:
            nearest = torch.from_numpy(right).to(torch.float32).to(got.dtype)
            ulps = (got.cpu().view(torch.int16).int() - nearest.view(torch.int16).int()).abs()
            off = (ulps > 0).double().mean().item()
            assert off < 0.03, f"{name}: {off:.0%} of the values are not rounded to nearest"


TYPES = [(stored, predicted) for stored in STORED for predicted in STORED]


def test_stores_that_truncate_are_found():
    one = step(stored=BRAIN)
    want = expected(one)
    one.run()
    check_results(one, want)
    single = torch.from_numpy(want["x"]).float()
    one.x = (single.view(torch.int32) >> 16).to(torch.int16).view(BRAIN)
    with pytest.raises(AssertionError, match="x: .* not rounded to nearest"):
        check_results(one, want)


@pytest.mark.parametrize("modalities", range(1, LARGEST + 1))
@pytest.mark.parametrize("boosted", [False, True])
def test_it_is_the_definition(modalities, boosted):
    one = step(modalities, boosted=boosted)
    want = expected(one)
    one.run()
    check_results(one, want)


STEERED = {
    **{f"{modalities} modalities": (modalities, {}) for modalities in range(1, LARGEST + 1)},
    "boosted": (4, {"boosted": True}),
    "the first absent": (2, {"absent": [0]}),
    "the last absent": (3, {"absent": [2]}),
    "most absent, boosted": (LARGEST, {"absent": [0, 2, 3, 5, 7], "boosted": True}),
}


@pytest.mark.parametrize(("modalities", "choices"), STEERED.values(), ids=STEERED)
@pytest.mark.parametrize("controlled", [False, True])
def test_it_is_the_definition_for_any_controls_and_whoever_is_present(modalities, choices, controlled):
    one = step(modalities, controlled=controlled, **choices)
    want = expected(one)
    assert all(np.isfinite(right).all() for right in want.values())
    one.run()
    check_results(one, want)


def test_controls_of_a_test_are_of_every_kind():
    scale, least, most = step(3, (64, 64), controlled=True).controls
    soft, ceiling = (scale > 0) & (scale < 1), (most > 0) & (most < 1)
    for seen in (scale == 0, scale == 1, scale < 0, scale > 1, soft, least > 0, ceiling):
        assert 0.02 < seen.float().mean() < 0.98


@pytest.mark.parametrize(("stored", "predicted"), TYPES)
def test_storage_types_mix(stored, predicted):
    one = step(3, stored=stored, predicted=predicted)
    want = expected(one)
    one.run()
    check_results(one, want)


@pytest.mark.parametrize("latent", [(1,), (17,), (5, 7), (2, 3, 4)])
@pytest.mark.parametrize("padded", [False, True])
def test_latents_have_any_rank_and_modalities_any_stride(latent, padded):
    one = step(2, latent, channels=4, batch=1, padded=padded)
    want = expected(one)
    one.run()
    check_results(one, want)


@pytest.mark.parametrize("without", ["hist", "noise", "weights"])
def test_a_part_can_be_left_out(without):
    one = step(2, **{without: False})
    want = expected(one)
    one.run()
    check_results(one, want)


@pytest.mark.parametrize(("without", "columns"), [("hist", [C_HIST, D_X, D_OUT]), ("noise", [C_NOISE])])
def test_and_then_its_coefficients_do_not_matter(without, columns):
    one, other = step(2, **{without: False}), step(2, **{without: False})
    other.numbers[columns] = 5.0
    one.run()
    other.run()
    assert torch.equal(one.x, other.x)


def test_nothing_else_is_changed():
    one = step(2, padded=True, controlled=True)
    before = {name: part.clone() for name, part in one.tensors.items()}
    one.run()
    changed = {name for name, part in one.tensors.items() if not torch.equal(part, before[name])}
    assert changed == {"x", "hist", "weights"}


def test_predictions_that_are_no_numbers_are_not_hidden():
    one = step(3, controlled=True)
    one.logits[0, 0, 0, 0, 0] = torch.nan
    one.run()
    assert one.weights[:, 0, 0, 0, 0].isnan().all()
    assert one.weights.isnan().sum() == 3


@pytest.mark.parametrize("boosted", [False, True])
@pytest.mark.parametrize("absent", [False, True])
def test_pytorch_knows_what_the_operation_does(boosted, absent):
    there = dict.fromkeys(("hist", "noise", "weights", "controlled"), not absent)
    parts = step(2, (4, 5), padded=True, predicted=HALF, **there)
    torch.library.opcheck(fuse_step_op, (*parts.tensors.values(), boosted))


def test_rows_are_aligned_to_16_bytes():
    one = step(2)
    assert one.numbers.storage_offset() == WIDTH
    assert one.numbers.data_ptr() % 16 == 0


@pytest.mark.parametrize("kernel", [fuse_step_op, on_cuda])  # on_cuda stops before it would launch
@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("outs", lambda outs: outs[[0] * 9], "9 modalities"),
        ("outs", lambda outs: outs.transpose(-1, -2), "outs is not contiguous"),
        ("outs", lambda outs: outs.double(), "outs is torch.float64"),
        ("logits", lambda logits: logits[..., 1:], "logits is"),
        ("x", lambda x: x[:1], "x is"),
        ("x", lambda x: x.transpose(-1, -2), "x is not contiguous"),
        ("hist", lambda hist: hist[:, 1:], "hist is"),
        ("noise", lambda noise: noise.to("meta"), "noise is on meta"),
        ("numbers", lambda numbers: numbers[1:], "numbers is"),
        ("numbers", lambda numbers: numbers.half(), "numbers is torch.float16"),
        ("weights", lambda weights: weights.half(), "weights is torch.float16"),
        ("controls", lambda controls: controls[:2], "controls is"),
        ("controls", lambda controls: controls[:, :1], "controls is"),
        ("controls", lambda controls: controls.transpose(-1, -2), "controls is not contiguous"),
        ("controls", lambda controls: controls.half(), "controls is torch.float16"),
        ("controls", lambda controls: controls.to("meta"), "controls is on meta"),
    ],
)
def test_a_wrong_tensor_is_our_own_fault(kernel, name, change, words):
    parts = step(2, controlled=True).tensors
    parts[name] = change(parts[name])
    with pytest.raises(AssertionError, match=words):
        kernel(*parts.values(), False)
