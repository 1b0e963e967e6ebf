import pytest
import torch
import torch.nn.functional as F

from fastequi.functional import vicreg_loss
from fastequi.kernels import backend as backends
from fastequi.kernels import vicreg as kernel
from fastequi.losses.vicreg import VICRegLoss
from tests.support.allocations import sizes_of
from tests.support.tolerances import GRAD


@pytest.fixture(params=["torch", "triton", "native"])
def backend(request):
    with backends.force(request.param):
        yield request.param


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


@pytest.mark.parametrize(("n", "dim"), [(32, 8), (8, 32), (2, 3), (70, 45), (45, 70)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equals_the_official_formula_in_value_and_gradient(backend, device, n, dim, dtype):
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.1, 2, dim)  # spreads on both sides of the hinge
    views = [3 + scale * torch.randn(n, dim, generator=generator) for _ in range(2)]
    ours = [z.to(device, dtype).requires_grad_() for z in views]
    theirs = [z.detach().double().requires_grad_() for z in ours]
    loss, expected = vicreg_loss(*ours), official(*theirs)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    (3 * loss).backward()
    (3 * expected).backward()
    for z, reference in zip(ours, theirs, strict=True):
        assert z.grad.dtype == dtype
        error = (z.grad.double() - reference.grad).norm() / reference.grad.norm()
        assert error <= GRAD[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "dim"), [(512, 1024), (1024, 512), (700, 700)])
def test_squares_of_large_matrices_are_added_up_without_a_bias(backend, device, n, dim, dtype):
    """By one running sum in float32 the covariance term is 1e-5 too low here, 1e-3 of 2048²."""
    z1, z2 = (torch.randn(n, dim, device=device).to(dtype) for _ in range(2))
    weights = {"inv_weight": 0, "var_weight": 0, "cov_weight": 1}
    found = vicreg_loss(z1, z2, **weights).double()
    expected = vicreg_loss(z1.double(), z2.double(), **weights)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("n", "dim"), [(9, 6), (6, 9)])
def test_gradients_by_finite_differences(n, dim):
    views = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(5)).double()
    assert torch.autograd.gradcheck(vicreg_loss, [z.requires_grad_() for z in views])


def test_one_view_may_want_no_gradient_and_rows_may_have_gaps(backend, device):
    z = torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(6)).to(device)
    z1, z2 = z[0, :, ::2].requires_grad_(), z[1, :, :20]
    vicreg_loss(z1, z2).backward()
    exact = z1.detach().double().requires_grad_()
    official(exact, z2.double()).backward()
    torch.testing.assert_close(z1.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "dim"), [(8, 300), (300, 8)])
def test_only_the_smaller_matrix_is_formed(n, dim):
    z1, z2 = torch.randn(2, n, dim).unbind(0)
    z1.requires_grad_()
    largest = max(size for _, size in sizes_of(lambda: vicreg_loss(z1, z2).backward()))
    assert largest <= 2 * n * dim + 2


def test_operator(device):
    z1, z2 = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(7)).to(device)
    args = (z1.requires_grad_(), z2, 25.0, 25.0, 1.0, True)
    torch.library.opcheck(kernel.vicreg_op.op, args)


def test_compiles_to_one_graph():
    torch._dynamo.reset()
    z1, z2 = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(8)).unbind(0)
    compiled = torch.compile(vicreg_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z1, z2), vicreg_loss(z1, z2))


def test_weights_scale_their_terms():
    z1, z2 = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(1))
    criterion = VICRegLoss(10, 5, 2)
    loss, terms = criterion.with_terms(z1, z2)
    assert list(terms) == ["inv", "var", "cov"]
    torch.testing.assert_close(loss, 10 * terms["inv"] + 5 * terms["var"] + 2 * terms["cov"])
    assert torch.equal(criterion(z1, z2), loss)


def test_the_loss_and_its_terms_come_from_one_pass():
    z1, z2 = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(1))
    z1.requires_grad_()
    criterion = VICRegLoss()
    runs = [sizes_of(lambda f=f: f(z1, z2)) for f in (criterion, criterion.with_terms)]
    computed = [[name for name, _ in run if not name.startswith("aten.unbind")] for run in runs]
    assert computed[0] == computed[1]
    loss, terms = criterion.with_terms(z1, z2)
    assert loss.requires_grad
    assert not any(term.requires_grad for term in terms.values())


def test_reference_is_the_official_formula():
    z1, z2 = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(2)).double().unbind(0)
    torch.testing.assert_close(kernel.vicreg_loss_ref(z1, z2, 25, 25, 1)[0], official(z1, z2))


def test_identical_rows_give_finite_gradients(backend, device):
    z = torch.ones(8, 4, device=device, requires_grad=True)
    VICRegLoss()(z, z).backward()
    assert z.grad.isfinite().all()


def test_stays_in_float32_under_autocast():
    z1, z2 = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", torch.bfloat16):
        loss = VICRegLoss()(z1.bfloat16(), z2.bfloat16())
    assert loss.dtype == torch.float32


def test_refuses_one_image_and_other_shapes():
    with pytest.raises(ValueError, match="at least 2 images"):
        VICRegLoss()(torch.zeros(1, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"z1, z2.*\(4, 4\) and \(4, 5\)"):
        VICRegLoss()(torch.zeros(4, 4), torch.zeros(4, 5))
