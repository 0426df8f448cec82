"""Is there a face in an image? Asked of scikit-image's LBP cascade, a judge that was trained elsewhere, on photographs."""

import importlib.util
import logging
from collections.abc import Callable

import numpy as np

SMALLEST = 40  # pixels of a face's side
log = logging.getLogger("cdiff_rt")


def face_finder() -> Callable[[np.ndarray], bool] | None:
    """A function of an image [H, W, 3] uint8; None, with a note, where scikit-image is not installed."""
    if importlib.util.find_spec("skimage") is None:
        log.warning("faces are not looked for: scikit-image is not installed; run `pip install '.[quality]'`")
        return None
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    cascade = Cascade(lbp_frontal_face_cascade_filename())

    def found(image: np.ndarray) -> bool:
        largest = image.shape[:2]
        return bool(
            cascade.detect_multi_scale(
                img=image, scale_factor=1.1, step_ratio=1, min_size=(SMALLEST, SMALLEST), max_size=largest
            )
        )

    return found
