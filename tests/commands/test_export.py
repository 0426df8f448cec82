import hashlib
from pathlib import Path

import pytest

from cdiff_rt.export.checkpoint import write_checkpoint
from tests.command_line import check_refused, run


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--checkpoint", "nowhere.ckpt"], 4, "nowhere.ckpt: there is no such file"),
        (["--checkpoint", __file__], 4, "test_export.py"),
        (["--checkpoint", __file__, "--freeu", "text=1,2"], 2, "write NAME=B1,B2,S1,S2"),
        (["--checkpoint", __file__, "--freeu", "text=1,2,3,nan"], 2, "write NAME=B1,B2,S1,S2"),
        (["--checkpoint", __file__, "--precision", "int8"], 2, "'int8' is not one of"),
        (["--checkpoint", __file__, "--sha256", "0" * 64], 4, "its sha256 is"),
        (["--checkpoint", __file__, "--sha256", "0" * 63], 2, "64 hexadecimal digits"),
        (["--checkpoint", __file__, *["--sha256", "0" * 64] * 2], 2, "2 for 1 checkpoints; give one for each"),
        ([], 2, "give --checkpoint and --out, or --model and --target"),
    ],
    ids=str,
)
def test_bad_exports_are_one_line_and_leave_nothing(arguments, code, words, out):
    check_refused(run("export", *arguments, "--out", out), code, words)
    assert not out.exists()


@pytest.mark.parametrize("asked", [False, True])
def test_what_was_read_is_told_by_its_hash(tiny_checkpoint, tmp_path, asked):
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, tiny_checkpoint)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    wanted = ["--sha256", sha256] if asked else []
    result = run("export", "--checkpoint", path, *wanted, "--out", tmp_path / "again.safetensors")
    assert (result.exit_code, result.stderr) == (0, f"note: model.safetensors: sha256 {sha256}\n")
    assert (tmp_path / "again.safetensors").exists()
