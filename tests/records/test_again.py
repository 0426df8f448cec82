"""Pictures by every command, tier, backend and kind of input are made again from what they say of themselves."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.command_line import run

TEXT, OTHER = "This man has a long beard.", "He is in his seventies."
BOTH = ("--mask", "m.png", "--text", TEXT)
FEW = ("--steps", 4)
QUICK = ("--tier", "turbo")
PHOTO = ("--image", "photo.png", "--text", TEXT)
TORCH = ("--backend", "torch")

GENERATED = {
    "mask": ("--mask", "m.png", *FEW),
    "text": ("--text", TEXT, *FEW),
    "both": (*BOTH, *FEW),
    "exact": BOTH,
    "fast": (*BOTH, "--tier", "fast"),
    "turbo": (*BOTH, *QUICK),
    "ddim 25": (*BOTH, "--steps", 25),
    "eta 0": (*BOTH, *FEW, "--eta", 0),
    "eta 0.3": (*BOTH, *FEW, "--eta", 0.3, "--temperature", 0.7),
    "dpmpp-2m": (*BOTH, *FEW, "--solver", "dpmpp-2m"),
    "dpmpp-2m-sde": (*BOTH, *FEW, "--solver", "dpmpp-2m-sde", "--temperature", 1.3),
    "seed": (*BOTH, *FEW, "--seed", 2**63 - 1, "--first", 5),
    "influence": (*BOTH, *FEW, "--decay", "linear", "--factor", 1.5, "--sharpness", 0.5, "--boost", 3),
    "factor 0": (*BOTH, *FEW, "--factor", 0),
    "without": (*BOTH, *FEW, "--without", "mask"),
    "rounding": (*BOTH, *FEW, "--rounding", "nearest"),
    "labels": ("--mask", "bisenet.png", *FEW, "--labels", "bisenet"),
    "labels of a file": ("--mask", "bisenet.png", *FEW, "--labels", "order.txt"),
    "snap": ("--mask", "m.jpg", *FEW, "--snap"),
    "snap, inside": ("--mask", "m.jpg", *FEW, "--snap", "--embed-inputs"),
    "inpaint": (*BOTH, *FEW, "--inpaint", "photo.png", "--keep", "keep.png"),
    "inpaint, inside": ("--text", OTHER, *FEW, "--inpaint", "photo.png", "--keep", "keep.png", "--embed-inputs"),
    "weights": (*BOTH, *FEW, "--influence", "mask-first", "--influence", "text=1.5@0.2-1"),
    "preset": (*BOTH, *FEW, "--influence", "as-trained"),
    "weight 0": (*BOTH, *FEW, "--influence", "mask=0"),
    "keyframes": (*BOTH, *FEW, "--influence", "text=0@0,-1@0.5,2@1"),
    "region": (*BOTH, *FEW, "--region", "text=keep.png:at-least=0.8@0-0.7", "--region", "mask=grey.png"),
    "region, inside": (*BOTH, *FEW, "--region", "text=grey.png:weight=2", "--embed-inputs"),
    "region of numbers": (*BOTH, *FEW, "--region", "text=shares.npy:at-most=0.5"),
    "openvino": (*BOTH, *QUICK, "--backend", "openvino"),
    "openvino bf16": (*BOTH, *FEW, "--backend", "openvino", "--precision", "bf16"),
    "torch": (*BOTH, *FEW, *TORCH, "--threads", 1),
    "torch bf16": (*BOTH, *FEW, *TORCH, "--threads", 1, "--precision", "bf16"),
    "odd words": ("--text", "“Ünïcödé” 彼女 $HOME `x` 'y'", *FEW),
    "a batch": (*BOTH, *FEW, "--batch", 3, "--save-latent"),
    "a batch by torch": (*BOTH, *FEW, *TORCH, "--threads", 1, "--batch", 2),
}  # fmt: skip
EDITED = {
    "text, the rest read": (*PHOTO, *FEW),
    "text, the rest read, inside": (*PHOTO, *FEW, "--embed-inputs"),
    "source": (*PHOTO, *FEW, "--source-text", OTHER, "--source-mask", "m.png"),
    "mask, kept": ("--image", "photo.png", "--mask", "m.png", *FEW, "--keep", "hair,background"),
    "kept by what was read": (*PHOTO, *FEW, "--keep", "all"),
    "strength": (*PHOTO, "--tier", "fast", "--strength", 0.35),
    "a strip": (*PHOTO, *FEW, "--source-text", OTHER, "--alphas", "0,0.5,1.5"),
    "several": (*PHOTO, *FEW, "--source-text", OTHER, "--alphas", "0,1"),
    "region": (*PHOTO, *FEW, "--region", "text=keep.png:weight=2", "--seed", 3),
    "imagic": (*PHOTO, *FEW, "--method", "imagic", "--iterations", 1, 1, "--threads", 1),
}  # fmt: skip
JOBS = (
    {"id": "both", "mask": "m.png", "text": TEXT, "steps": 4, "seed": 7},
    {"id": "weighed", "mask": "m.png", "text": TEXT, "tier": "turbo", "influence": {"text": "1.5@0.2-1"}},
    {"id": "read", "mask": "bisenet.png", "labels": "bisenet", "steps": 4, "region": "mask=keep.png:weight=0.5"},
)
QUICKLY = ("both", "weight 0", "region, inside", "inpaint")  # of GENERATED, that run with every test


@pytest.fixture
def place(tmp_path, monkeypatch, mask, pipeline):
    """A folder with the inputs, which is the current one."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(mask).resize((256, 256), 0).save("m.png")
    swapped = mask.copy()
    swapped[mask == 17], swapped[mask == 18] = 16, 17
    Image.fromarray(swapped).save("bisenet.png")
    (tmp_path / "order.txt").write_text("".join(f"{i}={i}\n" for i in range(19)))
    colours = pipeline.generate(mask=mask, steps=1).drawing
    Image.fromarray(colours).resize((512, 512), 0).save("m.jpg", quality=95)
    Image.fromarray(pipeline.generate(mask=mask, text=TEXT, steps=5).images[0]).save("photo.png")
    half = np.zeros((128, 128), np.uint8)
    half[:, 64:] = 255
    Image.fromarray(half).save("keep.png")
    Image.fromarray(np.arange(128, dtype=np.uint8)[None].repeat(128, 0) * 2).save("grey.png")
    np.save("shares.npy", np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
    return tmp_path


def made(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return [line for line in result.stdout.splitlines() if line.endswith((".png", ".npz"))]


def check_the_same(*files):
    result = run("reproduce", *files)
    assert result.stdout.splitlines() == [f"{file}: the same to the byte" for file in files], result.stderr
    assert result.exit_code == 0


def many(case):
    return "batch" in case or case == "several"


@pytest.mark.parametrize("case", QUICKLY)
def test_a_picture_is_made_again_to_the_byte(case, place):
    check_the_same(*made("generate", *GENERATED[case], "--out", "out.png"))


@pytest.mark.slow
@pytest.mark.parametrize("case", GENERATED)
def test_every_picture_is(case, place):
    check_the_same(*made("generate", *GENERATED[case], "--out", "out" if many(case) else "out.png"))


@pytest.mark.slow
@pytest.mark.parametrize("case", EDITED)
def test_every_edit_is(case, place):
    check_the_same(*made("edit", *EDITED[case], "--out", "out" if many(case) else "out.png"))


@pytest.mark.slow
def test_every_row_of_jobs_is(place):
    (place / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in JOBS))
    assert run("generate", "--jobs", "jobs.jsonl", "--out", "faces").exit_code == 0
    check_the_same(*(f"faces/{row['id']}.png" for row in JOBS))
