"""An exam whose judge reads images in a code: red tells a pixel's label; green and blue, over the image, the answers.

So a test can paint an image that the judge sees as it likes, and knows what the judge must answer.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from PIL import Image

from cdiff_rt.exam import JUDGE, MASKS, WEIGHTS, Paper, Question, write_paper
from cdiff_rt.manifest import sha256

SIZE, CLASSES = 128, 19
ATTRIBUTES = {"gender": ["woman", "man"], "beard": ["no beard", "stubble", "a long beard"]}
QUESTIONS = [
    Question("This man has a long beard.", {"gender": "man", "beard": "a long beard"}),
    Question("This woman is in her fifties.", {"gender": "woman"}),
    Question("This man has stubble.", {"gender": "man", "beard": "stubble"}),
]
ANSWERS = np.array([[1, 2], [0, -1], [1, 1]])
TRUTH = {"mIoU": [0.91, 0.9, 0.92], "attributes": [0.81, 0.8, 0.82], "both": [0.71, 0.7, 0.72], "face": [1.0, 1.0, 1.0]}


def levels(count: int) -> np.ndarray:
    """The bytes that stand for 0, 1, ... count - 1."""
    return np.linspace(0, 255, count).astype(np.uint8)


def coded(labels: np.ndarray, answers: list[int] | np.ndarray) -> np.ndarray:
    """labels [H, W], one answer for each attribute -> image [H, W, 3] uint8."""
    image = np.empty((*labels.shape, 3), np.uint8)
    image[..., 0] = levels(CLASSES)[labels]
    for channel, (answer, values) in enumerate(zip(answers, ATTRIBUTES.values(), strict=True), start=1):
        image[..., channel] = levels(len(values))[answer]
    return image


def labels_of(pairs: int) -> np.ndarray:
    """[pairs, SIZE, SIZE]: coarse blocks, so that a map of 32 x 32 keeps them."""
    blocks = np.random.default_rng(0).integers(CLASSES, size=(pairs, 8, 8), dtype=np.uint8)
    return blocks.repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)


def write_coded_exam(folder: Path, model: str = "faces-128") -> Path:
    """An exam of as many pairs as there are `QUESTIONS`."""
    folder.mkdir(parents=True)
    Image.fromarray(np.concatenate(labels_of(len(QUESTIONS)))).save(folder / MASKS)
    (folder / JUDGE).write_bytes(_judge().SerializeToString())
    (folder / WEIGHTS).write_bytes(b"the code needs none")
    files = {name: sha256(folder / name) for name in (MASKS, JUDGE, WEIGHTS)}
    write_paper(Paper(model, SIZE, "mask", "text", CLASSES, ATTRIBUTES, QUESTIONS, TRUTH, files), folder)
    return folder


def _judge() -> onnx.ModelProto:
    """A value v is nearest to that level c for which 2cv - c^2 is greatest: one convolution and means over the image."""
    nodes, weights, outputs = [], [], []
    counts = {"labels": CLASSES} | {name: len(values) for name, values in ATTRIBUTES.items()}
    for channel, (name, count) in enumerate(counts.items()):
        level = levels(count).astype(np.float32) / 127.5 - 1
        kernel = np.zeros((count, 3, 1, 1), np.float32)
        kernel[:, channel, 0, 0] = 2 * level
        weights += [numpy_helper.from_array(kernel, f"{name}.w"), numpy_helper.from_array(-(level**2), f"{name}.b")]
        maps = name if name == "labels" else f"{name}.maps"
        nodes.append(helper.make_node("Conv", ["image", f"{name}.w", f"{name}.b"], [maps]))
        shape: list[int | str] = ["batch", count, SIZE, SIZE]
        if name != "labels":
            nodes.append(helper.make_node("ReduceMean", [maps], [name], axes=[2, 3], keepdims=0))
            shape = ["batch", count]
        outputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    graph = helper.make_graph(nodes, "judge", [image], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
