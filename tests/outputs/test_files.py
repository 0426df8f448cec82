import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdiff_rt.errors import BadInput, BadRequest, OutOfResource
from cdiff_rt.outputs import files
from cdiff_rt.outputs.files import PLACE, all_or_nothing, check_folder, new_file_or_folder, own_folder, sweep
from tests.faults import KINDS, check_faults


@pytest.mark.parametrize("folder", ["", "a", "a/b/c"])
def test_check_folder_leaves_nothing_behind(folder, tmp_path):
    check_folder(tmp_path / folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["/proc/nonexistent", "/dev/null", "/dev/null/below", "a" * 300])
def test_folders_that_cannot_be_written_are_refused(folder, tmp_path):
    with pytest.raises(BadInput, match="^output folder "):
        check_folder(tmp_path / folder)


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EMFILE", "EIO"])
def test_a_disk_that_takes_nothing_more_is_no_folder_s_fault(name, tmp_path, monkeypatch):
    def full(**named):
        raise OSError(getattr(errno, name), "it is full")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", full)
    with pytest.raises(OutOfResource, match=f"output folder {tmp_path}: it is full; "):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, OutOfResource, "free some space"),
        (errno.EACCES, OutOfResource, "may write to"),
        (errno.EMFILE, OutOfResource, "ulimit -n"),
        (errno.EIO, OutOfResource, "check the disk"),
        (errno.EISDIR, BadInput, "choose another"),
    ],
)
def test_what_a_disk_refuses_is_told_with_a_remedy_for_it(number, kind, words):
    with pytest.raises(kind, match=f"^writing it: {os.strerror(number)}; .*{words}"), files.disk_errors("writing it"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a" * 252 + ".png", "256 bytes"),
        ("é" * 126 + ".png", "256 bytes"),
        ("a" * 300 + "/b.png", "300 bytes"),
        ("a/" * 2000 + "b.png", "its path 40"),
        ("a\0b.png", "no file's name"),
        ("\ud800.png", "no file's name"),
    ],
    ids=["long", "long in UTF-8", "folder", "path", "NUL", "surrogate"],
)
def test_a_name_that_no_file_can_have_is_refused(name, words):
    with pytest.raises(BadRequest, match=f"^out: .*{words}"):
        files.check_names(Path("/", name))


def test_the_longest_name_is_one_that_the_disk_takes(tmp_path):
    longest = tmp_path / ("é" * 125 + "a.png")
    files.check_names(longest)
    with all_or_nothing(longest) as new:
        (new / longest.name).touch()
    assert [longest] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scenario", "kinds", "every"),
    [("replace", ["SIGKILL"], 3), ("replace", ["ENOSPC", "SIGTERM"], 9), ("export", ["SIGKILL", "EIO"], 1)],
    ids=str,
)
def test_whatever_comes_between_there_is_the_old_or_the_new(scenario, kinds, every, tmp_path):
    check_faults(scenario, tmp_path, kinds, every)


@pytest.mark.parametrize("writing", [all_or_nothing, new_file_or_folder])
def test_content_is_on_the_disk_before_its_name(writing, tmp_path, monkeypatch):
    """Else a machine that stops may leave a whole name of an empty file."""
    synced, real = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append(os.path.realpath(f"/proc/self/fd/{file}")) or real(file)
    )
    out = tmp_path / "a.png"
    with writing(out) as new:
        inside = new / "a.png" if writing is all_or_nothing else new
        names = [inside] if writing is all_or_nothing else [inside / "b" / "c.png", inside / "d.png"]
        for name in names:
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_text("content")
        assert not out.exists()
    assert sorted(Path(path).name for path in synced) == sorted(name.name for name in names)


@pytest.mark.long
@pytest.mark.parametrize("scenario", ["save anew", "replace", "export"])
def test_whatever_comes_between_at_any_operation(scenario, tmp_path):
    check_faults(scenario, tmp_path, list(KINDS))


@pytest.mark.long
@pytest.mark.parametrize("scenario", ["command generate", "command edit", "command jobs"])
def test_a_command_that_ends_at_any_operation_leaves_the_old_or_the_new(scenario, tiny_bundle, tmp_path):
    check_faults(scenario, tmp_path, ["SIGKILL", "ENOSPC"], every=2, bundle=tiny_bundle)


def left_by_a_killed_process(folder: Path, part: str) -> None:
    """A process's folder in `folder` without its process."""
    with own_folder(folder) as mine:
        (mine / part).mkdir()
        (mine / part / "a.png").write_text("new")
        mine.rename(folder / "kept")
    (folder / PLACE).mkdir()
    (folder / "kept").rename(folder / PLACE / "dead")


@pytest.mark.parametrize(("part", "expected"), [(files.NEW, "old"), (files.WHOLE, "new")])
def test_what_a_killed_process_left_is_swept_or_ended(part, expected, tmp_path):
    (tmp_path / "a.png").write_text("old")
    left_by_a_killed_process(tmp_path, part)
    check_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_text() == expected


def test_what_a_living_process_writes_is_not_swept(tmp_path):
    code = "import sys, time; from pathlib import Path; from cdiff_rt.outputs.files import own_folder\n"
    code += f"with own_folder(Path({str(tmp_path)!r})) as mine: print(mine, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        mine = Path(process.stdout.readline().strip())
        sweep(tmp_path)
        assert mine.is_dir()
        process.kill()
        process.wait()
        sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_ours_is_not_followed(tmp_path):
    (tmp_path / "mine" / "left" / "whole").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PLACE).symlink_to(tmp_path / "mine")
    sweep(tmp_path / "out")
    assert (tmp_path / "mine" / "left" / "whole").is_dir()


def test_of_two_that_write_one_name_the_second_is_told_at_once(tmp_path):
    out = tmp_path / "bundle"
    with new_file_or_folder(out) as first:
        with pytest.raises(BadRequest, match="another run is writing bundle"), new_file_or_folder(out):
            pass
        first.write_text("whole")
    assert out.read_text() == "whole" and list(tmp_path.iterdir()) == [out]


def test_what_somebody_else_wrote_in_the_meantime_stays(tmp_path):
    out = tmp_path / "bundle"
    with pytest.raises(BadRequest, match="bundle exists"), new_file_or_folder(out) as partial:
        partial.mkdir()
        out.mkdir()
        (out / "theirs").touch()
    assert [path.name for path in out.iterdir()] == ["theirs"] and list(tmp_path.iterdir()) == [out]
