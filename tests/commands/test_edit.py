import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from cdiff_rt import editing
from cdiff_rt.editing import imagic
from cdiff_rt.editing.regions import region_between
from tests.command_line import run as command

NOW, THEN = "This man has stubble.", "This man has a long beard."


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out.png"


@pytest.fixture(scope="module")
def pixels(pipeline, mask) -> np.ndarray:
    return pipeline.generate(mask=mask, text=NOW, steps=5).images[0]


@pytest.fixture
def photo(pixels, tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def run(*arguments: object) -> Result:
    return command("edit", *arguments, "--steps", 4)


def check_refused(result: Result, code: int, *words: str) -> None:
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in result.stderr
    assert [word for word in words if word not in line] == []
    assert result.exit_code == code and isinstance(result.exception, SystemExit)


def record_of(path: Path) -> dict:
    with Image.open(path) as image:
        return json.loads(image.text["cdiff_rt"])


def test_an_edit_is_one_image_that_holds_its_parameters(photo, mask_file, out):
    result = run("--image", photo, "--mask", mask_file, "--text", THEN, "--out", out, "--save-influence")
    assert result.exit_code == 0
    assert result.stdout.split() == [str(out), str(out.with_suffix(".influence"))]
    record = record_of(out)
    assert record["conditions"] == {"mask": "face.png", "text": THEN}
    assert set(record["edit"]["source"]) == {"mask", "text"}  # read from the image
    assert (out.with_suffix(".influence") / "maps.npz").exists()
    assert "source mask: not given; it is read from the image" in result.stderr
    assert "pixels changed by" in result.stderr


@pytest.mark.parametrize("wanted", ["mask", "text"])
def test_one_target_alone_works(wanted, photo, mask_file, out):
    value = {"mask": mask_file, "text": THEN}[wanted]
    result = run("--image", photo, f"--{wanted}", value, "--out", out)
    assert result.exit_code == 0 and "which knows painted portraits only" in result.stderr
    source, record = record_of(out)["edit"]["source"], record_of(out)
    assert wanted in source and f"it is read from the image as '{source['text']}'" in result.stderr
    assert record["prompt"] == (THEN if wanted == "text" else source["text"])


def test_the_source_can_be_told(photo, mask_file, out):
    arguments = ("--image", photo, "--source-mask", mask_file, "--source-text", NOW, "--text", THEN, "--out", out)
    result = run(*arguments)
    assert result.exit_code == 0 and "read from the image" not in result.stderr
    assert record_of(out)["edit"]["source"] == {"mask": "face.png", "text": NOW}


def test_several_alphas_are_a_strip_or_a_folder(photo, out, tmp_path):
    arguments = ("--image", photo, "--source-text", NOW, "--text", THEN, "--alphas", "0,0.5,1", "--out")
    assert run(*arguments, out).exit_code == 0
    with Image.open(out) as image:
        assert image.size == (3 * 128, 128)
        strip = np.asarray(image)
    assert run(*arguments, tmp_path / "folder").exit_code == 0
    files = sorted((tmp_path / "folder").iterdir())
    assert [path.name for path in files] == ["seed0-000.png", "seed0-001.png", "seed0-002.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(files[1])), strip[:, 128:256])
    assert record_of(files[1])["edit"]["alphas"] == [0.0, 0.5, 1.0]


def test_kept_labels_keep_their_pixels(photo, pixels, mask, mask_file, out):
    result = run("--image", photo, "--source-mask", mask_file, "--text", THEN, "--keep", "background", "--out", out)
    assert result.exit_code == 0
    kept = region_between(mask, mask, "background", 19).kept
    with Image.open(out) as image:
        np.testing.assert_array_equal(np.asarray(image)[kept], pixels[kept])
    assert "outside the edited region pixels changed by 0.0 of 255" in result.stderr


def sideways(pixels, path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(path, exif=exif)


def see_through(pixels, path):
    Image.fromarray(np.dstack([pixels, np.tile(np.uint8([0, 255]), (128, 64))])).save(path)


PHOTOS = {
    "wide": (lambda pixels, path: Image.fromarray(np.pad(pixels, ((0, 0), (30, 30), (0, 0)))).save(path), "188x128"),
    "turned": (sideways, "turned as its EXIF data says"),
    "transparent": (see_through, "it lies on white"),
    "small": (lambda pixels, path: Image.fromarray(pixels[::4, ::4]).save(path), "32x32 is small"),
    "grey": (lambda pixels, path: Image.fromarray(pixels).convert("L").save(path), ""),
    "palette": (lambda pixels, path: Image.fromarray(pixels).convert("P").save(path), ""),
    "black and white": (lambda pixels, path: Image.fromarray(pixels).convert("1").save(path), ""),
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_photos_of_any_shape_and_mode_are_taken_with_a_notice(kind, pixels, tmp_path, out):
    write, words = PHOTOS[kind]
    write(pixels, tmp_path / "a.png")
    result = run("--image", tmp_path / "a.png", "--source-text", NOW, "--text", THEN, "--out", out)
    assert result.exit_code == 0 and words in result.stderr


BAD_PHOTOS = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.touch(), "0 bytes"),
    "folder": (lambda path: path.mkdir(), "not a file"),
    "web page": (lambda path: path.write_text("<html>"), "cannot be read"),
    "gif": (lambda path: Image.new("RGB", (9, 9)).save(path, "GIF"), "format GIF"),
    "16 bits": (lambda path: Image.fromarray(np.zeros((9, 9), np.uint16)).save(path), "16-bit grey"),
    "truncated": (
        lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x08\0\0\0\x08\x08\0\0\0\0"),
        "cannot be read",
    ),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a file"),
}


@pytest.mark.parametrize("kind", BAD_PHOTOS)
def test_what_is_no_photo_is_one_line_and_exit_code_3(kind, tmp_path):
    write, words = BAD_PHOTOS[kind]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.png")
    result = run("--image", tmp_path / "in" / "a.png", "--text", THEN, "--out", tmp_path / "out")
    check_refused(result, 3, words)
    assert not (tmp_path / "out").exists()


def test_an_absurdly_large_photo_is_refused(bomb_file, out):
    check_refused(run("--image", bomb_file, "--text", THEN, "--out", out), 3, "13000x13000 pixels")


@pytest.mark.parametrize("option", ["--mask", "--source-mask"])
def test_bad_masks_are_exit_code_3(option, bad_mask, photo, out):
    arguments = ["--image", photo, "--source-text", NOW, "--text", THEN, "--out", out, option, bad_mask.path]
    result = run(*arguments)
    check_refused(result, 3, *bad_mask.words)
    assert ("error: source mask" in result.stderr) == (option == "--source-mask")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --mask, --text or --condition"),
        (["--text", THEN, "--strength", 2], "strength: 2.0 is outside 0-1"),
        (["--text", THEN, "--strength", "nan"], "strength: nan"),
        (["--text", THEN, "--alphas", "a"], "alphas: 'a'"),
        (["--text", THEN, "--alphas", "1,inf"], "alphas: inf"),
        (["--text", THEN, "--alphas", "99"], "alphas: 99.0 is outside -10-10"),
        (["--text", THEN, "--alphas", ",".join(["1"] * 300), "--out", "folder"], "number of alphas: 300"),
        (["--text", THEN, "--alphas", "0,1", "--save-influence"], "a strip of images is one file"),
        (["--text", THEN, "--keep", "nose,ear"], "keep: 'ear'"),
        (["--text", THEN, "--keep", "scarf"], "keep: 'scarf'"),
        (["--text", THEN, "--seed", -1], "seed: -1"),
        (["--text", THEN, "--steps", 7], "take 5 or 8"),
        (["--text", THEN, "--out", "a.jpg"], "written as .png"),
        (["--text", THEN, "--strength", 0], "strength: 0 of 50 steps is none"),
        (["--text", THEN, "--source", "sketch=1"], "source: 'sketch'; faces-128 knows mask, text"),
        (["--text", THEN, "--condition", "sketch=1"], "condition: 'sketch'; faces-128 knows mask, text"),
        (["--text", THEN, "--without", "sketch"], "without: 'sketch'; faces-128 knows mask, text"),
        (["--text", THEN, "--without", "text"], "without: it leaves no condition"),
        (["--text", THEN, "--source", "text"], "--source 'text': write NAME=VALUE"),
        (["--text", THEN, "--source-text", NOW, "--source", "text=a"], "--source text: it is given twice"),
        (["--text", THEN, "--condition", "text=a"], "--condition text: it is given twice"),
        (["--text", THEN, "--backend", "cuda"], "'cuda'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_parameters_are_one_line_and_exit_code_2(arguments, words, photo, out):
    result = command("edit", "--image", photo, "--out", out, *arguments)
    check_refused(result, 2, words)
    assert not out.exists()


def test_an_image_that_exists_is_kept_without_force(photo, out):
    out.write_text("mine")
    check_refused(run("--image", photo, "--text", THEN, "--out", out), 2, "out.png exists", "--force")
    assert out.read_text() == "mine"


def test_a_model_that_nothing_reads_asks_for_the_source(photo, out, monkeypatch):
    monkeypatch.setattr("cdiff_rt.editing.reading.reading_for", lambda model: None)
    check_refused(run("--image", photo, "--text", THEN, "--out", out), 2, "give the source's text")
    assert run("--image", photo, "--source-text", NOW, "--text", THEN, "--out", out).exit_code == 0


IMAGIC = ("--method", "imagic", "--iterations", "2", "2")


def test_an_edit_by_imagic_is_one_command_and_goes_on_in_its_folder(photo, mask_file, out):
    arguments = ("--image", photo, "--mask", mask_file, "--text", THEN, "--out", out, *IMAGIC)
    result = run(*arguments, "--save-influence")
    assert result.exit_code == 0 and out.exists()
    assert "mask: iteration 4 of 4, loss 0." in result.stderr
    assert result.stderr.count("mask face.png: 128x128") == 1  # read to learn and to generate
    told = record_of(out)
    assert told["edit"].items() >= {"method": "imagic", "alphas": [1.0]}.items()
    assert told["edit"]["tuning"]["branch_iterations"] == 2 and told["edit"]["threads"] >= 1
    assert told["model_hash"] != told["edit"]["tuned"] and set(told["inputs"]) == {"image", "mask", "text"}
    again = run(*arguments, "--alphas", "0,1", "--force", "--backend", "torch")
    assert again.exit_code == 0 and "iteration" not in again.stderr
    with Image.open(out) as image:
        assert image.size == (256, 128)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--steps", 5000], "steps: 5000 is outside 1-1000"),
        (["--without", "text"], "without: it leaves no condition"),
        (["--without", "sketch"], "without: 'sketch'"),
    ],
    ids=str,
)
def test_imagic_learns_nothing_for_images_that_cannot_be_made(given, words, photo, out, monkeypatch):
    monkeypatch.setattr(imagic, "tune", lambda *given: pytest.fail("it began"))
    result = command("edit", "--image", photo, "--text", THEN, "--out", out, *IMAGIC, *given)
    check_refused(result, 2, words)


def test_imagic_needs_torch_and_says_so(photo, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "cdiff_rt.editing.imagic", raising=False)
    monkeypatch.delattr(editing, "imagic", raising=False)
    check_refused(run("--image", photo, "--text", THEN, "--out", out, *IMAGIC), 5, "imagic", "pip install '.[torch]'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*IMAGIC, "--keep", "hair"], "--keep does not go with --method imagic"),
        ([*IMAGIC, "--source-text", NOW], "--source-text does not go with --method imagic"),
        (["--work", "w"], "--work does not go with --method inversion"),
        (["--iterations", 2, 2], "--iterations does not go with --method inversion"),
        ([*IMAGIC[:3], 0, 2], "'--iterations': 0 is not in the range"),
        ([*IMAGIC[:3], 2, 200_000], "branch_iterations: 200000 is outside 1-100000"),
        ([*IMAGIC, "--alphas", "0,1", "--save-influence", "--out", "folder"], "--save-influence goes with one of"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_options_of_the_other_method_are_refused(arguments, words, photo, out):
    check_refused(run("--image", photo, "--text", THEN, "--out", out, *arguments), 2, words)
    assert not out.exists()
