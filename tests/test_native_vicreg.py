"""VICReg's passes over columns in C, of any size, on every instruction set."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastequi.functional import vicreg_loss
from fastequi.kernels import native_vicreg, toolchain
from fastequi.kernels.vicreg import EPS
from tests.support.native import (
    NEEDS_C,
    expect_the_same_bits_of_any_threads,
    instruction_set,
)

pytestmark = NEEDS_C
SLOPES = 0.3, -0.7, 1e-3


def views(n, dim, seed=0, gap=0):
    """Rows with `gap` values between them, of spreads on both sides of the hinge."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.1, 2, dim)
    z = 3 + scale * torch.randn(2, n, dim, generator=generator)
    return torch.cat([z, z.new_full((2, n, gap), math.nan)], -1)[..., :dim].unbind(0)


def by_hand(z1, z2):
    """In float64: what is centred, the gradient but for the product, three sums."""
    z1, z2 = z1.double(), z2.double()
    centred = torch.stack([z1 - z1.mean(0), z2 - z2.mean(0)])
    squares = centred.square().sum(1)
    std = (squares / (len(z1) - 1) + EPS).sqrt()
    coef = torch.where(std < 1, SLOPES[1] / std, 0) - SLOPES[2] * squares
    pull = SLOPES[0] * (z1 - z2)
    grad = centred * coef[:, None] + torch.stack([pull, -pull])
    sums = (z1 - z2).square().sum(), torch.relu(1 - std).sum(), squares.square().sum()
    return centred, grad, torch.stack(sums)


def check(z1, z2):
    for found, wanted in zip(
        native_vicreg.columns(z1, z2, SLOPES, True), by_hand(z1, z2), strict=True
    ):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5 * scale)


@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
@pytest.mark.parametrize(("n", "dim"), [(2, 1), (9, 15), (64, 16), (130, 33), (70, 1100)])
def test_every_instruction_set(isa, n, dim, monkeypatch):
    with instruction_set(isa, monkeypatch):
        check(*views(n, dim))


@given(st.integers(2, 150), st.integers(1, 70), st.integers(0, 9), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_size(n, dim, gap, seed):
    check(*views(n, dim, seed, gap))


def test_the_same_bits_of_any_threads():
    z1, z2 = views(70, 1103)
    expect_the_same_bits_of_any_threads(lambda: native_vicreg.columns(z1, z2, SLOPES, True))


def test_many_rows_far_from_zero_keep_their_spread():
    """Sums of 200,000 rows: a float32 that adds one after the other is off by a per cent."""
    z = 1000 + torch.randn(200_000, 3, generator=torch.Generator().manual_seed(1))
    centred, _, sums = native_vicreg.columns(z, z + 1, SLOPES, False)
    assert centred.double().mean((1,)).abs().max() < 1e-3
    expected = by_hand(z, z + 1)[2]
    torch.testing.assert_close(sums[2], expected[2], rtol=1e-4, atol=0)


@pytest.mark.parametrize("wild", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(wild):
    z1, z2 = (z.clone() for z in views(8, 40))
    z1[3, 7] = wild
    centred, grad, sums = native_vicreg.columns(z1, z2, SLOPES, True)
    assert sums[1].isnan()
    assert not grad[0, :, 7].isfinite().any()
    assert centred[1].isfinite().all()


def test_without_a_gradient_none_is_made():
    assert native_vicreg.columns(*views(8, 40), SLOPES, False)[1].numel() == 0


def whole(z1, z2, grad=True):
    """(what is added to the gradient by the products, all sums), of few rows in one call."""
    found = native_vicreg.prepared_whole(z1, z2, SLOPES, grad)(z1, z2)
    assert native_vicreg.few(2, len(z1), *z1.shape)
    return found


def check_whole(z1, z2):
    centred, grad, sums = by_hand(z1, z2)
    gram = centred @ centred.mT
    wanted = grad + SLOPES[2] * gram @ centred, torch.cat([sums, gram.square().sum()[None]])
    for found, right in zip(whole(z1, z2), wanted, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=3e-5, atol=3e-5 * right.abs().max())


@given(st.integers(2, 40), st.integers(1, 70), st.integers(0, 9), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_fuzz_few_rows_in_one_call(n, dim, gap, seed):
    check_whole(*views(n, dim, seed, gap))


@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
@pytest.mark.parametrize(("n", "dim"), [(2, 1), (9, 15), (64, 16), (16, 1100)])
def test_every_instruction_set_of_few_rows(isa, n, dim, monkeypatch):
    with instruction_set(isa, monkeypatch):
        check_whole(*views(n, dim))


def test_of_few_rows_the_number_of_threads_does_not_change_a_bit():
    z1, z2 = views(40, 300)
    expect_the_same_bits_of_any_threads(lambda: whole(z1, z2))
    assert torch.equal(whole(z1, z2, False)[1], whole(z1, z2)[1])
    assert whole(z1, z2, False)[0].numel() == 0
    assert native_vicreg.prepared_whole(*views(300, 300), SLOPES, True) is None


def test_of_few_rows_what_is_beyond_float32_is_infinite():
    z1, z2 = (1e12 * torch.randn(8, 16) for _ in range(2))
    for grad in (False, True):
        assert vicreg_loss(z1.requires_grad_(grad), z2) == math.inf
