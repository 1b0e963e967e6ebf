import pytest
import torch
import torch.nn.functional as F

from fastequi.losses.vicreg import VICRegLoss, covariance


def official(x, y):
    """The formula of the paper's code, written out (facebookresearch/vicreg, main_vicreg.py)."""
    repr_loss = F.mse_loss(x, y)
    x, y = x - x.mean(0), y - y.mean(0)
    std_loss = sum(F.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean() / 2 for z in (x, y))
    cov_loss = 0
    for z in (x, y):
        cov = (z.T @ z) / (len(z) - 1)
        cov_loss = cov_loss + (cov - torch.diag(cov.diagonal())).pow(2).sum() / z.shape[1]
    return 25 * repr_loss + 25 * std_loss + cov_loss


@pytest.mark.parametrize(("n", "dim"), [(32, 8), (8, 32), (2, 3)])
def test_equals_the_official_formula_in_value_and_gradient(n, dim):
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(n, dim, generator=generator).requires_grad_() for _ in range(2)]
    theirs = [z.detach().double().requires_grad_() for z in ours]
    loss, expected = VICRegLoss()(*ours)["loss"], official(*theirs)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for z, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(z.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)


def test_weights_scale_their_terms():
    z1, z2 = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(1))
    out = VICRegLoss(10, 5, 2)(z1, z2)
    torch.testing.assert_close(out["loss"], 10 * out["inv"] + 5 * out["var"] + 2 * out["cov"])


def test_both_gram_forms_agree():
    z = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wide = torch.cat([z, z.new_zeros(12, 1)], 1)  # N < D takes the other Gram matrix
    torch.testing.assert_close(covariance(z), covariance(wide) * 13 / 12)


def test_identical_rows_give_finite_gradients():
    z = torch.ones(8, 4, requires_grad=True)
    VICRegLoss()(z, z)["loss"].backward()
    assert z.grad.isfinite().all()


def test_stays_in_float32_under_autocast():
    z1, z2 = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = VICRegLoss()(z1.bfloat16(), z2.bfloat16())
    assert out["loss"].dtype == torch.float32


def test_refuses_one_image_and_other_shapes():
    with pytest.raises(ValueError, match="at least 2 images"):
        VICRegLoss()(torch.zeros(1, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"z1, z2.*\(4, 4\) and \(4, 5\)"):
        VICRegLoss()(torch.zeros(4, 4), torch.zeros(4, 5))
