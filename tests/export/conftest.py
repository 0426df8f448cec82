import pytest

from tests import tiny


@pytest.fixture(scope="session")
def tiny_checkpoint():
    return tiny.tiny_checkpoint()


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory):
    """The bundle's folder and what `export_checkpoint` reported."""
    return tiny.exported(tmp_path_factory.getbasetemp() / "exported-once")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_export):
    return tiny_export[0]
