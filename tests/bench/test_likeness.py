import numpy as np
import pytest
from skimage.metrics import structural_similarity

from cdiff_rt.bench.likeness import psnr, ssim


def test_psnr_by_hand():
    black = np.zeros((2, 2, 3), np.uint8)
    assert psnr(black, black) == np.inf
    assert psnr(black + np.uint8(255), black) == pytest.approx(0)
    assert psnr(black + np.uint8(16), black) == pytest.approx(20 * np.log10(255 / 16))


def test_ssim_is_scikit_images():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (32, 32, 3), np.uint8)
    second = np.clip(first + rng.normal(0, 30, first.shape), 0, 255).astype(np.uint8)
    greys = [image.astype(float).mean(2) for image in (first, second)]
    full = structural_similarity(*greys, data_range=255, use_sample_covariance=False, full=True)[1]
    assert ssim(first, second) == pytest.approx(full[3:-3, 3:-3].mean())
    left = np.zeros((32, 32), bool)
    left[:, :16] = True
    assert ssim(first, second, left) == pytest.approx(full[3:-3, 3:13].mean())
    assert np.isnan(ssim(first, second, np.zeros((32, 32), bool)))
