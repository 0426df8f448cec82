import click
import pytest

from cdiff_rt.commands.options import all_conditions


def test_conditions_are_those_given_by_name_or_as_a_pair():
    assert all_conditions({"mask": "m.png", "text": None}, ("sketch=a=b",), "--condition") == {
        "mask": "m.png",
        "sketch": "a=b",
    }


@pytest.mark.parametrize(
    ("others", "words"),
    [(("sketch",), "write NAME=VALUE"), (("=v",), "write NAME=VALUE"), (("mask=b",), "it is given twice")],
)
def test_others_are_refused(others, words):
    with pytest.raises(click.UsageError, match=f"--source.*{words}"):
        all_conditions({"mask": "a"}, others, "--source")
