"""The released sizes, with synthetic weights: imported by the command, compared with the reference, run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cdiff_rt.export.bundle import adapt
from cdiff_rt.export.published import import_published
from cdiff_rt.manifest import Bundle
from cdiff_rt.nets.freeu import FreeUConfig
from cdiff_rt.outputs.formats import to_uint8
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import SolverTable, ddim
from cdiff_rt.settings import Influence
from tests.conformance.conftest import BACKENDS
from tests.conformance.graphs import bundle_of
from tests.conformance.model import Model

pytestmark = pytest.mark.slow
LARGEST_EXPORT = 6 * 2**30  # bytes of memory
LARGEST_BUNDLE = 2.2e9  # bytes, in fp16


def measured(*command: object) -> int:
    """Runs a command -> the most memory that it held at a time, in bytes."""
    process = subprocess.Popen([sys.executable, *map(str, command)])
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, command
    return usage.ru_maxrss * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Emptied at the end: it holds many gigabytes."""
    path = tmp_path_factory.mktemp("full")
    yield path
    shutil.rmtree(path)


def checkpoint(golden, folder, name, kind="codiff") -> Path:
    path = folder / f"{name}.ckpt"
    measured("-m", "tests.conformance.lightning", golden.folder.resolve(), name, kind, path)
    return path


@pytest.fixture(scope="module")
def whole(golden, folder):
    return checkpoint(golden, folder, "512_codiff_mask_text")


@pytest.fixture(scope="module")
def fp16(whole, folder, record_testsuite_property):
    out = folder / "fp16"
    memory = measured("-m", "cdiff_rt", "export", "--checkpoint", whole, "--out", out)
    record_testsuite_property("export_peak_bytes", memory)
    print(f"exported {whole.stat().st_size / 1e9:.2f} GB; peak memory {memory / 2**30:.2f} GiB")
    assert memory <= LARGEST_EXPORT
    return out


@pytest.fixture(scope="module")
def fp32(whole, folder):
    out = folder / "fp32"
    measured("-m", "cdiff_rt", "export", "--checkpoint", whole, "--out", out, "--precision", "fp32")
    return Bundle.open(out)


def test_the_bundle_is_as_large_as_its_weights_in_fp16(fp16):
    assert sum(path.stat().st_size for path in fp16.iterdir()) <= LARGEST_BUNDLE


def test_two_steps_make_an_image(fp16, golden, tmp_path):
    caption, mask = golden.inputs["captions"][0], golden.cases / "mask512_0.png"
    command = [
        "generate",
        "--model",
        fp16,
        "--mask",
        mask,
        "--text",
        caption,
        "--steps",
        2,
        "--out",
        tmp_path / "a.png",
    ]
    measured("-m", "cdiff_rt", *command)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_network_at_full_size(backend, fp32, golden, measures):
    arrays, model = golden.arrays("full512"), Model(fp32, backend)
    ids = golden.arrays("masks")["ids32_from512_0"]
    measures.check("full512", "exact", "", ids, arrays["mask_ids32"])
    one_hot = np.eye(19, dtype=np.float32)[ids.reshape(-1)].T[None]
    conditions = {"mask": one_hot, "text": golden.arrays("tokens")["input_ids"][:1]}
    timesteps, grid = arrays["timesteps"].tolist(), ddim(Schedule(), 50, eta=1)
    experts = model.experts(conditions, timesteps)
    for i, t in enumerate(timesteps):
        outs, logits = experts(arrays["x"], i)
        weights, fused = model.fused(outs, logits, t, experts.modalities, Influence())
        for m, name in enumerate(experts.modalities):
            measures.check("full512", "prediction", backend, outs[m], arrays[f"t{t}/eps_{name}"])
            measures.check("full512", "prediction", backend, logits[m], arrays[f"t{t}/logit_{name}"])
            measures.check("full512", "influence", backend, weights[m], arrays[f"t{t}/infl_{name}"])
        measures.check("full512", "prediction", backend, fused, arrays[f"t{t}/fused"])
        row, seen = grid.timesteps.tolist().index(t), []
        one = SolverTable(*(part[row : row + 1] for part in (grid.timesteps, grid.alpha_bars, grid.coefficients)))
        model.run(conditions, arrays["x"], lambda step: arrays["noise"], one, seen.append)
        measures.check("full512", "trajectory", backend, seen[0].x, arrays[f"t{t}/x_prev_eta1"])
        measures.check("full512", "trajectory", backend, seen[0].x0, arrays[f"t{t}/pred_x0"])
    decoded = model.decode(arrays["z"])
    measures.check("full512", "autoencoder", backend, decoded, arrays["decode512"])
    measures.check("full512", "uint8", backend, to_uint8(decoded), arrays["uint8_512"])
    image = golden.noise("full/image512", (1, 3, 512, 512)) / np.float32(3**0.5)
    encoded, expected = model.engine("vae.encode")(image=image), golden.arrays("full_vae512")
    measures.check("full_vae512", "autoencoder", backend, encoded["mean"], expected["enc_mean"])
    measures.check("full_vae512", "autoencoder", backend, encoded["logvar"], expected["enc_logvar"])


def test_freeu_on_a_branch_that_was_published_alone(golden, folder, measures):
    arrays = golden.arrays("full512")
    (key,) = (name for name in arrays if "freeu" in name)
    t = int(key.split("/")[0][1:])
    imported = import_published([checkpoint(golden, folder, "512_text", "text")])
    changed = adapt(imported, None, {"text": FreeUConfig(1.1, 1.2, 0.9, 0.2)})
    bundle = bundle_of(changed, folder / "freeu")
    for backend in BACKENDS:
        experts = Model(bundle, backend).experts({"text": golden.arrays("tokens")["input_ids"][:1]}, [t])
        outs, logits = experts(arrays["x"], 0)
        measures.check("full512", "prediction", backend, outs[0], arrays[key])
        assert not logits.any()


def test_the_autoencoder_of_256_pixels(golden, folder, measures):
    arrays = golden.arrays("full_vae256")
    paths = [checkpoint(golden, folder, f"256_{kind}", kind) for kind in ("mask", "vae")]
    bundle = bundle_of(import_published(paths), folder / "256")
    image = golden.noise("full/image256", (1, 3, 256, 256)) / np.float32(3**0.5)
    for backend in BACKENDS:
        model = Model(bundle, backend)
        encoded, decoded = model.engine("vae.encode")(image=image), model.decode(arrays["z"])
        measures.check("full_vae256", "autoencoder", backend, encoded["mean"], arrays["enc_mean"])
        measures.check("full_vae256", "autoencoder", backend, encoded["logvar"], arrays["enc_logvar"])
        measures.check("full_vae256", "autoencoder", backend, decoded, arrays["decode256"])
        measures.check("full_vae256", "uint8", backend, to_uint8(decoded), arrays["uint8_256"])
