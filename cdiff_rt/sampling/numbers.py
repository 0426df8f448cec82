"""A step's numbers: everything that steps and runs do differently, as one row of float32.

First the solver's row, then for up to 8 modalities each their gains, anchor, factors and presence, then two scalars. As
they are an input, a CUDA graph or an engine stays valid for every solver, decay and sharpness.
"""

import numpy as np

from cdiff_rt.errors import BadRequest
from cdiff_rt.sampling.fusion import PER_MODALITY, Adjustment, Array
from cdiff_rt.sampling.solvers import E_OUT, SolverTable

LARGEST = 8  # modalities
GAINS, ANCHOR, FACTORS, PRESENT = (E_OUT + 1 + LARGEST * part for part in range(4))  # the first column of each
SHARPNESS = PRESENT + LARGEST
BOOST = SHARPNESS + 1
WIDTH = 44  # 176 bytes, so every row of the table begins at a multiple of 16


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
    for part, first in zip(PER_MODALITY, (GAINS, ANCHOR, FACTORS, PRESENT), strict=True):
        numbers[:, first : first + modalities] = getattr(adjust, part)
    numbers[:, SHARPNESS] = adjust.sharpness
    numbers[:, BOOST] = adjust.boost or 0.0
    return numbers


def unpack(
    numbers: Array, modalities: int, ndim: int, boosted: bool, controls: Array | None = None
) -> tuple[Array, Adjustment[Array]]:
    """[WIDTH] -> the solver's row, and the step's adjustment of logits [M, ...] whose other axes are `ndim`.

    `controls` [3, M, *latent] are the step's too.
    """
    gains, anchor, factors, present = (
        numbers[first : first + modalities].reshape(-1, *(1,) * ndim) for first in (GAINS, ANCHOR, FACTORS, PRESENT)
    )
    boost = numbers[BOOST] if boosted else None
    wide = None if controls is None else controls[:, :, None, None]
    return numbers[:GAINS], Adjustment(gains, anchor, factors, present, numbers[SHARPNESS], boost, wide)
