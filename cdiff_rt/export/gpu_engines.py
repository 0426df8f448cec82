"""TensorRT engines of a bundle's networks, built into the cache that their loaders read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdiff_rt.engines.base import Arrangement, Placement, Precision
from cdiff_rt.engines.cache import EngineCache, Recipe, step_network
from cdiff_rt.engines.cuda import compute_capability
from cdiff_rt.engines.stacked import STACK, stack_network
from cdiff_rt.engines.trt import recipe_for
from cdiff_rt.engines.trt_build import Report, build_plan
from cdiff_rt.engines.trt_library import FLAVOURS, Flavour, check_capabilities, check_device
from cdiff_rt.engines.user_files import log
from cdiff_rt.errors import BadRequest
from cdiff_rt.export.stacked import typed_stack
from cdiff_rt.export.typed import Typed, typed_network, write_typed
from cdiff_rt.export.whole_step import whole_step_graph
from cdiff_rt.manifest import Bundle, NetworkSpec


@dataclass(frozen=True)
class EngineReport:
    """What became of one network. `report` is None if its engine was in the cache already."""

    network: str
    precision: Precision
    sizes: dict[str, int]
    bytes: int
    report: Report | None

    def __str__(self) -> str:
        sizes = "".join(f" {name} {size}" for name, size in self.sizes.items())
        made = f"{self.network:20} {self.precision}{sizes:8} {self.bytes / 1e6:7.1f} MB"
        r = self.report
        if r is None:
            return f"{made}  was built before"
        fused = f"{len(r.fused_attentions):3} of {r.attentions} attentions fused"
        return f"{made} {r.seconds:6.1f} s {len(r.kernels):4} kernels {fused}"


def build_engines(
    bundle: Bundle,
    target: str,
    capabilities: Sequence[str] = (),
    *,
    precision: Precision = "fp16",
    batches: Sequence[int] = (1,),
    experts: Sequence[Arrangement] = (),
    cache: EngineCache | None = None,
) -> list[EngineReport]:
    """Engines of all networks for GPUs of these compute capabilities; of the experts also as one network, or the
    whole step, where `experts` says so.

    None named, it is the GPU that is here, or where engines are built without one, the usual. Raises BadRequest,
    BadEnvironment, BadArtefact, OutOfResource.
    """
    flavour = find_flavour(target)
    wanted = tuple(capabilities) or default_capabilities(flavour)
    check_capabilities(flavour, wanted)
    cache = cache or EngineCache()
    networks = list(bundle.manifest.networks)
    modalities = [modality.name for modality in bundle.manifest.modalities]
    if "stacked" in experts and len(modalities) > 1:  # one alone is a network of the bundle
        networks.append(stack_network(modalities))
    if "whole-step" in experts:
        networks.append(step_network(modalities, bundle.manifest.influence.boost is not None))
    reports: dict[str, EngineReport] = {}
    for network in networks:
        for batch in batches_of(network, batches):
            placement = Placement(precision=precision, batch=batch)
            made = recipe_for(flavour, bundle, network, placement, wanted)
            if made.key not in reports:  # what has no batch is one engine for all
                reports[made.key] = _build(bundle, made, placement, flavour, cache)
    return list(reports.values())


def batches_of(network: str, batches: Sequence[int]) -> list[int]:
    """What a run of these batch sizes asks of a network: conditions are encoded one at a time, and some images too."""
    kind = network.partition(".")[0]
    return {"condition": [1], "vae": sorted({1, *batches})}.get(kind, list(batches))


def find_flavour(target: str) -> Flavour:
    if target not in FLAVOURS:
        raise BadRequest("target", repr(target), f"choose one of {', '.join(FLAVOURS)}")
    return FLAVOURS[target]


def default_capabilities(flavour: Flavour) -> tuple[str, ...]:
    if flavour.defaults:
        return flavour.defaults
    check_device("cuda")
    return (compute_capability(),)


def _build(bundle: Bundle, made: Recipe, placement: Placement, flavour: Flavour, cache: EngineCache) -> EngineReport:
    reports: list[Report] = []

    def build(folder: Path) -> tuple[bytes, NetworkSpec]:
        log.info(f"building {made.network} for {flavour.name} on {', '.join(made.capabilities)}")
        typed = typed_graph(bundle, made.network, placement)
        path = write_typed(typed.model, bundle, folder, made.network)
        learned = f"{flavour.name}-{made.version}.timing"
        timing = b"" if flavour.portable else cache.learned(learned)
        built = build_plan(path, flavour, made.capabilities, made.profile, timing=timing)
        if built.timing:
            cache.keep_learned(learned, built.timing)
        reports.append(built.report)
        return built.plan, typed.spec

    engine, _ = cache.built(made, build)
    return EngineReport(made.network, made.precision, made.sizes, engine.bytes, reports[0] if reports else None)


def typed_graph(bundle: Bundle, network: str, placement: Placement) -> Typed:
    """Of a network of the bundle, of a stack (`stack_network`) or of a step (`step_network`)."""
    kind, _, modalities = network.partition(".")
    if kind == STACK:
        return typed_stack(bundle, modalities.split("+"), placement)
    if not kind.startswith("step"):
        return typed_network(bundle, network, placement)
    return whole_step_graph(bundle, modalities.split("+"), placement, boosted=kind.endswith("boosted"))
