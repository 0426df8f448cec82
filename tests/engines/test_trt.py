"""The engine and its loaders, with a stand-in for the library. What the libraries themselves do: test_trt_build.py."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from cdiff_rt.engines import trt as trt_module
from cdiff_rt.engines.backends import BACKENDS, load_device_engine, load_engine
from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.cache import EngineCache
from cdiff_rt.engines.cuda import compute_capability, why_no_device
from cdiff_rt.engines.trt import TrtEngine, load_rtx, load_tensorrt
from cdiff_rt.engines.trt_library import FLAVOURS, check_capabilities, library
from cdiff_rt.errors import BadArtefact, BadEnvironment, BadRequest, OutOfResource
from cdiff_rt.export.gpu_engines import build_engines
from cdiff_rt.gpu.runner import DeviceRunner
from cdiff_rt.manifest import Bundle
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.run import OnDevice
from tests.engines import standin_trt

HERE = Placement("cpu", "fp16", 2)
NETWORKS = ["condition.mask", "time.text", "expert.text", "vae.encode", "vae.decode", "step.mask+text"]
RNG = np.random.default_rng(0)
STEPS = 5


@pytest.fixture(scope="module")
def engines(tmp_path_factory, bundle):
    """A cache with every network, built by the stand-in."""
    made = EngineCache(tmp_path_factory.mktemp("cache") / "cdiff-rt/engines")
    with pytest.MonkeyPatch.context() as patch:
        standin_trt.install(patch)
        build_engines(bundle, "tensorrt", batches=(HERE.batch,), experts=["whole-step"], cache=made)
    return made


@pytest.fixture
def standin(monkeypatch):
    return standin_trt.install(monkeypatch)


@pytest.fixture
def engine(bundle, engines, standin):
    return load_tensorrt(bundle, "vae.decode", HERE, engines)


def aligned(shape, dtype, skip=0):
    """CPU memory as CUDA's allocator gives it."""
    kind = getattr(torch, dtype)
    raw = torch.zeros(int(np.prod(shape)) * kind.itemsize + trt_module.ALIGNMENT + skip, dtype=torch.uint8)
    first = -raw.data_ptr() % trt_module.ALIGNMENT + skip
    size = int(np.prod(shape)) * kind.itemsize
    return raw[first : first + size].view(kind).view(shape)


def buffers(spec, device="cpu"):
    """With random inputs; whole numbers are small enough to be words or timesteps."""
    tensors = {}
    for tensor in (*spec.inputs, *spec.outputs):
        shape = [STEPS if d == "steps" else d for d in tensor.shape]
        whole = tensor.dtype == "int64"
        values = torch.from_numpy(RNG.integers(0, 12, shape) if whole else RNG.standard_normal(shape))
        empty = torch.empty(shape, dtype=getattr(torch, tensor.dtype), device=device)
        tensors[tensor.name] = aligned(shape, tensor.dtype) if device == "cpu" else empty
        tensors[tensor.name].copy_(values if tensor in spec.inputs else torch.zeros(shape))
    return tensors


def check_agrees(tensors, bundle, network):
    """With ONNX Runtime on the CPU, within what fp16 allows."""
    source = load_engine("onnxruntime", bundle, network)
    host = {name: value.cpu().float().numpy() for name, value in tensors.items()}
    reference = source(**{tensor.name: host[tensor.name].astype(tensor.dtype) for tensor in source.spec.inputs})
    for name, value in reference.items():
        difference = host[name] - value
        assert difference.std() <= 1e-2 * value.std(), name
        assert np.abs(difference).max() <= 1e-1 * np.abs(value).max(), name


@pytest.mark.parametrize("network", NETWORKS[:-1])
def test_it_computes_what_the_bundle_says(network, bundle, engines, standin):
    one = network.startswith("condition")
    engine = load_tensorrt(bundle, network, dataclasses.replace(HERE, batch=1) if one else HERE, engines)
    tensors = buffers(engine.spec)
    run = engine.bind(tensors)
    assert not standin.streams  # binding runs nothing
    run()
    check_agrees(tensors, bundle, network)


def test_the_whole_step_is_an_engine_too(bundle, engines, standin):
    engine = load_tensorrt(bundle, "step.mask+text", HERE, engines)
    tensors = buffers(engine.spec)
    tensors["controls"].abs_()  # of scales below 0 alone, nobody would be left to decide
    engine.bind(tensors)()
    assert torch.isfinite(tensors["next_x"]).all() and tensors["weights"].shape == (2, 2, 1, 16, 16)


def images(experts, bundle, engines, monkeypatch, mask):
    """Latents by the runtime of devices, on the CPU's own memory, which is aligned less."""
    monkeypatch.setattr(trt_module, "ALIGNMENT", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(engines.folder.parents[1]))
    ours, how = Pipeline(bundle), OnDevice(precision="fp16", experts=experts)
    ours._runner = DeviceRunner(bundle, "tensorrt", how, device="cpu")
    return ours.generate(mask=mask, **SETTINGS).latents


SETTINGS = {"text": "This man has a long beard.", "steps": 4, "batch": HERE.batch}


@pytest.mark.parametrize("experts", ["separate", "whole-step"])
def test_the_runtime_of_devices_makes_images_with_it(experts, bundle, engines, standin, monkeypatch, pipeline, mask):
    latents = images(experts, bundle, engines, monkeypatch, mask)
    expected = pipeline.generate(mask=mask, **SETTINGS).latents
    assert np.abs(latents - expected).max() < 3e-2 * expected.std()
    a_step = {"separate": 2, "whole-step": 1}[experts]
    assert len(standin.streams) == 2 + 2 + 4 * a_step + 1  # condition, time, steps, decoder


@pytest.mark.slow
def test_and_with_a_stack(bundle, engines, standin, monkeypatch, pipeline, mask):
    *_, built = build_engines(bundle, "tensorrt", batches=(HERE.batch,), experts=["stacked"], cache=engines)
    assert built.network == "stack.mask+text" and built.report
    latents = images("stacked", bundle, engines, monkeypatch, mask)
    expected = pipeline.generate(mask=mask, **SETTINGS).latents
    assert np.abs(latents - expected).max() < 3e-2 * expected.std()
    assert len(standin.streams) == 2 + 2 + 4 + 1


def test_addresses_are_bound_once_and_new_content_is_seen(engine, standin):
    tensors = buffers(engine.spec)
    run = engine.bind(tensors)
    bound = standin.calls["set_tensor_address"]
    run()
    first = tensors["image"].clone()
    tensors["z"].mul_(2)
    run()
    assert not torch.equal(tensors["image"], first)
    assert standin.calls["set_tensor_address"] == bound == 2


def test_it_runs_on_the_stream_that_is_current_then(engine, standin):
    tensors = buffers(engine.spec)  # which live as long as the binding
    run = engine.bind(tensors)
    run()
    torch.cuda.current_stream = lambda device: type("Stream", (), {"cuda_stream": 42})
    run()
    assert standin.streams == [41, 42]


def test_two_bindings_share_an_engine(engine, standin):
    one, other = buffers(engine.spec), buffers(engine.spec)
    runs = [engine.bind(one), engine.bind(other)]
    for run in runs:
        run()
    assert not torch.equal(one["image"], other["image"])
    assert len(standin.contexts) == 2 and standin.calls["deserialize_cuda_engine"] == 1


def test_sizes_that_are_open_are_set_from_the_buffers(bundle, engines, standin):
    engine = load_tensorrt(bundle, "time.mask", HERE, engines)
    assert not engine.capturable
    tensors = buffers(engine.spec)
    engine.bind(tensors)()
    assert standin.contexts[0]._shapes["t"] == (STEPS,) and tensors["projections"].any()


def test_what_has_fixed_sizes_can_be_captured(engine):
    assert engine.capturable


@pytest.fixture
def rtx(monkeypatch):
    return standin_trt.install(monkeypatch, "tensorrt_rtx", "1.7.1")


@pytest.fixture
def rtx_engines(rtx, bundle, tmp_path):
    made = EngineCache(tmp_path / "engines")
    single = dataclasses.replace(bundle.manifest, networks={"vae.decode": bundle.manifest.networks["vae.decode"]})
    build_engines(dataclasses.replace(bundle, manifest=single), "tensorrt-rtx", ["8.6", "12.1"], cache=made)
    return made


@pytest.mark.parametrize("answer", [True, False])
def test_rtx_is_asked_whether_a_graph_can_capture_it(answer, bundle, rtx, rtx_engines):
    engine = load_rtx(bundle, "vae.decode", Placement("cpu"), rtx_engines)
    assert engine.capturable
    rtx.refuses = set() if answer else {"is_stream_capturable"}
    tensors = buffers(engine.spec)
    engine.bind(tensors)
    assert engine.capturable == answer


def run_rtx(bundle, engines):
    engine = load_rtx(bundle, "vae.decode", Placement("cpu"), EngineCache(engines.folder))
    tensors = buffers(engine.spec)
    run = engine.bind(tensors)
    run()
    run()
    check_agrees(tensors, bundle, "vae.decode")


def test_what_rtx_compiled_is_compiled_once_for_all_processes(bundle, rtx, rtx_engines):
    for _ in range(3):
        run_rtx(bundle, rtx_engines)
    assert rtx.calls["compiled"] == 1 and rtx.calls["deserialize"] == 2


def test_another_gpu_compiles_for_itself(bundle, rtx_engines, monkeypatch):
    run_rtx(bundle, rtx_engines)
    other = standin_trt.install(monkeypatch, "tensorrt_rtx", "1.7.1", gpu="Another GPU")
    run_rtx(bundle, rtx_engines)
    assert other.calls["compiled"] == 1 and not other.calls["deserialize"]


def test_kernels_that_somebody_changed_never_reach_the_library(bundle, rtx, rtx_engines, caplog):
    run_rtx(bundle, rtx_engines)
    (kernels,) = rtx_engines.folder.glob("*.kernels")
    kernels.write_bytes(b"evil kernels")
    run_rtx(bundle, rtx_engines)
    assert not rtx.calls["deserialize"] and rtx.calls["compiled"] == 2
    assert "is not what was written here" in caplog.text and kernels.read_bytes() != b"evil kernels"


def test_kernels_of_another_driver_are_compiled_anew_with_a_word(bundle, rtx, rtx_engines, caplog):
    run_rtx(bundle, rtx_engines)
    rtx.refuses = {"deserialize"}
    with caplog.at_level("INFO", "cdiff_rt"):
        run_rtx(bundle, rtx_engines)
    assert rtx.calls["compiled"] == 2 and "compiling anew" in caplog.text


def test_kernels_that_cannot_be_kept_are_used_all_the_same(bundle, rtx, rtx_engines, monkeypatch, caplog):
    def full(path, data):
        raise OutOfResource(f"writing {path}", "No space left on device", "free some space")

    monkeypatch.setattr("cdiff_rt.engines.cache.write_file", full)
    run_rtx(bundle, rtx_engines)
    assert "compiled kernels were not kept: writing" in caplog.text and not list(rtx_engines.folder.glob("*.kernels"))


@pytest.mark.parametrize("portable", [True, False])
def test_no_layer_is_announced_while_it_runs(portable, bundle, engines, request):
    library = request.getfixturevalue("rtx" if portable else "standin")
    cache, load = (request.getfixturevalue("rtx_engines"), load_rtx) if portable else (engines, load_tensorrt)
    engine = load(bundle, "vae.decode", Placement("cpu", "fp16", 1 if portable else HERE.batch), cache)
    engine.bind(buffers(engine.spec))
    assert [context.nvtx_verbosity for context in library.contexts] == ["none"]


def test_a_plan_that_was_tuned_on_another_gpu_of_the_kind_is_said_so(bundle, engines, monkeypatch):
    standin = standin_trt.install(monkeypatch, gpu="A smaller GPU")
    with pytest.raises(BadArtefact, match="built for the GPU A GPU, here A smaller GPU; run `cdiff-rt export"):
        load_tensorrt(bundle, "vae.decode", HERE, engines)
    assert not standin.deserialized


def test_bytes_of_a_host_program_stay_forbidden(bundle, engines, standin, monkeypatch):
    monkeypatch.setattr(standin_trt.Runtime, "__init__", allowing)
    with pytest.raises(AssertionError):
        load_tensorrt(bundle, "vae.decode", HERE, engines)
    assert not standin.deserialized


def allowing(self, library, log):
    self._library, self._log, self.engine_host_code_allowed = library, log, True


# --- refusals before a byte reaches the library ----------------------------------------------------------------------


@pytest.fixture
def engines_copy(engines, tmp_path):
    import shutil

    shutil.copytree(engines.folder, tmp_path / "engines")
    (tmp_path / "engines").chmod(0o700)
    return EngineCache(tmp_path / "engines")


def flip_plans(engines):
    for path in engines.folder.glob("*.plan"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def link_plans(engines):
    for path in engines.folder.glob("*.plan"):
        moved = path.rename(engines.folder.parent / path.name)
        path.symlink_to(moved)


@pytest.mark.parametrize(
    "tamper",
    [
        flip_plans,
        link_plans,
        lambda e: [path.unlink() for path in e.folder.glob("*.plan")],
        lambda e: (e.folder / "engines.json").write_bytes((e.folder / "engines.json").read_bytes()[:-3]),
        lambda e: e.folder.chmod(0o777),
    ],
    ids=["flipped", "linked", "missing", "index", "folder"],
)
def test_what_was_tampered_with_never_reaches_the_library(tamper, engines_copy, bundle, standin):
    tamper(engines_copy)
    with pytest.raises(BadArtefact):
        load_tensorrt(bundle, "vae.decode", HERE, engines_copy)
    assert not standin.deserialized and not standin.calls["Runtime"]


@pytest.mark.parametrize(
    ("capability", "version", "placement", "words"),
    [
        ("9.0", "11.4.0", HERE, "built for 8.6, here 9.0; run `cdiff-rt export --model faces-128 --target tensorrt"),
        ("8.6", "11.5.0", HERE, "built for tensorrt 11.4.0, here 11.5.0"),
        ("8.6", "11.4.0", Placement("cpu", "fp16", 3), "here batch 3; run .* --engine-batch 3`"),
        ("8.6", "11.4.0", Placement("cpu", "bf16", 2), "here bf16; run .* --engine-precision bf16 --engine-batch 2`"),
    ],
)
def test_an_engine_for_something_else_is_said_so(capability, version, placement, words, engines, bundle, monkeypatch):
    standin = standin_trt.install(monkeypatch, capability=capability, version=version)
    with pytest.raises(BadArtefact, match=words):
        load_tensorrt(bundle, "vae.decode", placement, engines)
    assert not standin.deserialized


def test_without_a_gpu_the_library_is_not_touched(bundle, engines, monkeypatch):
    standin = standin_trt.install(monkeypatch)
    monkeypatch.setattr("cdiff_rt.engines.trt_library.why_no_device", lambda: "the NVIDIA driver finds no GPU")
    plan = engines.load(trt_recipe(bundle), "8.6", "again")
    for act in (
        lambda: load_tensorrt(bundle, "vae.decode", HERE, engines),
        lambda: TrtEngine(FLAVOURS["tensorrt"], plan, "cuda", "again"),
    ):
        with pytest.raises(BadEnvironment, match="finds no GPU"):
            act()
    assert not standin.calls and not standin.deserialized


def trt_recipe(bundle):
    return trt_module.recipe(
        bundle, "vae.decode", HERE, flavour="tensorrt", version="11.4.0", capabilities=("8.6",), gpu="A GPU"
    )


def test_what_must_be_built_is_said_for_a_bundle_of_ones_own(bundle_copy, engines, standin):
    bundle = Bundle.open(bundle_copy)
    with pytest.raises(
        BadArtefact, match=f"--model {bundle_copy} --target tensorrt --engine-batch 7 --experts whole-step`"
    ):
        load_tensorrt(bundle, "step.mask+text", Placement("cpu", "fp16", 7), engines)


def test_of_rtx_the_kind_of_gpu_is_said_too(bundle, engines, monkeypatch):
    standin_trt.install(monkeypatch, "tensorrt_rtx", "1.7.1", "12.1")
    with pytest.raises(BadArtefact, match="--target tensorrt-rtx --compute-capability 12.1"):
        load_rtx(bundle, "vae.decode", Placement("cpu"), engines)
    monkeypatch.setattr("cdiff_rt.engines.trt_library.compute_capability", lambda device: "9.0")
    with pytest.raises(BadRequest, match="9.0, but tensorrt-rtx knows 7.5, 8.6, 12.1; .*--target tensorrt"):
        load_rtx(bundle, "vae.decode", Placement("cpu"), engines)


# --- what the library refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("get_engine_validity", BadArtefact, "tensorrt 11.4.0 cannot run it here"),
        ("deserialize_cuda_engine", BadArtefact, "Serialization assertion failed. Magic tag does not match"),
        ("create_execution_context", OutOfResource, "no context"),
        ("set_tensor_address", BadArtefact, "does not take the address of z"),
        ("set_input_shape", BadArtefact, "does not take z of this shape"),
        ("execute_async_v3", BadEnvironment, "it did not run"),
    ],
)
def test_a_refusal_is_one_clear_line(function, error, words, bundle, engines, standin):
    standin.refuses = {function}
    with pytest.raises(error, match=words) as raised:
        engine = load_tensorrt(bundle, "vae.decode", HERE, engines)
        tensors = buffers(engine.spec)
        engine.bind(tensors)()
    assert "\n" not in str(raised.value)


def test_an_engine_that_takes_something_else_is_refused(bundle, engines, standin):
    plan = engines.load(trt_recipe(bundle), "8.6", "again")
    (z,) = plan.engine.spec.inputs
    for other in (
        dataclasses.replace(z, name="x"),
        dataclasses.replace(z, dtype="float16"),
        dataclasses.replace(z, shape=(1, 16, 16, 16)),
        dataclasses.replace(z, shape=("batch", 16, 16, 16)),
    ):
        spec = dataclasses.replace(plan.engine.spec, inputs=(other,))
        changed = dataclasses.replace(plan, engine=dataclasses.replace(plan.engine, spec=spec))
        with pytest.raises(BadArtefact, match="its inputs and outputs are"):
            TrtEngine(FLAVOURS["tensorrt"], changed, "cpu", "again")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("z", lambda: aligned((2, 16, 16, 16), "float16"), "z is float16"),
        ("z", lambda: aligned((1, 16, 16, 16), "float32"), r"z is float32 \(1, 16"),
        ("z", lambda: aligned((2, 16, 256), "float32"), r"z is float32 \(2, 16, 256"),
        ("z", lambda: aligned((2, 16, 16, 16), "float32").transpose(2, 3), "z is not contiguous"),
        ("z", lambda: aligned((2, 16, 16, 16), "float32", skip=128), "z is not aligned"),
        ("z", lambda: torch.empty((2, 16, 16, 16), device="meta"), "z is on meta"),
        ("y", lambda: aligned((2, 16, 16, 16), "float32"), "other tensors"),
    ],
    ids=["type", "size", "axes", "strides", "alignment", "device", "surplus"],
)
def test_buffers_must_be_those_of_the_spec(name, value, words, engine, standin):
    with pytest.raises(AssertionError, match=words):
        engine.bind(buffers(engine.spec) | {name: value()})
    assert not standin.contexts


def test_open_sizes_are_equal_in_all_buffers(bundle, engines, standin):
    engine = load_tensorrt(bundle, "time.mask", HERE, engines)
    with pytest.raises(AssertionError, match="projections is"):
        engine.bind(buffers(engine.spec) | {"t": aligned((STEPS + 1,), "int64")})


def test_no_buffer_may_be_missing(engine):
    tensors = buffers(engine.spec)
    del tensors["image"]
    with pytest.raises(AssertionError, match="other tensors"):
        engine.bind(tensors)


# --- other weights ---------------------------------------------------------------------------------------------------

BIAS = "model.decoder.conv_out.bias"


def test_other_weights_are_taken(engine):
    tensors = buffers(engine.spec)
    run = engine.bind(tensors)
    run()
    before = tensors["image"].clone()
    engine.refit({BIAS: torch.full((48,), 8.0, dtype=torch.float16)})
    run()
    assert (tensors["image"] - before).mean() > 1


@pytest.mark.parametrize(
    ("function", "words"),
    [("set_named_weights", f"does not take the weight {BIAS}"), ("refit_cuda_engine", "lacks the weights model.a")],
)
def test_weights_that_do_not_fit_are_refused(function, words, engine, standin):
    standin.refuses = {function}
    with pytest.raises(BadArtefact, match=words):
        engine.refit({BIAS: torch.zeros(48, dtype=torch.float16)})


def test_an_engine_with_fixed_weights_takes_no_others(engine):
    engine._engine.refittable = False
    with pytest.raises(BadArtefact, match="its weights fixed"):
        engine.refit({})


def test_closing_lets_go(engine):
    engine.close()
    assert not hasattr(engine, "_engine")


# --- the libraries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_both_flavours_are_backends(flavour):
    assert BACKENDS[flavour].requires[0] == FLAVOURS[flavour].module


def test_the_table_of_backends_finds_the_loaders(bundle, standin, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BadArtefact, match="none was built for tensorrt; run"):
        load_device_engine("tensorrt", bundle, "vae.decode", Placement("cpu"))


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=list(FLAVOURS))
def test_a_library_that_is_not_installed_is_named(flavour, monkeypatch):
    monkeypatch.setitem(sys.modules, flavour.module, None)
    with pytest.raises(BadEnvironment, match=rf"{flavour.name}: .*run `pip install '.\[{flavour.name}\]'`"):
        library(flavour)


def test_a_library_that_does_not_load_is_one_line(monkeypatch):
    def load(name):
        raise OSError("libnvonnxparser.so.11: cannot open\nshared object file")

    monkeypatch.setattr("importlib.import_module", load)
    with pytest.raises(BadEnvironment, match="cannot open shared object file; run"):
        library(FLAVOURS["tensorrt"])


def test_importing_it_imports_no_library():
    import subprocess

    code = "import sys, cdiff_rt.engines.trt, cdiff_rt.engines.trt_build; "
    code += "assert not {'torch', 'tensorrt', 'tensorrt_rtx', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("capabilities", [["8.9"], ["8.6", "8.9"], []])
def test_full_tensorrt_builds_for_the_gpu_that_is_here(capabilities, standin):
    check_capabilities(FLAVOURS["tensorrt"], ["8.6"])
    with pytest.raises(BadRequest, match="builds for the GPU that is here, 8.6"):
        check_capabilities(FLAVOURS["tensorrt"], capabilities)


def test_and_for_none_where_there_is_none(standin, monkeypatch):
    monkeypatch.setattr("cdiff_rt.engines.trt_library.why_no_device", lambda: "no NVIDIA driver is installed")
    with pytest.raises(BadEnvironment, match="no NVIDIA driver"):
        check_capabilities(FLAVOURS["tensorrt"], ["8.6"])


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(why_no_device() is not None, reason=f"no CUDA device: {why_no_device()}")
@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=list(FLAVOURS))
@pytest.mark.parametrize("network", ["expert.mask", "vae.decode", "time.text"])
def test_on_a_gpu_it_is_valid_agrees_and_can_be_captured(network, flavour, bundle, tmp_path):
    here = compute_capability()
    try:
        check_capabilities(flavour, [here])
    except (BadEnvironment, BadRequest) as error:
        pytest.skip(str(error))
    single = dataclasses.replace(bundle.manifest, networks={network: bundle.manifest.networks[network]})
    made = EngineCache(tmp_path / "engines")
    build_engines(dataclasses.replace(bundle, manifest=single), flavour.name, [here], cache=made)
    load = {"tensorrt": load_tensorrt, "tensorrt-rtx": load_rtx}[flavour.name]
    with torch.cuda.stream(torch.cuda.Stream()):
        engine = load(bundle, network, Placement("cuda"), made)
        if hasattr(engine._runtime, "get_engine_validity"):
            (plan,) = made.folder.glob("*.plan")
            validity, diagnostics = engine._runtime.get_engine_validity(plan.read_bytes())
            assert validity == library(flavour).EngineValidity.VALID, diagnostics
        tensors = buffers(engine.spec, "cuda")
        run = engine.bind(tensors)
        run()
        torch.cuda.synchronize()
        check_agrees(tensors, bundle, network)
        assert engine.capturable == (network != "time.text")
