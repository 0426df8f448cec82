import importlib.metadata
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LARGEST_BUNDLE = 25_000_000  # bytes
LARGEST_INSTALL = 350 * 2**20


def needed_by(requirements, extra=""):
    """Every distribution that these requirements bring, theirs included."""
    found = set()
    for requirement in map(Requirement, requirements):
        if requirement.name in found or requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        found |= {requirement.name} | needed_by(importlib.metadata.requires(requirement.name) or [])
    return found


def size_of(distribution):
    return sum(
        path.locate().stat().st_size for path in importlib.metadata.files(distribution) if path.locate().is_file()
    )


def embedded_bundle():
    return sum(path.stat().st_size for path in (ROOT / "cdiff_rt/models/faces-128").iterdir())


def test_the_runtime_on_a_cpu_is_small():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = needed_by(project["dependencies"] + project["optional-dependencies"]["cpu"])
    assert {"numpy", "onnxruntime"} <= distributions
    assert not {"torch", "onnx"} & distributions
    assert sum(map(size_of, distributions)) + embedded_bundle() <= LARGEST_INSTALL


def test_the_embedded_bundle_is_small():
    assert embedded_bundle() <= LARGEST_BUNDLE
