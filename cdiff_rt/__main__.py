"""The command `cdiff-rt`, and `python -m cdiff_rt`: an interrupt is one line even while Python imports the rest."""

import contextlib
import os
import sys


def main() -> None:
    try:
        from cdiff_rt import commands

        commands.main()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            os.write(2, b"error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
