"""A step's numbers: everything that steps and runs do differently, as one row of float32.

First the solver's row, then for up to 8 modalities each their gains, anchor and factors, then two scalars. As they are
an input, a CUDA graph or an engine stays valid for every solver, weight, decay and sharpness.
"""

import numpy as np

from cdiff_rt.errors import BadRequest
from cdiff_rt.sampling.fusion import Adjustment, Array
from cdiff_rt.sampling.solvers import E_OUT, SolverTable

LARGEST = 8  # modalities
GAINS, ANCHOR, FACTORS = (E_OUT + 1 + LARGEST * part for part in range(3))  # the first column of each
SHARPNESS = FACTORS + LARGEST
BOOST = SHARPNESS + 1
WIDTH = 40  # 160 bytes, so every row of the table begins at a multiple of 16


def pack(table: SolverTable, adjust: Adjustment) -> np.ndarray:
    """[S, WIDTH] float32."""
    steps, modalities = adjust.gains.shape
    assert table.coefficients.shape == (steps, E_OUT + 1)
    if modalities > LARGEST:
        raise BadRequest(
            "number of modalities", str(modalities), f"the fused step takes up to {LARGEST}, leave some out"
        )
    numbers = np.zeros((steps, WIDTH), np.float32)
    numbers[:, :GAINS] = table.coefficients
    for first, values in ((GAINS, adjust.gains), (ANCHOR, adjust.anchor), (FACTORS, adjust.factors)):
        numbers[:, first : first + modalities] = values
    numbers[:, SHARPNESS] = adjust.sharpness
    numbers[:, BOOST] = adjust.boost or 0.0
    return numbers


def unpack(numbers: Array, modalities: int, ndim: int, boosted: bool) -> tuple[Array, Adjustment[Array]]:
    """[WIDTH] -> the solver's row, and the step's adjustment of logits [M, ...] whose other axes are `ndim`."""
    gains, anchor, factors = (
        numbers[first : first + modalities].reshape(-1, *(1,) * ndim) for first in (GAINS, ANCHOR, FACTORS)
    )
    boost = numbers[BOOST] if boosted else None
    return numbers[:GAINS], Adjustment(gains, anchor, factors, numbers[SHARPNESS], boost)
