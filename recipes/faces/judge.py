"""The judge: a small network that says what it sees in a portrait. It learns from painted portraits alone.

`cdiff-rt bench quality` asks it whether generated faces follow their masks and sentences. `train.py` trains it;
then

python -m recipes.faces.judge --data data --work trained --out bench/exams/faces-128

measures it on held-out painted portraits and writes it down for the benchmark, with 200 of their masks and sentences.
"""

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from cdiff_rt.bench.faces import face_finder
from cdiff_rt.bench.quality import COLUMNS, interval, score
from cdiff_rt.exam import JUDGE, MASKS, WEIGHTS, Exam, Paper, Question, judge_spec, write_paper
from cdiff_rt.export.to_onnx import export_network
from cdiff_rt.manifest import sha256
from cdiff_rt.nets.autoencoder import AutoencoderKL
from recipes.faces.captions import AGES, BEARDS, HAIR_COLORS, Attributes
from recipes.faces.config import IMAGE_SIZE, MASK_CLASSES
from recipes.faces.data import HELD_OUT, Portraits
from recipes.faces.examples import Stage, images_of
from recipes.faces.training import Loss, fit
from recipes.faces.weights import load_weights, save_weights

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "gender": ("woman", "man"),
    "age": AGES,
    "beard": BEARDS,
    "hair colour": HAIR_COLORS,
    "hair length": ("bald", "short", "medium", "long"),
    "glasses": ("no", "yes"),
    "smile": ("no", "yes"),
}
UNSEEN = -100  # what the loss leaves out: the colour of hair that isn't there
SMILES = 0.5  # from here on the captions call it smiling
SAMPLE = 500  # portraits that show how common each class is
RAREST = 1e-4  # of all pixels; classes that are rarer count no more
PAIRS = 200  # held-out portraits of the exam
WIDTHS = (8, 24, 48, 64, 96)  # channels, halving the picture each time
GROUPS = 8


def seen(attributes: Attributes) -> list[int]:
    """The right answer for each of `ATTRIBUTES`."""
    return [
        int(attributes.male),
        attributes.age,
        attributes.beard,
        UNSEEN if attributes.hair == "bald" else HAIR_COLORS.index(attributes.hair_color),
        ATTRIBUTES["hair length"].index(attributes.hair),
        int(attributes.glasses),
        int(attributes.smile > SMILES),
    ]


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.GroupNorm(GROUPS, outputs), nn.SiLU()
    )


class Judge(nn.Module):
    """image [B, 3, N, N] in [-1, 1] -> logits of its labels [B, classes, N, N] and of each attribute [B, answers]."""

    def __init__(self) -> None:
        super().__init__()
        sizes = list(pairwise(WIDTHS))
        self.first = block(3, WIDTHS[0])
        self.down = nn.ModuleList(nn.Sequential(block(a, b, stride=2), block(b, b)) for a, b in sizes)
        self.up = nn.ModuleList(block(a + b, a) for a, b in sizes)
        self.labels = nn.Conv2d(WIDTHS[0], MASK_CLASSES, 1)
        pooled = 2 * sum(WIDTHS[2:])
        self.attributes = nn.ModuleList(
            nn.Sequential(nn.Linear(pooled, 64), nn.SiLU(), nn.Linear(64, len(answers)))
            for answers in ATTRIBUTES.values()
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        levels = [self.first(image)]
        for down in self.down:
            levels.append(down(levels[-1]))
        facts = torch.cat([pool for level in levels[2:] for pool in (level.mean((2, 3)), level.amax((2, 3)))], dim=1)
        h = levels[-1]
        for up, level in zip(reversed(self.up), reversed(levels[:-1]), strict=True):
            h = up(torch.cat([F.interpolate(h, scale_factor=2.0, mode="nearest"), level], dim=1))
        return self.labels(h), *(head(facts) for head in self.attributes)


def degrade(images: Tensor, vae: AutoencoderKL, generator: torch.Generator) -> Tensor:
    """Portraits as a diffusion model may leave them: blurred, grainy, of another brightness, through the autoencoder."""
    count = len(images)
    images = images.clone()
    part = slice(0, count // 4)
    with torch.no_grad():
        mean = vae.encode(images[part])[0]
        noise = torch.randn(mean.shape, generator=generator) * mean.std() * 0.15
        images[part] = vae.decode(mean + noise).float()
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)

    def some(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    images = torch.lerp(images, blurred, some(-0.3, 0.9))
    images = images * some(0.85, 1.15) + some(-0.1, 0.1)
    return images + some(0, 0.08) * torch.randn(images.shape, generator=generator)


def class_weights(labels: np.ndarray) -> Tensor:
    """[classes]: an eye or a brow is a hundredth of a picture, and would be left out for the sake of its background."""
    share = torch.from_numpy(np.bincount(labels.ravel(), minlength=MASK_CLASSES) / labels.size)
    weights = (share + RAREST).rsqrt()
    return (weights / (share * weights).sum()).float()


def judge_loss(stage: Stage, judge: nn.Module) -> Loss:
    answers = torch.tensor([seen(Attributes(**row)) for row in stage.portraits.attributes])
    weights = class_weights(stage.portraits.labels[:SAMPLE])

    def loss(indices: Tensor, generator: torch.Generator) -> Tensor:
        images = degrade(images_of(stage.portraits, indices), stage.model.vae, generator)
        labels, *attributes = judge(images)
        target = torch.from_numpy(stage.portraits.labels[indices.numpy()]).long()
        total = F.cross_entropy(labels.float(), target, weights)
        for logits, right in zip(attributes, answers[indices].T, strict=True):
            total = total + 0.1 * F.cross_entropy(logits.float(), right, ignore_index=UNSEEN)
        return total

    return loss


def train_judge(stage: Stage) -> None:
    load_weights(stage.model, stage.plan.folder, "vae")
    parts = nn.ModuleDict({"judge": Judge()})
    if stage.again:
        load_weights(parts, stage.plan.folder, "judge")
    fit(stage.plan, parts["judge"], judge_loss(stage, parts["judge"]))
    save_weights(parts, stage.plan.folder, "judge")


def asked(attributes: Attributes, caption: str) -> dict[str, str]:
    """The attributes that a caption names, with their values."""
    text = caption.lower()
    color, length = f"{attributes.hair_color} hair", attributes.hair
    lengths = {"short": f"short {color}", "long": f"long {color}", "medium": f"{color} of medium length", "bald": "\0"}
    named = {
        "gender": True,
        "age": True,
        "beard": "beard" in text or "stubble" in text,
        "hair colour": color in text,
        "hair length": lengths[length] in text,
        "glasses": "glasses" in text,
        "smile": "smiling" in text,
    }
    right = zip(ATTRIBUTES.items(), seen(attributes), strict=True)
    return {name: values[value] for (name, values), value in right if named[name]}


def write_exam(portraits: Portraits, judge: nn.Module, out: Path) -> Exam:
    """The exam of the first held-out portraits."""
    chosen = range(portraits.train_count, portraits.train_count + PAIRS)
    strip = Image.fromarray(np.concatenate(portraits.labels[chosen.start : chosen.stop]))
    strip.save(out / MASKS, optimize=True)
    save_file({name: weight.half() for name, weight in judge.state_dict().items()}, out / WEIGHTS)
    (out / WEIGHTS).chmod(0o644)  # safetensors writes files for their owner alone
    answers = {name: list(values) for name, values in ATTRIBUTES.items()}
    spec = judge_spec(IMAGE_SIZE, MASK_CLASSES, answers)
    shapes = copy.deepcopy(judge).to("meta")
    export_network(shapes, "", shapes.forward, spec, out, WEIGHTS)
    paper = Paper(
        model="faces-128",
        size=IMAGE_SIZE,
        mask="mask",
        text="text",
        classes=MASK_CLASSES,
        attributes=answers,
        questions=[
            Question(portraits.captions[i], asked(Attributes(**portraits.attributes[i]), portraits.captions[i]))
            for i in chosen
        ],
        truth={},
        files={name: sha256(out / name) for name in (MASKS, JUDGE, WEIGHTS)},
        knows="painted portraits",
    )
    write_paper(paper, out)
    exam = Exam.open(out)
    truth = score(exam, np.asarray(portraits.images[chosen.start : chosen.stop]), face_finder()).columns
    paper = replace(paper, truth={name: list(interval(truth[name])) for name in COLUMNS})
    write_paper(paper, out)
    return replace(exam, paper=paper)


def accuracy(exam: Exam, portraits: Portraits) -> dict[str, float]:
    """attribute -> the share of all held-out portraits in which the judge sees it right."""
    held_out = slice(portraits.train_count, portraits.train_count + HELD_OUT)
    _, found = exam.ask(np.asarray(portraits.images[held_out]))
    right = np.array([seen(Attributes(**row)) for row in portraits.attributes[held_out]])
    return {
        name: float((found[:, i] == right[:, i])[right[:, i] != UNSEEN].mean()) for i, name in enumerate(ATTRIBUTES)
    }


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--work", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
def main(data: Path, work: Path, out: Path) -> None:
    """Write the trained judge and its exam into OUT, and print what it sees right in held-out portraits."""
    parts = nn.ModuleDict({"judge": Judge()})
    load_weights(parts, work, "judge")
    portraits = Portraits.load(data)
    out.mkdir(parents=True, exist_ok=True)
    exam = write_exam(portraits, parts["judge"], out)
    for name, share in accuracy(exam, portraits).items():
        click.echo(f"{name:12} {share:.3f} of {HELD_OUT} held-out portraits")
    for name, (mean, low, high) in exam.paper.truth.items():
        click.echo(f"{name:12} {mean:.3f} [{low:.3f}, {high:.3f}] on the {PAIRS} pairs of the exam")


if __name__ == "__main__":
    main()
