"""Ladder L3: every network of the embedded model as a TensorRT-RTX engine, built here, without a GPU."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cdiff_rt import commands
from cdiff_rt.engines.cache import EngineCache
from cdiff_rt.engines.trt import DATA_TYPES
from cdiff_rt.engines.trt_build import build_plan
from cdiff_rt.errors import BadArtefact, BadEnvironment, BadRequest
from cdiff_rt.export import gpu_engines as engines_module
from cdiff_rt.export.gpu_engines import EngineReport, build_engines
from tests.conformance.golden import Golden
from tests.conformance.test_full_size import checkpoint, measured
from tests.engines import standin_trt

TARGETS = ["8.6", "8.9", "12.0"]
NETWORKS = ["condition.mask", "condition.text", "time.mask", "time.text", "vae.encode", "vae.decode"]
EXPERTS, STEP = ["expert.mask", "expert.text"], "step.mask+text"
# What the embedded model's graphs hold, and the most kernels that an engine may have; 1.7.1 makes fewer.
ATTENTIONS = {"condition.text": 3, "vae.encode": 1, "vae.decode": 1, "expert.mask": 22, "expert.text": 22, STEP: 44}
KERNELS = {"condition.mask": 10, "condition.text": 50, "time.mask": 20, "time.text": 20, "vae.encode": 90}
KERNELS |= {"vae.decode": 100, "expert.mask": 400, "expert.text": 400, STEP: 800}
CASTS = {"expert.mask": 1, "expert.text": 1, STEP: 1, "vae.encode": 3, "vae.decode": 2}  # at the boundary


@pytest.fixture(scope="module")
def built(bundle, tmp_path_factory):
    """Every network once, one plan for all three kinds of GPU: cache, reports by network, and what the plans take."""
    folder, declared = tmp_path_factory.mktemp("engines"), {}
    cache = EngineCache(folder / "engines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines_module, "build_plan", lambda path, *given, **how: spied(declared, path, given, how))
        reports = build_engines(bundle, "tensorrt-rtx", TARGETS, experts=["whole-step"], cache=cache)
    return cache, {report.network: report for report in reports}, declared


def spied(declared, path, given, how):
    """Builds, and notes inputs and outputs as the library itself understood them."""
    import tensorrt_rtx as trt

    log = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(path))
    sides = [
        [get(i) for i in range(count)]
        for get, count in ((network.get_input, network.num_inputs), (network.get_output, network.num_outputs))
    ]
    declared[path.stem] = [[(t.name, t.dtype.name, tuple(t.shape)) for t in side] for side in sides]
    return build_plan(path, *given, **how)


@pytest.mark.slow
@pytest.mark.parametrize("network", [*NETWORKS, *EXPERTS, STEP])
def test_every_network_builds(network, built):
    _, reports, _ = built
    print(reports[network])
    report = reports[network].report
    assert report.attentions == ATTENTIONS.get(network, 0)
    assert len(report.kernels) <= KERNELS[network]
    assert len(report.casts) <= CASTS.get(network, 0), report.casts


@pytest.mark.slow
@pytest.mark.parametrize("network", [*EXPERTS, STEP])
def test_every_attention_of_the_step_is_fused(network, built):
    report = built[1][network].report
    assert len(report.fused_attentions) == report.attentions > 0
    assert report.softmaxes == []


@pytest.mark.slow
def test_the_fusion_of_the_step_is_two_kernels_of_which_one_takes_the_predictions(built):
    """And one of the step's numbers alone; the first of the two makes influence functions of the logits."""
    report = built[1][STEP].report
    fusing = [layer for layer in report.kernels if any(name.startswith("fusion/") for name in layer.made_of)]
    summing, exponentials = (
        [layer for layer in fusing if {*names} & {*layer.made_of}]
        for names in (("out.0", "out.1"), ["fusion/node_exp"])
    )
    assert len(summing) == len(exponentials) == 1 and len(fusing) <= 3, [layer.name for layer in fusing]


@pytest.mark.slow
@pytest.mark.parametrize("network", [*NETWORKS, *EXPERTS, STEP])
def test_inputs_and_outputs_are_those_of_the_spec(network, built):
    cache, _, declared = built
    index = json.loads((cache.folder / "engines.json").read_text())["engines"].values()
    (spec,) = (engine["spec"] for engine in index if engine["recipe"]["network"] == network)
    for side, found in zip(("inputs", "outputs"), declared[network], strict=True):
        expected = [
            (t["name"], DATA_TYPES[t["dtype"]], tuple(-1 if isinstance(d, str) else d for d in t["shape"]))
            for t in spec[side]
        ]
        assert sorted(found) == sorted(expected)


@pytest.mark.slow
def test_one_plan_serves_all_three(built):
    cache, reports, _ = built
    assert len(list(cache.folder.glob("*.plan"))) == len(reports) == len([*NETWORKS, *EXPERTS, STEP])


@pytest.mark.slow
def test_what_was_built_is_not_built_again(built, bundle, monkeypatch):
    monkeypatch.setattr(engines_module, "build_plan", lambda *given, **how: pytest.fail("built again"))
    again = build_engines(bundle, "tensorrt-rtx", TARGETS, experts=["whole-step"], cache=built[0])
    assert [report.report for report in again] == [None] * len(built[1])
    assert str(again[2]).endswith("was built before")


@pytest.mark.slow
def test_an_expert_in_bf16(bundle, tmp_path):
    one = dataclasses.replace(bundle, manifest=with_networks(bundle, "expert.mask", "vae.decode"))
    cache = EngineCache(tmp_path / "engines")
    expert, decoder = build_engines(one, "tensorrt-rtx", TARGETS, precision="bf16", cache=cache)
    assert len(expert.report.fused_attentions) == ATTENTIONS["expert.mask"] and not expert.report.softmaxes
    assert "bf16 batch 1" in str(expert) and "22 of 22 attentions fused" in str(expert)
    assert decoder.report.kernels


def with_networks(bundle, *names):
    import dataclasses

    return dataclasses.replace(bundle.manifest, networks={name: bundle.manifest.networks[name] for name in names})


# --- which engines ---------------------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch, tmp_path):
    """The full library's stand-in, and a cache folder to build into."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return standin_trt.install(monkeypatch)


def test_for_several_batch_sizes_what_depends_on_them_is_built_for_each(bundle, full):
    reports = build_engines(bundle, "tensorrt", batches=[4, 2])
    assert all(report.report for report in reports)  # each is new, so nothing was asked for twice
    assert {(report.network, report.sizes.get("batch")) for report in reports} == {
        *((f"expert.{m}", b) for m in ("mask", "text") for b in (2, 4)),
        *((f"vae.{c}", b) for c in ("encode", "decode") for b in (1, 2, 4)),
        *((f"condition.{m}", 1) for m in ("mask", "text")),
        *((f"time.{m}", None) for m in ("mask", "text")),
    }


def test_the_timing_cache_goes_from_one_build_to_the_next(bundle, full):
    build_engines(bundle, "tensorrt")
    assert full.timing_given == b"." * 7  # of eight networks
    build_engines(bundle, "tensorrt", precision="fp32")
    cache = EngineCache()
    assert cache.learned("tensorrt-11.4.0.timing") == full.timing_given + b"."
    (cache.folder / "tensorrt-11.4.0.timing").write_bytes(b"corrupt")
    build_engines(bundle, "tensorrt", batches=[3])
    assert b"corrupt" not in full.timing_given


def test_a_boost_of_the_manifest_is_built_into_the_step(bundle, full):
    import dataclasses

    boosted = dataclasses.replace(bundle.manifest.influence, boost=2.0)
    other = dataclasses.replace(
        bundle, manifest=dataclasses.replace(with_networks(bundle, *EXPERTS), influence=boosted)
    )
    assert build_engines(other, "tensorrt", experts=["whole-step"])[-1].network == "step-boosted.mask+text"


def test_a_failing_build_leaves_nothing_behind(bundle, full):
    full.refuses = {"build_serialized_network"}
    with pytest.raises(BadArtefact, match="TensorRT refuses it"):
        build_engines(bundle, "tensorrt")
    assert {path.suffix for path in EngineCache().folder.iterdir()} == {".lock"}


@pytest.mark.parametrize(
    ("target", "capabilities", "error", "words"),
    [
        ("trt", [], BadRequest, "'trt'; choose one of tensorrt, tensorrt-rtx"),
        ("tensorrt-rtx", ["9.0"], BadRequest, "9.0, but tensorrt-rtx knows .* build on one with --target tensorrt"),
        ("tensorrt-rtx", ["8.6", "x"], BadRequest, "x, but tensorrt-rtx knows"),
        ("tensorrt", [], BadEnvironment, "no NVIDIA driver|finds no GPU"),
        ("tensorrt", ["8.6"], BadEnvironment, "no NVIDIA driver|finds no GPU"),
    ],
)
def test_what_cannot_be_built_is_said_before_anything_is(target, capabilities, error, words, bundle, tmp_path):
    cache = EngineCache(tmp_path / "engines")
    with pytest.raises(error, match=words):
        build_engines(bundle, target, capabilities, cache=cache)
    assert not cache.folder.exists()


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments):
    return CliRunner().invoke(commands.main, ["export", *map(str, arguments)])


@pytest.fixture
def asked(monkeypatch):
    """What the command asks the library for, instead of building it."""
    calls = []

    def build(bundle, target, capabilities, **how):
        calls.append((bundle.folder.name, target, capabilities, how))
        return [EngineReport("expert.mask", "fp16", {"batch": 1}, 1_500_000, None)]

    monkeypatch.setattr(engines_module, "build_engines", build)
    return calls


def test_the_command_translates(asked):
    result = command("--model", "faces-128", "--target", "tensorrt-rtx")
    assert (result.exit_code, result.output.split()[0]) == (0, "expert.mask"), result.output
    command(
        *("--model", "faces-128", "--target", "tensorrt", "--compute-capability", "8.6,12.0"),
        *("--engine-precision", "bf16", "--engine-batch", "1", "--engine-batch", "4", "--experts", "whole-step"),
    )
    usual = {"precision": "fp16", "batches": (1,), "experts": ()}
    assert asked == [
        ("faces-128", "tensorrt-rtx", [], usual),
        (
            "faces-128",
            "tensorrt",
            ["8.6", "12.0"],
            {"precision": "bf16", "batches": (1, 4), "experts": ("whole-step",)},
        ),
    ]


@pytest.mark.parametrize(
    ("options", "multiple"), [([], 1), (["--target", "tensorrt-rtx"], 16), (["--head-multiple", "8"], 8)]
)
def test_a_new_bundle_gets_heads_that_can_be_fused(options, multiple, asked, bundle, tmp_path, monkeypatch):
    seen = {}

    def export(checkpoints, out, **settings):
        seen.update(settings)
        shutil.copytree(bundle.folder, out)
        return {}

    monkeypatch.setattr("cdiff_rt.export.bundle.export_checkpoint", export)
    result = command("--checkpoint", "x.ckpt", "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert seen["head_multiple"] == multiple
    assert [call[0] for call in asked] == (["out"] if "--target" in options else [])


MODEL, NEW = ["--model", "faces-128"], ["--checkpoint", "a.ckpt", "--out", "b"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give --checkpoint and --out, or --model and --target"),
        (MODEL, "give --checkpoint"),
        (NEW[:2], "give --checkpoint"),
        (NEW[2:], "give --checkpoint"),
        ([*MODEL, *NEW, "--target", "tensorrt"], "give --checkpoint"),
        ([*MODEL, "--out", "b", "--target", "tensorrt"], "give --checkpoint"),
        ([*NEW[:2], "--out", "b.safetensors", "--target", "tensorrt"], "needs a bundle"),
        ([*NEW, "--experts", "whole-step"], "--experts goes with --target"),
        ([*NEW, "--compute-capability", "8.6"], "--compute-capability goes with --target"),
        ([*NEW, "--engine-batch", "2"], "--engine-batch goes with --target"),
        ([*MODEL, "--target", "tensorrt", "--freeu", "text=1,1,1,1"], "--freeu goes with --checkpoint"),
        ([*MODEL, "--target", "tensorrt", "--precision", "fp32"], "--precision goes with --checkpoint"),
        ([*MODEL, "--target", "tensorrt", "--engine-batch", "0"], "0 is not in the range"),
        ([*MODEL, "--target", "trt"], "'trt' is not one of"),
    ],
)
def test_options_that_contradict_each_other(options, words, asked):
    result = command(*options)
    assert (result.exit_code, asked) == (2, []) and words in result.output, result.output


# --- the released size -----------------------------------------------------------------------------------------------


ALONE = """
import dataclasses, json, sys
from pathlib import Path
from cdiff_rt.engines.cache import EngineCache
from cdiff_rt.export.gpu_engines import build_engines
from cdiff_rt.manifest import Bundle

bundle, folder, network = Bundle.open(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
networks = {network: bundle.manifest.networks[network]}
one = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, networks=networks))
cache = EngineCache(folder / "engines")
(made,) = build_engines(one, "tensorrt-rtx", ["8.6", "8.9", "12.0"], cache=cache)
lists = ("kernels", "fused_attentions", "softmaxes", "casts", "copies")
counts = {name: len(getattr(made.report, name)) for name in lists}
said = {"line": str(made), "attentions": made.report.attentions, "seconds": made.report.seconds, "bytes": made.bytes}
(peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
said["memory"] = int(peak.split()[1]) * 1024  # not wait4's: that one counts the process that started this one
(folder / "report.json").write_text(json.dumps(said | counts))
"""


def built_alone(bundle, folder, network):
    """The counts of one engine, built in a process of its own, and the most memory that it held, in bytes."""
    folder.mkdir()
    measured("-c", ALONE, bundle, folder, network)
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
def test_one_engine_is_built_in_little_memory(bundle, tmp_path):
    found = built_alone(bundle.folder, tmp_path / "built", "expert.text")
    assert found["fused_attentions"] == ATTENTIONS["expert.text"]
    assert found["memory"] < 2**30


@pytest.mark.slow
def test_full_size_expert_of_512_pixels(request, tmp_path):
    """Synthetic weights in the released networks, with `--golden DIR` that has them: some minutes and gigabytes."""
    golden = Golden(Path(request.config.getoption("golden")))
    if not golden.has("full512"):
        pytest.skip("--golden names no folder with the released sizes")
    whole = checkpoint(golden, tmp_path, "512_codiff_mask_text")
    measured("-m", "cdiff_rt", "export", "--checkpoint", whole, "--out", tmp_path / "512", "--head-multiple", 16)
    whole.unlink()
    found = built_alone(tmp_path / "512", tmp_path / "built", "expert.mask")
    shutil.rmtree(tmp_path)
    print(f"\n{found.pop('line')}")
    print(f"peak memory {found.pop('memory') / 2**30:.2f} GiB; {found}")
    assert found["fused_attentions"] == found["attentions"] > 0
    assert found["softmaxes"] == 0 and found["casts"] <= CASTS["expert.mask"]
