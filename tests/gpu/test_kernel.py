"""The kernel, without a GPU: interpreted, compiled and executed as PTX, and counted as machine code; and with one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdiff_rt.gpu import kernel
from cdiff_rt.gpu.buffers import PerStep
from cdiff_rt.gpu.fused_step import on_cuda
from cdiff_rt.manifest import TensorSpec
from cdiff_rt.sampling.numbers import LARGEST, WIDTH
from tests.gpu import launches, ptx, sass
from tests.gpu.launches import Launch, build, mutant, recorded
from tests.gpu.test_fused_step import BRAIN, HALF, SINGLE, STEERED, TYPES, check_results, expected, step

CAPABILITIES = (80, 86, 89, 90, 100, 120)
CHANGED = ("x", "hist", "weights")
KERNEL = "fuse_step_kernel"


def launch(module, one):
    """The step through `module.launch`."""
    module.launch(**one.tensors, boosted=one.adjust.boost is not None)


def compiled(module, one, capability=90):
    """The kernel that the step would launch, and the launch."""
    wanted = recorded(module, KERNEL, lambda: launch(module, one))
    return build(getattr(module, KERNEL), wanted, capability), wanted


def simulate(module, one, capability=90):
    """Takes the step by executing the compiled PTX; the memory that it went through."""
    wanted = recorded(module, KERNEL, lambda: launch(module, one))
    return launches.simulate(getattr(module, KERNEL), wanted, capability)[0]


def check_step(module, one, capability=90):
    """Right results; every byte of every tensor read once, those between modalities never, and results written once.

    Controls are read once for each image.
    """
    want = expected(one)
    memory = simulate(module, one, capability)
    check_results(one, want)
    for name, part in one.tensors.items():
        if part is None:
            continue
        inside = np.zeros(part.untyped_storage().nbytes() // part.element_size(), int)
        torch.as_strided(torch.from_numpy(inside), part.shape, part.stride(), part.storage_offset())[...] = 1
        inside = inside.repeat(part.element_size())
        writes = inside * (name in CHANGED)
        np.testing.assert_array_equal(memory[name].writes, writes, f"how often bytes of {name} are written")
        if name == "numbers":  # which every thread reads
            assert not memory[name].reads[inside == 0].any(), "numbers of another step are read"
        else:
            reads = inside * {"weights": 0, "controls": len(one.x)}.get(name, 1)
            np.testing.assert_array_equal(memory[name].reads, reads, f"how often bytes of {name} are read")


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("storage", [HALF, BRAIN, SINGLE])
@pytest.mark.parametrize(("modalities", "latent"), [(2, (40, 32)), (3, (13, 17))])
def test_ptx_computes_the_step(modalities, latent, storage, capability):
    check_step(kernel, step(modalities, latent, stored=storage, predicted=storage, weights=False), capability)


@pytest.mark.parametrize("modalities", range(1, LARGEST + 1))
@pytest.mark.parametrize("boosted", [False, True])
def test_ptx_of_any_number_of_modalities(modalities, boosted):
    check_step(kernel, step(modalities, (16, 24), channels=2, predicted=HALF, boosted=boosted, padded=boosted))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("modalities", "latent"), [(3, (20, 32)), (2, (13, 17))])
def test_ptx_steers(modalities, latent, capability):
    check_step(kernel, step(modalities, latent, predicted=HALF, controlled=True, absent=[0]), capability)


@pytest.mark.parametrize(
    ("modalities", "choices"),
    [
        *(pytest.param(m, {"controlled": True} | choices, id=name) for name, (m, choices) in STEERED.items()),
        *(pytest.param(*STEERED[name], id=f"{name}, no controls") for name in STEERED if "absent" in name),
    ],
)
def test_ptx_of_any_controls_and_whoever_is_present(modalities, choices):
    latent = (8, 16) if modalities % 2 else (5, 27)
    check_step(kernel, step(modalities, latent, channels=1, predicted=HALF, **choices))


@pytest.mark.parametrize("latent", [(1,), (221,), (4, 8, 16)])
def test_ptx_steers_any_latent(latent):
    check_step(kernel, step(2, latent, channels=2, batch=3, stored=BRAIN, predicted=HALF, controlled=True))


@pytest.mark.parametrize(("stored", "predicted"), [(HALF, HALF), (BRAIN, SINGLE)])
def test_ptx_steers_in_half_precision(stored, predicted):
    check_step(kernel, step(2, (23, 32), stored=stored, predicted=predicted, controlled=True))


def test_ptx_hides_no_prediction_that_is_no_number():
    one = step(2, (16, 16), controlled=True)
    one.logits[0, 0, 0, 3, 4] = torch.nan
    simulate(kernel, one)
    assert one.weights[:, 0, 0, 3, 4].isnan().all() and one.weights.isnan().sum() == 2


@pytest.mark.parametrize(("stored", "predicted"), TYPES)
def test_ptx_of_mixed_storage(stored, predicted):
    check_step(kernel, step(2, (23, 32), stored=stored, predicted=predicted, channels=1))


@pytest.mark.parametrize("latent", [(1,), (3,), (128,), (221,), (11, 100), (4, 8, 16)])
@pytest.mark.parametrize("padded", [False, True])
def test_ptx_of_any_latent(latent, padded):
    check_step(kernel, step(3, latent, channels=2, batch=3, stored=BRAIN, predicted=HALF, padded=padded))


@pytest.mark.parametrize("without", [("hist",), ("noise",), ("weights",), ("hist", "noise", "weights")])
def test_ptx_without_a_part(without):
    check_step(kernel, step(2, (16, 16), **dict.fromkeys(without, False)))


@pytest.mark.parametrize("latent", [(16, 16), (13, 17)])
@pytest.mark.parametrize("taken", [0, 2])
def test_ptx_of_a_step_selected_on_the_device(taken, latent):
    """Its noise, numbers and controls lie in one row, of which no byte but theirs is read, and of other steps' none."""
    check_step(kernel, selected(step(2, latent, channels=2, controlled=True), taken))


def selected(one, taken):
    """The step as number `taken` of a run, whose other steps are not numbers."""
    values = [TensorSpec(name, tuple(part.shape), "float32") for name, part in row_of(one).items()]
    values.insert(1, TensorSpec("between", (3,), "float16"))
    per_step = PerStep(values, 3, torch.device("cpu"))
    for name, rows in per_step.rows.items():
        rows.fill_(torch.nan)
        rows[taken] = row_of(one).get(name, torch.nan)
    for _ in range(taken + 1):
        per_step.select()
    return replace(one, **{name: per_step.now[name] for name in row_of(one)})


def row_of(one):
    return {"numbers": one.numbers, "controls": one.controls, "noise": one.noise}


@pytest.mark.parametrize("latent", [(16, 16), (13, 17)])
def test_ptx_of_many_channels(latent):
    check_step(kernel, step(2, latent, channels=16, predicted=HALF))


def test_interpreted():
    """But not of bf16: the interpreter truncates what it stores."""
    code = """
import torch
from cdiff_rt.gpu import kernel
from tests.gpu.test_fused_step import HALF, SINGLE, check_results, expected, step
from tests.gpu.test_kernel import launch

for modalities, storage, boosted in ((1, SINGLE, False), (3, SINGLE, True), (2, HALF, False), (5, HALF, True)):
    one = step(modalities, (19, 19), stored=storage, predicted=storage, boosted=boosted, controlled=modalities > 2)
    want = expected(one)
    launch(kernel, one)
    check_results(one, want)
print("agrees:", type(kernel.fuse_step_kernel).__name__)
"""
    command = [sys.executable, "-c", code]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, check=False, text=True, cwd=root, env=environment)
    assert done.stdout == "agrees: InterpretedFunction\n", done.stderr


def test_the_operation_on_cuda_is_one_launch(monkeypatch):
    wanted = Launch()
    monkeypatch.setattr(kernel, "fuse_step_kernel", wanted)
    one = step(2, (64, 64), batch=4, predicted=HALF, stored=HALF, weights=False, controlled=True)
    outs, logits, *others = one.tensors.values()
    on_cuda(outs, logits, *others, True)
    assert wanted.grid == (4096 // 1024, 4)
    assert wanted.args == (*one.tensors.values(), outs.stride(0), logits.stride(0), 4096, 3)
    assert wanted.options == {"M": 2, "C": 3, "BOOSTED": True, "BLOCK": 1024, "num_warps": 4, "enable_fp_fusion": True}


@pytest.mark.parametrize(("size", "widest", "block"), [(1, 4, (128, 1)), (256, 2, (256, 1)), (221, 4, (256, 2))])
def test_small_latents_take_small_blocks(size, widest, block):
    assert kernel.blocking(size, widest) == block


def of_half(modalities, latent=(64, 64)):
    return step(modalities, latent, stored=HALF, predicted=HALF, hist=False, weights=False)


def used(module, one, capability=90):
    return sass.usage(compiled(module, one, capability)[0].asm["cubin"])


def check_budget(usage, modalities):
    """Of three channels: logits, predictions, x and noise of 8 pixels at once, no more; everything in registers."""
    assert usage.count("LDG.E.128") == modalities + 3 * modalities + 6
    assert usage.count("LDG.E.64", "LDG.E.U16") == 0
    assert usage.count("STG") == usage.count("STG.E.128") == 3
    assert usage.registers <= 96
    check_nothing_spills(usage)


def check_nothing_spills(usage):
    assert usage.stack == usage.shared == usage.local == 0
    assert usage.count("LDL", "STL", "LDS", "STS", "BAR") == 0


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_machine_code_keeps_its_budget(modalities, capability):
    check_budget(used(kernel, of_half(modalities), capability), modalities)


@pytest.mark.parametrize("latent", [(17, 13), (4, 50)])
def test_unaligned_latents_are_read_pixel_by_pixel(latent):
    usage = used(kernel, of_half(2, latent))
    assert usage.count("LDG.E.U16") == 8 * (2 + 6 + 6)
    assert usage.count("LDG.E.128") == 0
    check_nothing_spills(usage)
    with pytest.raises(AssertionError):
        check_budget(usage, 2)


@pytest.mark.parametrize("modalities", [2, LARGEST])
@pytest.mark.parametrize("controlled", [False, True])
def test_single_precision_latents_need_no_shared_memory(modalities, controlled):
    usage = used(kernel, step(modalities, (64, 64), predicted=HALF, hist=False, weights=False, controlled=controlled))
    maps = 3 * modalities * controlled
    assert (usage.count("LDG.E.64"), usage.count("LDG.E.128")) == (4 * modalities, 6 + maps)
    assert usage.count("STG") == usage.count("STG.E.128") == 3
    check_nothing_spills(usage)


MUTANTS = {
    "no subtraction of the largest": ("tl.exp(score - largest)", "tl.exp(score)", "x"),
    "no normalisation": ("scale = 1.0 / summed(parts, M)", "scale = 1.0", "x"),
    "sharpness forgotten": ("sharpness * logits[m], ABSENT", "logits[m], ABSENT", "x"),
    "gain of the first modality for all": ("GAINS + m)", "GAINS)", "x"),
    "remainder forgotten": ("* remainder", "* 0.0", "x"),
    "factors forgotten": ("with_remainder * tl.load(numbers + FACTORS + m)", "with_remainder", "x"),
    "boost forgotten": ("if BOOSTED:", "if not BOOSTED:", "x"),
    "wrong column": ("numbers + C_HIST)", "numbers + C_NOISE)", "x"),
    "noise forgotten": ("c_noise * read(noise + here, inside)", "0.0", "x"),
    "hist of the next x": ("(d_x * now + d_out * out)", "(d_x * following + d_out * out)", "hist"),
    "hist not written": (
        "(d_x * now + d_out * out).to(hist.dtype.element_ty), mask=inside",
        "0.0, mask=pixel < 0",
        "hist",
    ),
    "predictions at the stride of logits": ("at(m, outs_stride)", "at(m, logits_stride)", "x"),
    "weights of the first modality for all": ("pixel, shares[m], mask", "pixel, shares[0], mask", "weights"),
    "channels without a batch": ("image = b * channels", "image = b", "race"),
    "unmasked store": ("following.to(x.dtype.element_ty), mask=inside", "following.to(x.dtype.element_ty)", "race"),
    "unmasked load": ("tl.load(pointers, mask=inside, other=0.0)", "tl.load(pointers)", "race|out of bounds"),
    "overlapping blocks": ("tl.program_id(0) * BLOCK", "tl.program_id(0) * (BLOCK // 2)", "race"),
    "logits read again": (
        "now = read(x + here, inside)",
        "now = read(x + here, inside) + 0.0 * read(logits + at(1, logits_stride) + b * size + pixel, inside)",
        "logits are read",
    ),
    "the next step's sharpness": ("numbers + SHARPNESS)", f"numbers + SHARPNESS + {WIDTH})", "x"),
    "the next step's numbers read": (
        "tl.load(numbers + SHARPNESS)",
        f"tl.load(numbers + SHARPNESS) + 0.0 * tl.load(numbers + {WIDTH})",
        "numbers of another step are read",
    ),
    "gaps read": ("at(m, logits_stride) + b", "at(m, logits_stride) + b + 1", "x"),
    "presence forgotten": ("tl.load(numbers + PRESENT + m) > 0.0", "tl.load(numbers + PRESENT + m) >= 0.0", "x"),
    "presence of the first for all": ("numbers + PRESENT + m) > 0.0", "numbers + PRESENT) > 0.0", "x"),
    "an absent one's logits count": (
        "tl.where(present[m], sharpness * logits[m], ABSENT)",
        "sharpness * logits[m]",
        "x",
    ),
    "an absent one has a score": ("sharpness * logits[m], ABSENT", "sharpness * logits[m], 125.0", "x"),
    "all are there in the second softmax": (
        "softmax(weights, present, tl.load",
        "softmax(weights, [there | True for there in present], tl.load",
        "x",
    ),
    "an absent first one's prediction counts": (
        "tl.where(present[0], read(outs + here, inside), 0.0)",
        "read(outs + here, inside)",
        "x",
    ),
    "an absent one's prediction counts": (
        "tl.where(present[m], read(outs + at(m, outs_stride) + here, inside), 0.0)",
        "read(outs + at(m, outs_stride) + here, inside)",
        "x",
    ),
    "controls forgotten": ("shares = steered(shares, numbers, controls, size, pixel, M)", "pass", "x"),
    "scales forgotten": ("tl.maximum(scale, 0.0) * ", "tl.where(scale > 0.0, 1.0, 0.0) * ", "x"),
    "negative scales weigh": ("tl.maximum(scale, 0.0) * ", "scale * ", "x"),
    "a share that underflows stays 0": ("tl.maximum(shares[m], NO_LESS)", "shares[m]", "x"),
    "scaled shares do not sum to 1": ("bounded(normalised(wanted, M)", "bounded(wanted", "x"),
    "scales above 0 lead away": ("tl.minimum(scale, 0.0)", "scale", "x"),
    "away by the share alone": ("* shares[m] * count", "* shares[m]", "x"),
    "absent ones are counted": ("count += tl.load(numbers + PRESENT + m)", "count += 1.0", "x"),
    "away for nothing": ("towards = 1.0 - summed(away, M)", "towards = 1.0", "x"),
    "away forgotten": ("held[m] * towards + away[m]", "held[m] * towards", "x"),
    "least forgotten": ("tl.maximum(shares[m], least), most", "shares[m], most", "x"),
    "most forgotten": ("tl.minimum(tl.maximum(shares[m], least), most)", "tl.maximum(shares[m], least)", "x"),
    "what is missing is not shared out": ("held[m] + rate * room[m]", "held[m]", "x"),
    "room above only": ("tl.where(missing > 0.0, above[m], below[m])", "above[m]", "x"),
    "room below only": ("tl.where(missing > 0.0, above[m], below[m])", "below[m]", "x"),
    "room above from 0": ("(most - part,)", "(most,)", "x"),
    "room below down to 0": ("(part - least,)", "(part,)", "x"),
    "no room at all": ("tl.maximum(summed(room, M), NO_LESS)", "summed(room, M)", "x"),
    "the first scale for all": ("SCALE * M + m", "SCALE * M", "x"),
    "the least of the most": ("mapped(controls, LEAST * M + m", "mapped(controls, MOST * M + m", "x"),
    "the next map": ("tl.int64) + map", "tl.int64) + map + 1", "out of bounds"),
    "maps of other sizes": ("controls + number * size + pixel", "controls + number * (size + 1) + pixel", "bounds|x"),
    "controls beyond the last pixel": ("pixel, pixel < size)", "pixel, pixel >= 0)", "bounds|controls are read"),
    "controls of each image": ("tl.program_id(2).to", "tl.program_id(1).to", "bounds"),
}


def hard_steps():
    """Of all that the kernel computes, and then, without a second softmax, of shares that underflow."""
    yield step(4, (15, 35), padded=True, predicted=HALF, controlled=True, absent=[0, 2], boosted=True)
    yield step(4, (5, 27), channels=1, predicted=HALF, controlled=True)


def test_the_kernel_has_none_of_these_faults():
    for one in hard_steps():
        check_step(kernel, one)


@pytest.mark.parametrize(("old", "new", "words"), MUTANTS.values(), ids=MUTANTS)
def test_a_planted_fault_is_found(old, new, words, tmp_path):
    changed = mutant(kernel, old, new, tmp_path)
    with pytest.raises((AssertionError, ptx.Fault), match=words):
        for one in hard_steps():
            check_step(changed, one)


def test_logits_read_again_break_the_budget(tmp_path):
    old, new, _ = MUTANTS["logits read again"]
    with pytest.raises(AssertionError):
        check_budget(used(mutant(kernel, old, new, tmp_path), of_half(2)), 2)


@pytest.mark.parametrize(("offset", "words"), [(8, "misaligned 16-byte load"), (64, "out of bounds"), (-16, "nothing")])
def test_a_wrong_address_is_found(offset, words):
    memory = ptx.Memory()
    address = memory.place("x", np.zeros(64, np.uint8))
    memory.find(np.array([address, address + 48]), 16, "load")
    with pytest.raises(ptx.Fault, match=words):
        memory.find(np.array([address + offset]), 16, "load")


def test_ptx_that_is_not_known_is_not_guessed():
    text = ".visible .entry k(\n.param .u32 k_param_0\n)\n.reqntid 32\n{\n bra $L;\n}"
    with pytest.raises(NotImplementedError, match="bra"):
        ptx.execute(text, (1, 1), [0], ptx.Memory())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
class TestOnADevice:
    @pytest.mark.parametrize(("stored", "predicted"), TYPES)
    def test_it_computes_the_step(self, stored, predicted):
        for modalities in range(1, LARGEST + 1):
            self.check(step(modalities, (64, 64), stored=stored, predicted=predicted))

    @pytest.mark.parametrize("latent", [(1,), (221,), (11, 100), (4, 8, 16)])
    @pytest.mark.parametrize("padded", [False, True])
    def test_of_any_latent(self, latent, padded):
        self.check(step(3, latent, stored=BRAIN, predicted=HALF, channels=16, padded=padded, boosted=True))

    @pytest.mark.parametrize("without", [("hist",), ("noise",), ("weights",), ("hist", "noise", "weights")])
    def test_without_a_part(self, without):
        self.check(step(2, (16, 16), **dict.fromkeys(without, False)))

    @pytest.mark.parametrize("latent", [(64, 64), (221,), (4, 8, 16)])
    @pytest.mark.parametrize(("modalities", "choices"), STEERED.values(), ids=STEERED)
    def test_of_any_controls_and_whoever_is_present(self, modalities, choices, latent):
        self.check(step(modalities, latent, predicted=HALF, controlled=True, **choices))
        self.check(step(modalities, latent, predicted=HALF, **choices))

    def check(self, one):
        want = expected(one)
        there = one.on("cuda")
        there.run()
        check_results(there, want)
