"""The last linear with the path loss against the two of them one after the other."""

import pytest
import torch

from fastequi import LinearWarpReconLoss, linear_warp_recon_loss, warp_recon_loss
from fastequi.kernels import linear_recon, linear_warp_recon
from tests.support.linear_recon import (
    PATCH,
    check_tokens_of_all_steps,
    leaves_of,
    predictions,
)
from tests.support.linear_recon import check as check_against
from tests.support.warp_recon import MEAN, STD


def case(b=3, k=2, c=3, grid=(2, 3), **options):
    leaves, g = leaves_of(b, k, c, grid[0] * grid[1], **options)
    image = torch.randint(256, (b, c, 11, 9), generator=g, dtype=torch.uint8)
    theta = torch.eye(2, 3) + 0.4 * (torch.rand(b, k, 2, 3, generator=g) - 0.5)
    return leaves, image, theta, (grid[0] * PATCH, grid[1] * PATCH)


def unfused(pred, image, theta, size, **options):
    return warp_recon_loss(
        pred, image, theta, layout="patch", patch_size=PATCH, size=size, **options
    )


def fused(leaves, image, theta, size, **options):
    return linear_warp_recon_loss(*leaves, image, theta, patch_size=PATCH, size=size, **options)


def check(leaves, image, theta, size, device, over=0, **options):
    image, theta = image.to(device), theta.to(device)
    check_against(
        lambda leaves: fused(leaves, image, theta, size, overlap=over, **options),
        lambda pred: unfused(pred, image, theta.double(), size, **options),
        leaves,
        device,
        over,
    )


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_linear_then_loss(backend, device, loss, reduction, poisoned):
    check(*case(), device, loss=loss, reduction=reduction, mean=MEAN, std=STD)


@pytest.mark.slow("triton", every=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
def test_dtypes_and_a_weight_for_all_steps(backend, device, dtype, shared, poisoned):
    check(*case(dtype=dtype, shared=shared), device)


@pytest.mark.slow("triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("over", [1, 2])
def test_windows_that_overlap(backend, device, dtype, over, poisoned):
    """And at most a half, in several chunks and along the chain too."""
    check(*case(dtype=dtype, over=over), device, over=over, mean=MEAN, std=STD)
    leaves, image, theta, size = case(over=over)
    theta = theta.to(device).requires_grad_()
    leaves, image = [t.to(device) for t in leaves], image.to(device)
    wanted = unfused(predictions(leaves, over=over), image, theta, size)
    found = fused(leaves, image, theta, size, overlap=over)
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, wanted, **tolerance)
    ours, expected = (torch.autograd.grad(loss, theta)[0] for loss in (found, wanted))
    torch.testing.assert_close(ours, expected, **tolerance)


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
    monkeypatch.setattr(linear_recon, "images_per_chunk", lambda *_: 2)
    parts = fused([t.to(device) for t in leaves], image.to(device), theta.to(device), size)
    torch.testing.assert_close(whole, parts)
    check(leaves, image, theta, size, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [8, 12, 5])
def test_tokens_are_copied_where_they_do_not_follow_each_other(dtype, dim, monkeypatch):
    """In words of 16 bytes on a GPU, where rows are multiples of them."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    steps_outside = torch.randn(3, 2, 6, dim).to(dtype)
    steps_inside = torch.randn(3, 6, 2, dim).to(dtype).transpose(1, 2)
    across = torch.randn(3, 2, dim, 6).to(dtype).mT
    same = torch.randn(3, 1, 6, dim).to(dtype).expand(3, 2, 6, dim)
    for hidden in (steps_outside, steps_inside, across, same):
        for k in range(2):
            rows = linear_recon._matrix(hidden[1:, k])
            assert torch.equal(rows, hidden[1:, k].reshape(12, dim))
            lies_there = rows.data_ptr() == hidden[1:, k].data_ptr()
            assert lies_there == (hidden is steps_inside or hidden is same)


def test_without_the_axis_of_steps(device):
    (hidden, weight, bias), image, theta, size = case(k=1)
    with_axis = fused([hidden, weight, bias], image, theta, size)
    without = fused([hidden[:, 0], weight[0], bias[0]], image, theta[:, 0], size)
    assert torch.equal(with_axis, without)


@pytest.mark.parametrize("wanted", ["image", "theta", "color"])
def test_an_image_theta_or_colour_that_wants_a_gradient_takes_the_chain(device, wanted):
    """And the layer's tensors get theirs from it too."""
    leaves, image, theta, size = case()
    others = {"image": image.float() / 255, "theta": theta}
    others["color"] = torch.eye(3, 4).repeat(3, 2, 1, 1) + 0.1
    found = []
    for loss in (
        lambda leaves, image, theta, color: fused(leaves, image, theta, size, color=color),
        lambda leaves, image, theta, color: unfused(
            predictions(leaves), image, theta, size, color=color
        ),
    ):
        own = [t.clone().to(device).requires_grad_() for t in leaves]
        given = {name: t.clone().to(device) for name, t in others.items()}
        given[wanted].requires_grad_()
        found.append(torch.autograd.grad(loss(own, **given), [given[wanted], *own]))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-5)


def test_float64_stays_float64(backend, device):
    leaves, image, theta, size = case(dtype=torch.float64)
    check(leaves, image, theta, size, device)


def test_tokens_of_all_steps_are_not_copied(device):
    leaves, image, theta, size = case(k=3, dim=128, b=60)
    image, theta = image.to(device), theta.to(device)
    check_tokens_of_all_steps(lambda leaves: fused(leaves, image, theta, size), leaves, device)


def test_the_module_is_the_function():
    leaves, image, theta, size = case()
    color = torch.eye(3, 4).expand(3, 2, 3, 4) * 0.9
    options = {"loss": "l1", "mean": MEAN, "std": STD, "padding_mode": "border"}
    options |= {
        "align_corners": True,
        "mask_outside": True,
        "reduction": "sum",
        "size": size,
    }
    with pytest.raises(ValueError, match=r"weight: expected \(2, 108, 5\)"):
        LinearWarpReconLoss(patch_size=PATCH, overlap=1, **options)(*leaves, image, theta, color)
    module = LinearWarpReconLoss(patch_size=PATCH, **options)
    wanted = linear_warp_recon_loss(*leaves, image, theta, patch_size=PATCH, color=color, **options)
    assert torch.equal(module(*leaves, image, theta, color), wanted)
    assert "padding_mode='border'" in repr(module)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"padding": "zeros"}, TypeError, "padding"),
        ({"layout": "image"}, TypeError, "layout"),
        ({"patch_size": None}, TypeError, "patch_size: expected an integer"),
        ({"patch_size": 0}, ValueError, "patch_size: expected an integer >= 1"),
        ({"overlap": 3}, ValueError, r"overlap: expected an integer in 0 \.\. 2, got 3"),
        ({"overlap": 0.5}, TypeError, "overlap: expected an integer"),
        ({"loss": "mae"}, ValueError, "loss: expected one of"),
        ({"reduction": "none"}, ValueError, "reduction: expected one of"),
        ({"mean": MEAN}, ValueError, "mean, std: expected both or neither"),
        ({"padding_mode": "zero"}, ValueError, "padding_mode: .*did you mean 'zeros'"),
        ({"mask_outside": 1}, TypeError, "mask_outside: expected True or False"),
        ({"size": (8, 9)}, ValueError, "patch_size: expected a divisor of size"),
    ],
)
def test_the_module_refuses_a_wrong_option_when_it_is_made(options, error, message):
    with pytest.raises(error, match=message):
        LinearWarpReconLoss(**{"patch_size": PATCH, **options})


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
    rest = ("mse", MEAN, STD, "zeros", False, False, 0, 4, True)
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


@pytest.mark.slow
def test_sizes_that_a_compiler_keeps_as_symbols(device):
    torch._dynamo.reset()

    def loss(hidden, weight, bias, image, theta):
        return linear_warp_recon_loss(hidden, weight, bias, image, theta, patch_size=PATCH)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for b, k, shared in ((2, 2, False), (3, 2, False), (4, 3, False), (4, 4, True)):
        leaves, image, theta, _ = case(b=b, k=k, grid=(2, 2), shared=shared)
        args = [t.to(device) for t in (*leaves, image[..., :8, :8], theta)]
        torch.testing.assert_close(compiled(*args), loss(*args))


def test_autocast_casts_as_linear_does():
    leaves, image, theta, size = case()
    leaves = [t.requires_grad_() for t in leaves]
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused(leaves, image, theta, size)
    loss.backward()
    half = fused([t.detach().bfloat16() for t in leaves], image, theta, size)
    assert torch.equal(loss, half)
    assert leaves[1].grad.dtype == torch.float32


def test_autocast_leaves_float64_alone_as_linear_does():
    leaves, image, theta, size = case(dtype=torch.float64)
    wanted = fused(leaves, image, theta, size)
    hidden, weight, bias = leaves
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.nn.functional.linear(hidden[0, 0], weight[0]).dtype == torch.float64
        loss = fused(leaves, image, theta, size)
        with pytest.raises(TypeError, match=r"weight: expected hidden's torch\.float64, got"):
            fused([hidden, weight.float(), bias], image, theta, size)
    assert loss.dtype == torch.float64
    assert torch.equal(loss, wanted)


@pytest.mark.parametrize("biased", [True, False])
def test_tokens_without_channels_leave_the_bias(device, biased):
    """As a sum over nothing: predictions are the bias, or zero."""
    leaves, image, theta, size = case(dim=0)
    check(leaves if biased else [*leaves[:2], None], image, theta, size, device)


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
        ({"overlap": 3}, ValueError, r"overlap: expected an integer in 0 \.\. 2, got 3"),
        ({"overlap": 1}, ValueError, r"weight: expected \(2, 108, 5\)"),
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
