import pytest

from cdiff_rt.errors import BadArtefact, BadEnvironment, BadInput, BadRequest, CdiffError, OutOfResource


@pytest.mark.parametrize(
    ("kind", "code"),
    [(BadRequest, 2), (BadInput, 3), (BadArtefact, 4), (BadEnvironment, 5), (OutOfResource, 6)],
)
def test_an_error_says_what_was_seen_and_what_to_do_and_has_its_commands_exit_code(kind, code):
    error = kind("steps", "0 is outside 1-1000", "choose 50")
    assert isinstance(error, CdiffError) and error.exit_code == code
    assert str(error) == "steps: 0 is outside 1-1000; choose 50"
    assert (error.what, error.seen, error.remedy) == ("steps", "0 is outside 1-1000", "choose 50")
