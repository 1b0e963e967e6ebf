"""Rows of unit length against F.normalize in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastequi.kernels import backend as backends
from fastequi.kernels import unit_rows as kernel
from fastequi.kernels.unit_rows import unit_rows, unit_rows_grad
from tests.support.tolerances import GRAD


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    with backends.force(request.param):
        yield request.param


def rows(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def of_layout(name, dtype):
    """[2, 3, 7, 20], of which some rows are views."""
    if name == "dense":
        return rows(2, 3, 7, 20, dtype=dtype)
    if name == "tokens":  # without the first, as class tokens are left out
        return rows(2, 3, 8, 20, dtype=dtype)[:, :, 1:]
    if name == "maps":  # channels apart
        return rows(2, 3, 20, 7, dtype=dtype).mT
    return rows(7, 3, 2, 20, dtype=dtype).transpose(0, 2)


@pytest.mark.parametrize("layout", ["dense", "tokens", "maps", "turned"])
@pytest.mark.parametrize(
    ("dtype", "out"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_equals_normalize_in_value_and_gradient(backend, device, layout, dtype, out):
    x = of_layout(layout, dtype).to(device).requires_grad_()
    by_unit = rows(2, 3, 7, 20, seed=1).to(device, out)
    unit = unit_rows(x, out)
    (grad,) = torch.autograd.grad(unit, x, by_unit)
    exact = x.detach().double().requires_grad_()
    wanted = F.normalize(exact, dim=-1)
    (wanted_grad,) = torch.autograd.grad(wanted, exact, by_unit.double())
    assert (unit.dtype, grad.dtype) == (out, dtype)
    tolerance = {torch.bfloat16: 4e-3, torch.float64: 1e-14}.get(out, 2e-7)
    torch.testing.assert_close(unit.double(), wanted, rtol=tolerance, atol=0)
    assert (grad.double() - wanted_grad).norm() <= GRAD[dtype] * wanted_grad.norm()


@pytest.mark.parametrize("width", [1, 16, 100, 5000, 9000])
def test_rows_of_any_width_and_number(backend, device, width):
    x = rows(5, width).to(device).requires_grad_()
    by_unit = rows(5, width, seed=1).to(device)
    unit, wanted = unit_rows(x, x.dtype), F.normalize(x.double(), dim=-1)
    torch.testing.assert_close(unit.double(), wanted, rtol=1e-6, atol=0)
    grads = [torch.autograd.grad(u, x, by_unit.to(u.dtype))[0] for u in (unit, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


def test_short_rows_are_divided_by_eps_and_nan_stays(backend, device):
    x = rows(4, 8).to(device)
    x[1], x[2], x[3, 0] = 0, x[2] * 1e-6, float("nan")
    x.requires_grad_()
    unit, wanted = unit_rows(x, x.dtype, 1e-2), F.normalize(x, dim=-1, eps=1e-2)
    torch.testing.assert_close(unit, wanted, equal_nan=True)
    by_unit = rows(4, 8, seed=1).to(device)
    grads = [torch.autograd.grad(u, x, by_unit)[0] for u in (unit, wanted)]
    torch.testing.assert_close(grads[0][:3], grads[1][:3])
    assert grads[0][3].isnan().all()


def test_a_factor_and_a_scale_are_taken_along(backend, device):
    x, by_unit = rows(6, 9, dtype=torch.float16).to(device), 1e-6 * rows(6, 9, seed=1).to(device)
    factor = torch.tensor(2.0**16, device=device)  # beyond float16, as a loss scale
    wanted = unit_rows_grad(x.double(), by_unit.double() * 3 * 2**16)
    got = unit_rows_grad(x, by_unit, factor, 3.0)
    assert got.dtype == torch.float16
    assert (got.double() - wanted).norm() <= GRAD[torch.float16] * wanted.norm()


def test_gradients_of_gradients_and_batches_of_them(backend, device):
    x = rows(3, 5).to(device).requires_grad_()
    by_unit = rows(3, 5, seed=1).to(device)

    def twice(normalised):
        (first,) = torch.autograd.grad(normalised, x, by_unit, create_graph=True)
        return first.detach(), torch.autograd.grad(first.square().sum(), x)[0]

    for got, wanted in zip(
        twice(unit_rows(x, x.dtype)), twice(F.normalize(x, dim=-1)), strict=True
    ):
        torch.testing.assert_close(got, wanted)
    batch = torch.stack([by_unit, 2 * by_unit])
    (each,) = torch.autograd.grad(unit_rows(x, x.dtype), x, batch, is_grads_batched=True)
    (wanted,) = torch.autograd.grad(F.normalize(x, dim=-1), x, batch, is_grads_batched=True)
    torch.testing.assert_close(each, wanted)


def test_operators_and_no_rows(backend, device):
    x, by_unit = rows(4, 6).to(device), rows(4, 6, seed=1).to(device)
    torch.library.opcheck(kernel.unit_rows_op.op, (x, torch.bfloat16, 1e-12))
    factor = torch.ones((), device=device)
    torch.library.opcheck(kernel.unit_rows_grad_op.op, (x, by_unit, factor, 2.0, 1e-12))
    assert unit_rows(x[:0], x.dtype).shape == (0, 6)
