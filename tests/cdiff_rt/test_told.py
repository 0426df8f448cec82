from types import SimpleNamespace

import numpy as np
import pytest

from cdiff_rt.controls import Region
from cdiff_rt.engines.backends import BACKENDS
from cdiff_rt.process import usual_threads
from cdiff_rt.run import OnDevice
from cdiff_rt.settings import SETTINGS, Influence, Settings
from cdiff_rt.told import FORMAT, place_of, request_of

OWN = {
    "seed": 7, "first": 3, "batch": 2, "solver": "dpmpp-2m-sde", "steps": 10, "temperature": 0.5, "decay": "linear",
    "factor": 3.0, "sharpness": 0.5, "boost": 4.0, "rounding": "nearest", "labels": "bisenet", "snap": True,
    "without": ["mask"], "influence": ["mask-first", "text=1.5@0.2-1"], "region": ["text=a.png:at-least=0.8"], "eta": 1.0,
}  # fmt: skip


def of(usual):
    """A manifest, as far as it counts here."""
    return SimpleNamespace(influence=usual, modalities=(), calibrated="")


def test_every_setting_is_told_and_read_back_from_what_is_told():
    """A new setting needs a value here, and then is told."""
    assert set(OWN) == set(SETTINGS) - {"tier"}
    told = request_of("generate", Settings(**OWN), of(Influence()), {})
    assert {name: told[name] for name in OWN} == OWN and told["record"] == FORMAT
    assert request_of("generate", Settings(**{name: told[name] for name in OWN}), of(Influence()), {}) == told


def test_what_was_left_to_the_model_is_told_as_it_was_resolved():
    usual = Influence("none", 1.5)
    asked = {"sharpness": 0.5}
    told = request_of("generate", Settings(**asked), of(usual), {})
    assert told["adjustment"] == {"decay": "none", "factor": 1.5, "sharpness": 0.5, "boost": None}
    assert "factor" not in told and told["sharpness"] == 0.5
    assert request_of("generate", Settings(influence="paper"), of(usual), {})["adjustment"]["decay"] == "cosine"


def test_defaults_are_told_too():
    told = request_of("generate", Settings(), of(Influence()), {})
    assert {name: told[name] for name in ("steps", "eta", "rounding", "labels", "snap", "first")} == {
        "steps": 50, "eta": 1.0, "rounding": "truncate", "labels": "celebamask", "snap": False, "first": 0,
    }  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_place_names_libraries_and_threads_where_they_change_sums(backend):
    told, four = place_of(backend, None), place_of(backend, OnDevice(threads=4))
    assert told["libraries"]["numpy"] == np.__version__ and told["machine"]
    assert (told.get("threads"), four.get("threads")) == (
        (usual_threads(), 4) if backend in ("torch", "torch-compiled") else (None, None)
    )
    assert "experts" not in told and place_of(backend, OnDevice(experts="stacked"))["experts"] == "stacked"


def test_a_region_without_a_file_is_told_by_its_form():
    region = Region("text", np.zeros((4, 4)), "weight", 2.0)
    assert request_of("generate", Settings(region=region), of(Influence()), {})["region"] == ["text=array 4x4:weight=2"]
