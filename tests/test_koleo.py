"""KoLeo against DINOv2's form, written out, in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastequi.functional import koleo_loss
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


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="z: KoLeo needs at least 2 rows, got 1"):
        koleo_loss(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"z: expected \[N, D\]"):
        koleo_loss(torch.zeros(4))
