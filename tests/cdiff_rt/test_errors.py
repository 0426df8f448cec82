import errno

import pytest

from cdiff_rt.errors import BadArtefact, BadEnvironment, BadInput, BadRequest, CdiffError, OutOfResource, as_told


@pytest.mark.parametrize(
    ("kind", "code"),
    [(BadRequest, 2), (BadInput, 3), (BadArtefact, 4), (BadEnvironment, 5), (OutOfResource, 6)],
)
def test_an_error_says_what_was_seen_and_what_to_do_and_has_its_commands_exit_code(kind, code):
    error = kind("steps", "0 is outside 1-1000", "choose 50")
    assert isinstance(error, CdiffError) and error.exit_code == code
    assert str(error) == "steps: 0 is outside 1-1000; choose 50"
    assert (error.what, error.seen, error.remedy) == ("steps", "0 is outside 1-1000", "choose 50")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BadInput("mask", "out of memory", "draw it"), 3, "mask: out of memory; draw it"),
        (MemoryError(), 6, "memory: it ran out; choose"),
        (RuntimeError("[ONNXRuntimeError] : 6 : std::bad_alloc"), 6, "memory: it ran out"),
        (OSError(errno.ENOSPC, "No space left on device"), 6, "No space left on device"),
        (ModuleNotFoundError("no", name="x"), 5, "library: x is not installed"),
        (ValueError("two\nlines"), 1, "unforeseen: ValueError: two lines; please report it"),
        (FileNotFoundError(errno.ENOENT, "No such file"), 1, "unforeseen: FileNotFoundError"),
    ],
    ids=repr,
)
def test_every_error_is_one_for_users(error, code, words):
    told = as_told(error)
    assert told.exit_code == code and words in str(told)
    assert "\n" not in str(told)


def test_what_nobody_foresaw_is_told_with_its_place():
    try:
        raise KeyError("x")
    except KeyError as error:
        assert "KeyError in test_errors.py:" in str(as_told(error))
