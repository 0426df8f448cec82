"""A run that this process has no memory for is refused before it begins, and none that could run is."""

import dataclasses
import resource
import subprocess
import sys

import numpy as np
import pytest

from cdiff_rt import memory
from cdiff_rt.errors import OutOfResource
from cdiff_rt.memory import GIB, check_memory, least
from cdiff_rt.pipeline import Pipeline

CONTAINER = ("this container or service may have", "raise its limit of memory")


def check(bundle, batch, backend="onnxruntime", precision="fp32"):
    check_memory(bundle, bundle.manifest.modalities, batch, backend, precision)


def limited(monkeypatch, allowed, *told):
    monkeypatch.setattr(memory, "memory_limits", lambda: iter([(int(allowed), *(told or CONTAINER)), (2**62, "", "")]))


@pytest.mark.parametrize(
    ("batch", "gib", "words"),
    [
        (256, 0.4, "a batch of 256 images of 128x128 pixels on onnxruntime needs 0.49 GiB at the least, and this container or service may have 0.40 GiB; choose a smaller batch, or raise its limit of memory, or"),
        (1, 0.02, "needs 0.02 GiB at the least, and .*0.02 GiB; raise its limit of memory, or use a machine with more memory"),
        (2000, 2, "needs 3.7. GiB .*2.00 GiB; choose a batch of 66 or less, or raise"),
    ],
)  # fmt: skip
def test_a_batch_without_memory_is_told_with_the_numbers_and_what_helps(batch, gib, words, bundle, monkeypatch):
    limited(monkeypatch, gib * GIB)
    with pytest.raises(OutOfResource, match=f"^memory: .*{words}"):
        check(bundle, batch)


def test_the_least_of_all_limits_counts_and_exactly_enough_is_enough(bundle, monkeypatch):
    fixed, each = least(bundle, bundle.manifest.modalities, "onnxruntime", "fp32")
    limited(monkeypatch, fixed + 8 * each, "this machine has left", "")
    check(bundle, 8)
    with pytest.raises(OutOfResource, match="this machine has left 0.0. GiB; choose a smaller batch, or close other"):
        check(bundle, 9)


def test_where_no_limit_is_known_nothing_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(memory, "memory_limits", lambda: iter(()))
    check(bundle, 256)


def test_more_experts_a_wider_format_and_engines_side_by_side_need_more(bundle):
    both, (mask, _) = bundle.manifest.modalities, bundle.manifest.modalities
    each = {
        (backend, precision, len(chosen)): least(bundle, chosen, backend, precision)[1]
        for backend, precision in (
            ("openvino", "fp32"),
            ("openvino", "bf16"),
            ("torch", "fp32"),
            ("torch-cuda", "fp16"),
        )
        for chosen in (both, [mask])
    }
    assert each["openvino", "fp32", 2] > each["openvino", "fp32", 1] > each["openvino", "bf16", 1]
    assert each["openvino", "fp32", 2] > each["torch", "fp32", 2] > each["torch-cuda", "fp16", 2]
    assert each["torch-cuda", "fp16", 2] == 4 * 3 * 128**2  # the images: all else lies on the device


@pytest.mark.parametrize(
    "source", [{}, {"experts": [], "vae": 7}, {"vae": {"channels": -1, "channel_mult": []}}], ids=str
)
def test_a_description_that_says_nothing_counts_for_nothing(source, bundle):
    silent = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, source=source))
    assert least(silent, bundle.manifest.modalities, "torch", "fp32")[1] == 4 * (3 * 128**2 + (19 + 32) * 1664)


@pytest.mark.parametrize("run", ["generate", "edit"])
def test_nothing_is_begun_before(run, bundle, monkeypatch):
    pipeline = Pipeline(bundle)
    monkeypatch.setattr(pipeline._runner, "sample", lambda *given: pytest.fail("it began"))
    limited(monkeypatch, 1000)
    with pytest.raises(OutOfResource, match="^memory: a batch of 3"):
        if run == "generate":
            pipeline.generate(text="a man", batch=3)
        else:
            pipeline.edit(np.zeros((128, 128, 3), np.uint8), text="a man", source={"text": "a man"}, alphas=(0, 1, 2))


LARGE = """
import sys
from cdiff_rt import Pipeline
pipeline = Pipeline.from_pretrained(backend=sys.argv[1], threads=1)
pipeline.generate(text="a man", batch=int(sys.argv[2]), steps=1)
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))  # not a parent's
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads kB")
@pytest.mark.parametrize(
    "backend", ["onnxruntime", *(pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "torch"))]
)
def test_a_run_takes_more_than_the_least(backend, bundle, root):
    """Also for each image of a batch alone, so no estimate refuses what runs."""
    modality = bundle.manifest.modalities[1:]
    peaks = []
    for batch in (8, 40):
        command = [sys.executable, "-c", LARGE, backend, str(batch)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=200)
        peaks.append(1024 * int(done.stdout))
    fixed, each = least(bundle, modality, backend, "fp32")
    assert fixed < peaks[0] and each < (peaks[1] - peaks[0]) / 32


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_the_command_ends_with_6_under_a_limit(root, tmp_path):
    command = [
        sys.executable,
        "-m",
        "cdiff_rt",
        "generate",
        "--text",
        "a man",
        "--batch",
        "256",
        "--out",
        tmp_path / "o",
    ]
    few = lambda: resource.setrlimit(resource.RLIMIT_AS, (250 * 2**20,) * 2)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=60, preexec_fn=few)
    assert done.returncode == 6 and "`ulimit -v` allows 0.24 GiB" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
