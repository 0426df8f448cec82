"""What tests/faults.py disturbs: saving an image with all that lies beside it, a file of jobs, an export."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from cdiff_rt.commands import main
from cdiff_rt.jobs.run import run_jobs
from cdiff_rt.manifest import DEFAULT_MODEL, MODELS, Bundle
from cdiff_rt.outputs.files import new_file_or_folder
from cdiff_rt.outputs.generated import Generated
from cdiff_rt.outputs.recorder import Recorder
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.settings import Settings
from tests.faults import Scenario

PARAMETERS = {"steps": 1, "solver": "ddim", "eta": 1.0, "temperature": 1.0, "prompt": "", "size": 8, "first": 0}
PARAMETERS |= {"model": "none", "model_hash": "0" * 64, "version": "1"}
IDS = ("a", "b", "c")


def generated(seed: int) -> Generated:
    rng = np.random.default_rng(seed)
    pixels, drawing = (rng.integers(0, 256, (1, 8, 8, 3), np.uint8) for _ in range(2))
    return Generated(pixels, rng.standard_normal((1, 3, 4, 4)), PARAMETERS | {"seed": seed}, drawing[0])


class Steps(Recorder):
    """Two files in a folder, as the recorders of the influence and the trajectory write them, and quicker."""

    option, suffix, archive = "--save-steps", ".steps", "steps.npz"

    def write(self, folder: Path, image: int, pixels: np.ndarray, scale: int = 1) -> None:
        self.write_arrays(folder, image)
        (folder / "sheet.txt").write_text(str(pixels.sum()))

    def arrays(self, state: SimpleNamespace) -> dict[str, np.ndarray]:
        return {"x": state.x}


def save(folder: Path, seed: int) -> None:
    made = generated(seed)
    with Steps(folder) as steps:
        steps(SimpleNamespace(step=0, timestep=1, x=made.latents))
        made.save(folder / "a.png", force=True, recorders=[steps], latent=True, overlay=True)


@dataclass
class Painter:
    """A pipeline whose images are noise of their seed: what runs of jobs need of one, without a network."""

    manifest = Bundle.open(MODELS / DEFAULT_MODEL).manifest

    def identity(self) -> dict[str, str]:
        return {"model_hash": "0"}

    def generate(self, settings: Settings, conditions: object, callback_on_step_end: object) -> Generated:
        return generated(settings.seed)


def write_jobs(folder: Path) -> None:
    rows = "".join(f'{{"id": "{name}", "text": "a man", "seed": {seed}}}\n' for seed, name in enumerate(IDS))
    (folder / "jobs.jsonl").write_text(rows)


def go_on(folder: Path) -> None:
    """Whatever ended the run; and each job then has exactly one line, or `content` would tell."""
    painter: Pipeline = Painter()  # type: ignore[assignment]
    list(run_jobs(painter, folder / "jobs.jsonl", folder / "out", resume=True))
    for seed, name in enumerate(IDS):
        with Image.open(folder / "out" / f"{name}.png") as image:
            assert np.array_equal(image, generated(seed).images[0])


def export(folder: Path) -> None:
    with new_file_or_folder(folder / "bundle") as partial:
        partial.mkdir()
        for name in ("weights", "manifest"):
            (partial / name).write_text(name)


def prepare(folder: Path) -> None:
    """What commands read, and images that they replace."""
    write_jobs(folder)
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 5).save(folder / "mask.png")
    Image.fromarray(generated(0).images[0]).save(folder / "photo.png")
    save(folder / "out", 0)
    (folder / "out" / "a.steps").rename(folder / "out" / "a.influence")
    (folder / "out" / "a.influence" / "steps.npz").rename(folder / "out" / "a.influence" / "maps.npz")


def command(*words: str) -> Callable[[Path], None]:
    """A command on the bundle that the environment names; FOLDER stands for the scenario's."""

    def run(folder: Path) -> None:
        more = ["--model", os.environ["TINY"]]
        try:
            main([words[0], *more, *(word.replace("FOLDER", str(folder)) for word in words[1:])])
        except SystemExit as ended:
            if ended.code:
                raise

    return run


ALL = ("--force", "--save-influence", "--save-latent", "--steps", "1", "--text", "a man", "--out", "FOLDER/out/a.png")
JOBS = command("generate", "--jobs", "FOLDER/jobs.jsonl", "--resume", "--out", "FOLDER/many")
EDIT = ("edit", "--image", "FOLDER/photo.png", "--source-text", "a woman", *ALL)
SCENARIOS = {
    "save anew": Scenario(lambda folder: None, lambda folder: save(folder, 1)),
    "replace": Scenario(lambda folder: save(folder, 0), lambda folder: save(folder, 1)),
    "jobs": Scenario(write_jobs, go_on, go_on, "out"),
    "export": Scenario(lambda folder: None, export),
    "command generate": Scenario(prepare, command("generate", "--mask", "FOLDER/mask.png", *ALL), out="out"),
    "command edit": Scenario(prepare, command(*EDIT), out="out"),
    "command jobs": Scenario(prepare, JOBS, JOBS, "many"),
}
