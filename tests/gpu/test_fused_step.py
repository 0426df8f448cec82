from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch

from cdiff_rt.gpu.fused_step import STORED, fuse_step, fuse_step_op, on_cuda
from cdiff_rt.sampling import fusion
from cdiff_rt.sampling.fusion import Adjustment
from cdiff_rt.sampling.numbers import LARGEST, WIDTH, pack
from cdiff_rt.sampling.solvers import C_HIST, C_NOISE, D_OUT, D_X, SolverTable

HALF, BRAIN, SINGLE = STORED
STEPS = 3
TAKEN = 1  # of the table's rows


@dataclass
class Step:
    """One step's tensors, and the numbers that `fuse_step` gets packed."""

    outs: torch.Tensor
    logits: torch.Tensor
    x: torch.Tensor
    hist: torch.Tensor | None
    noise: torch.Tensor | None
    numbers: torch.Tensor
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
        outs, logits, x, hist, noise, numbers, weights = self.tensors.values()
        boosted = self.adjust.boost is not None
        fuse_step(outs, logits, x, numbers, hist=hist, noise=noise, weights=weights, boosted=boosted)


def step(modalities=2, latent=(8, 8), *, batch=2, channels=3, predicted=SINGLE, stored=SINGLE, padded=False, **choices):
    """`predicted` is the type of outs and logits, `stored` of x, hist and noise; `padded` leaves gaps over M."""
    rng = np.random.default_rng(modalities)

    def tensor(dtype, *shape, scale=1.0, offset=0.0):
        return torch.from_numpy(offset + scale * rng.standard_normal(shape)).to(dtype)

    def of_modalities(channels, **scale):
        whole = tensor(predicted, modalities, batch + padded, channels, *latent, **scale)
        return whole[:, :batch]

    def present(name, value):
        return value if choices.get(name, True) else None

    parts = {name: tensor(stored, batch, channels, *latent) for name in ("x", "hist", "noise")}
    single = {"table": rng.standard_normal((STEPS, 8)), "gains": rng.uniform(0.2, 1, (STEPS, modalities))}
    single = {name: values.astype(np.float32).astype(np.float64) for name, values in single.items()}
    table = SolverTable(np.arange(STEPS), np.ones(STEPS), single["table"])
    adjust = Adjustment(
        np.where(np.arange(modalities) == modalities - 1, 1.0, single["gains"]),
        np.tile(np.eye(modalities)[-1], (STEPS, 1)),
        np.tile(np.where(np.arange(modalities) == 0, 1.75, 1.0), (STEPS, 1)),
        np.ones((STEPS, modalities)),
        1.25,
        2.0 if choices.get("boosted") else None,
    )
    return Step(
        of_modalities(channels),
        of_modalities(1, scale=2.0, offset=100.0),  # exp of it is not finite in float32
        parts["x"],
        present("hist", parts["hist"]),
        present("noise", parts["noise"]),
        torch.from_numpy(pack(table, adjust))[TAKEN],
        present("weights", torch.full((modalities, batch, 1, *latent), torch.nan)),
        table,
        adjust,
    )


def expected(step):
    """What the definition makes of the step in float64: the next x and hist, and the weights."""

    def double(part):
        return 0.0 if part is None else part.to(torch.float64).cpu().numpy()

    outs, logits = double(step.outs), double(step.logits)
    weights = fusion.influence(logits, fusion.of_step(step.adjust, TAKEN, outs.ndim - 1))
    out = fusion.fuse(outs, weights)
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
    one = step(2, padded=True)
    before = {name: part.clone() for name, part in one.tensors.items()}
    one.run()
    changed = {name for name, part in one.tensors.items() if not torch.equal(part, before[name])}
    assert changed == {"x", "hist", "weights"}


@pytest.mark.parametrize("boosted", [False, True])
@pytest.mark.parametrize("absent", [False, True])
def test_pytorch_knows_what_the_operation_does(boosted, absent):
    parts = step(2, (4, 5), padded=True, hist=not absent, noise=not absent, weights=not absent, predicted=HALF)
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
    ],
)
def test_a_wrong_tensor_is_our_own_fault(kernel, name, change, words):
    parts = step(2).tensors
    parts[name] = change(parts[name])
    with pytest.raises(AssertionError, match=words):
        kernel(*parts.values(), False)
