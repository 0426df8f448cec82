import dataclasses

import pytest
import torch

from cdiff_rt.nets.freeu import FreeU, FreeUConfig, lowest_frequencies
from cdiff_rt.nets.unet import UNet
from tests.nets import naive
from tests.nets.test_unet import CONFIG


def fourier_filter(x, scale):
    """As the reference writes it: the 2 x 2 middle of the shifted spectrum is scaled."""
    height, width = x.shape[2:]
    spectrum = torch.fft.fftshift(torch.fft.fftn(x, dim=(2, 3)), dim=(2, 3))
    mask = torch.ones(height, width)
    mask[height // 2 - 1 : height // 2 + 1, width // 2 - 1 : width // 2 + 1] = scale
    return torch.fft.ifftn(torch.fft.ifftshift(spectrum * mask, dim=(2, 3)), dim=(2, 3)).real


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (2, 3, 16, 16), (1, 1, 4, 32), (2, 3, 64, 64)])
@pytest.mark.parametrize("scale", [0.0, 0.2, 0.9, 1.0, 1.5])
def test_the_filter_is_the_references_without_a_fourier_transform(shape, scale):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours = x + (scale - 1) * lowest_frequencies(x)
    torch.testing.assert_close(ours, fourier_filter(x, scale), atol=2e-6, rtol=1e-5)


def test_it_acts_at_two_widths_and_on_the_first_half_of_the_features():
    freeu = FreeU(FreeUConfig(1.1, 1.2, 0.9, 0.2), model_channels=4)
    skip = torch.randn(1, 5, 8, 8)
    for channels, backbone, low in ((12, 1.1, 0.9), (8, 1.2, 0.2), (4, 1.0, 1.0), (20, 1.0, 1.0)):
        features = torch.randn(1, channels, 8, 8)
        changed, filtered = freeu(features, skip)
        torch.testing.assert_close(changed[:, : channels // 2], backbone * features[:, : channels // 2])
        torch.testing.assert_close(changed[:, channels // 2 :], features[:, channels // 2 :])
        torch.testing.assert_close(filtered, fourier_filter(skip, low), atol=2e-6, rtol=1e-5)


def test_a_unet_with_freeu_has_the_same_weights_and_another_output():
    plain = naive.randomise(UNet(CONFIG))
    inputs = torch.randn(1, 3, 8, 8), torch.tensor([501]), torch.randn(1, 5, 10)
    outputs = []
    for settings in (FreeUConfig(1.0, 1.0, 1.0, 1.0), FreeUConfig(1.0, 1.3, 1.0, 1.0), FreeUConfig(1.0, 1.0, 1.0, 0.3)):
        unet = UNet(dataclasses.replace(CONFIG, freeu=settings)).eval()
        unet.load_state_dict(plain.state_dict())
        outputs.append(unet(*inputs))
    naive.assert_same(outputs[0], plain(*inputs))
    assert all(not torch.allclose(out, outputs[0], atol=1e-3) for out in outputs[1:])
