import pytest

from cdiff_rt.engines.backends import BACKENDS, Backend
from tests.command_line import run


@pytest.mark.parametrize(("works", "code"), [(True, 0), (False, 5)])
def test_doctor_says_by_its_exit_code_whether_a_picture_can_be_made(works, code, monkeypatch):
    for name in [] if works else list(BACKENDS):
        monkeypatch.setitem(BACKENDS, name, Backend("x:load", ("no_such_library",), "cpu"))
    result = run("doctor")
    assert result.exit_code == code and ["model", "faces-128", "intact"] in [
        row.split() for row in result.stdout.splitlines()
    ]
