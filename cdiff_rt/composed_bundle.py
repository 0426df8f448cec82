"""A composition as a bundle: what `compose` made of modules and ONNX files, for every backend of graphs and every command.

export_composition(compose({...}), "bundle/")
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from cdiff_rt.bundled import Bundled
from cdiff_rt.composition import Composition
from cdiff_rt.engines.backends import check_backend
from cdiff_rt.engines.base import COMPOSED
from cdiff_rt.engines.graphs import graph_of
from cdiff_rt.engines.ort import OrtEngine
from cdiff_rt.errors import BadArtefact, BadRequest, check_choice
from cdiff_rt.expert import Expert, fixed_condition
from cdiff_rt.export import brought
from cdiff_rt.export.brought import Given, Network
from cdiff_rt.export.bundle import WEIGHTS, Shape, network_spec
from cdiff_rt.export.cpu_graph import write_cpu_graph
from cdiff_rt.export.stored import Stored
from cdiff_rt.export.tensors import places, write_tensors
from cdiff_rt.export.verify import TOLERANCE, relative_error
from cdiff_rt.export.watch import Watch, counted, unwatched
from cdiff_rt.foreign.from_diffusers import Called
from cdiff_rt.foreign.modules import is_module
from cdiff_rt.foreign.onnx_files import OnnxFunction
from cdiff_rt.manifest import NAME, Bundle, Manifest, Modality, NetworkSpec, sha256
from cdiff_rt.outputs.files import check_folder, check_free, check_names, new_file_or_folder
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.process import usual_threads

if TYPE_CHECKING:
    import onnx

ROUNDED = 5e-2  # relative error of one call whose weights were rounded to fp16
OTHERWISE = "let its forward depend on shapes alone, not on values, or export it to ONNX yourself and give that file"
PLAIN = "let it use plain operators on sizes that are fixed but for the batch, no random numbers, and opset 18 or later"
Graphs = dict[str, tuple[NetworkSpec, "Callable[[NetworkSpec], onnx.ModelProto]"]]  # by network


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
    plan = _plan(pipeline.manifest, composed, precision)
    with new_file_or_folder(out) as partial:
        partial.mkdir()
        manifest = replace(_write(plan, partial, watch), name=out.name)
        (partial / NAME).write_text(manifest.to_json(), encoding="utf-8")
        return _compared(Bundle.open(partial), plan, watch)


@dataclass(frozen=True, eq=False)
class _Plan:
    manifest: Manifest
    composed: Composition
    experts: dict[str, Network]
    decoder: Network | None  # None: latents are images, or there are none
    half: frozenset[str]  # parts whose weights are kept in fp16

    @property
    def networks(self) -> list[Network]:
        return [*dict.fromkeys(self.experts.values()), *([self.decoder] if self.decoder else [])]


def _plan(manifest: Manifest, composed: Composition, precision: str | None) -> _Plan:
    experts, known = {}, dict[object, Network]()
    if composed.mixing is not None:
        raise BadRequest("mixing", "a bundle holds none", "leave it out, and give weights by influence= and region=")
    for name, expert in composed.experts.items():
        if expert.logit is not None:
            seen = "its logit is a Python function, which no bundle holds"
            raise BadRequest(f"expert {name}", seen, "leave it out, and give weights by influence= and region=")
        made, takes = expert.denoise, _takes(expert, manifest.latent_shape)
        key = made.path if isinstance(made, OnnxFunction) else made.net if isinstance(made, Called) else made
        if (key, expert.condition) not in known:
            known[key, expert.condition] = _network(f"expert {name}", f"experts.{name}.", made, takes)
        experts[name] = known[key, expert.condition]  # of one network, though asked under two conditions
    decode, z = composed.decode, {"z": Given("z", "float32", manifest.latent_shape)}
    decoder = _network("decode", "vae.", decode, z) if decode is not None and manifest.image_size else None
    parts = {f"experts.{name}": expert.denoise for name, expert in composed.experts.items()} | {"vae": decode}
    half = {part for part, of in parts.items() if precision == "fp16" or (precision is None and _is_half(of))}
    return _Plan(manifest, composed, experts, decoder, frozenset(half))


def _takes(expert: Expert, latent: tuple[int, ...]) -> dict[str, Given]:
    condition = {} if expert.condition is None else {"condition": Given("condition", "float32", expert.condition)}
    return {"x": Given("x", "float32", latent), "time": Given("time", "float32", ()), **condition}


def _network(what: str, prefix: str, function: Any, takes: Mapping[str, Given]) -> Network:
    if isinstance(function, OnnxFunction):
        ports = {"x": function.x, "time": function.time, "condition": function.condition}
        given = {role: Given(p.name, p.dtype, p.shape, p.batched) for role, p in ports.items() if p}
        return brought.read_file(function.path, given, function.out.name, prefix)
    if isinstance(function, Bundled):
        seen = f"it is of bundle {function.bundle.folder.name}, and is not put into another"
        raise BadRequest(what, seen, "let it take part beside the exported bundle: --with, or with_experts=")
    if not is_module(function):
        raise BadRequest(
            what, "it is a Python function, which no bundle holds", "give a torch.nn.Module or an ONNX file"
        )
    try:
        return brought.traced(function, takes, prefix)
    except Exception as error:  # of torch's exporter and of the module's own code: no base class but this
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise BadRequest(what, f"its module cannot be traced ({reason})", OTHERWISE) from error


def _is_half(function: Any) -> bool:
    return is_module(function) and {p.dtype for p in function.parameters()} == {torch.float16}


def _write(plan: _Plan, folder: Path, watch: Watch) -> Manifest:
    """Fills the folder, but for the manifest."""
    half = tuple(f"{part}." for part in plan.half)
    stored = brought.weight_specs(plan.networks, lambda weight: weight.startswith(half))
    with watch(len(stored), "weights") as done:
        write_tensors(folder / WEIGHTS, stored, counted(brought.weight_tensors(plan.networks, stored), done), {})
    (folder / WEIGHTS).chmod(0o644)
    graphs, specs = _graphs(plan, places(folder / WEIGHTS) if stored else {}), dict[str, NetworkSpec]()
    with watch(len(graphs), "graphs") as done:
        for network, (spec, make) in counted(graphs.items(), done):
            (folder / spec.file).write_bytes(make(spec).SerializeToString())
            kind, _, name = network.partition(".")
            of_torch = kind == "expert" and is_module(plan.composed.experts[name].denoise)
            specs[network] = write_cpu_graph(spec, folder) if of_torch else spec
    described = {name: {"made_of": type(e.denoise).__name__} for name, e in plan.composed.experts.items()}
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    source, provenance = {COMPOSED: described}, {"torch": torch.__version__}
    return replace(plan.manifest, networks=specs, weights=WEIGHTS, source=source, provenance=provenance, files=files)


def _graphs(plan: _Plan, lies: Mapping[str, Stored]) -> Graphs:
    found: Graphs = {}
    for modality in plan.manifest.modalities:
        found |= _of_expert(plan, modality, lies)
    size = plan.manifest.image_size
    latent: Shape = ("batch", *plan.manifest.latent_shape)
    if size:
        decode = network_spec("vae.decode", {"z": latent}, {"image": ("batch", 3, size, size)})
        decoder, same = plan.decoder, [("Identity", ["z"], "image")]
        found["vae.decode"] = (
            decode,
            lambda s: brought.plain_graph(decoder, s, WEIGHTS, lies) if decoder else brought.small_graph(s, same, {}),
        )
    return found


def _of_expert(plan: _Plan, modality: Modality, lies: Mapping[str, Stored]) -> Graphs:
    """What encodes its condition, or is always it; the table of its numbers; and its own network."""
    name, expert = modality.name, plan.composed.experts[modality.name]
    always, network = fixed_condition(name, expert), plan.experts[name]
    inputs: Shape = ("batch", *modality.input_shape)
    latent: Shape = ("batch", *plan.manifest.latent_shape)
    context: Shape = inputs if always is None else ("batch", 1, always.size)
    condition, time, step = (f"{kind}.{name}" for kind in ("condition", "time", "expert"))
    table = expert.form.table(plan.manifest.schedule.alpha_bars()).astype(np.float32)
    whole = [("Identity", ["inputs"], "context")]
    constants: dict[str, Any] = {}
    if always is not None:
        constants = {"none": np.float32(0), "always": always.reshape(1, 1, -1)}
        whole = [("Mul", ["inputs", "none"], "nothing"), ("Add", ["nothing", "always"], "context")]
    spec = network_spec(
        step,
        {"x": latent, "projections": (1, table.shape[1]), "context": context},
        {"out": latent, "logit": ("batch", 1, *plan.manifest.latent_shape[1:])},
    )
    exact = ("projections", "context") if expert.condition == () else ("projections",)  # a label has many digits
    return {
        condition: (
            network_spec(condition, {"inputs": inputs}, {"context": context}),
            lambda s: brought.small_graph(s, whole, constants),
        ),
        time: (
            network_spec(time, {"t": ("steps",)}, {"projections": ("steps", table.shape[1])}, "int64"),
            lambda s: brought.small_graph(s, [("Gather", ["table", "t"], "projections")], {"table": table}),
        ),
        step: (replace(spec, exact=exact), lambda s: brought.expert_graph(network, s, WEIGHTS, lies)),
    }


# --- is it the same? -------------------------------------------------------------------------------------------------


def _compared(bundle: Bundle, plan: _Plan, watch: Watch) -> dict[str, float]:
    """network -> relative error. Raises BadRequest for one that no backend would run, or that is another."""
    networks, errors = bundle.manifest.networks, dict[str, float]()
    with watch(len(networks), "comparing") as done:
        for network in counted(networks, done):
            errors[network] = error = max(_errors(bundle, plan, network))
            part = "vae" if network == "vae.decode" else f"experts.{network.partition('.')[2]}"
            if not error <= (ROUNDED if part in plan.half else TOLERANCE):
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
        for name in found:
            yield relative_error(found[name], np.asarray(wanted[name])[..., : found[name].shape[-1]])


def _examples(bundle: Bundle, plan: _Plan, network: str) -> dict[str, np.ndarray]:
    """For a batch of 1: it was traced with 2. Conditions are small, so that labels are 0."""
    random, steps = np.random.default_rng(0), plan.manifest.schedule.train_steps
    made = {}
    for tensor in bundle.manifest.networks[network].inputs:
        shape = tuple(1 if isinstance(d, str) else d for d in tensor.shape)
        small = 1.0 if tensor.name in ("x", "z") else 0.1
        made[tensor.name] = (small * random.standard_normal(shape)).astype(np.float32)
        if tensor.name == "t":
            made["t"] = np.array([steps // 2])
    if "projections" in made:
        name = network.partition(".")[2]
        bars = plan.manifest.schedule.alpha_bars()[[steps // 2]]
        made["projections"] = plan.composed.experts[name].form.table(bars).astype(np.float32)
    return made
