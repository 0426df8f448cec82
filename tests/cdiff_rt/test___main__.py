import subprocess
import sys

import pytest

WHILE_IT_IMPORTS = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *more):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["cdiff-rt", "generate", "--text", "a man", "--steps", "1", "--out", {out!r}]
from cdiff_rt.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["cdiff_rt.commands", "click", "cdiff_rt.commands.generate", "cdiff_rt.pipeline"])
def test_an_interrupt_is_one_line_even_while_python_imports(name, root, tmp_path):
    code = WHILE_IT_IMPORTS.format(name=name, out=str(tmp_path / "a.png"))
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "error: interrupted")
    assert list(tmp_path.iterdir()) == []
