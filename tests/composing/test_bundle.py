"""Modules and ONNX files as a bundle: the same images, on every backend of graphs, and by every command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cdiff_rt import Expert, Parameterisation, Pipeline, Schedule, calibrate, compose, export_composition
from cdiff_rt.bench.task import run_of
from cdiff_rt.engines.backends import fastest
from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.trt_build import build_plan
from cdiff_rt.engines.trt_library import FLAVOURS
from cdiff_rt.errors import BadEnvironment, BadRequest, CdiffError
from cdiff_rt.export.typed import typed_network, write_typed
from cdiff_rt.export.whole_step import whole_step_graph
from cdiff_rt.gpu.runner import DeviceRunner
from cdiff_rt.manifest import Bundle, digest, sha256
from cdiff_rt.run import OnDevice
from cdiff_rt.sampling.superposition import Superposition
from cdiff_rt.sampling.tiers import sampling
from tests.brought import Router, Small, onnx_file, router_file
from tests.command_line import check_refused, run
from tests.shared import once

COSINE, LINEAR = Schedule(betas="squaredcos_cap_v2"), Schedule(1000, 1e-4, 0.02, betas="linear")
FLOW = Parameterisation("flow", "flow", time_scale=1000.0)
ASKED = {
    "style": np.linspace(-1, 1, 5),
    "label": 333,
    "theirs": np.ones(5),
    "steps": 8,
    "eta": 0.0,
    "seed": 2,
    "batch": 2,
}


class Upsampled(nn.Module):
    factor = 2

    def forward(self, z):
        return torch.tanh(torch.nn.functional.interpolate(z, scale_factor=2.0))


@pytest.fixture(scope="module")
def composed(shared):
    """A module twice, asked for x_0 on a cosine schedule, once under what is always its condition; labels; a file."""
    file = onnx_file(shared / "theirs.onnx", outside=True)
    style = Small(seed=1)
    experts = {
        "style": Expert(style, Parameterisation("x0", schedule=COSINE), condition=(5,)),
        "plain": Expert(style, Parameterisation("x0", schedule=COSINE), condition=(5,), fixed=np.linspace(1, 2, 5)),
        "label": Expert.from_onnx(onnx_file(shared / "label.onnx", condition=("batch",), kinds=(1, 7, 7)), FLOW),
        "theirs": Expert.from_onnx(file, Parameterisation("eps", schedule=LINEAR)),
    }
    return compose(experts, (3, 16, 16), decode=Upsampled())


@pytest.fixture(scope="module")
def folder(composed, shared):
    return once(shared / "composed", lambda at: export_composition(composed, at / "mine")) / "mine"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_makes_what_the_composition_made(composed, folder, backend):
    wanted = composed.generate(**ASKED)
    made = Pipeline.from_pretrained(folder, backend=backend).generate(**ASKED)
    assert np.abs(made.latents - wanted.latents).max() < 1e-5 * wanted.latents.std()
    assert made.images.shape == (2, 32, 32, 3) and np.abs(made.images.astype(int) - wanted.images).max() <= 1
    assert made.parameters["model"] == "mine" and wanted.latents.std() > 0.1


def test_every_weight_is_there_once_and_one_network_is_shared(folder):
    from cdiff_rt.engines.weights import places

    bundle = Bundle.open(folder)
    stored = places(bundle.content[bundle.manifest.weights])
    assert {name.split(".")[1] for name in stored} == {"style", "label", "theirs"}
    assert sorted(place.shape for name, place in stored.items() if "style" in name) == [(8, 200), (200, 8)]
    assert {place.dtype for place in stored.values()} == {"F32"}


@pytest.mark.parametrize("name", ["style", "plain", "label", "theirs"])
def test_half_precision_keeps_numbers_times_and_labels(folder, name, tmp_path):
    """Within 1e-2 a call, also where a timestep or a label has more digits than fp16."""
    import onnxruntime as ort

    bundle = Bundle.open(folder)
    typed = typed_network(bundle, f"expert.{name}", Placement(precision="fp16"))
    session = ort.InferenceSession(str(write_typed(typed.model, bundle, tmp_path, name)))
    pipeline, random = Pipeline(bundle), np.random.default_rng(0)
    kinds = {tensor.name: tensor.dtype for tensor in (*typed.spec.inputs, *typed.spec.outputs)}
    assert (kinds["x"], kinds["projections"], kinds["out"]) == ("float32", "float32", "float16")
    (scaled,) = (node for node in typed.model.graph.node if node.name == "exact/of_x/made")
    assert scaled.input[0] == "x"  # as the loop has it, and not rounded before
    for t in (1, 333, 777, 901):
        rows = pipeline._runner.call(f"time.{name}", t=np.array([t]))["projections"]
        given = {tensor.name: random.standard_normal(tensor.shape).astype(tensor.dtype) for tensor in typed.spec.inputs}
        given |= {"projections": rows} | ({"context": np.full((1, 1, 1), 4001, np.float32)} if name == "label" else {})
        (out,) = session.run(["out"], given)
        single = {key: value.astype(np.float32) for key, value in given.items()}
        wanted = pipeline._runner.call(f"expert.{name}", **single)["out"]
        assert np.sqrt(((out - wanted) ** 2).mean()) < 1e-2 * wanted.std()


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_the_loop_of_a_gpu_runs_it(composed, folder, precision, within):
    """On CPU tensors: the engines' types, and buffers that numbers keep their digits in."""
    bundle, how = Bundle.open(folder), OnDevice(precision=precision, graphs=False)
    runner = DeviceRunner(bundle, "onnxruntime-cuda", how, device="cpu")
    made, wanted = Pipeline(bundle, "onnxruntime-cuda", how, runner).generate(**ASKED), composed.generate(**ASKED)
    assert np.sqrt(((made.latents - wanted.latents) ** 2).mean()) < within * wanted.latents.std()
    assert np.abs(made.images.astype(int) - wanted.images).mean() < 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_tensorrt_rtx_builds_every_network(folder, precision, tmp_path):
    bundle = Bundle.open(folder)
    for network in bundle.manifest.networks:
        typed = typed_network(bundle, network, Placement(precision=precision))
        path = write_typed(typed.model, bundle, tmp_path, network)
        steps = {"steps": (1, 50, 1000)} if network.startswith("time.") else {}
        assert build_plan(path, FLAVOURS["tensorrt-rtx"], ["8.9"], steps).plan
    whole = whole_step_graph(bundle, ["style", "label"], Placement(precision=precision))
    assert build_plan(write_typed(whole.model, bundle, tmp_path, "step"), FLAVOURS["tensorrt-rtx"], ["8.9"], {}).plan


def test_weights_in_half_precision_are_half_as_many_bytes(composed, folder, tmp_path):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = Small(seed=5)

        def forward(self, x, time, condition):
            return self.one(x, time, condition).flip(-1)

    half = Both().half()
    pipeline = compose({"a": Expert(half, FLOW, condition=(5,))}, (3, 16, 16))
    errors = export_composition(pipeline, tmp_path / "half")
    assert 0 < errors["expert.a"] < 2e-2  # of the module, which computes in fp16 itself
    made = Pipeline.from_pretrained(tmp_path / "half").generate(a=np.ones(5), steps=4)
    wanted = pipeline.generate(a=np.ones(5), steps=4)
    assert np.abs(made.latents - wanted.latents).max() < 2e-2 * wanted.latents.std()
    size = (tmp_path / "half" / "weights.safetensors").stat().st_size
    assert 2 * 2 * 200 * 8 < size < 4 * 2 * 200 * 8


def test_pytorch_and_stacks_refuse_it_in_one_line_and_auto_takes_another(folder):
    bundle = Bundle.open(folder)
    with pytest.raises(BadEnvironment, match="mine was composed of others' networks.*take backend onnxruntime"):
        Pipeline(bundle, "torch").generate(**ASKED)
    assert not any(name.startswith("torch") for name in fastest(bundle.manifest))
    from cdiff_rt.engines.stacked import stack_spec

    with pytest.raises(
        BadRequest, match="experts stacked: mine was composed of networks of any make; run them separate"
    ):
        stack_spec(bundle.manifest, ["style", "label"])


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2000))

    def forward(self, x, time):
        return x * (self.weight[0] if x.sum() > 0 else self.weight[1])


class Random(nn.Module):
    def forward(self, x, time):
        return x + torch.zeros(()).new_tensor([0.1]) * torch.randn_like(x)


@pytest.mark.parametrize(
    ("expert", "words"),
    [
        (
            Expert(lambda x, time: x, FLOW),
            "expert a: it is a Python function, which no bundle holds; give a torch.nn.Module",
        ),
        (Expert(nn.Identity(), FLOW, logit=lambda x, bar: 0), "expert a, logit: it is a Python function, which no"),
        (Expert(Branching(), FLOW), "expert a: its module cannot be traced ("),
        (Expert(Random(), FLOW), "network expert.a: onnxruntime refuses it ("),
    ],
)
def test_what_no_bundle_holds_is_refused_and_leaves_nothing(expert, words, tmp_path):
    with pytest.raises(BadRequest) as caught:
        export_composition(compose({"a": expert}, (3, 16, 16)), tmp_path / "out")
    assert str(caught.value).startswith(words) and list(tmp_path.iterdir()) == []


def test_only_what_was_composed_is_exported(folder, tmp_path):
    for made in (Pipeline.from_pretrained(folder), "a bundle"):
        with pytest.raises(BadRequest, match="export: this pipeline was not composed here"):
            export_composition(made, tmp_path / "out")
    with pytest.raises(BadRequest, match="precision: 'int8'; choose one of fp16, fp32"):
        export_composition(compose({"a": Expert(nn.Identity(), FLOW)}, (1, 4)), tmp_path / "out", precision="int8")


@pytest.mark.parametrize(("sizes", "goes"), [("three", True), ("batch", False)])
def test_operators_that_no_bundle_has_go_where_they_can_be_folded(sizes, goes, tmp_path):
    constants = [
        onnx.numpy_helper.from_array(np.array([3]), "three"),
        onnx.numpy_helper.from_array(np.array([0]), "zero"),
    ]
    nodes = [
        onnx.helper.make_node("Shape", ["sample"], ["shape"]),
        onnx.helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        onnx.helper.make_node("ConstantOfShape", [sizes], ["zeros"]),
        onnx.helper.make_node("ReduceSum", ["zeros"], ["total"], keepdims=0),
        onnx.helper.make_node("Add", ["sample", "total"], ["moved"]),
    ]
    path = onnx_file(tmp_path / "a.onnx", nodes=nodes, constants=constants, of="moved")
    pipeline = compose({"a": Expert.from_onnx(path, FLOW)})
    if goes:
        assert export_composition(pipeline, tmp_path / "out")
        return
    with pytest.raises(BadRequest, match="network expert.a: it has the operator ConstantOfShape; let it use plain"):
        export_composition(pipeline, tmp_path / "out")


# --- weights that were found, inside -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(composed, shared):
    """A file's network told in two ways, with weights that were found; its bundle."""
    draw, names = np.random.default_rng(0), ("style", "theirs")
    conditions = lambda: {name: draw.normal(size=5) for name in names}
    pairs = [(draw.normal(size=(3, 16, 16)), conditions()) for _ in range(20)]
    theirs = composed.composed.experts["theirs"]
    experts = {"style": replace(theirs, form=FLOW), "theirs": theirs}
    made = compose(experts, influence=calibrate(compose(experts), pairs))
    return made, once(shared / "calibrated", lambda at: export_composition(made, at / "mine")) / "mine"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_weights_inside_a_bundle_hold_on_every_backend(calibrated, backend):
    (made, folder), asked = calibrated, {name: ASKED[name] for name in ("style", "theirs", "steps", "eta", "seed")}
    opened = Pipeline.from_pretrained(folder, backend=backend)
    for how in ({}, {"influence": "as-trained"}, {"influence": "style=2"}):
        wanted = made.generate(**asked, **how).latents
        assert np.abs(opened.generate(**asked, **how).latents - wanted).max() < 1e-5 * wanted.std()
    assert np.abs(wanted - made.generate(**asked).latents).max() > 1e-2 * wanted.std()
    assert opened.manifest.files["calibrated.json"]


def test_commands_use_the_weights_inside_and_show_tells_of_them(calibrated, tmp_path):
    made, folder = calibrated
    np.save(tmp_path / "five.npy", np.ones(5))
    given = ["--model", folder, "--steps", "4"]
    for name in ("style", "theirs"):
        given += ["--condition", f"{name}={tmp_path / 'five.npy'}"]
    assert run("generate", *given, "--out", tmp_path / "a.npz").exit_code == 0
    wanted = made.generate(style=np.ones(5), theirs=np.ones(5), steps=4).latents
    assert np.abs(np.load(tmp_path / "a.npz")["latent"] - wanted).max() < 1e-5 * wanted.std()
    assert "calibrated calibrated.json" in run("show", tmp_path / "a.npz").stdout
    assert run("reproduce", tmp_path / "a.npz", "--model", folder).exit_code == 0
    run_ = run_of(Bundle.open(folder), sampling(steps=4), 1)  # what `bench` times
    assert run_.adjust.controls is not None


@pytest.mark.parametrize("damage", ["bytes", "content", "others"])
def test_weights_that_are_damaged_inside_a_bundle_are_refused(calibrated, damage, tmp_path):
    _, folder = calibrated
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    file = copy / "calibrated.json"
    text = {"bytes": "x", "content": '{"names": 3}', "others": file.read_text().replace('"theirs"', '"other"')}[damage]
    file.write_text(text)
    if damage != "bytes":
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["files"]["calibrated.json"] = sha256(file)
        manifest["digest"] = digest(manifest)
        (copy / "manifest.json").write_text(json.dumps(manifest))
    words = {"bytes": "calibrated.json", "content": "make it anew", "others": "calibrated.json knows no theirs"}[damage]
    check_refused(run("generate", "--model", copy, "--out", tmp_path / "a.npz"), 4, words)


# --- influence that networks tell, inside -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routed(shared):
    """One file's network under three conditions, whose influence a module and files of two kinds tell; its bundle."""
    router = lambda name, **how: str(router_file(shared / f"{name}.onnx", **how))
    theirs = Expert.from_onnx(onnx_file(shared / "of_routers.onnx", outside=True), FLOW, logit=Router())
    steps = Parameterisation("eps", schedule=LINEAR)
    experts = {
        "style": theirs,
        "places": replace(theirs, logit=Router(places=True), form=steps),
        "told": replace(theirs, logit=router("told", condition=("batch", 5)), fixed=np.linspace(0, 1, 5)),
        "timed": replace(theirs, logit=router("timed", told="timestep"), form=replace(FLOW, time_scale=2.0)),
    }
    made = compose(experts)
    return made, once(shared / "routed", lambda at: export_composition(made, at / "mine")) / "mine"


ROUTED = {name: np.linspace(-1, 1, 5) for name in ("style", "places", "timed")}
ROUTED |= {"steps": 8, "eta": 0.0, "seed": 2, "batch": 2}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_influence_that_networks_tell_is_the_same_inside_a_bundle(routed, backend):
    (made, folder), ours, theirs = routed, [], []
    wanted = made.generate(**ROUTED, callback_on_step_end=lambda state: ours.append(state.influence))
    opened = Pipeline.from_pretrained(folder, backend=backend)
    found = opened.generate(**ROUTED, callback_on_step_end=lambda state: theirs.append(state.influence))
    assert np.abs(found.latents - wanted.latents).max() < 1e-5 * wanted.latents.std()
    assert np.abs(np.array(ours) - theirs).max() < 1e-5
    assert (np.ptp(ours, axis=0) > 1e-2).any() and (np.ptp(ours, axis=1) > 1e-2).any()  # over steps, over experts
    equal = made.generate(**ROUTED, sharpness=0.0).latents
    assert np.abs(equal - wanted.latents).max() > 1e-2 * wanted.latents.std()


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_the_loop_of_a_gpu_takes_the_softmax_of_what_networks_tell(routed, precision, within):
    (made, folder), how = routed, OnDevice(precision=precision, graphs=False)
    bundle, wanted = Bundle.open(folder), made.generate(**ROUTED).latents
    runner = DeviceRunner(bundle, "onnxruntime-cuda", how, device="cpu")
    found = Pipeline(bundle, "onnxruntime-cuda", how, runner).generate(**ROUTED).latents
    assert np.sqrt(((found - wanted) ** 2).mean()) < within * wanted.std()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_tensorrt_rtx_builds_experts_whose_influence_networks_tell(routed, precision, tmp_path):
    bundle = Bundle.open(routed[1])
    for network in ("expert.style", "expert.places"):
        typed = typed_network(bundle, network, Placement(precision=precision))
        path = write_typed(typed.model, bundle, tmp_path, network)
        assert build_plan(path, FLAVOURS["tensorrt-rtx"], ["8.9"], {}).plan


def test_a_top_k_or_mixing_is_in_no_bundle(routed, tmp_path):
    experts = routed[0].composed.experts
    for how, words in (({"top_k": 2}, "top_k"), ({"mixing": Superposition("or")}, "mixing")):
        with pytest.raises(BadRequest, match=f"{words}: a bundle holds none"):
            export_composition(compose(experts, **how), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("router", "words"),
    [
        ({"told": "alpha_bar"}, "expert a: its logit is of latents [3, 16, 16] and 0 numbers of condition, the expert"),
        ({"told": "strange"}, "file a.onnx: none of its inputs x, strange is called like time"),
        ({"condition": ("batch", 4)}, "expert a: its logit is of latents [3, 16, 16] and 4 numbers of condition"),
        (None, "file nowhere.onnx: there is no such file"),
    ],
)
def test_a_file_that_tells_of_others_is_refused_in_words(router, words, tmp_path):
    path = "nowhere.onnx" if router is None else router_file(tmp_path / "a.onnx", **router)
    shape = (3, 16, 17) if router == {"told": "alpha_bar"} else (3, 16, 16)
    with pytest.raises(CdiffError) as caught:
        compose({"a": Expert(nn.Identity(), FLOW, condition=(5,), logit=path)}, shape)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path) -> Path:
    return onnx_file(tmp_path / "theirs.onnx", condition=None)


def test_a_command_composes_and_others_take_what_it_made(file, tmp_path):
    out, known = tmp_path / "bundle", ["--predicts", "a=eps", "--betas", "a=linear"]
    made = run("compose", "--expert", f"a={file}", *known, "--pixels", "--out", out)
    assert made.exit_code == 0 and made.stdout.endswith(f"{out}\n") and "expert.a" in made.stdout
    image = run("generate", "--model", out, "--steps", "4", "--out", tmp_path / "a.png")
    assert (image.exit_code, image.stdout) == (0, f"{tmp_path / 'a.png'}\n")
    check_refused(run("bench", "budget", "--model", out), 2, "budget: bundle was composed of others' networks")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "expert a, predicts: an ONNX file does not say what it predicts"),
        (["--predicts", "a=eps"], 2, "expert a, betas: nothing says its schedule of noise"),
        (["--predicts", "a=noise"], 2, "expert a, predicts: 'noise'; choose one of"),
        (["--predicts", "b=eps"], 2, "--predicts b: there is no --expert of this name"),
        (["--predicts", "a=flow", "--tokens", "a=7"], 2, "expert a, tokens:"),
        (["--predicts", "a=flow", "--names", "a=x"], 2, "expert a, names: 'x'; write e.g. x:sample"),
        (["--predicts", "a=flow", "--time-scale", "a=-1"], 2, "expert a, time-scale: '-1'; give a number above 0"),
        (["--predicts", "a=flow", "--latents", "3,16"], 2, "latents: '3,16'; write e.g. 4x64x64"),
        (["--predicts", "a=flow", "--latents", "4x16x16"], 2, "expert a: its latents are [3, 16, 16], those asked for"),
        (["--predicts", "a=flow", "--fixed", "a=none.npy"], 3, "there is no such file"),
        (["--predicts", "a=flow", "--scheduler", "a=."], 2, "nothing says what it predicts of which noise"),
        (["--predicts", "a=flow", "--expert", "b=nowhere"], 4, "nowhere: there is no such folder"),
    ],
    ids=str,
)
def test_bad_words_are_one_line_and_leave_nothing(file, options, code, words, tmp_path):
    out = tmp_path / "out"
    check_refused(run("compose", "--expert", f"a={file}", *options, "--out", out), code, words)
    assert not out.exists()


def test_a_command_takes_influence_that_was_found_or_learned(file, calibrated, tmp_path):
    made, _ = calibrated
    found = tmp_path / "weights.json"
    found.write_bytes(made.bundle.content["calibrated.json"])
    theirs = onnx_file(tmp_path / "cond.onnx")
    given = ["--expert", f"style={theirs}", "--predicts", "style=flow", "--expert", f"theirs={theirs}"]
    given += ["--predicts", "theirs=eps", "--betas", "theirs=linear:0.0001:0.02:1000", "--out", tmp_path / "out"]
    check_refused(run("compose", *given, "--learned", tmp_path / "none"), 2, "learned", "there is no such file")
    assert run("compose", *given, "--influence", found).exit_code == 0
    assert Bundle.open(tmp_path / "out").content["calibrated.json"] == found.read_bytes()
