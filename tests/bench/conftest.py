import pytest

from tests import tiny


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """The folder that the export tests fill, if they run in this session."""
    return tiny.exported(tmp_path_factory.getbasetemp() / "exported-once")[0]
