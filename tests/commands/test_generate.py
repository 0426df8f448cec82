import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.engines.backends import BACKENDS, Backend
from cdiff_rt.outputs import influence
from cdiff_rt.outputs.influence import InfluenceRecorder
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.runners import HostRunner
from cdiff_rt.sampling.solvers import SOLVERS
from cdiff_rt.sampling.tiers import TIERS
from cdiff_rt.settings import SETTINGS
from tests.command_line import check_error, check_refused, libraries_of, run
from tests.test_layout import HEAVY

TEXT = "This man has a long beard."


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def texts_of(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size == (128, 128)
        return image.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("  \n", "it is empty"),
        ("a\x00b", "U+0000"),
        ("\x1b[31m", "U+001B"),
        ("a \ud800", "U+D800"),
        ("x" * 10_000, "10000 characters"),
    ],
    ids=ascii,
)
def test_bad_texts_are_one_line_and_exit_code_3(text, words, out):
    check_refused(run("generate", "--text", text, "--out", out), 3, words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", 0], "steps: 0 is outside 1-1000"),
        (["--steps", 1001], "steps: 1001"),
        (["--steps", 7], "take 5 or 8"),
        (["--steps", "abc"], "'abc' is not a valid integer"),
        (["--steps", "1.5"], "'1.5' is not a valid integer"),
        (["--batch", 0], "batch: 0 is outside 1-256"),
        (["--batch", 100_000], "batch: 100000"),
        (["--seed", -1], "seed: -1"),
        (["--seed", 2**63], "seed: 9223372036854775808"),
        (["--seed", "abc"], "'abc' is neither a whole number nor random"),
        (["--scale", 0], "0 is not in the range"),
        (["--eta", "nan"], "eta: nan"),
        (["--eta", "inf"], "eta: inf"),
        (["--eta", 1.5], "eta: 1.5"),
        (["--temperature", -1], "temperature: -1"),
        (["--decay", "slow"], "'slow' is not one of"),
        (["--factor", "nan"], "factor: nan"),
        (["--sharpness", -1], "sharpness: -1"),
        (["--boost", "inf"], "boost: inf"),
        (["--rounding", "up"], "'up' is not one of"),
        (["--inpaint", "a.png"], "--inpaint and --keep go together"),
        (["--keep", "a.png"], "--inpaint and --keep go together"),
        (["--condition", "sketch"], "'sketch': write NAME=VALUE"),
        (["--condition", "text=other"], "text: it is given twice"),
        (["--condition", "sketch=1,2"], "'sketch'; faces-128 knows mask, text"),
        (["--condition", "seed=7"], "'seed'; faces-128 knows mask, text"),
        (["--without", "sketch"], "'sketch'; faces-128 knows mask, text"),
        (["--without", "text"], "without: it leaves no condition"),
        (["--out", "a.npz"], "results are written as .png"),
        (["--out", ""], "Invalid value for '--out': it is empty"),
        (["--out", "a.txt"], "out: a.txt; this model's results are written as .png"),
        (["--out", ".png"], ".png is an ending without a name"),
        (["--out", "é" * 126 + ".png"], "has 256 bytes"),
        (["--save-overlay"], "no condition of this run can be drawn"),
        (["--backend", "cuda"], "'cuda'"),
        (["--no-such-option"], "--no-such-option"),
        (["--out"], "--out"),
        (["surplus"], "surplus"),
    ],
    ids=str,
)
def test_bad_parameters_are_one_line_and_exit_code_2(arguments, words, out):
    check_refused(run("generate", "--text", TEXT, "--out", out, *arguments), 2, words)
    assert not out.exists()


def test_an_overlay_of_nothing_is_refused_before_the_first_step(out, mask_file, monkeypatch):
    monkeypatch.setattr(Pipeline, "generate", lambda *given, **more: pytest.fail("it began"))
    arguments = ["--mask", mask_file, "--text", TEXT, "--without", "mask", "--save-overlay", "--out", out]
    check_refused(run("generate", *arguments), 2, "no condition of this run can be drawn")


def test_generate_without_a_condition_is_exit_code_2(out):
    check_refused(run("generate", "--out", out), 2, "give at least one of mask, text")
    assert not out.exists()


@pytest.mark.parametrize("folder", ["/proc/nonexistent", "/dev/null", "/dev/null/out"])
def test_an_output_folder_that_cannot_be_written_is_exit_code_3(folder):
    check_refused(run("generate", "--text", TEXT, "--out", folder), 3, f"output folder {folder}")


def test_a_file_in_place_of_the_output_folder_is_exit_code_3(out):
    out.write_text("mine")
    check_refused(run("generate", "--text", TEXT, "--out", out), 3, f"output folder {out}")
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("out", "code", "words"),
    [
        ("/proc/nonexistent", 3, "output folder /proc/nonexistent"),
        ("a" * 300 + ".png", 2, "304 bytes"),
        ("a" * 250 + ".png", 2, "bytes"),  # with what lies beside it
        ("face.txt", 2, "face.txt"),
    ],
)
def test_a_bad_place_is_found_before_the_model_loads(out, code, words):
    result = run("generate", "--text", TEXT, "--out", out, "--model", "no-such-model", "--save-influence")
    check_refused(result, code, words)


def test_images_that_exist_are_overwritten_by_force(out):
    out.mkdir()
    (out / "seed0-000.png").write_text("mine")
    assert run("generate", "--text", TEXT, "--steps", 4, "--out", out, "--force").exit_code == 0
    assert "cdiff_rt" in texts_of(out / "seed0-000.png")


def test_one_file_for_two_images_is_exit_code_2(tmp_path):
    check_refused(run("generate", "--text", TEXT, "--out", tmp_path / "a.png", "--batch", 2), 2, "give a folder")
    assert list(tmp_path.iterdir()) == []


def test_influence_that_exists_is_found_before_the_model_loads(tmp_path):
    folder = tmp_path / "a.influence"
    folder.mkdir()
    (folder / "maps.npz").write_text("mine")
    arguments = ["generate", "--text", TEXT, "--out", tmp_path / "a.png", "--model", "no-such", "--save-influence"]
    check_refused(run(*arguments), 2, "a.influence exists", "--force")
    check_refused(run(*arguments, "--force"), 4, "'no-such'")
    assert (folder / "maps.npz").read_text() == "mine"


def test_an_unknown_model_is_exit_code_4(out):
    check_refused(run("generate", "--text", TEXT, "--out", out, "--model", "no-such"), 4, "'no-such'", "faces-128")
    assert not out.exists()


@pytest.mark.parametrize(("file", "words"), [("expert.text.onnx", "was altered"), ("manifest.json", "not valid JSON")])
def test_an_altered_bundle_is_exit_code_4(file, words, bundle_copy, out):
    with (bundle_copy / file).open("ab") as target:
        target.write(b"x")
    check_refused(run("generate", "--text", TEXT, "--out", out, "--model", bundle_copy), 4, words)
    assert not out.exists()


def test_a_missing_library_is_exit_code_5(out, monkeypatch):
    monkeypatch.setitem(BACKENDS, "torch", Backend("x:load", ("no_such_library",), "export"))
    result = run("-q", "generate", "--text", TEXT, "--out", out, "--backend", "torch")
    check_refused(result, 5, "no_such_library not installed", "pip install '.[export]'")
    assert not out.exists()


def test_a_full_disk_is_exit_code_6(out, monkeypatch):
    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    check_refused(run("generate", "--text", TEXT, "--steps", 1, "--out", out), 6, "No space left on device")
    assert list(out.iterdir()) == []


def test_a_full_disk_leaves_neither_image_nor_influence(out, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(influence, "write_animation", full)
    result = run("generate", "--text", TEXT, "--steps", 1, "--out", out, "--save-influence")
    check_refused(result, 6, f"writing {out}/seed0-000.png: No space left on device")
    assert list(out.iterdir()) == []


def test_running_out_of_memory_is_exit_code_6(out, monkeypatch):
    def exhausted(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(Pipeline, "generate", exhausted)
    check_refused(run("generate", "--text", TEXT, "--out", out), 6, "memory")


def test_an_interrupt_is_exit_code_130(out, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "generate", interrupted)
    result = run("generate", "--text", TEXT, "--out", out)
    assert (result.exit_code, result.stderr.strip()) == (130, "error: interrupted")
    assert not out.exists()


def test_a_mask_and_a_text_make_an_image_that_tells_its_parameters(mask_file, out):
    result = run("generate", "--mask", mask_file, "--text", TEXT, "--seed", 7, "--steps", 4, "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}/seed7-000.png\n")
    (path,) = out.iterdir()
    texts = texts_of(path)
    assert texts["parameters"].startswith(f"{TEXT}\nSteps: 4, ") and "Seed: 7," in texts["parameters"]
    record = json.loads(texts["cdiff_rt"])
    assert (record["seed"], record["conditions"]) == (7, {"mask": "face.png", "text": TEXT})


def test_a_batch_makes_as_many_different_images(mask_file, out):
    result = run("generate", "--mask", mask_file, "--batch", 3, "--steps", 4, "--out", out)
    names = [f"seed0-{i:03d}.png" for i in range(3)]
    assert result.stdout.splitlines() == [str(out / name) for name in names]
    assert sorted(path.name for path in out.iterdir()) == names
    assert len({np.asarray(Image.open(out / name)).tobytes() for name in names}) == 3


def test_save_influence_makes_a_folder_beside_each_image_as_python_does(mask_file, tmp_path):
    out, twin = tmp_path / "out", tmp_path / "twin"
    arguments = ["--mask", mask_file, "--text", TEXT, "--batch", 2, "--steps", 4, "--out", out, "--save-influence"]
    result = run("generate", *arguments)
    names = [f"seed0-00{i}.{end}" for i in range(2) for end in ("png", "influence")]
    assert (result.exit_code, result.stdout.splitlines()) == (0, [str(out / name) for name in names])
    assert sorted(path.name for path in out.iterdir()) == sorted(names)

    with InfluenceRecorder(twin) as recorder:
        made = Pipeline.from_pretrained().generate(
            mask=mask_file, text=TEXT, batch=2, steps=4, callback_on_step_end=recorder
        )
        made.save(twin, recorders=[recorder])
    files = sorted(path.relative_to(out) for path in out.rglob("*.*") if path.is_file())
    assert files == sorted(path.relative_to(twin) for path in twin.rglob("*.*") if path.is_file())
    assert len(files) == 2 * (
        1 + 3 + 3
    )  # image; arrays, sheet, animation; a strip for each modality, and of their conflict
    pictures = [file for file in files if file.suffix != ".npz"]  # an .npz holds the time of day
    assert [file for file in pictures if (out / file).read_bytes() != (twin / file).read_bytes()] == []
    assert run("generate", *arguments, "--force").exit_code == 0
    assert sorted(path.relative_to(out) for path in out.rglob("*.*") if path.is_file()) == files


def test_every_setting_reaches_the_loop_and_the_record(mask_file, out):
    keep, photo = out.parent / "keep.png", out.parent / "photo.png"
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(keep)
    Image.fromarray(np.zeros((128, 128, 3), np.uint8)).save(photo)
    settings = [
        "--temperature",
        "0.5",
        "--decay",
        "linear",
        "--factor",
        "3",
        "--sharpness",
        "0.5",
        "--boost",
        "2",
        "--rounding",
        "nearest",
    ]
    inpaint = ["--inpaint", photo, "--keep", keep]
    arguments = ["--condition", f"mask={mask_file}", "--text", TEXT, "--steps", 2, "--out", out / "a.png"]
    assert run("generate", *arguments, *settings, *inpaint).exit_code == 0
    record = json.loads(texts_of(out / "a.png")["cdiff_rt"])
    assert [record[name] for name in ("decay", "factor", "sharpness", "boost")] == ["linear", 3.0, 0.5, 2.0]
    assert (record["temperature"], record["rounding"]) == (0.5, "nearest")
    files = {role: trace.get("file") for role, trace in record["inputs"].items()}
    assert files == {"mask": "face.png", "text": None, "inpaint.photo": "photo.png", "inpaint.keep": "keep.png"}
    assert record["conditions"] == {"mask": "face.png", "text": TEXT}


def test_everything_can_be_saved_beside_an_image(mask_file, out):
    options = ["--save-influence", "--save-trajectory", "--save-latent", "--save-overlay"]
    result = run("generate", "--mask", mask_file, "--steps", 2, "--out", out, *options)
    ends = ("png", "influence", "trajectory")
    assert (result.exit_code, result.stdout.splitlines()) == (0, [f"{out}/seed0-000.{end}" for end in ends])
    names = {f"seed0-000.{end}" for end in (*ends, "npz", "overlay.png")}
    assert {path.name for path in out.iterdir()} == names


def test_a_modality_that_is_left_out_leaves_the_rest(mask_file, out):
    both = ["generate", "--mask", mask_file, "--text", TEXT, "--steps", 1, "--out"]
    assert run(*both, out / "a.png", "--without", "mask").exit_code == 0
    assert run("generate", "--text", TEXT, "--steps", 1, "--out", out / "b.png").exit_code == 0
    first, second = (np.asarray(Image.open(out / name)) for name in ("a.png", "b.png"))
    np.testing.assert_array_equal(first, second)


def test_nobody_watches_the_steps_but_for_what_is_to_be_saved(out, monkeypatch):
    """A GPU's graphs show no step."""
    given, real = [], HostRunner.sample

    def sample(runner, run, callback=None, progress=None):
        given.append((callback is not None, progress is not None))
        return real(runner, run, callback, progress)

    monkeypatch.setattr(HostRunner, "sample", sample)
    monkeypatch.setattr(HostRunner, "shows_steps", False)
    for saving in ((), ("--save-influence",)):
        assert run("generate", "--text", "a man", "--steps", 1, "--out", out, *saving).exit_code == 0
    assert given == [(False, True), (True, True)]


def test_without_the_option_there_is_no_influence(out):
    assert run("generate", "--text", TEXT, "--steps", 1, "--out", out).stdout == f"{out}/seed0-000.png\n"
    assert [path.name for path in out.iterdir()] == ["seed0-000.png"]


@pytest.mark.parametrize("text", ["../../x", "/etc/passwd", "%s%n{0}", "-x", "日本 😀", "a\nb"])
def test_a_text_never_becomes_part_of_a_path(text, out):
    assert run("-q", "generate", f"--text={text}", "--steps", 1, "--out", out / "a.png").exit_code == 0
    assert [path.name for path in out.parent.rglob("*")] == ["out", "a.png"]
    assert texts_of(out / "a.png")["parameters"].startswith(f"{text}\n")


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_reaches_the_loop_and_the_record(tier, mask_file, out):
    assert run("generate", "--mask", mask_file, "--tier", tier, "--out", out).exit_code == 0
    record = json.loads(texts_of(out / "seed0-000.png")["cdiff_rt"])
    how = TIERS[tier]
    assert (record["tier"], record["solver"], record["steps"], record["eta"]) == (tier, how.solver, how.steps, how.eta)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tier", "slow"], "'slow' is not one of"),
        (["--tier", "fast", "--steps", 10], "tier: fast and steps of your own"),
        (["--solver", "dpmpp-2m", "--eta", 1], "eta: 1 with dpmpp-2m"),
        (["--solver", "dpmpp-2m", "--steps", 1], "steps: 1 is outside 2-999"),
    ],
    ids=str,
)
def test_bad_samplers_are_exit_code_2(arguments, words, out):
    check_refused(run("generate", "--text", TEXT, "--out", out, *arguments), 2, words)


def in_a_process(root: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cdiff_rt", *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=60)


def test_a_process_refuses_a_decompression_bomb_in_one_line(root, bomb_file, out):
    done = in_a_process(root, "generate", "--mask", bomb_file, "--out", out)
    check_error(done.stderr, done.stdout, "13000x13000 pixels")
    assert done.returncode == 3
    assert not out.exists()


def test_a_process_without_a_terminal_prints_notes_and_paths_only(root, mask_file, out):
    done = in_a_process(root, "generate", "--mask", mask_file, "--text", "a purple man", "--steps", 4, "--out", out)
    assert (done.returncode, done.stdout) == (0, f"{out}/seed0-000.png\n")
    kinds = [line.split(": ")[0] for line in done.stderr.splitlines()]
    assert kinds == ["note", "warning"]


def test_an_image_waits_for_no_library_but_its_own(root, out):
    found = libraries_of(root, "generate", "--text", "a man", "--steps", 1, "--out", out)
    assert {"numpy", "onnxruntime", "PIL"} <= found
    assert not found & (HEAVY - {"onnxruntime"}) and not found & {"scipy", "matplotlib", "pandas", "ray"}


def test_in_a_folder_the_next_free_name_is_taken_and_told(out):
    for name in ("seed0-000.png", "seed0-000-2.png"):
        result = run("generate", "--text", TEXT, "--steps", 1, "--out", out)
        assert (result.exit_code, result.stdout) == (0, f"{out}/{name}\n")
    assert texts_of(out / "seed0-000.png") == texts_of(out / "seed0-000-2.png")


def test_a_named_file_that_exists_is_kept_without_force(tmp_path):
    (tmp_path / "a.png").write_text("mine")
    check_refused(run("generate", "--text", TEXT, "--out", tmp_path / "a.png"), 2, "a.png exists", "--force")
    assert (tmp_path / "a.png").read_text() == "mine"


def test_a_random_seed_is_told_and_makes_the_same_image_again(out):
    result = run("generate", "--text", TEXT, "--steps", 1, "--seed", "random", "--out", out)
    (note,) = result.stderr.splitlines()
    seed = int(note.removeprefix("note: seed "))
    assert result.stdout == f"{out}/seed{seed}-000.png\n"
    assert run("generate", "--text", TEXT, "--steps", 1, "--seed", seed, "--out", out / "b.png").exit_code == 0
    assert (out / "b.png").read_bytes() == (out / f"seed{seed}-000.png").read_bytes()


def test_help_is_in_groups_with_every_setting(root):
    text = run("generate", "--help").stdout
    titles = [line.rstrip(":") for line in text.splitlines() if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    expected = ["Conditions", "Sampling", "Influence of the conditions", "Output", "Model and backend", "Many images"]
    assert [title for title in titles if title in expected] == expected
    assert [name for name in SETTINGS if f"--{name} " not in text] == []


def test_a_new_solver_is_an_option_a_row_and_a_message(out, monkeypatch):
    """What CONTRIBUTING.md promises: one file, sampling/solvers.py."""
    monkeypatch.setitem(SOLVERS, "toy", replace(SOLVERS["ddim"], gallery_name="Toy"))
    assert run("generate", "--text", TEXT, "--solver", "toy", "--steps", 2, "--out", out / "a.png").exit_code == 0
    assert "Sampler: Toy" in texts_of(out / "a.png")["parameters"]
