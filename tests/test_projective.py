"""Homographies through four points and by RANSAC, against linear systems and brute force."""

from itertools import combinations

import numpy as np
import torch

from fastequi.evaluate.geometry.projective import (
    between_corners,
    corners,
    distances,
    fitted,
    moved,
    ransac,
    through_four,
)


def solved(source, target):
    """The 8x8 linear system of four matches with h33 = 1."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source.tolist(), target.tolist(), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(rows, values), 1).reshape(3, 3)


def fours(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.rand(count, 2, 4, 2, generator=generator, dtype=torch.float64) * 60 - 30
    both = corners(128, 160) + offsets
    return both[:, 0], both[:, 1]


def test_four_points_go_exactly_to_four_others():
    source, target = fours(20)
    found = through_four(source, target)
    torch.testing.assert_close(moved(source, found), target, rtol=0, atol=1e-9)
    for each, a, b in zip(found, source, target, strict=True):
        expected = solved(a, b)
        np.testing.assert_allclose((each / each[2, 2]).numpy(), expected, rtol=1e-8, atol=1e-10)


def test_through_four_and_least_squares_agree_on_four():
    source, target = fours(5, seed=1)
    inside = torch.rand(30, 2, generator=torch.Generator().manual_seed(2)).double() * 100
    a, b = (moved(inside, h) for h in (through_four(source, target), fitted(source, target)))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_between_corners_moves_each_corner_by_its_offset():
    offsets = torch.rand(7, 4, 2, generator=torch.Generator().manual_seed(3)).double() * 16 - 8
    found = between_corners(offsets, (32, 48))
    torch.testing.assert_close(moved(corners(32, 48), found) - corners(32, 48), offsets)


def test_three_points_on_a_line_give_no_match_to_agree_with():
    """The fit is useless, not an error, and RANSAC passes it over."""
    line = torch.tensor([[0.0, 0], [1, 1], [2, 2], [5, 0]]).double()
    assert not torch.allclose(moved(line, through_four(line, corners(4, 4))), corners(4, 4))


def noisy(outliers, count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = between_corners(
        torch.rand(1, 4, 2, generator=generator).double() * 40 - 20, (128, 128)
    )[0]
    source = torch.rand(count, 2, generator=generator).double() * 128
    target = moved(source, truth) + 0.2 * torch.randn(count, 2, generator=generator).double()
    target[:outliers] = torch.rand(outliers, 2, generator=generator).double() * 128
    return source, target, truth


def test_ransac_finds_the_homography_among_outliers():
    source, target, truth = noisy(outliers=36)
    found, agree = ransac(source, target, 2.0)
    assert agree[36:].all()
    assert agree[:36].sum() <= 2
    assert distances(found, truth, corners(128, 128)) < 1
    plain = fitted(source, target)
    assert not distances(plain, truth, corners(128, 128)) < 10


def test_ransac_is_no_worse_than_any_set_of_four():
    """Of nine matches every set of four is tried by hand."""
    for seed in range(5):
        source, target, _ = noisy(outliers=4, count=9, seed=seed)
        costs = []
        for chosen in combinations(range(9), 4):
            tried = solved(source[list(chosen)], target[list(chosen)])
            u, v = (source.numpy() @ tried[:2, :2].T + tried[:2, 2]).T
            w = source.numpy() @ tried[2, :2] + 1
            away = np.hypot(u / w - target[:, 0].numpy(), v / w - target[:, 1].numpy())
            costs.append(np.where(w > 0, away**2, np.inf).clip(max=1).sum())
        found, agree = ransac(source, target, 1.0, draws=2000)
        away = (moved(source, found) - target).norm(dim=1)
        assert torch.equal(agree, away <= 1)
        assert float(away.square().nan_to_num(torch.inf).clamp(max=1).sum()) <= min(costs) + 1e-4


def test_fewer_than_four_matches_have_no_homography():
    found, agree = ransac(torch.rand(3, 2), torch.rand(3, 2), 1.0)
    assert found.isnan().all()
    assert not agree.any()
    found, agree = ransac(torch.zeros(0, 2), torch.zeros(0, 2), 1.0)
    assert found.isnan().all()
    assert len(agree) == 0


def test_distances_are_means_and_nan_beyond_the_horizon():
    still, shift = torch.eye(3).double(), torch.eye(3).double()
    shift[0, 2], shift[1, 2] = 3, 4
    assert distances(still, shift, corners(10, 20)) == 5
    beyond = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]]).double()
    assert distances(beyond, still, corners(10, 20)).isnan()
