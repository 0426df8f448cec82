"""No release with a known hole that foreign files reach may be installed beside this project."""

import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
FIXED = {
    "pillow": "13.0",  # GHSA-8g5g-8vmr-9782: a JPEG overflows a buffer
    "torch": "2.10",  # CVE-2026-24747: weights_only=True corrupts memory
    "onnx": "1.22",  # CVE-2026-27489, 34445-34447: external data outside the folder; before 1.22 reads out of bounds
    "onnxruntime": "1.31",  # out-of-bounds reads when a session is made, mended up to 1.30.1
    "onnxruntime-gpu": "1.31",
    "ray": "2.56",  # CVE-2026-41486, 57516: pickles in data that is read
    "filelock": "3.20.3",  # CVE-2025-68146, CVE-2026-22701: follows links
    "setuptools": "78.1.1",  # CVE-2025-47273
}
EXTRAS = PROJECT["project"]["optional-dependencies"]
REQUIREMENTS = [
    Requirement(text)
    for text in (*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *chain(*EXTRAS.values()))
]


@pytest.mark.parametrize("name", FIXED)
def test_floors_lie_above_known_holes(name):
    floors = [
        [Version(bound.version) for bound in requirement.specifier if bound.operator in (">=", "==")]
        for requirement in REQUIREMENTS
        if requirement.name == name
    ]
    assert floors and all(any(floor >= Version(FIXED[name]) for floor in each) for each in floors)
