"""The commands."""

from cdiff_rt.commands.everything import main  # noqa
