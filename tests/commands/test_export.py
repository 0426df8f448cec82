from pathlib import Path

import pytest

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
        ([], 2, "give --checkpoint and --out, or --model and --target"),
    ],
    ids=str,
)
def test_bad_exports_are_one_line_and_leave_nothing(arguments, code, words, out):
    check_refused(run("export", *arguments, "--out", out), code, words)
    assert not out.exists()
