"""PSNR, SSIM and spectra against their definitions."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastequi.data.views.batch import Batch, Views
from fastequi.evaluate.image_quality import decibels, neighbour_differences, squared_error, ssim
from fastequi.evaluate.predicted_images import nearer_view, predictions
from fastequi.evaluate.spectrum import spectrum
from fastequi.paths import SE2

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
SCALE = (torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1))


def images(seed, *shape):
    """Smooth images in 0..1, normalised."""
    coarse = torch.rand(*shape[:-2], 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse.flatten(0, -4), shape[-2:], mode="bicubic")
    return (smooth.view(shape).clamp(0, 1) - SCALE[0]) / SCALE[1]


def by_loops(x, y):
    """SSIM of one image pair in 0..1, pixel by pixel."""
    at = np.arange(-5, 6)
    weight = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for channel in range(3):
        for i in range(5, x.shape[1] - 5):
            for j in range(5, x.shape[2] - 5):
                a, b = (v[channel, i - 5 : i + 6, j - 5 : j + 6] for v in (x, y))
                ma, mb = (weight * a).sum(), (weight * b).sum()
                va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
                cov = (weight * (a - ma) * (b - mb)).sum()
                top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
                values.append(top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return np.mean(values)


def test_ssim_is_its_definition():
    x, y = images(0, 2, 2, 3, 15, 13), images(1, 2, 2, 3, 15, 13)
    y = (x + y) / 2
    ours = ssim(x, y, MEAN, STD)
    assert ours.shape == (2, 2)
    for place in ((0, 0), (1, 1)):
        a, b = ((v[place] * SCALE[1] + SCALE[0]).clamp(0, 1).double().numpy() for v in (x, y))
        assert ours[place].item() == pytest.approx(by_loops(a, b), abs=1e-5)
    torch.testing.assert_close(ssim(x, x, MEAN, STD), torch.ones(2, 2))
    torch.testing.assert_close(ssim(y, x, MEAN, STD), ours)
    with pytest.raises(ValueError, match="at least 11x11 for SSIM, got 10x13"):
        ssim(x[..., :10, :], x[..., :10, :], MEAN, STD)


def test_differences_across_the_edges_of_patches_are_told_from_those_inside():
    flat = torch.zeros(2, 3, 8, 12)
    tiles = flat.clone()
    tiles[..., 4:, :] += 2  # one of one edge along the rows; none of two along the columns
    across, inside = neighbour_differences(tiles, 4).tolist()
    edges = 1 * 12 + 2 * 8
    assert across == pytest.approx(4 * 12 / edges)
    assert inside == 0
    ramp = torch.arange(12.0).expand(2, 3, 8, 12)
    across, inside = neighbour_differences(ramp, 4).tolist()
    assert across == pytest.approx(2 * 8 / edges)
    assert inside == pytest.approx(9 * 8 / (9 * 8 + 6 * 12))
    assert neighbour_differences(flat, 1)[1].isnan()


def test_psnr_is_its_definition_and_the_nearer_view_is_near():
    target = torch.zeros(2, 3, 8, 8)
    pred = torch.full_like(target, 0.1)  # 0.1 · 0.25 of the range
    value = decibels(squared_error(pred, target, (0.5,) * 3, (0.25,) * 3))
    torch.testing.assert_close(value, torch.full((2,), -20 * torch.tensor(0.025).log10()))
    bright = torch.full((1, 3, 8, 8), 3.0)  # a colour change may leave 0..1, an image does not
    assert decibels(squared_error(bright, bright, MEAN, STD)) == 100
    assert decibels(squared_error(bright, bright + 1, MEAN, STD)) == 100
    v1, v2 = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    assert nearer_view(v1, v2, 2).mean((2, 3, 4)).tolist() == [[0, 1]]
    assert nearer_view(v1, v2, 3).mean((2, 3, 4)).tolist() == [[0, 0, 1]]


class _Patches(NamedTuple):
    patch_size: int = 4


class _Told(NamedTuple):
    """What `predictions` asks of a method."""

    views: Views
    path: SE2
    shown: list[dict[str, torch.Tensor]]
    encoder: _Patches = _Patches()

    def reconstruct(self, batch):
        return self.shown[int(batch.epoch)]


def test_the_pooled_gain_and_its_parts_are_sums_of_squared_errors():
    views = Views(12, 12, (0.0,) * 3, (1.0,) * 3, "zeros")
    generator = torch.Generator().manual_seed(0)
    v1, v2, pred, target = (torch.rand(4, *k, 3, 12, 12, generator=generator) * 0.5 + 0.2
                            for k in ((), (), (2,), (2,)))  # fmt: skip
    v1[2:] = target[2:, 0] + 0.01  # two images that a copy nearly is
    v2[2:] = target[2:, 1] + 0.01
    shown = {"v1": v1, "v2": v2, "pred": pred, "target": target}
    angles = torch.tensor([[-44.0], [3.0], [9.99], [31.0]])
    batch = Batch(v1=v1, u=v1, path=F.pad(angles, (0, 2)), sample_ids=torch.arange(4), epoch=0)
    found = predictions(_Told(views, SE2(), [shown]), [batch], 4, lambda ids: ids // 2)
    for name, of in (("pred", found.seams.predicted), ("target", found.seams.target)):
        across, inside = neighbour_differences(shown[name], 4).tolist()
        assert of == pytest.approx(across / inside)
    ours = (pred - target).square()
    copied = (torch.stack([v1, v2], 1) - target).square()
    gain = 10 * (copied.sum() / ours.sum()).log10()
    assert found.pooled.gain == pytest.approx(gain.item(), rel=1e-5)
    assert found.pooled.low <= found.pooled.gain <= found.pooled.high
    each = 10 * (copied.mean((2, 3, 4)) / ours.mean((2, 3, 4))).log10()
    assert found.psnr.gain == pytest.approx(each.mean().item(), rel=1e-4)
    names = [part.name for part in found.by_angle]
    assert names == ["0..10°", "30..44°"]
    assert [part.images for part in found.by_angle] == [2, 2]
    for part, picked in zip(found.by_angle, ([1, 2], [0, 3]), strict=True):
        expected = 10 * (copied[picked].sum() / ours[picked].sum()).log10()
        assert part.pooled == pytest.approx(expected.item(), rel=1e-5)
        assert part.gain == pytest.approx(each[picked].mean().item(), rel=1e-4)
    textures = found.by_texture
    assert [part.images for part in textures] == [1] * 4
    assert textures[0].nearer_view <= textures[1].nearer_view < 20
    assert textures[2].nearer_view == pytest.approx(40, abs=0.1)  # .01 of the range


def told(ours, copied, samples_per_file, degrees=10.0):
    """Predictions of images that are wrong by these amounts, [N], in every pixel of both steps."""
    n = len(ours)
    views = Views(12, 12, (0.0,) * 3, (1.0,) * 3, "zeros")
    target = torch.full((n, 2, 3, 12, 12), 0.5)
    pred = target + ours.view(n, 1, 1, 1, 1)
    near = target[:, 0] + copied.view(n, 1, 1, 1)
    shown = {"v1": near, "v2": near, "pred": pred, "target": target}
    path = torch.tensor([[degrees, 0.0, 0.0]]).expand(n, 3)
    batch = Batch(v1=near, u=near, path=path, sample_ids=torch.arange(n), epoch=0)
    return predictions(
        _Told(views, SE2(), [shown]), [batch], n, lambda ids: ids // samples_per_file
    )


def test_intervals_of_gains_are_over_photographs_and_paired():
    """Photographs differ in what is gained on them, their windows do not."""
    gains = torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat_interleave(10)  # dB
    copied = torch.full((40,), 0.1)
    found = told(copied * 10 ** (-gains / 20), copied, samples_per_file=10)
    assert found.psnr.gain == pytest.approx(2.5, abs=1e-3)
    for quality in (found.psnr, found.pooled):  # over 40 windows they would be .7 dB wide
        assert 1.4 < quality.high - quality.low < 2.5
        assert quality.low < quality.gain < quality.high
    # the same gain everywhere, whatever the images' own errors: in every draw, not on average
    copied = torch.linspace(0.01, 0.3, 40)
    same = told(copied * 10 ** (-3 / 20), copied, samples_per_file=10)
    for quality in (same.pooled, same.psnr):
        each = quality.low, quality.gain, quality.high
        assert each == pytest.approx((3.0, 3.0, 3.0), abs=1e-3)


@pytest.mark.parametrize(
    ("degrees", "name"), [(0.0, "0..1°"), (30.0, "30..31°"), (30.5, "30..31°"), (9.0, "0..9°")]
)
def test_parts_by_angle_have_a_width(degrees, name):
    half = torch.full((4,), 0.1)
    (part,) = told(half / 2, half, samples_per_file=2, degrees=degrees).by_angle
    assert part.name == name


def test_the_spectrum_counts_dimensions():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 5, generator=generator)
    basis = torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q[:5]
    even = spectrum(3 + 2 * rows @ basis)  # five equal directions of twenty
    assert (even.channels, even.rank) == (20, 5)
    assert even.variance == pytest.approx(4 * 5 / 20, rel=0.05)
    assert even.participation == pytest.approx(5, rel=0.02)
    assert even.entropy == pytest.approx(5, rel=0.02)
    one = spectrum(rows[:, :1] @ basis[:1] * 1e-3)
    assert one.rank == 1
    assert one.participation == pytest.approx(1)
    assert one.entropy == pytest.approx(1, abs=1e-6)
    uneven = spectrum(rows * torch.tensor([10.0, 1, 1, 1, 1]))
    assert uneven.rank == 5
    assert 1 < uneven.participation < uneven.entropy < 2
    for same in (torch.full((50, 4), 7.3), torch.zeros(50, 4)):
        assert spectrum(same).rank == spectrum(same).participation == 0
