"""Commands run in the tests' own process, and what an error must look like."""

from click.testing import CliRunner, Result

from cdiff_rt.commands import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def check_error(stderr: str, stdout: str, *words: str) -> None:
    assert stdout == ""
    (line,) = stderr.splitlines()
    assert line.startswith("error: ") and "Traceback" not in line
    assert [word for word in words if word not in line] == []


def check_refused(result: Result, code: int, *words: str) -> None:
    check_error(result.stderr, result.stdout, *words)
    assert result.exit_code == code and isinstance(result.exception, SystemExit)
