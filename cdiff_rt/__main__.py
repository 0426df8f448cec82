"""`python -m cdiff_rt` is the command `cdiff-rt`."""

from cdiff_rt.commands import main

if __name__ == "__main__":
    main()
