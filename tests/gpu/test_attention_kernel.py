"""The attention kernels without a GPU: interpreted, executed as PTX, counted as machine code; and with one."""

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cdiff_rt.gpu import attention_kernel as kernels
from cdiff_rt.gpu.attention import attention
from cdiff_rt.gpu.attention_plan import CHOICES, HALF, SINGLE, Choice, choice, cost
from cdiff_rt.nets.attention import attend
from tests.gpu import launches, ptx, sass

CAPABILITIES = [90, *(pytest.param(c, marks=pytest.mark.slow) for c in (80, 86, 89, 100, 120))]
FP16, BF16 = HALF
(FP32,) = SINGLE


@dataclass
class Case:
    """Of one attention: q with a gap between tokens, keys a slice of what other layers use too, values on their own."""

    chosen: Choice
    heads: int
    width: int
    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    out: torch.Tensor

    @property
    def tensors(self):
        return {"q": self.q, "k": self.keys, "v": self.values, "out": self.out}

    def launch(self, module=kernels):
        scale = self.width**-0.5 / math.log(2)
        module.launch(self.chosen, self.q, self.keys, self.values, self.out, self.heads, scale)

    def expected(self):
        """In float64."""
        double = (x.double().cpu() for x in (self.q, self.keys, self.values))
        return attend(*double, self.heads, self.width**-0.5)

    def on(self, device):
        return Case(self.chosen, self.heads, self.width, *(x.to(device) for x in self.tensors.values()))


def case(width, rows, keys, heads=5, dtype=FP16, *, batch=2, gap=16, spread=1.5, chosen=None):
    """`gap` numbers lie around what is asked of each token; the square of `spread` is that of the scores."""
    rng = np.random.default_rng(width * keys)

    def tensor(tokens, before, after, scale):
        whole = scale * rng.standard_normal((batch, tokens, before + heads * width + after))
        return torch.from_numpy(whole).to(dtype)[:, :, before : before + heads * width]

    of = chosen or choice(width, dtype)
    q, k, v = tensor(rows, 0, gap, spread), tensor(keys, gap, gap, spread), tensor(keys, 0, 0, 1.0)
    return Case(of, heads, width, q, k, v, torch.full((batch, rows, heads * width), torch.nan, dtype=dtype))


def check_results(one, want):
    """Lanes round once, at the end; tiles round the weights of values too."""
    got, eps = one.out.double().cpu(), torch.finfo(one.out.dtype).eps
    weights_rounded = 2 * eps if one.chosen.kernel == "tiles" else 0.0
    atol = 2e-5 + weights_rounded * one.values.abs().max().item()
    np.testing.assert_allclose(got, want, rtol=eps, atol=atol, err_msg="out")


def simulate(module, one, capability=90):
    name = f"{one.chosen.kernel}_kernel"
    wanted = launches.recorded(module, name, lambda: one.launch(module))
    return launches.simulate(getattr(module, name), wanted, capability)


def check(one, capability=90, module=kernels):
    """Right results; all of the inputs and nothing else is read, each result written once; as many exponentials as told."""
    want = one.expected()
    memory, executed = simulate(module, one, capability)
    check_results(one, want)
    for name, part in one.tensors.items():
        inside = np.zeros(part.untyped_storage().nbytes() // part.element_size(), bool)
        torch.as_strided(torch.from_numpy(inside), part.shape, part.stride(), part.storage_offset())[...] = True
        inside = inside.repeat(part.element_size())
        if name == "out":
            np.testing.assert_array_equal(memory[name].writes, inside, f"how often bytes of {name} are written")
        else:
            np.testing.assert_array_equal(memory[name].reads > 0, inside, f"which bytes of {name} are read")
    told = cost(len(one.q), one.q.shape[1], one.keys.shape[1], one.heads, one.width, one.q.dtype)
    if one.chosen == choice(one.width, one.q.dtype):
        assert executed["ex2.approx.ftz.f32"] == told.exponentials, "exponentials"


# --- its PTX ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("width", "dtype"), [(2, FP16), (3, FP32), (12, BF16)])
def test_ptx_computes_attention(width, dtype, capability):
    check(case(width, 19, 77, dtype=dtype), capability)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*HALF, FP32])
@pytest.mark.parametrize("width", [1, 5, 8, 16, 18, 30, 32])
def test_ptx_of_any_width(width, dtype):
    if choice(width, dtype) is None:
        pytest.skip("PyTorch computes it")
    check(case(width, 10, 32, 2, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("width", "dtype"),
    [
        *((width, dtype) for width in (2, 3, 4, 5, 8, 12) for dtype in (*HALF, FP32)),
        *((width, dtype) for width in (16, 30) for dtype in HALF),
        pytest.param(16, FP32, marks=pytest.mark.long),
    ],
)
def test_ptx_of_all_together(width, dtype, capability):
    if choice(width, dtype) is None:
        pytest.skip("PyTorch computes it")
    for keys in (19, 256):
        check(case(width, 37, keys, 9, dtype), capability)


@pytest.mark.slow
@pytest.mark.parametrize("width", [2, 12])
@pytest.mark.parametrize(("rows", "keys", "heads"), [(1, 1, 1), (64, 64, 8), (9, 19, 3), (33, 256, 2), (2, 300, 17)])
def test_ptx_of_any_size(width, rows, keys, heads):
    check(case(width, rows, keys, heads, batch=1))


@pytest.mark.parametrize(
    ("width", "gap"),
    [(2, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, 2), (3, 1), (12, 1), (12, 8)))],
)
def test_ptx_of_tokens_at_any_stride(width, gap):
    """Where a word of two halves would not be aligned, they are read one by one."""
    check(case(width, 9, 40, 3, gap=gap))


@pytest.mark.parametrize(("width", "dtype"), [(2, FP16), (5, FP32), (12, FP16)])
def test_no_score_is_too_large(width, dtype):
    one = case(width, 9, 77, 3, dtype, spread=20.0)
    assert one.expected().isfinite().all()
    check(one)


@pytest.mark.parametrize("width", [2, 12])
def test_what_is_not_a_number_stays_where_it_is(width):
    """A query that overflowed gives no number, and its neighbours theirs."""
    one = case(width, 19, 77)
    one.q[0, 4] = torch.nan
    simulate(kernels, one)
    assert one.out[0, 4].isnan().all()
    assert one.out.isnan().sum() == one.out[0, 4].numel()


# --- its machine code ------------------------------------------------------------------------------------------------


def used(one, capability, module=kernels):
    name = f"{one.chosen.kernel}_kernel"
    wanted = launches.recorded(module, name, lambda: one.launch(module))
    return sass.usage(launches.build(getattr(module, name), wanted, capability).asm["cubin"])


def check_lanes(usage, one):
    """Of keys without an empty slot: one exponential for a score, a maximum for AHEAD; no word is read twice."""
    of, words = one.chosen, one.width // 2 if one.width % 2 == 0 and one.q.dtype != FP32 else one.width
    assert usage.count("MUFU.EX2") == of.rows * (of.ahead + 1 + 1)  # the scores, the maximum, where lanes meet
    assert usage.count("LDG") == words * (of.rows + 2 * of.ahead)
    assert usage.count("STG") == one.width
    check_nothing_spills(usage)


def check_nothing_spills(usage):
    assert usage.stack == usage.local == 0
    assert usage.count("LDL", "STL") == 0
    assert usage.registers <= 255


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("width", "dtype"), [(2, FP16)])
def test_machine_code_of_lanes_keeps_its_budget(width, dtype, capability):
    one = case(width, 64, 1024, 32, dtype, batch=1)
    check_lanes(used(one, capability), one)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize(
    ("width", "dtype"),
    [*((3, FP16), (4, FP16), (5, BF16), (8, BF16), (8, FP32)), pytest.param(16, FP32, marks=pytest.mark.long)],
)
def test_machine_code_of_all_lanes_keeps_its_budget(width, dtype, capability):
    one = case(width, 64, 1024, 32, dtype, batch=1)
    check_lanes(used(one, capability), one)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("width", "padded"), [(12, 16), pytest.param(30, 32, marks=pytest.mark.slow)])
def test_machine_code_of_tiles_keeps_its_budget(width, padded, capability):
    """Products on tensor cores; one exponential for a score, which 64 threads share out, and 4 rows' maxima."""
    one = case(width, 64, 1024, 32, batch=1)
    usage, scores = used(one, capability), one.chosen.rows * one.chosen.keys
    assert usage.count("MUFU.EX2") == scores // 64 + 4
    assert usage.count("HMMA.16816.F32") == 2 * scores * padded // (16 * 8 * 16) // 2
    assert usage.count("LDG.E.U16", "STG.E.U16") == 0
    check_nothing_spills(usage)


# --- planted faults --------------------------------------------------------------------------------------------------

SMALL = Choice("lanes", 8, HALF + SINGLE, rows=2, keys=16, ahead=2, heads=4, warps=2)
CASES = {
    "lanes": lambda: case(3, 5, 77, 6, FP32, chosen=SMALL),
    "large": lambda: case(3, 5, 77, 6, FP32, chosen=SMALL, spread=12.0),
    "paired": lambda: case(4, 5, 77, 6, chosen=SMALL),
    "counted": lambda: case(3, 5, 40, 6),
    "tiles": lambda: case(12, 70, 77, 3),
}
WRONG = "out|race|out of bounds|bytes of|exponentials"
MUTANTS = {
    "lanes: no maximum": ("large", "new = tl.maximum(new, score)", "new = tl.maximum(new, 0 * score)"),
    "lanes: sum of weights not moved": ("lanes", "total *= kept", "total *= 1.0"),
    "lanes: sum of values not moved": ("lanes", "scaled(mixed, kept)", "scaled(mixed, 1.0)"),
    "lanes: scale forgotten": ("lanes", "D, PAIRED), scale)", "D, PAIRED), 1.0)"),
    "lanes: empty slots count": ("lanes", "tl.where(key < keys, score, float", "tl.where(key < 0, score, 0 * float"),
    "lanes: empty slots are zeros": ("lanes", 'key < keys, score, float("-inf")', "key < keys, score, 0.0"),
    "lanes: last keys skipped": ("lanes", "range(0, keys, KEYS * AHEAD)", "range(0, keys - 16, KEYS * AHEAD)"),
    "lanes: keys twice": ("lanes", "start + ahead * KEYS + lane", "start + ahead + lane"),
    "lanes: keys unmasked": ("lanes", "else (key < keys) & known", "else known"),
    "lanes: heads unmasked": ("lanes", "known = (head < heads)", "known = (head < heads + 8)"),
    "lanes: queries unmasked": ("lanes", "asked = (row < rows)", "asked = (row < rows + ROWS)"),
    "lanes: results unmasked": (
        "lanes",
        "(row < rows)[:, None] & (head < heads)",
        "(row < rows)[:, None] & (head < 8)",
    ),
    "lanes: keys for values": ("lanes", "read(far + key * v_token", "read(near + key * k_token"),
    "lanes: values at the stride of keys": ("lanes", "far + key * v_token", "far + key * k_token"),
    "lanes: the first image's queries": ("lanes", "place = q + b * q_image", "place = q"),
    "lanes: the first head's keys": (
        "lanes",
        "near = k + b * k_image + head[None",
        "near = k + b * k_image + 0 * head[None",
    ),
    "lanes: they do not meet": ("lanes", "largest - tl.max(largest, axis=1)[:, None, :]", "largest - largest"),
    "lanes: not normalised": ("lanes", "1.0 / tl.sum(total * kept, axis=1)", "1.0 / tl.sum(total, axis=1)"),
    "lanes: to the base e": ("lanes", "tl.exp2(scores[ahead] - new)", "tl.exp(scores[ahead] - new)"),
    "lanes: products without the last": (
        "lanes",
        "range(1, D):\n        total =",
        "range(1, D - 1):\n        total =",
    ),
    "lanes: results to the first image": (
        "lanes",
        "((b * rows + row[:, None]) * heads + head[",
        "((row[:, None]) * heads + head[",
    ),
    "lanes: two exponentials for a score": (
        "counted",
        "weight = tl.exp2(scores[ahead] - new)",
        "weight = tl.exp2(scores[ahead] - new) + tl.exp2(new - 1000 - score)",
    ),
    "paired: halves swapped": (
        "paired",
        "(word & 0xFFFF).to(tl.uint16), (word >> 16)",
        "(word >> 16).to(tl.uint16), (word & 0xFFFF)",
    ),
    "paired: every other word": ("paired", "tl.load(words + d", "tl.load(words + 2 * d"),
    "tiles: sum of weights not moved": ("tiles", "total = total * kept", "total = total"),
    "tiles: sum of values not moved": ("tiles", "mixed * kept[:, None])", "mixed)"),
    "tiles: no maximum": ("tiles", "tl.fma(scores, scale, (-new * scale)[:, None])", "scores * scale"),
    "tiles: scale forgotten": ("tiles", "tl.fma(scores, scale, (-new * scale)[:, None])", "scores - new[:, None]"),
    "tiles: empty slots are zeros": ("tiles", '[None, :], scores, float("-inf")', "[None, :], scores, 0.0"),
    "tiles: padding holds neighbours": ("tiles", "within = (d < D)", "within = (d < WIDTH)"),
    "tiles: keys unmasked": ("tiles", "else (key < keys)[:, None] & within", "else within"),
    "tiles: queries unmasked": ("tiles", "(row < rows)[:, None] & within", "(row < rows + 1)[:, None] & within"),
    "tiles: the first head's values": ("tiles", "far = v + b * v_image + head * D", "far = v + b * v_image"),
    "tiles: values at the stride of keys": ("tiles", "far + key[:, None] * v_token", "far + key[:, None] * k_token"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_without_a_fault_none_is_found(name):
    check(CASES[name]())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "old", "new"), MUTANTS.values(), ids=MUTANTS)
def test_a_planted_fault_is_found(name, old, new, tmp_path):
    module = launches.mutant(kernels, old, new, tmp_path)
    with pytest.raises((AssertionError, ptx.Fault), match=WRONG):
        check(CASES[name](), module=module)


@pytest.mark.parametrize(("name", "spare"), [("lanes", 0), ("tiles", 1)])
def test_a_forgotten_barrier_is_found(name, spare, monkeypatch):
    """Of those that the compiler has put in, each taken out by itself; one is there only in case."""
    real, barriers, found, i = ptx.parsed, [0], 0, 0

    def without_one(text):
        code, labels = real(text)
        barriers[:] = [at for at, now in enumerate(code) if now.opcode.startswith("bar.")]
        code[barriers[i]] = ptx.Instruction("nothing", "mov.pred", ["%p99999", "0"], None)
        return code, labels

    monkeypatch.setattr(ptx, "parsed", without_one)
    while i < len(barriers):
        try:
            simulate(kernels, CASES[name]())
        except ptx.Fault as fault:
            found += "race" in str(fault)
        i += 1
    assert found == len(barriers) - spare > 0


# --- interpreted, and on a device ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_interpreted():
    """But not of bf16: the interpreter truncates what it stores."""
    code = """
from cdiff_rt.gpu import attention_kernel
from tests.gpu.test_attention_kernel import FP16, FP32, case, check_results

for width, dtype in ((2, FP16), (3, FP32), (5, FP16), (12, FP16)):
    one = case(width, 9, 40, 3, dtype, batch=1)
    one.launch()
    check_results(one, one.expected())
print("agrees:", type(attention_kernel.lanes_kernel).__name__)
"""
    command = [sys.executable, "-c", code]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, check=False, text=True, cwd=root, env=environment)
    assert done.stdout == "agrees: InterpretedFunction\n", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
class TestOnADevice:
    @pytest.mark.parametrize("dtype", [*HALF, FP32])
    @pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 12, 16, 18, 30])
    def test_it_computes_attention(self, width, dtype):
        for rows, keys in ((19, 77), (64, 64), (1024, 1024), (1024, 19)):
            one = case(width, rows, keys, 32, dtype, chosen=choice(width, dtype) or CHOICES[-1]).on("cuda")
            one.out = attention(one.q, one.keys, one.values, one.heads, width**-0.5)
            check_results(one, one.expected().numpy())

    @pytest.mark.parametrize("width", [2, 12])
    def test_a_graph_of_it_gives_what_a_launch_gives(self, width):
        one = case(width, 1024, 1024, 32).on("cuda")
        launched = attention(one.q, one.keys, one.values, one.heads, width**-0.5)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = attention(one.q, one.keys, one.values, one.heads, width**-0.5)
        graph.replay()
        assert torch.equal(captured, launched)
