"""Golden data, and the models that are compared with them: imported as a user would, exported once for all workers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cdiff_rt.bench.machine import machine
from cdiff_rt.bench.report import heading
from cdiff_rt.export.bundle import adapt
from cdiff_rt.export.checkpoint import Checkpoint
from cdiff_rt.export.published import import_published
from tests.conformance import lightning
from tests.conformance.golden import SIZES, Golden
from tests.conformance.graphs import Parts, without_graphs
from tests.conformance.measures import Measures
from tests.conformance.model import Conditions, Model
from tests.shared import once

BACKENDS = ("torch", "onnxruntime")


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(Path(request.config.getoption("golden")))


@pytest.fixture(scope="session")
def measures(request: pytest.FixtureRequest) -> Iterator[Measures]:
    found = Measures()
    yield found
    request.config.stash[TABLE] = found.table()


TABLE = pytest.StashKey[list[str]]()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The full size is compared where the folder has it: many gigabytes and a quarter of an hour."""
    full = Golden(Path(config.getoption("golden"))).has("full512")
    return True if collection_path.name == "test_full_size.py" and not full else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every run compares all networks on torch; tracing these for onnxruntime takes minutes."""
    for item in items:
        ours = item.path.parent == Path(__file__).parent
        if ours and "[onnxruntime" in item.name:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash.get(TABLE, [])
    for line in table:
        terminalreporter.write_line(line)
    if table and config.getoption("table"):
        Path(config.getoption("table")).write_text(
            HEADING.format(heading(machine(), {"runs": 1})) + "\n".join(table) + "\n"
        )


HEADING = """# Conformance

This page says how far results are from those of the reference's own code, given the same synthetic weights, inputs and
noise. Each row has the worst of all comparisons of a quantity, and what is allowed. `spread` is std(difference) /
std(reference), `relative` is max |difference| / std(reference), `proportion` is max |difference / reference|, and
`levels` is the share of pixel values that are off by one; none may be off by more. The files are described in
`tests/data/README.md`: those named `full` have the released sizes, and the others come from small networks with the
same topology. Rows without a backend are computed without networks.

The page is written by `python -m pytest tests/conformance --golden DIR --table docs/conformance.md`, where DIR holds
the files; without `--golden`, the small ones in the repository are compared.
{}.

"""


def checkpoint_of(golden: Golden, name: str, folder: Path) -> Checkpoint:
    """Written as PyTorch Lightning does, read by the importer."""

    def write(partial: Path) -> None:
        keys = golden.keys(f"{name.replace('_sketch', '')}_codiff{'_sketch' if '_sketch' in name else ''}")
        lightning.save(partial / f"{name}.ckpt", {key: golden.tensor(key, shape) for key, shape in keys.items()})

    return import_published([once(folder / name, write) / f"{name}.ckpt"], [SIZES[name]])


@pytest.fixture(scope="session")
def three(golden: Golden, shared: Path) -> Checkpoint:
    """Mask, text and sketch; by the rule, its mask and text experts are those of the model without sketch."""
    return checkpoint_of(golden, "tiny512_sketch", shared)


@pytest.fixture(scope="session")
def small(golden: Golden, shared: Path) -> Checkpoint:
    """The model of smaller images, with dynamic diffusers that look at their branch's prediction."""
    return adapt(checkpoint_of(golden, "tiny256", shared), "prediction", {})


def model_of(checkpoint: Checkpoint, backend: str, folder: Path) -> Model:
    bundle = without_graphs(checkpoint, folder / "weights")
    return Model(bundle, backend, Parts(checkpoint, folder) if backend == "onnxruntime" else None)


@pytest.fixture(scope="session", params=BACKENDS)
def model(request: pytest.FixtureRequest, three: Checkpoint, shared: Path) -> Model:
    return model_of(three, request.param, shared / "three")


@pytest.fixture(scope="session", params=BACKENDS)
def small_model(request: pytest.FixtureRequest, small: Checkpoint, shared: Path) -> Model:
    return model_of(small, request.param, shared / "small")


@pytest.fixture(scope="session")
def tiny512(golden: Golden) -> dict[str, np.ndarray]:
    return golden.arrays("tiny512")


@pytest.fixture(scope="session")
def conditions(golden: Golden) -> Conditions:
    return conditions_of(golden, "512", (0, 1))


def conditions_of(golden: Golden, size: str, captions: tuple[int, int]) -> Conditions:
    """Both masks of a size and two captions, as the encoders take them."""
    masks = golden.arrays("masks")
    labels = np.stack([masks[f"ids32_from{size}_{i}"] for i in (0, 1)]).reshape(2, -1)
    ids = golden.arrays("tokens")["input_ids"][list(captions)]
    return {"mask": np.eye(19, dtype=np.float32)[labels].transpose(0, 2, 1), "text": ids}
