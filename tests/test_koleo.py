"""KoLeo against DINOv2's form, written out, in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastequi.functional import koleo_loss
from fastequi.kernels import backend as backends
from fastequi.kernels import koleo
from fastequi.kernels.koleo import nearest


def official(z, eps=1e-8):
    """facebookresearch/dinov2, KoLeoLoss."""
    z = F.normalize(z, eps=eps, p=2, dim=-1)
    dots = z @ z.T
    dots.view(-1)[:: (len(z) + 1)].fill_(-1)
    neighbour = dots.argmax(1)
    return -torch.log(torch.nn.PairwiseDistance(2, eps=eps)(z, z[neighbour]) + eps).mean()


@pytest.mark.parametrize(("n", "dim"), [(2, 3), (33, 16), (100, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_official_loss_in_value_and_gradient(backend, device, n, dim, dtype):
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(n)).to(device, dtype)
    ours, exact = z.clone().requires_grad_(), z.double().requires_grad_()
    loss, expected = koleo_loss(ours), official(exact)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    error = (ours.grad - exact.grad).norm() / exact.grad.norm()
    assert error <= 1e-4, error


def test_the_nearest_leaves_out_oneself_and_takes_the_first_of_equals(backend, device):
    z = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]], device=device).repeat(1, 8)
    ids = torch.arange(4, device=device)
    assert nearest(z, z, ids).tolist() == [1, 0, 0, 0]
    assert nearest(z[2:], z, ids[2:]).tolist() == [0, 0]


def test_identical_and_zero_rows_stay_finite(backend, device):
    for z in (torch.ones(5, 4), torch.zeros(5, 4)):
        leaf = z.to(device).requires_grad_()
        loss = koleo_loss(leaf)
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad.isfinite().all()


def test_gradients_of_gradients_and_batches_of_them(backend, device):
    z = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    if backend == "native":
        pytest.skip("refused by name: tests/test_derivatives.py")

    def twice(loss):
        (first,) = torch.autograd.grad(loss, z, create_graph=True)
        return first.detach(), torch.autograd.grad(first.square().sum(), z)[0]

    for got, wanted in zip(twice(koleo_loss(z)), twice(official(z)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    factors = torch.tensor([1.0, 3.0], device=device)
    (each,) = torch.autograd.grad(koleo_loss(z), z, factors, is_grads_batched=True)
    (one,) = torch.autograd.grad(koleo_loss(z), z)
    torch.testing.assert_close(each, torch.stack([one, 3 * one]))


def test_operator_and_graph(device):
    torch._dynamo.reset()
    z = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    with backends.force("triton"):
        unit = koleo.unit_rows(z.detach(), 1e-8)
        neighbour = nearest(unit, unit, torch.arange(9, device=device))
        torch.library.opcheck(koleo.distances_op.op, (unit, neighbour, 1e-8, True))
        compiled = torch.compile(koleo_loss, fullgraph=True, backend="aot_eager")
        grads = [torch.autograd.grad(loss(z), z)[0] for loss in (compiled, koleo_loss)]
    torch.testing.assert_close(*grads)


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="z: KoLeo needs at least 2 rows, got 1"):
        koleo_loss(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"z: expected \[N, D\]"):
        koleo_loss(torch.zeros(4))
