"""The last linear with the path loss against the two of them one after the other."""

import pytest
import torch

from fastequi import linear_warp_recon_loss, warp_recon_loss
from fastequi.kernels import linear_warp_recon
from tests.support.tolerances import GRAD, LOSS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH = 4


def case(b=3, k=2, c=3, grid=(2, 3), dim=5, shared=False, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    values, tokens = PATCH * PATCH * c, grid[0] * grid[1]
    leading = () if shared else (k,)
    image = torch.randint(256, (b, c, 11, 9), generator=g, dtype=torch.uint8)
    theta = torch.eye(2, 3) + 0.4 * (torch.rand(b, k, 2, 3, generator=g) - 0.5)
    hidden = torch.randn(b, k, tokens, dim, generator=g).to(dtype)
    weight = (torch.randn(*leading, values, dim, generator=g) * 0.3).to(dtype)
    bias = torch.randn(*leading, values, generator=g).to(dtype)
    return [hidden, weight, bias], image, theta, (grid[0] * PATCH, grid[1] * PATCH)


def unfused(leaves, image, theta, size, **options):
    hidden, weight, bias = leaves
    shape = (theta.shape[1], *weight.shape[-2:])
    pred = torch.einsum("bkld,kpd->bklp", hidden, weight.expand(shape))
    if bias is not None:
        pred = pred + bias.expand(shape[:2])[:, None]
    return warp_recon_loss(
        pred, image, theta, layout="patch", patch_size=PATCH, size=size, **options
    )


def fused(leaves, image, theta, size, **options):
    return linear_warp_recon_loss(*leaves, image, theta, patch_size=PATCH, size=size, **options)


def check(leaves, image, theta, size, device, **options):
    """Value and gradients, times three so that a factor reaches the backward."""
    dtype = leaves[0].dtype
    image, theta = image.to(device), theta.to(device)
    leaves = [t if t is None else t.detach().clone().to(device) for t in leaves]
    ours = [t if t is None else t.requires_grad_() for t in leaves]
    exact = [t if t is None else t.detach().double().requires_grad_() for t in leaves]
    loss = fused(ours, image, theta, size, **options)
    (3 * loss).backward()
    expected = unfused(exact, image, theta.double(), size, **options)
    (3 * expected).backward()
    half = dtype.itemsize == 2  # the predictions are rounded, as F.linear rounds them
    torch.testing.assert_close(
        loss.double(), expected, rtol=1e-2 if half else 10 * LOSS[dtype], atol=0
    )
    for a, b in zip(ours, exact, strict=True):
        if a is not None:
            error = (a.grad.double() - b.grad).norm() / b.grad.norm()
            assert error < (3 if half else 1) * GRAD[dtype]


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_linear_then_loss(backend, device, loss, reduction, poisoned):
    check(*case(), device, loss=loss, reduction=reduction, mean=MEAN, std=STD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
def test_dtypes_and_a_weight_for_all_steps(backend, device, dtype, shared, poisoned):
    check(*case(dtype=dtype, shared=shared), device)


def test_options_reach_the_loss(backend, device):
    leaves, image, theta, size = case()
    color = torch.eye(3, 4).expand(3, 2, 3, 4) + 0.1
    options = {"padding_mode": "reflection", "align_corners": True}
    check(leaves, image, theta, size, device, color=color.to(device), **options)
    check(leaves, image, theta + 0.5, size, device, mask_outside=True)
    check([*leaves[:2], None], image, theta, size, device)


def test_chunks_do_not_show(device, monkeypatch):
    leaves, image, theta, size = case(b=5)
    whole = fused([t.to(device) for t in leaves], image.to(device), theta.to(device), size)
    monkeypatch.setattr(linear_warp_recon, "images_per_chunk", lambda *_: 2)
    parts = fused([t.to(device) for t in leaves], image.to(device), theta.to(device), size)
    torch.testing.assert_close(whole, parts)
    check(leaves, image, theta, size, device)


def test_without_the_axis_of_steps(device):
    (hidden, weight, bias), image, theta, size = case(k=1)
    with_axis = fused([hidden, weight, bias], image, theta, size)
    without = fused([hidden[:, 0], weight[0], bias[0]], image, theta[:, 0], size)
    assert torch.equal(with_axis, without)


def test_a_theta_that_wants_a_gradient_takes_the_chain(device):
    leaves, image, theta, size = case()
    ours, reference = theta.clone().requires_grad_(), theta.clone().requires_grad_()
    fused(leaves, image, ours, size).backward()
    unfused(leaves, image, reference, size).backward()
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-3, atol=1e-5)


def test_gradcheck():
    leaves, image, theta, size = case(b=2, grid=(1, 2), dim=3, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(
        lambda *w: fused(w, image, theta.double(), size), leaves, nondet_tol=0
    )


def test_opcheck_and_compile(device):
    leaves, image, theta, size = case(b=1, k=1, grid=(1, 1), dim=2)
    leaves = [t.to(device).requires_grad_() for t in leaves]
    image, theta = image.to(device), theta.to(device)
    rest = ("mse", MEAN, STD, "zeros", False, False, 4, True)
    args = (*leaves, image, theta, None, *size, PATCH, *rest)
    torch.library.opcheck(linear_warp_recon.linear_warp_recon_op.op, args)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(hidden):
        return fused([2 * hidden, *leaves[1:]], image, theta, size)

    step(leaves[0]).backward()
    compiled = [t.grad.clone() for t in leaves]
    for leaf in leaves:
        leaf.grad = None
    fused([2 * leaves[0], *leaves[1:]], image, theta, size).backward()
    for a, leaf in zip(compiled, leaves, strict=True):
        torch.testing.assert_close(a, leaf.grad)


def test_autocast_casts_as_linear_does():
    leaves, image, theta, size = case()
    leaves = [t.requires_grad_() for t in leaves]
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused(leaves, image, theta, size)
    loss.backward()
    half = fused([t.detach().bfloat16() for t in leaves], image, theta, size)
    assert torch.equal(loss, half)
    assert leaves[1].grad.dtype == torch.float32


def test_empty_batches_give_zero(device):
    leaves, image, theta, size = case(b=2)
    hidden = leaves[0][:0].to(device).requires_grad_()
    weight = leaves[1].to(device).requires_grad_()
    loss = fused([hidden, weight, None], image[:0].to(device), theta[:0].to(device), size)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad.count_nonzero() == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(2, 7, 5)}, ValueError, r"weight: expected \(2, 48, 5\)"),
        ({"bias": torch.zeros(47)}, ValueError, r"bias: expected \(2, 48\)"),
        ({"weight": torch.zeros(48, 5).double()}, TypeError, "weight: expected hidden's"),
        ({"hidden": torch.zeros(3, 1, 6, 5)}, ValueError, "hidden: expected B, K = 3, 2"),
        ({"hidden": torch.zeros(3, 6, 5)}, ValueError, r"hidden: expected tokens \[B, K, L, D\]"),
        ({"reduction": "none"}, ValueError, "reduction"),
        ({"loss": "huber"}, ValueError, "loss"),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    (hidden, weight, bias), image, theta, size = case()
    call = {"hidden": hidden, "weight": weight, "bias": bias, "image": image, "theta": theta}
    call |= {"patch_size": PATCH, "size": size, **change}
    with pytest.raises(error, match=message):
        linear_warp_recon_loss(**call)
