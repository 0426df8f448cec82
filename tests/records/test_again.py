"""Pictures by every command, tier, backend and kind of input are made again from what they say of themselves."""

import hashlib
import json
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdiff_rt import Inpainting, Pipeline, Region, read_record, reproduce
from cdiff_rt.errors import BadArtefact, BadInput
from cdiff_rt.outputs.formats import RECORD, png_bytes
from cdiff_rt.records import find
from cdiff_rt.runners import HostRunner
from cdiff_rt.sampling.calibrated import Calibration
from tests.command_line import check_refused, run

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
USUAL = {"backend": "onnxruntime", "precision": "fp32", "experts": "separate"}
QUICKLY = ("both", "weight 0", "region, inside", "inpaint")  # of GENERATED, that run with every test


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, mask, pipeline):
    folder = tmp_path_factory.mktemp("inputs")
    Image.fromarray(mask).resize((256, 256), 0).save(folder / "m.png")
    swapped = mask.copy()
    swapped[mask == 17], swapped[mask == 18] = 16, 17
    Image.fromarray(swapped).save(folder / "bisenet.png")
    (folder / "order.txt").write_text("".join(f"{i}={i}\n" for i in range(19)))
    shown = pipeline.generate(mask=mask, text=TEXT, steps=5)
    Image.fromarray(shown.drawing).resize((512, 512), 0).save(folder / "m.jpg", quality=95)
    Image.fromarray(shown.images[0]).save(folder / "photo.png")
    half = np.zeros((128, 128), np.uint8)
    half[:, 64:] = 255
    Image.fromarray(half).save(folder / "keep.png")
    Image.fromarray(np.arange(128, dtype=np.uint8)[None].repeat(128, 0) * 2).save(folder / "grey.png")
    np.save(folder / "shares.npy", np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
    pipeline.generate(mask=folder / "m.png", text=TEXT, steps=4, seed=5).save(folder / "pictures" / "man.png")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, inputs, request, pipeline):
    """A folder with the inputs, which is the current one. In quick tests engines of the usual kind are loaded once."""
    if not request.node.get_closest_marker("slow"):
        opened = Pipeline.from_pretrained

        def opened_once(model, **how):
            usual = model == "faces-128" and USUAL | {name: of for name, of in how.items() if of} == USUAL
            return pipeline if usual else opened(model, **how)

        monkeypatch.setattr(pipeline, "close", lambda: None)
        monkeypatch.setattr(Pipeline, "from_pretrained", opened_once)
    monkeypatch.chdir(shutil.copytree(inputs, tmp_path / "here"))
    return Path.cwd()


def made(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return [line for line in result.stdout.splitlines() if line.endswith((".png", ".npz"))]


def check_the_same(*files):
    result = run("reproduce", *files)
    assert result.stdout.splitlines() == [f"{file}: the same to the byte" for file in files], result.stderr
    assert result.exit_code == 0 and result.stderr == ""  # of the request everything was said when it was made


def check_shown(file):
    """The command that is shown makes the file again, to the byte."""
    command = next(line for line in run("show", file).stdout.splitlines() if line.startswith("  command"))
    Path("again.png").unlink(missing_ok=True)
    program, *words = shlex.split(command.removeprefix("  command"))
    assert program == "cdiff-rt"
    again = {Path(path).name: path for path in made(*words)}
    assert Path(again.get(Path(file).name, "again.png")).read_bytes() == Path(file).read_bytes()


def many(case):
    return "batch" in case or case == "several"


@pytest.mark.parametrize("case", QUICKLY)
def test_a_picture_is_made_again_to_the_byte(case, place):
    (file,) = made("generate", *GENERATED[case], "--out", "out.png")
    check_the_same(file)
    check_shown(file)


@pytest.mark.long
@pytest.mark.parametrize("case", GENERATED)
def test_every_picture_is(case, place):
    files = made("generate", *GENERATED[case], "--out", "out" if many(case) else "out.png")
    check_the_same(*files, *(path for path in map(str, place.glob("out/*.npz"))))
    check_shown(files[-1])


@pytest.mark.long
@pytest.mark.parametrize("case", EDITED)
def test_every_edit_is(case, place):
    files = made("edit", *EDITED[case], "--out", "out" if many(case) else "out.png")
    check_the_same(*files)
    check_shown(files[-1])


@pytest.mark.long
def test_every_row_of_jobs_is(place):
    (place / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in JOBS))
    assert run("generate", "--jobs", "jobs.jsonl", "--out", "faces").exit_code == 0
    files = [f"faces/{row['id']}.png" for row in JOBS]
    check_the_same(*files)
    for file in files:
        check_shown(file)


# --- what Python alone can ask for -----------------------------------------------------------------------------------


def by_sdedit(pipeline, mask):
    photo = Image.open("photo.png")
    return pipeline.edit(photo, text=TEXT, mask=mask, source={"text": OTHER}, method="sdedit", strength=0.5, steps=4)


def by_own_reading(pipeline, mask):
    photo = np.asarray(Image.open("photo.png"))
    return pipeline.edit(photo, text=TEXT, read=lambda photo: {"mask": mask, "text": OTHER}, keep=[0, 17], steps=4)


def by_arrays(pipeline, mask):
    half = np.zeros((16, 16))
    half[8:] = 1
    inpaint = Inpainting(np.asarray(Image.open("photo.png")), half)
    return pipeline.generate(
        mask=mask.astype(int), inpaint=inpaint, region=Region("mask", half, "weight", 2.0), steps=4
    )


def by_pillow(pipeline, mask):
    return pipeline.generate(mask=Image.fromarray(mask), steps=4)


def by_bytes(pipeline, mask):
    return pipeline.generate(mask=(Path("bisenet.png")).read_bytes(), labels="bisenet", text=TEXT, steps=4)


@pytest.mark.parametrize("make", [by_sdedit, by_own_reading, by_arrays, by_pillow, by_bytes], ids=lambda f: f.__name__)
def test_what_python_gave_lies_inside(make, place, pipeline, mask):
    (path,) = make(pipeline, mask).save(place / "alone" / "a.png", embed=True)
    os.chdir(path.parent)
    assert reproduce(path).same
    check_shown("a.png")


@pytest.mark.parametrize("given", ["x_T", "contexts"])
def test_numbers_in_place_of_noise_or_encoders_are_told_by_their_hash(given, place, pipeline):
    shape = {
        "x_T": (1, 16, 16, 16),
        "contexts": (1, *pipeline.manifest.networks["condition.text"].outputs[0].shape[1:]),
    }
    array = np.zeros(shape[given], np.float32)
    more = {given: array if given == "x_T" else {"text": array}}
    pipeline.generate(text=TEXT, steps=4, **more).save("a.png", embed=True)
    check_refused(run("reproduce", "a.png"), 3, given, hashlib.sha256(array.tobytes()).hexdigest(), "in Python")
    assert f"{given}" in next(line for line in run("show", "a.png").stdout.splitlines() if "lacks" in line)


# --- where inputs are found ------------------------------------------------------------------------------------------


@pytest.fixture
def picture(place):
    return place / "pictures" / "man.png"


@pytest.mark.parametrize("where", ["m.png", "pictures/m.png", "pictures/renamed", "other.txt", "masks/deep/er/m.png"])
def test_a_mask_is_found_by_its_hash_whatever_it_is_called(where, place, picture):
    (place / where).parent.mkdir(parents=True, exist_ok=True)
    os.rename("m.png", where)
    shutil.copy("bisenet.png", "m.png" if where != "m.png" else "pictures/m.png")  # another of that name
    more = ("--search", "keep", "--search", "masks") if where.startswith("masks") else ()
    (place / "keep").mkdir()
    assert run("reproduce", picture, *more).stdout == f"{picture}: the same to the byte\n"


def test_a_mask_that_is_nowhere_is_one_line(place, picture):
    data = Path("m.png").read_bytes()
    Path("m.png").write_bytes(data[:-1] + b"\0")
    said = (hashlib.sha256(data).hexdigest(), "m.png", f"{len(data)} bytes", "--search", "--embed-inputs")
    check_refused(run("reproduce", picture), 3, *said)
    check_refused(run("reproduce", picture, "--search", "."), 3, *said)
    check_refused(run("reproduce", picture, "--search", "nowhere"), 2, "search", "nowhere")
    with pytest.raises(BadInput, match="m.png"):
        reproduce(picture)


WEIGHTS = Calibration(("mask", "text"), (16, 16), (0.5,), 1, 0.1, (1.0, 0.2, 0.2, 0.5), 10, {"mask": 1.0})


def test_weights_that_were_found_are_an_input_by_their_hash(place, pipeline):
    Path("weights.json").write_text(WEIGHTS.to_json())
    arguments = ["--mask", "m.png", "--text", "A man.", "--tier", "turbo", "--influence", "weights.json"]
    assert run("generate", *arguments, "--out", "weighed.png").exit_code == 0
    trace = read_record("weighed.png").inputs["influence.calibration"]
    assert trace["sha256"] == hashlib.sha256(WEIGHTS.to_json().encode()).hexdigest()
    assert "--influence weights.json" in run("show", "weighed.png").stdout
    os.makedirs("elsewhere")
    os.rename("weights.json", "elsewhere/other.json")
    check_refused(run("reproduce", "weighed.png"), 3, "influence.calibration", "weights.json", trace["sha256"])
    assert "the same to the byte" in run("reproduce", "weighed.png", "--search", "elsewhere").stdout
    pipeline.generate(text="A man.", influence=WEIGHTS, steps=2).save("python.png")
    Path("weights.json").write_text(WEIGHTS.to_json())
    assert reproduce("python.png").same


def test_a_search_is_not_endless(place, picture, monkeypatch):
    os.remove("m.png")
    monkeypatch.setattr(find, "MOST_FILES", 3)
    check_refused(run("reproduce", picture, "--search", "."), 2, "more than 3 files", "nearer")


def test_inputs_inside_are_few_bytes(place):
    plain, with_mask = (
        Path(*made("generate", *BOTH, *FEW, *more, "--out", f"{len(more)}.png")).stat().st_size
        for more in ((), ("--embed-inputs",))
    )
    assert 0 < with_mask - plain < 3000


# --- what differs ----------------------------------------------------------------------------------------------------


def altered(path, change, pixels=None):
    """The file with another record, or other pixels too."""
    record = read_record(path)
    texts = record.texts | {RECORD: json.dumps(change(record.parameters))}
    with Image.open(path) as image:
        path.write_bytes(png_bytes(np.asarray(image) if pixels is None else pixels, texts))


@pytest.mark.long
def test_another_backend_is_near_enough_and_said(picture, place):
    result = run("reproduce", picture, "--backend", "torch", "--out", "again.png")
    assert result.exit_code == 0 and "the same picture" in result.stdout
    assert "backend onnxruntime then, torch now" in result.stdout
    assert read_record("again.png").parameters["backend"] == "torch"


def test_another_picture_ends_with_1_and_says_by_how_much(picture):
    with Image.open(picture) as image:
        pixels = np.array(image)
    pixels[3, 4, 1] ^= 64
    altered(picture, dict, pixels)
    result = run("reproduce", picture)
    assert result.exit_code == 1 and "another picture, a largest difference of 64 of 255" in result.stdout
    pixels[3, 4, 1] ^= 65
    altered(picture, dict, pixels)
    assert run("reproduce", picture).exit_code == 1  # nothing else differs that would excuse it
    altered(picture, lambda told: told | {"libraries": {"numpy": "1.0"}}, pixels)
    near = run("reproduce", picture)
    assert near.exit_code == 0 and "difference of 1 of 255; numpy 1.0 then" in near.stdout


def test_another_version_is_told_and_another_model_refused(picture):
    altered(picture, lambda told: told | {"version": "0.0.9"})
    result = run("reproduce", picture)
    assert result.exit_code == 0 and "the same pixels in another file; version 0.0.9 then" in result.stdout
    assert f"warning: {picture.name}: made by cdiff-rt 0.0.9" in result.stderr
    altered(picture, lambda told: told | {"model_hash": "0" * 64})
    check_refused(run("reproduce", picture), 4, "000000000000", "--model")
    altered(picture, lambda told: told | {"model": "/etc"})
    check_refused(run("reproduce", picture), 2, "'/etc'", "--model")


def test_a_model_is_given_by_its_folder(picture, bundle_copy):
    assert reproduce(picture, model=bundle_copy).same
    manifest = bundle_copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace("{", "{ ", 1))
    with pytest.raises(BadArtefact, match="sha256 of its manifest"):
        reproduce(picture, model=bundle_copy)


@pytest.mark.parametrize("batched", [np.float32(0), np.float32(1e-2)], ids=["not at all", "a little"])
def test_of_a_batch_the_image_alone_is_made_or_all_where_a_batch_changes_them(batched, place, pipeline, monkeypatch):
    asked, sample = [], HostRunner.sample

    def rounded(self, run_, *more):
        asked.append(len(run_.start))
        return sample(self, run_, *more) + batched * (len(run_.start) - 1)

    monkeypatch.setattr(HostRunner, "sample", rounded)
    made("generate", *BOTH, *FEW, "--batch", 3, "--first", 4, "--out", "faces")
    asked.clear()
    assert reproduce("faces/seed0-005.png").same
    assert asked == ([1, 3] if batched else [1])


# --- records of the first format, and other files --------------------------------------------------------------------

NEW = {"record", "command", "adjustment", "inputs", "libraries", "machine", "rounding", "labels", "snap"}


def old(told):
    return {name: value for name, value in told.items() if name not in NEW}


def test_an_old_record_is_followed_as_far_as_it_tells(picture, place):
    altered(
        picture,
        lambda told: old(told) | {"influence": {"decay": "cosine", "factor": 2.0, "sharpness": 1.0, "boost": None}},
    )
    assert run("reproduce", picture).stdout == f"{picture}: the same to the byte\n"
    shown = run("show", picture).stdout
    assert "--mask m.png" in shown and "lacks" in shown and "hashes of its inputs" in shown
    os.remove("m.png")
    check_refused(run("reproduce", picture), 3, "m.png")


def test_an_old_edit_names_no_photo(place):
    (file,) = made("edit", *PHOTO, *FEW, "--out", "out.png")
    altered(Path(file), lambda told: old(told) | {"edit": {"method": "inversion", "of_steps": 4}})
    check_refused(run("reproduce", file), 3, "does not name the photo")
    assert "the photo, and the strength" in run("show", file).stdout


def test_a_mask_over_a_picture_is_none(place):
    made("generate", *BOTH, *FEW, "--save-overlay", "--out", "a.png")
    check_refused(run("reproduce", "a.overlay.png"), 2, "give the picture itself")


def test_several_are_made_again_and_what_cannot_be_is_told_in_the_end(picture, place):
    result = run("reproduce", picture, "m.png", picture, "photo.png")
    assert result.exit_code == 3 and result.stdout == f"{picture}: the same to the byte\n" * 2
    assert "2 of 4 pictures, the first: picture m.png: it has no record" in result.stderr
    assert "warning: picture photo.png: it has no record" in result.stderr


def test_what_is_made_again_is_written_on_request_only(picture, place):
    before = sorted(place.rglob("*"))
    assert run("reproduce", picture).exit_code == 0 and sorted(place.rglob("*")) == before
    assert run("reproduce", picture, "--out", "again.png").exit_code == 0
    assert Path("again.png").read_bytes() == picture.read_bytes()
    check_refused(run("reproduce", picture, "--out", "again.png"), 2, "again.png exists")
    assert run("reproduce", picture, "--out", "again.png", "--force").exit_code == 0
    check_refused(run("reproduce", picture, "--out", "again.jpg"), 2, "again.jpg")
    check_refused(run("reproduce", picture, picture, "--out", "b.png"), 2, "--out is one file")


BROKEN = {
    "image": -1,
    "batch": "3",
    "steps": "many",
    "inputs": [],
    "libraries": 3,
    "seed": None,
    "solver": "euler",
    "model": ["faces-128"],
    "backend": {},
}


@pytest.mark.parametrize("key", BROKEN)
def test_a_damaged_record_is_one_line(key, picture):
    altered(picture, lambda told: told | {key: BROKEN[key]})
    result = run("reproduce", picture)
    assert result.exit_code in (2, 3) and result.stderr.startswith("error: "), result.stderr
    assert run("show", picture).exit_code in (0, 3)
