"""Block-wise masks: bounded, reproducible, no sample's depends on its batch."""

import numpy as np
import pytest
import torch

from fastequi.data.views.batch import Masks
from fastequi.data.views.masks import block_masks
from fastequi.philox import Draws

DRAWS = Draws.of(3, 1, np.arange(2000))


def test_half_of_the_views_are_masked_within_the_ratio():
    mask = block_masks(DRAWS, 14, 0.5, (0.1, 0.5), "v1")
    share = mask.mean(1)
    masked = share > 0
    assert abs(masked.mean() - 0.5) < 0.04
    assert share.max() <= 0.5
    # uniform in .1 .. .5, of which the rectangles reach nearly all
    assert 0.25 < share[masked].mean() <= 0.31
    assert share[masked].min() > 0.03
    assert mask.any(0).all()  # corners too, if more rarely than the middle
    assert mask.mean(0).max() < 0.3


def test_masks_are_blocks():
    """A masked patch has on average far more masked neighbours than scattered ones would."""
    mask = block_masks(DRAWS, 14, 1.0, (0.3, 0.3), "v1").reshape(-1, 14, 14)
    right = (mask[:, :, 1:] & mask[:, :, :-1]).sum() / mask[:, :, :-1].sum()
    assert right > 0.6
    assert mask.mean() < 0.31


def test_a_samples_masks_do_not_depend_on_its_batch():
    whole = block_masks(DRAWS, 6, 0.5, (0.1, 0.5), "v1")
    part = block_masks(Draws.of(3, 1, [17, 4]), 6, 0.5, (0.1, 0.5), "v1")
    assert np.array_equal(part, whole[[17, 4]])
    assert not np.array_equal(whole, block_masks(DRAWS, 6, 0.5, (0.1, 0.5), "u"))


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 37])
def test_small_and_odd_grids(grid):
    mask = block_masks(DRAWS, grid, 1.0, (0.5, 0.9), "v1")
    assert mask.shape == (2000, grid * grid)
    assert mask.sum(1).max() <= 0.9 * grid * grid
    if grid > 2:
        assert mask.any(1).mean() > 0.9


def test_weights_are_the_mean_per_view_then_over_views():
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    mask[0, 1, :2] = True
    mask[1, 2, 4] = True
    masks = Masks.of(mask)
    assert masks.index.tolist() == [5, 6, 29]
    torch.testing.assert_close(masks.weight, torch.tensor([1 / 12, 1 / 12, 1 / 6]))
    assert Masks.of(torch.zeros_like(mask)).index.shape == (0,)
