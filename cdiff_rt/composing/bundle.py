"""A composition as a bundle: what `compose` made of modules and ONNX files, for every backend of graphs and every command.

export_composition(compose({...}), "bundle/")
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cdiff_rt.composing import ends
from cdiff_rt.composing.bundled import Bundled
from cdiff_rt.composing.composition import Composition, context_shape, numbers_of, tokenizers_of
from cdiff_rt.composing.ends import Graphs
from cdiff_rt.composing.expert import Expert, fixed_condition
from cdiff_rt.engines.backends import check_backend
from cdiff_rt.engines.base import COMPOSED
from cdiff_rt.engines.graphs import graph_of
from cdiff_rt.engines.ort import OrtEngine
from cdiff_rt.errors import BadArtefact, BadRequest, check_choice
from cdiff_rt.export import brought, wrapped
from cdiff_rt.export.brought import OLDEST, Given, Network
from cdiff_rt.export.bundle import WEIGHTS, Shape, network_spec
from cdiff_rt.export.cpu_graph import write_cpu_graph
from cdiff_rt.export.stored import Stored
from cdiff_rt.export.tensors import places, write_tensors
from cdiff_rt.export.to_onnx import OPSET
from cdiff_rt.export.verify import TOLERANCE, relative_error
from cdiff_rt.export.watch import Watch, counted, unwatched
from cdiff_rt.foreign.from_diffusers import Called
from cdiff_rt.foreign.logits import LogitFunction
from cdiff_rt.foreign.modules import is_module
from cdiff_rt.foreign.onnx_files import OnnxEncoder, OnnxFunction
from cdiff_rt.manifest import NAME, Bundle, Manifest, Modality, NetworkSpec, sha256
from cdiff_rt.outputs.files import check_folder, check_free, check_names, new_file_or_folder
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.process import usual_threads

ROUNDED = 5e-2  # relative error of one call whose weights were rounded to fp16
OTHERWISE = "let its forward depend on shapes alone, not on values, or export it to ONNX yourself and give that file"
PLAIN = "let it use plain operators on sizes that are fixed but for the batch, no random numbers, and opset 18 or later"


def export_composition(
    pipeline: Pipeline,
    out: str | Path,
    *,
    precision: Literal["fp16", "fp32"] | None = None,
    watch: Watch = unwatched,
) -> dict[str, float]:
    """Writes the bundle `out` and returns each network's relative error, ONNX Runtime against what was composed.

    Weights are kept in `precision`; by default in fp32, and those of a module in half precision in fp16. Raises
    BadRequest for what no bundle can hold, such as a Python function; BadEnvironment, OutOfResource.
    """
    out, composed = Path(out), getattr(pipeline, "composed", None)
    if not isinstance(composed, Composition):
        raise BadRequest("export", "this pipeline was not composed here", "give one that compose made")
    if precision is not None:
        check_choice("precision", precision, ("fp16", "fp32"))
    check_free(out)
    check_names(out)
    check_folder(out.parent)
    check_backend("onnxruntime")  # which every network is compared on
    plan = _plan(pipeline.bundle, composed, precision)
    with new_file_or_folder(out) as partial:
        partial.mkdir()
        manifest = replace(_write(plan, partial, watch), name=out.name)
        (partial / NAME).write_text(manifest.to_json(), encoding="utf-8")
        return _compared(Bundle.open(partial), plan, watch)


@dataclass(frozen=True, eq=False)
class _Plan:
    manifest: Manifest
    calibrated: bytes  # the file of weights that were found; empty if none were
    composed: Composition
    experts: dict[str, Network]
    logits: dict[str, Network]  # of those whose influence a network tells
    encoders: dict[str, Network]  # of conditions, where there are any
    of_images: dict[str, Network]  # by "decode" and "encode"; none where latents are images, or there are none
    parts: dict[str, bool]  # what names of weights begin with -> whether these are kept in fp16

    @property
    def networks(self) -> list[Network]:
        own = dict.fromkeys([*self.experts.values(), *self.logits.values(), *self.encoders.values()])
        return [*own, *self.of_images.values()]

    def in_half(self, weight: str) -> bool:
        return self.parts[max((part for part in self.parts if weight.startswith(f"{part}.")), key=len)]


def _plan(bundle: Bundle, composed: Composition, precision: str | None) -> _Plan:
    manifest, experts, logits = bundle.manifest, dict[str, Network](), dict[str, Network]()
    known = dict[object, tuple[str, Network]]()  # with the name of the expert that it came with
    encoders, encoding = dict[str, Network](), dict[object, Network]()
    opset = OPSET if any(expert.logit for expert in composed.experts.values()) else OLDEST
    for what in ("mixing", "top_k"):
        if getattr(composed, what) is not None:
            raise BadRequest(what, "a bundle holds none", "leave it out, and give weights by influence= and region=")
    for name, expert in composed.experts.items():
        if expert.logit is not None:
            _check_holdable(f"expert {name}, logit", expert.logit.function)
        made, takes = expert.denoise, _takes(expert, manifest.latent_shape)
        key = made.path if isinstance(made, OnnxFunction) else made.net if isinstance(made, Called) else made
        if (key, expert.condition) not in known:
            known[key, expert.condition] = name, _network(f"expert {name}", f"experts.{name}.", made, takes, opset)
        owner, experts[name] = known[key, expert.condition]  # of one network, though asked under two conditions
        if expert.logit is not None:
            logits[name] = _logit(name, expert.logit, takes, f"experts.{owner}.influence.{name}.")
        if expert.encoder and expert.fixed is None:
            encoders[name] = ends.encoder_of(name, expert.encoder, encoding, _network)
    parts = ends.parts_of(composed)
    halved = {part: precision == "fp16" or (precision is None and _is_half(of)) for part, of in parts.items()}
    calibrated, images = bundle.content.get(manifest.calibrated, b""), ends.of_images(manifest, composed, _network)
    return _Plan(manifest, calibrated, composed, experts, logits, encoders, images, halved)


def _logit(name: str, function: LogitFunction, takes: Mapping[str, Given], prefix: str) -> Network:
    """What tells an expert's influence. Raises BadRequest for what no bundle holds."""
    one = [np.zeros((1, *given.shape), np.float32) for role, given in takes.items() if role != "time"]
    rank = np.ndim(function(one[0], 0.5, *one[1:]))
    return replace(_network(f"expert {name}, logit", prefix, function.function, takes, OPSET), rank=rank)


def _takes(expert: Expert, latent: tuple[int, ...]) -> dict[str, Given]:
    condition = {} if expert.condition is None else {"condition": Given("condition", "float32", expert.condition)}
    return {"x": Given("x", "float32", latent), "time": Given("time", "float32", ()), **condition}


def _network(
    what: str, prefix: str, function: Any, takes: Mapping[str, Given], opset_at_least: int = OLDEST
) -> Network:
    if isinstance(function, OnnxFunction | OnnxEncoder):
        given = {role: Given(p.name, p.dtype, p.shape, p.batched) for role, p in function.ports.items()}
        return brought.read_file(function.path, given, function.out.name, prefix, opset_at_least)
    _check_holdable(what, function)
    try:
        return brought.traced(function, takes, prefix)
    except Exception as error:  # of torch's exporter and of the module's own code: no base class but this
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise BadRequest(what, f"its module cannot be traced ({reason})", OTHERWISE) from error


def _check_holdable(what: str, function: Any) -> None:
    if isinstance(function, Bundled):
        seen = f"it is of bundle {function.bundle.folder.name}, and is not put into another"
        raise BadRequest(what, seen, "let it take part beside the exported bundle: --with, or with_experts=")
    if not is_module(function) and not isinstance(function, OnnxFunction):
        seen = "it is a Python function, which no bundle holds"
        raise BadRequest(what, seen, "give a torch.nn.Module or an ONNX file")


def _is_half(function: Any) -> bool:
    return is_module(function) and {p.dtype for p in function.parameters()} == {torch.float16}


def _write(plan: _Plan, folder: Path, watch: Watch) -> Manifest:
    """Fills the folder, but for the manifest."""
    stored = brought.weight_specs(plan.networks, plan.in_half)
    with watch(len(stored), "weights") as done:
        write_tensors(folder / WEIGHTS, stored, counted(brought.weight_tensors(plan.networks, stored), done), {})
    (folder / WEIGHTS).chmod(0o644)
    if plan.calibrated:
        (folder / plan.manifest.calibrated).write_bytes(plan.calibrated)
    graphs, specs = _graphs(plan, places(folder / WEIGHTS) if stored else {}), dict[str, NetworkSpec]()
    with watch(len(graphs), "graphs") as done:
        for network, (spec, make) in counted(graphs.items(), done):
            (folder / spec.file).write_bytes(make(spec).SerializeToString())
            kind, _, name = network.partition(".")
            of_torch = kind == "expert" and is_module(plan.composed.experts[name].denoise)
            specs[network] = write_cpu_graph(spec, folder) if of_torch else spec
    described = {name: {"made_of": type(e.denoise).__name__} for name, e in plan.composed.experts.items()}
    for file, content in tokenizers_of(plan.composed.experts).items():
        (folder / file).write_bytes(content)
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    source, provenance = plan.manifest.source | {COMPOSED: described}, {"torch": torch.__version__}
    return replace(plan.manifest, networks=specs, weights=WEIGHTS, source=source, provenance=provenance, files=files)


def _graphs(plan: _Plan, lies: Mapping[str, Stored]) -> Graphs:
    found: Graphs = {}
    for modality in plan.manifest.modalities:
        found |= _of_expert(plan, modality, lies)
    return found | ends.image_graphs(plan.manifest, plan.of_images, lies)


def _of_expert(plan: _Plan, modality: Modality, lies: Mapping[str, Stored]) -> Graphs:
    """What encodes its condition, or is always it; the table of its numbers; and its own network."""
    name, expert = modality.name, plan.composed.experts[modality.name]
    always, network, logit = fixed_condition(name, expert), plan.experts[name], plan.logits.get(name)
    latent: Shape = ("batch", *plan.manifest.latent_shape)
    context: Shape = ("batch", *context_shape(modality, expert))
    condition, time, step = (f"{kind}.{name}" for kind in ("condition", "time", "expert"))
    table = numbers_of(expert, plan.manifest.schedule.alpha_bars()).astype(np.float32)
    spec = network_spec(
        step,
        {"x": latent, "projections": (1, table.shape[1]), "context": context},
        {"out": latent, "logit": ("batch", 1, *plan.manifest.latent_shape[1:])},
    )
    exact = ("projections", "context") if expert.condition == () else ("projections",)  # a label has many digits
    return {
        condition: ends.condition_graph(modality, context, plan.encoders.get(name), always, lies),
        time: (
            network_spec(time, {"t": ("steps",)}, {"projections": ("steps", table.shape[1])}, "int64"),
            lambda s: wrapped.small_graph(s, [("Gather", ["table", "t"], "projections")], {"table": table}),
        ),
        step: (replace(spec, exact=exact), lambda s: wrapped.expert_graph(network, logit, s, WEIGHTS, lies)),
    }


# --- is it the same? -------------------------------------------------------------------------------------------------


def _compared(bundle: Bundle, plan: _Plan, watch: Watch) -> dict[str, float]:
    """network -> relative error. Raises BadRequest for one that no backend would run, or that is another."""
    networks, errors = bundle.manifest.networks, dict[str, float]()
    with watch(len(networks), "comparing") as done:
        for network in counted(networks, done):
            errors[network] = error = max(_errors(bundle, plan, network))
            if not error <= (ROUNDED if plan.parts.get(ends.part_of(network)) else TOLERANCE):
                seen = f"its graph differs from what was composed by {error:.1e}"
                raise BadRequest(f"network {network}", seen, "let its forward take no other way for other values")
    return errors


def _errors(bundle: Bundle, plan: _Plan, network: str) -> Iterator[float]:
    spec, inputs = bundle.manifest.networks[network], _examples(bundle, plan, network)
    for file in spec.files:
        try:
            engine = OrtEngine(graph_of(bundle, network, file), spec, usual_threads())
            found = engine(**inputs)
        except BadArtefact as error:
            raise BadRequest(f"network {network}", error.seen, PLAIN) from None
        engine.close()
        wanted = plan.composed.functions[network](**inputs)
        kind, _, name = network.partition(".")
        wanted |= plan.composed.functions[f"router.{name}"](**inputs) if kind == "expert" else {}
        for output in found:
            yield relative_error(found[output], np.asarray(wanted[output])[..., : found[output].shape[-1]])


def _examples(bundle: Bundle, plan: _Plan, network: str) -> dict[str, np.ndarray]:
    """For a batch of 1: it was traced with 2. Conditions are small, so that labels are 0."""
    random, steps = np.random.default_rng(0), plan.manifest.schedule.train_steps
    made = {}
    for tensor in bundle.manifest.networks[network].inputs:
        shape = tuple(1 if isinstance(d, str) else d for d in tensor.shape)
        small = 1.0 if tensor.name in ("x", "z", "image") else 0.1
        made[tensor.name] = (small * random.standard_normal(shape)).astype(np.float32)
        if tensor.name == "t":
            made["t"] = np.array([steps // 2])
        elif tensor.dtype == "int64":  # ids of a sentence, as a tokenizer begins one
            encoder = plan.composed.experts[network.partition(".")[2]].encoder
            assert encoder is not None
            made[tensor.name] = encoder.ids("a b c")
    if "projections" in made:
        name = network.partition(".")[2]
        bars = plan.manifest.schedule.alpha_bars()[[steps // 2]]
        made["projections"] = numbers_of(plan.composed.experts[name], bars).astype(np.float32)
    return made
