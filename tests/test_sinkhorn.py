"""Sinkhorn-Knopp by the official listing, and the log-sum-exps it is made of."""

import pytest
import torch

from fastequi.kernels import backend as backends
from fastequi.kernels import sinkhorn as kernel
from fastequi.kernels.sinkhorn import balanced, column_lse, row_lse, sinkhorn
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


def test_rows_sum_to_one_whatever_number_all_logits_have_in_common(backend, device):
    x = (logits((64, 32)) + 1e4).to(device)
    row, column = sinkhorn(x, 0.04, 3)
    sums = torch.exp((x - column - row[:, None]) / 0.04).sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("spread", "known"), [(1.0, True), (5.0, True), (300.0, False)])
@pytest.mark.parametrize("some", [False, True])
def test_products_of_powers_are_the_log_sums(dtype, spread, known, some):
    """In PyTorch on a CPU, rows left out too, whatever their values; and where powers end."""
    x = logits((20, 90), spread).to(dtype)
    weight = (torch.arange(20) % 3).float() if some else None
    if some:
        x[3] = torch.nan
    wide = x.double()
    with backends.force("torch"):
        found = kernel._by_products(x, 0.06, 3, weight)
        assert (found is not None) == known
        row, column = sinkhorn(x, 0.06, 3, weight=weight)
        expected = balanced(
            lambda row: column_lse(wide, 0.06, row),
            lambda column: row_lse(wide, 0.06, column),
            torch.zeros(20).double(),
            3,
            weight=weight,
        )
    assert row.dtype == column.dtype == dtype
    near = {"rtol": 0, "atol": 1e-11}
    if dtype == torch.float32:
        near = {"rtol": 1e-5, "atol": 1e-6 if known else 1e-3}
    torch.testing.assert_close(row.double(), expected[0], **near)
    torch.testing.assert_close(column.double(), expected[1], **near)
