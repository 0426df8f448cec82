"""What stands at either end of a composition's experts, as a bundle has it: encoders of conditions, and the autoencoder."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cdiff_rt.composing.composition import Composition
from cdiff_rt.composing.images import NO_VARIANCE
from cdiff_rt.engines.weights import ENCODER
from cdiff_rt.export import wrapped
from cdiff_rt.export.brought import Given, Network
from cdiff_rt.export.bundle import WEIGHTS, Shape, network_spec
from cdiff_rt.export.stored import Stored
from cdiff_rt.foreign.encoders import Encoder
from cdiff_rt.foreign.onnx_files import OnnxEncoder
from cdiff_rt.manifest import Manifest, Modality, NetworkSpec

if TYPE_CHECKING:
    import onnx

Make = Callable[[str, str, Any, Mapping[str, Given]], Network]  # of what it is, its weights' prefix, a function, inputs
Graph = tuple[NetworkSpec, "Callable[[NetworkSpec], onnx.ModelProto]"]
Graphs = dict[str, Graph]  # by network


def parts_of(composed: Composition) -> dict[str, Any]:
    """What names of weights begin with -> what these are of."""
    functions = {f"experts.{name}": expert.denoise for name, expert in composed.experts.items()}
    encoders = {f"experts.{n}.{ENCODER}": e.encoder.function for n, e in composed.experts.items() if e.encoder}
    return functions | encoders | {"vae": composed.decode}


def part_of(network: str) -> str:
    """Which of these a network is of."""
    kind, _, name = network.partition(".")
    return "vae" if kind == "vae" else f"experts.{name}" + (f".{ENCODER}" if kind == "condition" else "")


def encoder_of(name: str, encoder: Encoder, known: dict[object, Network], make: Make) -> Network:
    """That of another expert, if both have one."""
    function = encoder.function
    key = function.path if isinstance(function, OnnxEncoder) else function
    if key not in known:
        takes = {"inputs": Given("inputs", "int64" if encoder.tokenizer else "float32", encoder.takes)}
        known[key] = make(f"expert {name}, encoder", f"experts.{name}.{ENCODER}.", function, takes)
    return known[key]


def condition_graph(
    modality: Modality, context: Shape, encoder: Network | None, always: np.ndarray | None, lies: Mapping[str, Stored]
) -> Graph:
    """What encodes a condition, or gives it as it is, or is always the same."""
    network, kind = f"condition.{modality.name}", "int64" if modality.kind == "words" else "float32"
    spec = network_spec(network, {"inputs": ("batch", *modality.input_shape)}, {"context": context}, kind)
    if encoder:
        return spec, lambda s: wrapped.encoder_graph(encoder, s, WEIGHTS, lies)
    if always is None:
        return spec, lambda s: wrapped.small_graph(s, [("Identity", ["inputs"], "context")], {})
    nodes = [("Mul", ["inputs", "none"], "nothing"), ("Add", ["nothing", "always"], "context")]
    constants = {"none": np.float32(0), "always": always.reshape(1, 1, -1)}
    return spec, lambda s: wrapped.small_graph(s, nodes, constants)


def of_images(manifest: Manifest, composed: Composition, make: Make) -> dict[str, Network]:
    """What decodes latents and encodes images, by these verbs; none where latents are the images, or there are none."""
    size = manifest.image_size
    functions = {
        "decode": (composed.decode, Given("z", "float32", manifest.latent_shape)),
        "encode": (composed.encode, Given("image", "float32", (3, size, size))),
    }
    return {
        verb: make(verb, f"vae.{verb}.", function, {given.name: given})
        for verb, (function, given) in functions.items()
        if size and function is not None
    }


def image_graphs(manifest: Manifest, networks: Mapping[str, Network], lies: Mapping[str, Stored]) -> Graphs:
    """Both, as far as the manifest has them; of latents that are images, the identity."""
    latent: Shape = ("batch", *manifest.latent_shape)
    image: Shape = ("batch", 3, manifest.image_size, manifest.image_size)
    nodes = [("Mul", ["mean", "none"], "zeros"), ("Add", ["zeros", "least"], "logvar")]
    shapes = {
        "decode": ({"z": latent}, {"image": image}, ([], {})),
        "encode": (
            {"image": image},
            {"mean": latent, "logvar": latent},
            (nodes, {"none": np.float32(0), "least": np.float32(NO_VARIANCE)}),
        ),
    }

    def graph(verb: str, spec: NetworkSpec) -> "onnx.ModelProto":
        taken, given, (more, constants) = shapes[verb]
        if verb in networks:
            return wrapped.plain_graph(networks[verb], spec, WEIGHTS, lies, (more, constants))
        return wrapped.small_graph(spec, [("Identity", [*taken], next(iter(given))), *more], constants)

    known = ["decode"] * bool(manifest.image_size) + ["encode"] * ("vae.encode" in manifest.networks)
    return {f"vae.{verb}": (network_spec(f"vae.{verb}", *shapes[verb][:2]), partial(graph, verb)) for verb in known}
