import numpy as np
import pytest
from click.testing import CliRunner

from recipes.faces import data
from recipes.faces.painter import portrait


@pytest.fixture
def painted(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "HELD_OUT", 1)
    data.paint_all(range(7, 10), tmp_path)
    return tmp_path


def test_portraits_on_disk_are_those_of_their_seeds(painted):
    portraits = data.Portraits.load(painted)
    expected = [portrait(seed) for seed in range(7, 10)]
    assert np.array_equal(portraits.images, [one.image for one in expected])
    assert np.array_equal(portraits.labels, [one.labels for one in expected])
    assert portraits.captions == [one.caption for one in expected]
    assert (portraits.train_count, portraits.name) == (2, "3 portraits from seed 7")


def test_an_incomplete_data_set_is_no_data_set(painted):
    rows = painted / "portraits.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(AssertionError, match="is not what this program painted"):
        data.Portraits.load(painted)


def test_a_folder_that_exists_is_not_painted_into(tmp_path):
    result = CliRunner().invoke(data.main, ["--count", "600", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "exists" in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_vocabulary_covers_the_captions_and_frames_them():
    ids = data.token_ids(["This man has a long beard."] * 2)
    assert ids.shape == (2, 32) and (ids[0] == ids[1]).all()
    assert (ids[0, :1] == 2).all() and 3 in ids[0]
