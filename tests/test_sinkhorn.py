"""Sinkhorn-Knopp by the official listing, and the log-sum-exps it is made of."""

import pytest
import torch

from fastequi.kernels import backend as backends
from fastequi.kernels.sinkhorn import column_lse, row_lse, sinkhorn
from tests.support.dino import logits, official_sinkhorn


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    with backends.force(request.param):
        yield request.param


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize(("rows", "width"), [(6, 40), (33, 300)])
def test_sinkhorn_equals_the_official_one(backend, device, iterations, rows, width):
    teacher = logits((rows, width), 0.3).to(device)
    row, column = sinkhorn(teacher, 0.06, iterations)
    ours = torch.exp((teacher.double() - column - row[:, None]) / 0.06)
    expected = official_sinkhorn(teacher.double(), 0.06, iterations)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ours.sum(1), torch.ones_like(row).double(), rtol=1e-5, atol=0)


def test_log_sums_are_logsumexp_rows_without_end_included(backend, device):
    x = logits((5, 300), 20.0).to(device)
    x[1, :] = -torch.inf
    x[2, 7:] = -torch.inf
    torch.testing.assert_close(row_lse(x, 0.5), 0.5 * torch.logsumexp(x / 0.5, -1))
    row = logits((5,), seed=4).to(device)
    expected = 0.5 * torch.logsumexp((x - row[:, None]) / 0.5, 0)
    torch.testing.assert_close(column_lse(x, 0.5, row), expected)


def test_prototypes_masked_by_a_number_are_balanced_too(backend, device):
    """Their column's number cancels the logits; what float32 has no digits for is missing: how
    many rows there are. In float64 they would have a fortieth of all, as the others."""
    teacher = logits((6, 40), 0.3).to(device)
    teacher[:, :7] = -1e9
    row, column = sinkhorn(teacher, 0.06, 3)
    ours = torch.exp((teacher - column - row[:, None]) / 0.06)
    torch.testing.assert_close(ours.sum(1), torch.ones_like(row), rtol=1e-4, atol=0)
    share = ours.mean(0) * 40
    assert share[:7].min() > 0.05
    assert share[7:].min() > 0.9
    assert share.max() < 1.5
