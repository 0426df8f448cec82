"""An exam: held-out conditions, the right answers, and the judge that reads them off an image. A folder of four files.

exam.json: what the conditions ask and the judge can answer, and the hashes of the others. masks.png: the label maps,
one below the other. judge.onnx and its weights: image [B, 3, H, W] in [-1, 1] -> logits of the labels and of each
attribute.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from cdiff_rt import schema
from cdiff_rt.engines.backends import load_graph
from cdiff_rt.engines.base import Engine
from cdiff_rt.engines.graphs import Graph
from cdiff_rt.errors import BadArtefact, BadRequest, check_range
from cdiff_rt.intact import read_intact
from cdiff_rt.manifest import NetworkSpec, TensorSpec

NAME, MASKS, JUDGE, WEIGHTS = "exam.json", "masks.png", "judge.onnx", "judge.safetensors"
EXAMS = Path(__file__).parent / "exams"
REMEDY = "write it again with `python -m recipes.faces.judge`"
UNASKED = -1
AT_ONCE = 25  # images


@dataclass(frozen=True)
class Question:
    """What a sentence says: the attributes it names, and their values."""

    sentence: str
    asks: dict[str, str]  # attribute -> value


@dataclass(frozen=True)
class Paper:
    """exam.json."""

    model: str  # whose conditions these are
    size: int  # pixels per side
    mask: str  # the modality that takes the label maps
    text: str  # the modality that takes the sentences
    classes: int
    attributes: dict[str, list[str]]  # attribute -> its possible values
    questions: list[Question]
    truth: dict[str, list[float]]  # column -> mean and interval, for the portraits that the conditions were made of
    files: dict[str, str]  # file name -> sha256
    knows: str = "images like its model's"  # what the judge has learned from


@dataclass(frozen=True)
class Exam:
    paper: Paper
    labels: np.ndarray  # [N, H, W] uint8
    answers: np.ndarray  # [N, attributes] index of the right value, or UNASKED
    judge: Engine

    @classmethod
    def of(cls, model: str) -> "Exam":
        """The exam that comes with cdiff-rt for a model's name. Raises BadRequest if there is none."""
        known = {path.name: path for path in EXAMS.glob("*/")}
        if model not in known:
            names = ", ".join(sorted(known)) or "none"
            raise BadRequest("quality", f"there is no exam for the model {model!r}", f"there is one for {names}")
        return cls.open(known[model])

    @classmethod
    def open(cls, folder: Path) -> "Exam":
        """Raises BadArtefact if a file is missing, altered, or not of this format."""
        try:
            paper = schema.from_json(Paper, json.loads((folder / NAME).read_text(encoding="utf-8")), "exam")
            hashes = {name: paper.files.get(name, "none") for name in (MASKS, JUDGE, WEIGHTS)}
            content = read_intact(folder, hashes, f"exam {folder.name}", REMEDY)
            with Image.open(io.BytesIO(content[MASKS])) as strip:
                labels = np.asarray(strip).reshape(-1, paper.size, paper.size)
            answers = right_answers(paper)
        except (OSError, ValueError, TypeError) as error:
            raise BadArtefact(f"exam {folder}", f"{NAME} cannot be used ({error})", REMEDY) from None
        if len(labels) != len(paper.questions):
            raise BadArtefact(f"exam {folder}", f"{len(labels)} masks, {len(paper.questions)} sentences", REMEDY)
        spec = judge_spec(paper.size, paper.classes, paper.attributes)
        judge = load_graph(Graph.of(content, JUDGE, WEIGHTS), spec)
        return cls(paper, labels, answers, judge)

    def conditions(self, number: int) -> dict[str, np.ndarray | str]:
        """modality -> condition of a pair."""
        return {self.paper.mask: self.labels[number], self.paper.text: self.paper.questions[number].sentence}

    def first(self, count: int) -> "Exam":
        """The exam's first pairs only. Raises BadRequest for more than it has."""
        check_range("pairs", count, 1, len(self.labels))
        return self._pick(range(count))

    def shuffled(self) -> "Exam":
        """Everybody judged by the next one's conditions."""
        return self._pick([*range(1, len(self.labels)), 0])

    def _pick(self, numbers: Sequence[int]) -> "Exam":
        paper = replace(self.paper, questions=[self.paper.questions[i] for i in numbers])
        return replace(self, paper=paper, labels=self.labels[numbers], answers=self.answers[numbers])

    def ask(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """images [N, H, W, 3] uint8 -> labels [N, H, W] and answers [N, attributes] that the judge sees in them."""
        labels, answers = [], []
        for start in range(0, len(images), AT_ONCE):
            part = images[start : start + AT_ONCE].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
            seen = self.judge(image=part)
            labels.append(seen["labels"].argmax(1))
            answers.append(np.stack([seen[name].argmax(1) for name in self.paper.attributes], axis=1))
        return np.concatenate(labels), np.concatenate(answers)


def right_answers(paper: Paper) -> np.ndarray:
    """[N, attributes]. Raises ValueError for what the judge cannot answer, and for a sentence that asks nothing."""
    names = list(paper.attributes)
    answers = np.full((len(paper.questions), len(names)), UNASKED)
    for row, question in zip(answers, paper.questions, strict=True):
        if not question.asks:
            raise ValueError(f"{question.sentence!r} asks nothing")
        for name, value in question.asks.items():
            if value not in paper.attributes.get(name, ()):
                raise ValueError(f"the judge does not tell {name} {value!r}")
            row[names.index(name)] = paper.attributes[name].index(value)
    return answers


def judge_spec(size: int, classes: int, attributes: dict[str, list[str]]) -> NetworkSpec:
    outputs = {"labels": ("batch", classes, size, size)} | {n: ("batch", len(v)) for n, v in attributes.items()}
    return NetworkSpec(
        JUDGE,
        (TensorSpec("image", ("batch", 3, size, size), "float32"),),
        tuple(TensorSpec(name, shape, "float32") for name, shape in outputs.items()),
    )


def write_paper(paper: Paper, folder: Path) -> None:
    (folder / NAME).write_text(json.dumps(asdict(paper), indent=1) + "\n", encoding="utf-8")
