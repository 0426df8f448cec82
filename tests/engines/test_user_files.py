import errno
import fcntl
import os
import pwd
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdiff_rt.engines.user_files import cache_folder, check_folder, locked, make_folder, read_file, write_file
from cdiff_rt.errors import BadArtefact, BadEnvironment, OutOfResource


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_is_made_for_its_user_alone(tmp_path):
    make_folder(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700
    make_folder(tmp_path / "a" / "b")
    check_folder(tmp_path / "a" / "b")


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777, 0o720, 0o702])
def test_a_folder_that_others_may_write_into_is_refused(bits, tmp_path):
    tmp_path.chmod(bits)
    if bits & 0o022:
        with pytest.raises(BadArtefact, match=r"others may write into it; .*chmod 700"):
            check_folder(tmp_path)


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(BadArtefact, match=f"belongs to user {os.getuid()}"):
        check_folder(tmp_path)


def test_a_link_to_a_folder_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(BadArtefact, match="link"):
        check_folder(tmp_path / "link")


def test_a_system_without_users_is_refused(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "geteuid")
    with pytest.raises(BadEnvironment, match="whose"):
        check_folder(tmp_path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadEnvironment, match="name another folder"):
        make_folder(tmp_path / "file" / "folder")


def test_a_user_without_a_home_is_told(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda user: (_ for _ in ()).throw(KeyError(user)))
    with pytest.raises(BadEnvironment, match="no home; set XDG_CACHE_HOME"):
        cache_folder()


def socket_file(path):
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to("/etc/hostname"),
        lambda path: path.symlink_to("/dev/zero"),
        os.mkfifo,
        os.mkdir,
        socket_file,
        lambda path: path.write_bytes(bytes(101)),
    ],
    ids=["link", "device", "fifo", "folder", "socket", "too large"],
)
def test_only_plain_files_are_read(make, tmp_path):
    make(tmp_path / "x")
    with pytest.raises(BadArtefact, match="plain file"):
        read_file(tmp_path / "x", 100)


def test_files_are_written_for_their_user_alone_and_whole(tmp_path):
    path = tmp_path / "x"
    (tmp_path / ".x.partial").write_bytes(b"of a writer that was killed, longer than what is written now")
    write_file(path, b"first")
    write_file(path, b"second")
    assert read_file(path, 100) == b"second" and mode(path) == 0o600
    assert os.listdir(tmp_path) == ["x"]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    write_file(tmp_path / "x", b"first")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutOfResource, match="No space left"):
        write_file(tmp_path / "x", b"second")
    assert (tmp_path / "x").read_bytes() == b"first" and os.listdir(tmp_path) == ["x"]


KILLED = """
import os, sys
from pathlib import Path
from pathlib import Path

from cdiff_rt.engines.user_files import write_file

def die(descriptor):
    print("written", flush=True)
    os.kill(os.getpid(), 9)

os.fsync = die
write_file(Path(sys.argv[1]), b"second" * 100_000)
"""


def test_a_killed_writer_leaves_what_was_there(tmp_path):
    write_file(tmp_path / "x", b"first")
    child = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "x"], capture_output=True, check=False)
    assert (child.returncode, child.stdout) == (-9, b"written\n"), child.stderr
    assert (tmp_path / "x").read_bytes() == b"first"
    write_file(tmp_path / "x", b"third")
    assert os.listdir(tmp_path) == ["x"]


HOLDS = """
import sys, time
from pathlib import Path
from pathlib import Path

from cdiff_rt.engines.user_files import locked

with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(path, seconds):
    child = subprocess.Popen([sys.executable, "-c", HOLDS, path, str(seconds)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"locked\n"
    return child


def test_a_lock_is_waited_for_with_a_word(tmp_path, caplog):
    caplog.set_level("INFO", "cdiff_rt")
    with holder(tmp_path / "lock", 0.5) as child, locked(tmp_path / "lock", "somebody has it; waiting"):
        assert child.wait() == 0
    assert [record.message for record in caplog.records] == ["somebody has it; waiting"]


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with holder(tmp_path / "lock", 60) as child:
        child.kill()
        begun = time.monotonic()
        with locked(tmp_path / "lock"):
            assert time.monotonic() - begun < 10


def test_a_lock_is_let_go(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
            raise ZeroDivisionError
    child = holder(tmp_path / "lock", 0)
    assert child.wait(10) == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_disk_without_locks_is_said(number, tmp_path, monkeypatch):
    words = os.strerror(number)
    monkeypatch.setattr(fcntl, "flock", lambda *given: (_ for _ in ()).throw(OSError(number, words)))
    with pytest.raises(BadEnvironment, match=f"{words}; name a folder on a local disk"), locked(tmp_path / "x"):
        pass


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadEnvironment, match="lock"), locked(tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_cache_that_lies_wherever_a_command_is_run_is_refused(monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: Path("relative", name))
    with pytest.raises(BadEnvironment, match="'relative/cdiff-rt' is no absolute path; set XDG_CACHE_HOME to one"):
        cache_folder()
