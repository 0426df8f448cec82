"""Are a mask, a sentence and a sketch met at once? The pairs of the shipped exam, and of each a sketch of its face.

python -m recipes.faces.sketch_exam --work trained

The judge was fixed before anything was generated. Mask and sentence are read off an image by the exam's judge, as
`cdiff-rt bench quality` does. The sketch holds the lines of the face alone, within an oval that is the same in all; it is
met where the image's own edges there agree with it better than half way from another portrait's (0.511 on average) to
what the autoencoder keeps (0.975). Mask and sketch of a portrait agree; what each says, the other says less exactly or
not: the mask all but lines, the sketch nothing of hair, clothes and background, and neither hair colour, beard or age.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from cdiff_rt.bench.quality import LABELS_KEPT, Scores, interval, score
from cdiff_rt.exam import Exam
from cdiff_rt.manifest import Bundle, find_model
from cdiff_rt.nets.collaborative import CollaborativeModel, Expert
from cdiff_rt.sampling import noise
from cdiff_rt.sampling.experts import Experts, Network
from cdiff_rt.sampling.fusion import adjustment, decay
from cdiff_rt.sampling.loop import sample
from cdiff_rt.sampling.tiers import TIERS
from cdiff_rt.settings import Influence
from recipes.faces.config import FACES_AND_SKETCH, IMAGE_SIZE, SCHEDULE
from recipes.faces.data import HELD_OUT, Portraits
from recipes.faces.examples import Examples, conditions_of, images_of, lines_of
from recipes.faces.package import MODALITIES
from recipes.faces.painter import portrait
from recipes.faces.sketches import agreement, edges, features
from recipes.faces.weights import load_weights

FOLLOWED = (0.511 + 0.975) / 2  # the F-score from which on a sketch counts as met
FIRST_SEED = 24_000 - HELD_OUT  # the portrait of the exam's first pair
SKETCH, SEED, AT_ONCE = "sketch", 0, 25
AS_TRAINED, PLAIN = Influence(decay="none", factor=1.0), Influence(decay="none", factor=1.0, sharpness=0.0)
COLUMNS = ("mIoU", "attributes", "F of the sketch", "mask met", "sentence met", "sketch met", "all three")


@dataclass(frozen=True)
class Way:
    name: str
    modalities: tuple[str, ...]
    influence: Influence


def ways(usual: Influence) -> list[Way]:
    """Each alone, each pair, and all three: their plain mean, as trained, and as the host adjusts its influence."""
    names = tuple(FACES_AND_SKETCH.experts)
    some = [chosen for count in (1, 2) for chosen in combinations(names, count)]
    pairs = [Way(" and ".join(chosen), chosen, usual) for chosen in some]
    three = (("plain mean", PLAIN), ("softmax as trained", AS_TRAINED), ("collaborative", usual))
    return [*pairs, *(Way(f"all three, {name}", names, influence) for name, influence in three)]


def adjusted(way: Way, timesteps: np.ndarray) -> tuple[list[bool], int | None, np.ndarray, Influence]:
    told = {modality.name: modality for modality in MODALITIES}
    known = [told.get(name) for name in way.modalities]
    anchors = [i for i, modality in enumerate(known) if modality and modality.anchor]
    gain = decay(way.influence.decay, timesteps, SCHEDULE.train_steps)
    fading = [bool(modality and modality.decays) for modality in known]
    return fading, anchors[0] if anchors else None, gain, way.influence


def network(expert: Expert) -> Network:
    def run(x: np.ndarray, projections: np.ndarray, context: np.ndarray) -> dict[str, np.ndarray]:
        with torch.autocast("cpu", torch.bfloat16):
            out, logit = expert(*map(torch.from_numpy, (x, projections, context)))
        return {"out": out.float().numpy(), "logit": logit.float().numpy()}

    return run


def latents(model: CollaborativeModel, conditions: dict[str, Tensor], way: Way, first: int) -> np.ndarray:
    """x_0 [B, C, h, w] for as many conditions; image i of the seed belongs to pair i."""
    table = TIERS["fast"].table(SCHEDULE)
    times = torch.from_numpy(table.timesteps.copy()).long()
    chosen = [model.expert(name) for name in way.modalities]
    experts = Experts(
        way.modalities,
        [network(expert) for expert in chosen],
        [e.condition(conditions[name]).numpy() for name, e in zip(way.modalities, chosen, strict=True)],
        [expert.time(times).numpy() for expert in chosen],
    )
    numbers = range(first, first + len(conditions[SKETCH]))
    assert FACES_AND_SKETCH.vae is not None
    side = IMAGE_SIZE // FACES_AND_SKETCH.vae.factor
    shape = (FACES_AND_SKETCH.vae.z_channels, side, side)
    added = noise.of_steps(SCHEDULE, table, SEED, numbers, shape)
    return sample(
        experts, noise.normal(SEED, numbers, 0, shape), added, table, adjustment(*adjusted(way, table.timesteps))
    )


def generate(model: CollaborativeModel, examples: Examples, way: Way, scale: float) -> Iterator[np.ndarray]:
    """Images [B, H, W, 3] uint8 of all examples, some at a time."""
    generator = torch.Generator()
    for part in torch.arange(len(examples.conditions[SKETCH])).split(AT_ONCE):
        given = {name: examples.condition(name, part, generator, rough=False) for name in model.experts}
        z = torch.from_numpy(latents(model, given, way, int(part[0]))) / scale
        pixels = (model.vae.decode(z).clamp(-1, 1) + 1) * 127.5
        yield pixels.permute(0, 2, 3, 1).numpy().astype(np.uint8)


def columns(exam: Exam, images: np.ndarray, lines: Tensor) -> dict[str, np.ndarray]:
    seen: Scores = score(exam, images, None)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    drawn = agreement(features(edges(pixels)), lines).numpy()
    told = seen.columns
    met = [told["mIoU"] >= LABELS_KEPT, told["attributes"] == 1, drawn >= FOLLOWED]
    values = [told["mIoU"], told["attributes"], drawn, *met, np.logical_and.reduce(met)]
    return {name: value.astype(float) for name, value in zip(COLUMNS, values, strict=True)}


def load(work: Path) -> CollaborativeModel:
    model = CollaborativeModel(FACES_AND_SKETCH).eval().requires_grad_(False)
    for part in ("vae", *(f"experts.{m}.{p}" for m in model.experts for p in ("encoder", "unet", "diffuser"))):
        load_weights(model, work, part)
    return model


def row(name: str, found: dict[str, np.ndarray]) -> str:
    cells = ("{:.3f} [{:.3f}, {:.3f}]".format(*interval(values)) for values in found.values())
    return f"| {name} | " + " | ".join(cells) + " |"


def painted(exam: Exam) -> Portraits:
    """The portraits that the exam's pairs were made of."""
    found = [portrait(FIRST_SEED + i, IMAGE_SIZE) for i in range(len(exam.labels))]
    assert all((each.labels == labels).all() for each, labels in zip(found, exam.labels, strict=True))
    images, labels = (np.stack([getattr(each, part) for each in found]) for part in ("image", "labels"))
    return Portraits(
        images, labels, [each.caption for each in found], [asdict(each.attributes) for each in found], FIRST_SEED
    )


@click.command()
@click.option("--work", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--pairs", default=200, show_default=True)
@click.option("--only", multiple=True, help="Ways to run, by their names.")
@torch.inference_mode()
def main(work: Path, pairs: int, only: Sequence[str]) -> None:
    """Print how often each way of running the model meets what was asked, with 95 % intervals."""
    manifest = Bundle.open(find_model("faces-128")).manifest
    exam, model = Exam.of("faces-128").first(pairs), load(work)
    portraits = painted(exam)
    lines = features(lines_of(portraits, pairs))
    examples = Examples(torch.empty(0), conditions_of(portraits, slice(pairs)) | {SKETCH: lines})
    print("| images | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for way in ways(manifest.influence):
        if not only or way.name in only:
            images = np.concatenate(list(generate(model, examples, way, manifest.latent_scale)))
            np.save(work / f"{way.name}.npy", images)
            print(row(way.name, columns(exam, images, lines)), flush=True)
    kept = model.vae.decode(model.vae.encode(images_of(portraits, torch.arange(pairs)))[0]).clamp(-1, 1)
    truth = {"what the autoencoder keeps": ((kept + 1) * 127.5).permute(0, 2, 3, 1).numpy().astype(np.uint8)}
    for name, images in (truth | {"true portraits": np.asarray(portraits.images)}).items():
        print(row(name, columns(exam, images, lines)))


if __name__ == "__main__":
    main()
