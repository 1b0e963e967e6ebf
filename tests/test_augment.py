"""Parameters as data: ranges, probabilities, regions and the link between the two views."""

import math
import time
from dataclasses import fields, replace

import numpy as np
import pytest

from fastequi.data.config import Augment, DataConfig, vicreg_second
from fastequi.data.views.parameters import view_params
from fastequi.philox import Draws

N = 4000
DRAWS = Draws.of(3, 1, np.arange(N))
SIZES = np.random.default_rng(0).integers(20, 900, (N, 2))  # includes very long photographs
SQUARE = np.full((N, 2), 500)
REGIONS = [(0, 0, 1, 1), (0.7, 0, 1, 1), (0.2, 0.3, 0.5, 0.45)]


def pixels(params, sizes):
    """Height and width [B, 2] of the windows in pixels, and whether they are mirrored."""
    extent = (params.end - params.start) * sizes
    return np.abs(extent), extent[:, 1] < 0


def plain(**changes):
    return replace(DataConfig(a1=Augment.none(), a2=Augment.none()), **changes)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("crop", [Augment(), Augment(side=(48 / 256, 77 / 256))])
def test_windows_stay_in_the_region(region, crop):
    x0, y0, x1, y1 = region
    for view in view_params(plain(a1=crop, a2=crop), DRAWS, SIZES, region):
        corners = np.concatenate([view.start, view.end])
        assert (corners >= np.float32([y0, x0])).all()
        assert (corners <= np.float32([y1, x1])).all()
        extent, _ = pixels(view, SIZES)
        assert (extent > 0).all()
        aspect = extent[:, 1] / extent[:, 0]
        assert aspect.min() > 3 / 4 - 1e-2
        assert aspect.max() < 4 / 3 + 1e-2


def test_area_and_position_cover_their_ranges():
    crop = Augment(area=(0.08, 0.5))
    view, _ = view_params(plain(a1=crop), DRAWS, SQUARE)
    extent, mirrored = pixels(view, SQUARE)
    area = extent.prod(1) / 500**2
    assert 0.0799 < area.min() < 0.085
    assert 0.49 < area.max() < 0.5001
    assert area.mean() == pytest.approx(0.29, abs=0.01)
    assert mirrored.mean() == pytest.approx(0.5, abs=0.04)
    free = (np.minimum(view.start, view.end)) / (1 - extent / 500)
    np.testing.assert_allclose(free.mean(0), 0.5, atol=0.02)
    assert free.min() < 0.01
    assert free.max() > 0.99


def test_side_is_a_share_of_the_photographs_shorter_side():
    sizes = np.tile([[300, 700]], (N, 1))
    crop = Augment.none(side=(48 / 256, 77 / 256))
    for region in ((0, 0, 1, 1), (0.7, 0, 1, 1)):
        view, _ = view_params(plain(a1=crop), DRAWS, sizes, region)
        extent, mirrored = pixels(view, sizes)
        np.testing.assert_allclose(extent[:, 0], extent[:, 1], rtol=1e-4)
        side = extent[:, 0] / 300 * 256
        assert 48 - 1e-2 < side.min() < 48.2
        assert 76.8 < side.max() < 77 + 1e-2
        assert not mirrored.any()


def test_a_window_that_never_fits_is_shrunk():
    sizes = np.tile([[100, 400]], (N, 1))
    view, _ = view_params(plain(a1=Augment.none(side=(2.0, 2.0))), DRAWS, sizes)
    extent, _ = pixels(view, sizes)
    np.testing.assert_allclose(extent, 100, rtol=1e-5)


def test_shared_crop_is_the_centre_of_u():
    cfg = plain(
        image_size=32, source_size=48, shared_crop=True, a1=Augment(), a2=Augment(side=(0.2, 0.3))
    )
    v1, u = view_params(cfg, DRAWS, SIZES)
    np.testing.assert_allclose(v1.start + v1.end, u.start + u.end, atol=1e-6)
    np.testing.assert_allclose((v1.end - v1.start) * 1.5, u.end - u.start, atol=1e-6)
    assert not np.array_equal(v1.color, u.color)


def test_separate_crops_are_independent():
    v1, u = view_params(DataConfig(), DRAWS, SQUARE)
    centres = np.concatenate([v1.start + v1.end, u.start + u.end], 1)
    correlation = np.corrcoef(centres.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.08


def test_the_paper_views():
    v1, u = view_params(DataConfig(), DRAWS, SQUARE)
    for view in (v1, u):
        brightness, contrast, saturation, hue = view.color.T
        jittered = brightness != 1
        assert jittered.mean() == pytest.approx(0.8, abs=0.03)
        gray = saturation == 0
        assert gray.mean() == pytest.approx(0.2, abs=0.03)
        for factor, half in ((brightness, 0.4), (contrast, 0.4), (saturation[~gray], 0.2)):
            assert 1 - half <= factor.min() < 1 - 0.97 * half
            assert 1 + 0.97 * half < factor.max() <= 1 + half + 1e-6
        assert -36 <= hue.min() < -35
        assert 35 < hue.max() <= 36
        assert (hue[~jittered] == 0).all()
        assert (contrast[~jittered] == 1).all()
    assert (v1.sigma >= 0.1 - 1e-6).all()
    assert v1.sigma.max() > 1.95
    assert v1.solarize is None
    assert (u.sigma > 0).mean() == pytest.approx(0.1, abs=0.02)
    assert u.solarize.mean() == pytest.approx(0.2, abs=0.03)
    assert vicreg_second() == DataConfig().a2


def test_nothing_is_drawn_for_what_is_off():
    cfg = DataConfig().plain()
    for view, aug in zip(view_params(cfg, DRAWS, SIZES), (cfg.a1, cfg.a2), strict=True):
        assert view.color is view.sigma is view.solarize is None
        assert not pixels(view, SIZES)[1].any()
        assert aug.area == Augment().area
    again, _ = view_params(DataConfig(), DRAWS, SIZES)
    assert not np.array_equal(again.start, view.start)


def test_a_sample_does_not_depend_on_its_batch():
    whole = view_params(DataConfig(), DRAWS, SIZES)
    rows = np.array([5, 700, 3])
    part = view_params(DataConfig(), Draws.of(3, 1, rows), SIZES[rows])
    for ours, expected in zip(part, whole, strict=True):
        for f in fields(ours):
            if getattr(expected, f.name) is not None:
                np.testing.assert_array_equal(
                    getattr(ours, f.name), getattr(expected, f.name)[rows]
                )


def test_2048_samples_take_milliseconds():
    draws, sizes = Draws.of(0, 0, np.arange(2048)), np.full((2048, 2), 400)
    view_params(DataConfig(), draws, sizes)
    start = time.process_time()
    for _ in range(5):
        view_params(DataConfig(), draws, sizes)
    assert (time.process_time() - start) / 5 < 0.05  # measured: 3.6 ms


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augment(flip=1.5), "flip: expected a probability, got 1.5"),
        (lambda: Augment(area=(0.5, 0.2)), "area: expected 0 < low <= high <= 1"),
        (lambda: Augment(area=(0.5, 2.0)), "area: expected"),
        (lambda: Augment(aspect=(0, 1)), "aspect: expected"),
        (lambda: Augment(side=(0.3, 0.2)), "side: expected"),
        (lambda: Augment(hue=-1), "hue: expected"),
        (lambda: Augment(sigma=(1, math.inf)), "sigma: expected"),
        (lambda: DataConfig(batch_size=0), "batch_size: expected at least 1, got 0"),
        (lambda: DataConfig(source_size=200), "source_size: expected at least image_size=224"),
        (lambda: DataConfig(image_size=32, source_size=47, shared_crop=True), "even margin"),
        (lambda: DataConfig(batch_size=9, samples_per_decode=2), "multiple of samples_per_decode"),
        (lambda: DataConfig(num_threads=-1), "num_threads: expected"),
        (lambda: DataConfig(std=(1, 0, 1)), "std: expected positive"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
