"""Which experts run as one network, what it takes and gives, and what that network is called.

All of a run's experts, or none: one engine and one graph are what stacking is for, and whoever has experts of several
shapes has separate ones.
"""

from collections.abc import Iterator, Sequence

from cdiff_rt.engines.base import Arrangement, is_composed
from cdiff_rt.errors import BadArtefact, BadRequest
from cdiff_rt.manifest import NAME, REBUILD, Manifest, NetworkSpec, TensorSpec

STACK = "stack"
KINDS: dict[Arrangement, str] = {"stacked": STACK, "whole-step": "step"}  # what the names of such networks begin with
OWN = ("freeu", "context_dim")  # what copies of a UNet may differ in: nothing that has a weight of the step


def stack_network(modalities: Sequence[str]) -> str:
    """The name of these experts as one network, beside those of a bundle's networks."""
    return f"{STACK}.{'+'.join(modalities)}"


def stacked_modalities(network: str) -> list[str]:
    """Those of a stack's name; none of another network's."""
    kind, _, names = network.partition(".")
    return names.split("+") if kind == STACK else []


def made_of(network: str) -> list[str]:
    """The bundle's networks that one is: itself, or the experts of a stack or a step."""
    kind, _, names = network.partition(".")
    experts = [f"expert.{name}" for name in names.split("+")]
    return experts if kind.startswith(tuple(KINDS.values())) else [network]


def network_spec(manifest: Manifest, network: str) -> NetworkSpec:
    """Of a network of the bundle, or of a stack. Raises as `stack_spec` does."""
    modalities = stacked_modalities(network)
    return stack_spec(manifest, modalities) if modalities else manifest.networks[network]


def stack_spec(manifest: Manifest, modalities: Sequence[str]) -> NetworkSpec:
    """x [B, C, *latent], projections [M, E], context [M, B, T, K] -> out [M, B, C, *latent], logit [M, B, 1, *latent].

    T is that of the longest context; what others lack may be any finite number. Raises BadRequest.
    """
    check_alike(manifest, modalities)
    specs = [manifest.networks[f"expert.{name}"] for name in modalities]
    x, projections, context = specs[0].inputs
    count, (_, _, width) = len(specs), context.shape
    longest = max(int(spec.inputs[2].shape[1]) for spec in specs)
    return NetworkSpec(
        f"{stack_network(modalities)}.onnx",
        (
            x,
            TensorSpec("projections", (count, projections.shape[1]), projections.dtype),
            TensorSpec("context", (count, "batch", longest, width), context.dtype),
        ),
        tuple(TensorSpec(tensor.name, (count, *tensor.shape), tensor.dtype) for tensor in specs[0].outputs),
    )


def check_alike(manifest: Manifest, modalities: Sequence[str]) -> None:
    """Raises BadRequest unless the experts have one shape, and BadArtefact for a manifest that does not say."""
    first, *others = modalities
    if is_composed(manifest):
        raise BadRequest(
            "experts stacked", f"{manifest.name} was composed of networks of any make", "run them separate"
        )
    try:
        shapes = {name: dict(_sizes(manifest.source["experts"][name])) for name in modalities}
    except (KeyError, TypeError, AttributeError) as error:
        raise BadArtefact(NAME, f"it does not describe every expert ({error!r:.80})", REBUILD) from None
    for name in others:
        for field in shapes[first] | shapes[name]:
            ours, theirs = (shapes[m].get(field, "none") for m in (first, name))
            if ours != theirs:
                seen = f"{field} is {ours} in {first} and {theirs} in {name}"
                raise BadRequest("experts stacked", seen, "experts of several shapes run separate")


def _sizes(expert: dict) -> Iterator[tuple[str, object]]:
    """What the shape of its step's network follows from, by name."""
    yield "diffuser_input", expert["diffuser_input"]
    for net in ("unet", "diffuser"):
        for name, value in (expert[net] or {}).items():
            if name not in OWN:
                yield f"{net}.{name}", value
