import pytest

from cdiff_rt.errors import BadInput
from cdiff_rt.outputs import files


@pytest.mark.parametrize("folder", ["", "a", "a/b/c"])
def test_check_folder_leaves_nothing_behind(folder, tmp_path):
    files.check_folder(tmp_path / folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["/proc/nonexistent", "/dev/null", "/dev/null/below", "a" * 300])
def test_folders_that_cannot_be_written_are_refused(folder, tmp_path):
    with pytest.raises(BadInput, match="^output folder "):
        files.check_folder(tmp_path / folder)
