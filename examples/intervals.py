"""How sure a share is, for the tables of the examples."""

import numpy as np

SURE = 1.96  # deviations, of an interval that holds in 95 of 100


def wilson(met: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a share, from N yes or no (Wilson 1927)."""
    n, share = len(met), met.mean()
    middle, half = share + SURE**2 / (2 * n), SURE * np.sqrt(share * (1 - share) / n + SURE**2 / (4 * n**2))
    return max(0.0, float((middle - half) / (1 + SURE**2 / n))), min(1.0, float((middle + half) / (1 + SURE**2 / n)))
