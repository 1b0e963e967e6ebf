"""J, F and their statistics: by loops, by hand, and as the official evaluation computes them."""

import math

import numpy as np
import pytest
import torch

from fastequi.evaluate.geometry.region_contour import (
    contour,
    contour_accuracy,
    dilated,
    region_similarity,
    statistics,
)


def discs(height, width, *discs):
    y, x = np.mgrid[:height, :width]
    found = np.zeros((height, width), bool)
    for i, j, radius in discs:
        found |= (y - i) ** 2 + (x - j) ** 2 <= radius**2
    return torch.from_numpy(found)


def noise(*shape, seed=0, share=0.5):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def test_region_similarity_is_the_intersection_over_the_union():
    truth = torch.zeros(3, 4, 5, dtype=torch.bool)
    found = truth.clone()
    truth[0, 1:3, 1:4] = True  # 6 pixels
    found[0, 1:4, 2:5] = True  # 9, of which 4 are common
    truth[1, 0, 0] = True
    expected = [4 / 11, 0.0, 1.0]  # the last: both empty
    assert region_similarity(truth, found).tolist() == expected


def test_contour_is_where_the_next_pixels_differ():
    for mask in (noise(7, 9), noise(1, 6), noise(5, 1), torch.ones(4, 4, dtype=torch.bool)):
        height, width = mask.shape
        found = contour(mask)
        for i in range(height):
            for j in range(width):
                others = [(i, j + 1), (i + 1, j), (i + 1, j + 1)]
                if i == height - 1:
                    others = [(i, j + 1)]
                elif j == width - 1:
                    others = [(i + 1, j)]
                inside = [(a, b) for a, b in others if a < height and b < width]
                assert found[i, j] == any(mask[i, j] != mask[a, b] for a, b in inside), (i, j)


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5])
def test_dilated_is_within_a_distance(radius):
    for mask in (noise(12, 15, share=0.04), noise(3, 20, seed=1, share=0.1)):
        points = mask.nonzero()
        found = dilated(mask, radius)
        for i in range(mask.shape[0]):
            for j in range(mask.shape[1]):
                squares = (points - torch.tensor([i, j])).square().sum(1)
                assert found[i, j] == bool((squares <= radius**2).any()), (i, j)


def test_contour_accuracy_by_loops():
    truth = discs(60, 80, (30, 35, 14))
    found = discs(60, 80, (31, 38, 13), (10, 70, 4))
    reach = math.ceil(0.008 * math.hypot(60, 80))
    points = [contour(mask).nonzero().double() for mask in (truth, found)]
    away = torch.cdist(points[1], points[0])
    precision = (away.amin(1) <= reach).double().mean().item()
    recall = (away.amin(0) <= reach).double().mean().item()
    assert 0.1 < recall < precision + recall < 1.9
    expected = 2 * precision * recall / (precision + recall)
    assert contour_accuracy(truth, found).item() == pytest.approx(expected, abs=1e-12)
    several = contour_accuracy(torch.stack([truth, truth]), torch.stack([found, truth]))
    assert several.tolist() == pytest.approx([expected, 1.0], abs=1e-12)


def test_contour_accuracy_of_nothing():
    nothing, disc = discs(20, 20), discs(20, 20, (10, 10, 4))
    full = ~nothing  # has no contour, as what differs lies outside
    assert contour_accuracy(nothing, nothing).item() == 1
    assert contour_accuracy(disc, nothing).item() == 0
    assert contour_accuracy(nothing, disc).item() == 0
    assert contour_accuracy(nothing, full).item() == 1


def test_statistics_of_a_clip_by_hand():
    values = [1.0, 0.9, 0.8, 0.5, 0.6, 0.3, 0.2, 0.1]
    mean, recall, decay = statistics(values)
    assert mean == pytest.approx(4.4 / 8)
    assert recall == 4 / 8  # above one half, so not the fourth
    # quarters end at frames 1, 2.75, 4.5, 6.25, 8, rounded to 1, 3, 5, 6, 8 (halves up)
    assert decay == pytest.approx((1.0 + 0.9 + 0.8) / 3 - (0.3 + 0.2 + 0.1) / 3)
    assert statistics([0.7]) == pytest.approx((0.7, 1.0, 0.0))
    assert statistics(np.linspace(1, 0, 300))[2] == pytest.approx(0.75, abs=0.01)


def moving_discs(height=60, width=90, frames=6):
    """[T, H, W] twice: a disc, and one that stays behind, shrinks, and has more and more dots."""
    t, y, x = np.mgrid[:frames, :height, :width]
    truth = (y - 28 - t) ** 2 + (x - 30 - 5 * t) ** 2 <= 14**2
    found = (y - 28) ** 2 + (x - 29 - 3 * t) ** 2 <= (15 - t) ** 2
    found |= (7 * y + 13 * x + 5 * t) % 97 < t // 2
    return torch.from_numpy(truth), torch.from_numpy(found)


def test_figures_are_those_of_the_official_evaluation():
    """What davis2017-evaluation (ac7c43f, with OpenCV and scikit-image) gives for these masks."""
    masks = moving_discs()
    region, contours = region_similarity(*masks), contour_accuracy(*masks)
    assert region.tolist() == pytest.approx(
        [
            *(0.8645980253878702, 0.7464387464387464, 0.5533854166666666),
            *(0.4252577319587629, 0.298932384341637, 0.2107728337236534),
        ]
    )
    assert contours.tolist() == pytest.approx(
        [
            *(0.7, 0.33620689655172414, 0.12630117973629423),
            *(0.09016609543896653, 0.09610347960874446, 0.1151315789473684),
        ]
    )
    official = 0.5165641897528893, 0.5, 0.5506657768806632
    assert statistics(region) == pytest.approx(official)
    official = 0.24398487171384964, 0.16666666666666666, 0.4124859189978056
    assert statistics(contours) == pytest.approx(official)


def test_figures_of_480p_are_those_of_the_official_evaluation():
    y, x = np.mgrid[:480, :854]
    disc = torch.from_numpy((y - 240) ** 2 + (x - 400) ** 2 <= 120**2)
    square = torch.from_numpy((abs(y - 245) <= 106) & (abs(x - 406) <= 106))
    assert region_similarity(disc, square).item() == pytest.approx(0.8259397359669455)
    assert contour_accuracy(disc, square).item() == pytest.approx(0.47197558268590456)
