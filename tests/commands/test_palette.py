from click.testing import CliRunner

from cdiff_rt.commands import main
from cdiff_rt.inputs.palette_files import FILES


def run(*words):
    return CliRunner().invoke(main, ["palette", *map(str, words)])


def test_it_writes_all_files_and_names_them(tmp_path):
    done = run("--out", tmp_path / "new")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [str(tmp_path / "new" / name) for name in FILES]
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == {
        n: of() for n, of in FILES.items()
    }


def test_what_exists_is_replaced_only_by_force(tmp_path):
    (tmp_path / "faces.gpl").write_text("mine")
    done = run("--out", tmp_path)
    assert done.exit_code == 2 and "faces.gpl exists" in done.stderr and done.stderr.count("\n") == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    assert run("--out", tmp_path, "--force").exit_code == 0
    assert (tmp_path / "faces.gpl").read_bytes() == FILES["faces.gpl"]()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert run("--out", tmp_path / "file" / "below").exit_code == 3
