"""A step's network as ONNX Runtime runs it faster on CPUs: the same function, fewer multiplications, fewer ways to memory.

Large convolutions of 3 x 3 become Winograd's (winograd.py); attention with many scores is computed a few heads at a time,
so that their scores stay in the cache; group normalisation, which has no kernel there and is taken apart into some
twenty operators, becomes that of instances, which has one. Other runtimes keep the plain graph: OpenVINO was slower
with this one when it was tried, and builders of GPU engines choose such things themselves.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdiff_rt.export import winograd
from cdiff_rt.export.typed import attributes, shapes_of
from cdiff_rt.manifest import NetworkSpec

if TYPE_CHECKING:
    import onnx

LARGEST_SCORES = 2**21  # of the heads that are computed together: 8 MiB in fp32
FEWEST_CHANNELS = 192  # with fewer, the transforms cost what the products save
SMALLEST = 8  # pixels of a side: with fewer, there are too few tiles for the kernels that are read
LARGE = 32  # pixels of a side from which tiles of 4 pay: their kernels are 4 times as large as they were, those of 2 1.8 times
LARGEST = 64 * 64  # pixels of an image: the tiles of larger ones take too much memory
Shape = tuple[int, ...]  # 0 for what is known at run time only: the batch


def write_cpu_graph(spec: NetworkSpec, folder: Path) -> NetworkSpec:
    """Writes the rewritten graph beside the plain one and returns the spec that names both; if it pays nowhere, `spec`."""
    import onnx

    model = onnx.load(folder / spec.file, load_external_data=False)
    if not rewrite(model):
        return spec
    file = f"{spec.file.removesuffix('.onnx')}.cpu.onnx"
    (folder / file).write_bytes(model.SerializeToString())
    return replace(spec, cpu_file=file)


def rewrite(model: "onnx.ModelProto") -> bool:
    """In place; whether there was anything to rewrite."""
    shapes, making = shapes_of(model), _Making(model.graph)
    before = list(model.graph.node)
    for node in before:
        if node.op_type == "Attention" and (parts := _parts(node, shapes)) > 1:
            _by_heads(making, node, parts)
        elif node.op_type == "Conv" and (tile := _tile(node, shapes)):
            _winograd(making, node, tile, shapes)
        elif node.op_type == "GroupNormalization" and all(shapes[node.input[0]][1:]):
            _by_instances(making, node, shapes)
        else:
            making.nodes.append(node)
    making.finish()
    return len(making.nodes) > len(before)


def normalise_by_instances(model: "onnx.ModelProto") -> None:
    """That alone, in place: ONNX Runtime has no kernel of group normalisation on GPUs either."""
    shapes, making = shapes_of(model), _Making(model.graph)
    for node in list(model.graph.node):
        if node.op_type == "GroupNormalization" and all(shapes[node.input[0]][1:]):
            _by_instances(making, node, shapes)
        else:
            making.nodes.append(node)
    making.finish()


class _Making:
    """The nodes of a graph in the making."""

    def __init__(self, graph: "onnx.GraphProto") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._graph, self._constants = graph, set[str]()

    def add(self, kind: str, inputs: list[str], out: str, **given: object) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(kind, inputs, [out], out, **given))
        return out

    def constant(self, name: str, value: np.ndarray) -> str:
        """One for all nodes that ask for the name."""
        import onnx

        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return name

    def finish(self) -> None:
        del self._graph.node[:]
        self._graph.node.extend(self.nodes)

    def reshape(self, x: str, shape: Shape, out: str) -> str:
        sizes = np.array(shape, np.int64)
        return self.add("Reshape", [x, self.constant(f"shape/{','.join(map(str, shape))}", sizes)], out)


# --- attention -------------------------------------------------------------------------------------------------------


def _parts(node: "onnx.NodeProto", shapes: dict[str, Shape]) -> int:
    """Into how many parts the heads of one image go, so that a part's scores are few enough; 1: it is left alone."""
    sizes = [shapes[name] for name in node.input]
    if [len(size) for size in sizes] != [4, 4, 4]:  # q, k, v [batch, heads, tokens, width], and no mask
        return 1
    (_, heads, queries, _), (_, shared, keys, _), _ = sizes
    if shared != heads or not queries * keys:
        return 1
    return math.ceil(heads / max(1, LARGEST_SCORES // (queries * keys)))


def _by_heads(making: _Making, node: "onnx.NodeProto", parts: int) -> None:
    import onnx

    (out,) = node.output
    cut = {name: [f"{out}/{name}.{i}" for i in range(parts)] for name in node.input}
    for name, pieces in cut.items():
        split = onnx.helper.make_node("Split", [name], pieces, f"{out}/{name}", axis=1, num_outputs=parts)
        making.nodes.append(split)
    given = attributes(node)
    made = [making.add("Attention", [cut[name][i] for name in node.input], f"{out}/{i}", **given) for i in range(parts)]
    making.add("Concat", made, out, axis=1)


# --- normalisation ---------------------------------------------------------------------------------------------------


def _by_instances(making: _Making, node: "onnx.NodeProto", shapes: dict[str, Shape]) -> None:
    """A group of channels is one channel of an instance; scale and bias are of the channels as they were."""
    (image, scale, bias), (out,), given = node.input, node.output, attributes(node)
    groups, sizes = given["num_groups"], shapes[image][1:]
    ones = making.constant(f"ones/{groups}", np.ones(groups, np.float32))
    zeros = making.constant(f"zeros/{groups}", np.zeros(groups, np.float32))
    x = making.reshape(image, (0, groups, -1), f"{out}/groups")
    x = making.add("InstanceNormalization", [x, ones, zeros], f"{out}/normal", epsilon=given.get("epsilon", 1e-5))
    x = making.reshape(x, (0, *sizes), f"{out}/channels")
    by_channel = (sizes[0], *[1] * len(sizes[1:]))
    x = making.add("Mul", [x, making.reshape(scale, by_channel, f"{out}/scale")], f"{out}/scaled")
    making.add("Add", [x, making.reshape(bias, by_channel, f"{out}/bias")], out)


# --- convolutions ----------------------------------------------------------------------------------------------------

DEFAULTS = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1, "auto_pad": b"NOTSET"}


def _tile(node: "onnx.NodeProto", shapes: dict[str, Shape]) -> int:
    """The tile of a convolution that pays as Winograd's, or 0."""
    made, taken, *kernel = shapes[node.input[1]]
    given = {name: value for name, value in attributes(node).items() if name in DEFAULTS}
    if kernel != [winograd.TAPS] * 2 or DEFAULTS | given != DEFAULTS | {"pads": [1] * 4} or len(node.input) < 3:
        return 0
    height, width = shapes[node.input[0]][2:]
    if min(made, taken) < FEWEST_CHANNELS or min(height, width) < SMALLEST or height * width > LARGEST:
        return 0
    return 4 if min(height, width) >= LARGE else 2


def _winograd(making: _Making, node: "onnx.NodeProto", tile: int, shapes: dict[str, Shape]) -> None:
    """Tiles by a convolution, n x n products over the channels, and a transposed convolution back."""
    (image, weight, bias), (out,) = node.input, node.output
    (made, taken, *_), (height, width) = shapes[weight], shapes[image][2:]
    n, rows, columns = tile + winograd.TAPS - 1, -(-height // tile), -(-width // tile)
    below, right = rows * tile - height, columns * tile - width  # of the last tiles, beyond the image
    matrices = winograd.transforms(tile)
    cut, kernel, join = (
        making.constant(f"winograd/{kind}.{tile}", getattr(matrices, kind)) for kind in ("cut", "kernel", "join")
    )
    step = {"strides": [tile, tile]}
    # Once, when the graph is loaded: [n n, made, taken].
    kernels = making.add("Einsum", [weight, kernel], f"{out}/kernels", equation="oiyx,pyx->poi")
    # Each channel is an image of its own.
    x = making.reshape(image, (-1, 1, height, width), f"{out}/channels")
    x = making.add("Conv", [x, cut], f"{out}/tiles", pads=[1, 1, 1 + below, 1 + right], **step)
    x = making.reshape(x, (-1, taken, n * n, rows * columns), f"{out}/tiles.flat")
    x = making.add("Transpose", [x], f"{out}/places", perm=[0, 2, 1, 3])
    x = making.add("MatMul", [kernels, x], f"{out}/products")
    x = making.add("Transpose", [x], f"{out}/products.flat", perm=[0, 2, 1, 3])
    x = making.reshape(x, (-1, n * n, rows, columns), f"{out}/made")
    x = making.add("ConvTranspose", [x, join], f"{out}/joined", pads=[0, 0, below, right], **step)
    x = making.reshape(x, (-1, made, height, width), f"{out}/image")
    making.add("Add", [x, making.reshape(bias, (1, made, 1, 1), f"{out}/bias")], out)
