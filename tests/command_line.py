"""Commands run in the tests' own process, and what an error must look like."""

import subprocess
import sys
from pathlib import Path

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


def libraries_of(root: Path, *arguments: object) -> set[str]:
    """What a command imports that is not Python's own."""
    code = f"import sys\nfrom cdiff_rt.commands import main\ntry: main({[str(a) for a in arguments]})\nexcept SystemExit: pass\n"
    code += "print(' '.join({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.splitlines()[-1].split())
