"""Collaborative diffusion, fast: a thin runtime for exported engines."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__"]

if TYPE_CHECKING:
    from cdiff_rt.pipeline import Pipeline


def __getattr__(name: str) -> object:
    """`from cdiff_rt import Pipeline` works, and `import cdiff_rt` alone loads nothing."""
    if name == "Pipeline":
        from cdiff_rt.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
