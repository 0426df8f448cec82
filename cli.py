"""The command `cdiff-rt` from a checkout, without installing it: `python cli.py generate ...`."""

from cdiff_rt.__main__ import main

if __name__ == "__main__":
    main()
