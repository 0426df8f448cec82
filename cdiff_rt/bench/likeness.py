"""How alike two images are: peak signal to noise, and structural similarity."""

import numpy as np

WINDOW = 7  # pixels of SSIM's windows
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # of SSIM (Wang et al. 2004, eq. 13)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """In dB, of uint8 values in equal shapes; infinite where they are equal."""
    error = np.mean((first.astype(float) - second) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else np.inf


def ssim(first: np.ndarray, second: np.ndarray, where: np.ndarray | None = None) -> float:
    """Structural similarity (Wang et al. 2004) of the grey images [H, W, 3] uint8, mean over the windows.

    With `where` [H, W] bool, over those that lie in it wholly; NaN where none does.
    """

    def windows(image: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(image, (WINDOW, WINDOW))

    inside = windows(np.ones(first.shape[:2], bool) if where is None else where).all((2, 3))
    if not inside.any():
        return float("nan")
    a, b = (windows(image.astype(float).mean(2))[inside] for image in (first, second))  # [n, WINDOW, WINDOW]
    (mean_a, mean_b), (var_a, var_b) = ([of.mean((1, 2)) for of in (a, b)], [of.var((1, 2)) for of in (a, b)])
    together = (a * b).mean((1, 2)) - mean_a * mean_b
    signal = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return float((signal * (2 * together + C2) / (var_a + var_b + C2)).mean())
