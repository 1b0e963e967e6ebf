"""Intervals hold what they say they hold, over photographs and not over their windows."""

from pathlib import Path

import pytest
import torch

from fastequi.evaluate import intervals
from fastequi.evaluate.intervals import middle95, resampled_mean, resampled_r2
from fastequi.evaluate.probes import r2


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_draw_is_the_r2_of_the_pairs_drawn():
    """With weights for counts: as repeating the pairs of each photograph and computing R²."""
    pred, target = torch.randn(3, 40, 2, generator=rng()), torch.randn(40, 2, generator=rng(1))
    groups = torch.arange(40) // 8 + 7
    drawn = resampled_r2(pred, target, groups, draws=5, seed=3)
    picked = torch.randint(5, (5, 5), generator=rng(3))
    for scores, photographs in zip(drawn, picked, strict=True):
        rows = torch.cat([torch.arange(8) + 8 * photograph for photograph in photographs])
        torch.testing.assert_close(scores, r2(pred[:, rows], target[rows]).mean(0))


def test_the_interval_holds_the_score_and_narrows_with_pairs():
    widths = []
    for n in (200, 5000):
        target = torch.randn(n, 1, generator=rng())
        pred = target + 0.5 * torch.randn(n, 1, generator=rng(1))
        low, high = middle95(resampled_r2(pred, target))
        assert low < r2(pred, target) < high
        widths.append((high - low).item())
    assert widths[1] < 0.4 * widths[0]


@pytest.mark.parametrize("grouped", [False, True])
def test_it_covers_as_often_as_it_says_only_if_photographs_are_drawn(grouped):
    """Windows of a photograph share its difficulty: their own interval covers far too seldom."""
    covered, g = 0, rng()
    for _ in range(200):
        groups = torch.arange(40).repeat_interleave(50)
        values = torch.randn(40, generator=g)[groups] + torch.randn(2000, generator=g)
        low, high = middle95(resampled_mean(values, groups if grouped else None, 200))
        covered += bool(low < 0 < high)
    assert (0.87 < covered / 200 < 0.99) if grouped else covered / 200 < 0.5


@pytest.mark.slow(every=2)
@pytest.mark.parametrize(("photographs", "covered"), [(5, 0.84), (9, 0.90), (20, 0.93)])
def test_of_few_photographs_it_covers_as_seldom_as_its_documentation_says(photographs, covered):
    found, g = 0, rng()
    groups = torch.arange(photographs).repeat_interleave(20)
    for _ in range(2000):
        shared = torch.randn(photographs, generator=g)[groups]
        low, high = middle95(
            resampled_mean(shared + torch.randn(len(groups), generator=g), groups, 500)
        )
        found += bool(low < 0 < high)
    assert found / 2000 == pytest.approx(covered, abs=0.015)
    for file in ("intervals.py", "README.md"):
        said = (Path(intervals.__file__).parent / file).read_text()
        assert f"{covered:.0%}".replace("%", " %") in said


def test_of_one_photograph_its_pairs_are_drawn():
    values = torch.randn(100, generator=rng())
    one, none = (resampled_mean(values, groups) for groups in (torch.full((100,), 3), None))
    assert torch.equal(one, none)
    low, high = middle95(one)
    assert low < values.mean() < high
