"""CONTRIBUTING.md's table of changes is true: the files exist, and a toy of each kind needs no others."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdiff_rt import Pipeline
from cdiff_rt.engines import ort
from cdiff_rt.engines.backends import BACKENDS
from cdiff_rt.errors import BadRequest
from cdiff_rt.inputs.modalities import KINDS
from cdiff_rt.jobs.file import read_jobs
from cdiff_rt.manifest import digest, sha256
from cdiff_rt.outputs import formats, generated
from cdiff_rt.sampling.solvers import SOLVERS
from cdiff_rt.sampling.tiers import TIERS, Sampling
from tests.command_line import check_refused, run

ROOT = Path(__file__).parents[1]
TEXT = "This man has a long beard."


def rows() -> dict[str, list[str]]:
    """change -> the files it touches."""
    table = re.findall(r"^\| (an? .*?|what .*?) \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return {change: re.findall(r"`((?:cdiff_rt|tests)/[\w/.]*)`", files) for change, files in table}


def test_every_file_of_the_table_exists():
    assert len(rows()) >= 10
    assert [file for files in rows().values() for file in files if not (ROOT / file).exists()] == []


@pytest.mark.parametrize(
    ("change", "most"), [("a solver", 1), ("an output image format", 1), ("a fusion parameter", 5)]
)
def test_a_change_touches_few_files(change, most):
    assert 1 <= len(rows()[change]) <= most


def test_a_fusion_parameter_is_known_to_the_files_of_the_table_alone():
    """`boost`, the last one, stands for a new one: no other file tells it apart from its fellows."""
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "cdiff_rt").rglob("*.py")
        if re.search(r"\bboost\b|\bBOOST\b", path.read_text())
    }
    assert users == set(rows()["a fusion parameter"]) | STRUCTURE


# Whether there is a second softmax changes a graph's structure; a parameter that doesn't stays out of these.
STRUCTURE = {
    f"cdiff_rt/{name}.py" for name in ("gpu/runner", "gpu/fused_step", "export/gpu_engines", "export/whole_step")
}


def test_a_toy_solver_is_an_option_a_row_a_picture_and_a_message(tmp_path, bundle, monkeypatch):
    monkeypatch.setitem(SOLVERS, "toy", replace(SOLVERS["ddim"], gallery_name="Toy"))
    out = tmp_path / "a.png"
    assert run("generate", "--text", TEXT, "--solver", "toy", "--steps", 2, "--out", out).exit_code == 0
    with Image.open(out) as image:
        assert "Sampler: Toy" in image.text["parameters"]
    assert "toy" in run("generate", "--help").stdout
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"text": TEXT, "solver": "toy", "steps": 2}))
    (job,) = read_jobs(tmp_path / "jobs.jsonl", bundle.manifest)
    assert job.settings.solver == "toy"
    check_refused(run("bench", "time", "--solver", "euler"), 2, "'toy'")
    with pytest.raises(BadRequest, match="choose one of ddim, dpmpp-2m, dpmpp-2m-sde, toy"):
        Sampling("euler")


def test_a_toy_tier_is_an_option_and_a_setting(tmp_path, monkeypatch):
    monkeypatch.setitem(TIERS, "toy", Sampling("ddim", 2))
    assert run("generate", "--text", TEXT, "--tier", "toy", "--out", tmp_path / "a.png").exit_code == 0
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.text["cdiff_rt"])["tier"] == "toy"


def test_a_toy_backend_is_a_row_of_the_table(monkeypatch, mask):
    monkeypatch.setattr(ort, "load_toy", lambda *given: ort.load(*given), raising=False)
    monkeypatch.setitem(BACKENDS, "toy", replace(BACKENDS["onnxruntime"], loader="cdiff_rt.engines.ort:load_toy"))
    made, usual = (
        Pipeline.from_pretrained(backend=name).generate(mask=mask, steps=2) for name in ("toy", "onnxruntime")
    )
    np.testing.assert_array_equal(made.images, usual.images)
    assert made.parameters["backend"] == "toy"
    assert ["backend", "toy", "works"] in [line.split() for line in run("doctor").stdout.splitlines()]


def test_a_toy_modality_is_data_of_the_manifest(bundle_copy, mask, tmp_path):
    """The mask's expert under another name: an argument, a condition, a row and a picture's parameters follow."""
    path, weights = bundle_copy / "manifest.json", bundle_copy / "weights.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"experts.mask.", b"experts.lips."))
    data = json.loads(path.read_text())
    data["files"][weights.name] = sha256(weights)
    data["modalities"][0]["name"] = "lips"
    data["networks"] = {name.replace(".mask", ".lips"): network for name, network in data["networks"].items()}
    data["source"]["experts"] = {
        name.replace("mask", "lips"): expert for name, expert in data["source"]["experts"].items()
    }
    path.write_text(json.dumps(data | {"digest": digest(data)}))
    pipeline = Pipeline.from_pretrained(bundle_copy)
    made = pipeline.generate(lips=mask, steps=2)
    np.testing.assert_array_equal(made.images, Pipeline.from_pretrained().generate(mask=mask, steps=2).images)
    assert made.parameters["conditions"] == {"lips": "array 128x128"}
    Image.fromarray(mask).save(tmp_path / "m.png")
    arguments = ["--model", bundle_copy, "--condition", f"lips={tmp_path / 'm.png'}", "--steps", 2]
    assert run("generate", *arguments, "--out", tmp_path / "a.png").exit_code == 0
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"lips": "m.png"}))
    assert len(read_jobs(tmp_path / "jobs.jsonl", pipeline.manifest)) == 1


@pytest.mark.parametrize("name", ["seed", "factor", "inpaint", "alphas", "id"])
def test_but_never_by_the_name_of_a_setting(name, bundle_copy, tmp_path):
    path = bundle_copy / "manifest.json"
    data = json.loads(path.read_text())
    data["modalities"][0]["name"] = name
    data["networks"] = {n.replace(".mask", f".{name}"): network for n, network in data["networks"].items()}
    path.write_text(json.dumps(data | {"digest": digest(data)}))
    result = run("generate", "--model", bundle_copy, "--text", TEXT, "--out", tmp_path / "out")
    check_refused(result, 4, f"a modality has the name '{name}', which is that of a setting")
    assert not (tmp_path / "out").exists()


def test_a_toy_kind_of_condition_is_a_row_of_kinds(bundle_copy, mask, monkeypatch):
    path = bundle_copy / "manifest.json"
    assert set(KINDS) == {"labels", "words", "numbers", "picture", "nothing"}
    monkeypatch.setitem(KINDS, "labels", replace(KINDS["labels"], show=lambda value: "toy"))
    assert Pipeline.from_pretrained().generate(mask=mask, steps=1).parameters["conditions"] == {"mask": "toy"}
    data = json.loads(path.read_text())
    data["modalities"][0]["kind"] = "sounds"
    path.write_text(json.dumps(data | {"digest": digest(data)}))
    with pytest.raises(Exception, match="sounds"):
        Pipeline.from_pretrained(bundle_copy)


def test_a_toy_format_is_a_row_of_formats(tmp_path, monkeypatch):
    monkeypatch.setitem(formats.FORMATS, ".ppm", lambda image, texts: b"P6 128 128 255\n" + image.tobytes())
    assert run("generate", "--text", TEXT, "--steps", 1, "--out", tmp_path / "a.ppm").exit_code == 0
    with Image.open(tmp_path / "a.ppm") as image:
        assert image.size == (128, 128)
    assert generated.IMAGE == ".png"
