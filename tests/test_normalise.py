"""Normalisation in 0..1 against the formula, and there and back."""

import pytest
import torch

from fastequi.functional.normalise import denormalise, normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_each_channel_has_its_own_mean_and_std(lead):
    images = torch.randint(256, (*lead, 3, 4, 5), dtype=torch.uint8)
    out = normalise(images, MEAN, STD)
    assert out.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        expected = (images[..., channel, :, :].double() / 255 - mean) / std
        torch.testing.assert_close(out[..., channel, :, :].double(), expected, rtol=1e-5, atol=1e-5)
    back = (denormalise(out, MEAN, STD) * 255).round().to(torch.uint8)
    assert torch.equal(back, images)


def test_floating_images_are_in_0_to_1_already():
    images = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(
        normalise(images, MEAN, STD)[:, 1], (images[:, 1] - MEAN[1]) / STD[1]
    )
    torch.testing.assert_close(denormalise(normalise(images, MEAN, STD), MEAN, STD), images)
