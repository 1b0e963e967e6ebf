"""The last linear with the loss against blurred images, and the two of them one after the other."""

import pytest
import torch

from fastequi import LinearBlurReconLoss, blur_recon_loss, linear_blur_recon_loss
from fastequi.kernels import linear_blur_recon, linear_recon
from fastequi.kernels.pixel_loss import patchify
from tests.support.blur import eager
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
    size = (b, c, grid[0] * PATCH, grid[1] * PATCH)
    image = torch.randint(256, size, generator=g, dtype=torch.uint8)
    return leaves, image, 0.1 + 1.9 * torch.rand(b, k, generator=g)


def unfused(pred, image, sigma, **options):
    return blur_recon_loss(pred, image, sigma, layout="patch", patch_size=PATCH, **options)


def fused(leaves, image, sigma, **options):
    return linear_blur_recon_loss(*leaves, image, sigma, patch_size=PATCH, **options)


def check(leaves, image, sigma, device, over=0, **options):
    image, sigma = image.to(device), sigma.to(device)
    check_against(
        lambda leaves: fused(leaves, image, sigma, overlap=over, **options),
        lambda pred: unfused(pred, image, sigma.double(), **options),
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
def test_windows_that_overlap(backend, device, dtype, poisoned):
    check(*case(dtype=dtype, over=2), device, over=2, mean=MEAN, std=STD)


@pytest.mark.slow("triton")
def test_options_reach_the_loss(backend, device):
    leaves, image, sigma = case(grid=(4, 3))
    check(leaves, image, 2 * sigma, device, max_sigma=4.0)
    check([*leaves[:2], None], image, sigma, device)
    gray, image, sigma = case(c=1)
    check(gray, image.float() / 255, sigma, device)


def test_a_layer_that_predicts_the_blurred_image_costs_nothing(backend, device):
    """Of tokens that are one-hot, the weight's columns are the predictions."""
    _, image, _ = case(b=1, k=1, grid=(3, 4))
    sigma = torch.full((1, 1), 0.7)
    wanted = patchify(eager(image, sigma), PATCH)[0].float()
    leaves = [torch.eye(12)[None, None].to(device), wanted.mT.to(device), None]
    assert fused(leaves, image.to(device), sigma.to(device)) < 1e-10


def test_chunks_do_not_show(device, monkeypatch):
    leaves, image, sigma = case(b=5)
    whole = fused([t.to(device) for t in leaves], image.to(device), sigma.to(device))
    monkeypatch.setattr(linear_recon, "images_per_chunk", lambda *_: 2)
    parts = fused([t.to(device) for t in leaves], image.to(device), sigma.to(device))
    torch.testing.assert_close(whole, parts)
    check(leaves, image, sigma, device)


def test_without_the_axis_of_steps_and_one_number_for_all():
    (hidden, weight, bias), image, sigma = case(k=1)
    with_axis = fused([hidden, weight, bias], image, sigma)
    without = fused([hidden[:, 0], weight[0], bias[0]], image, sigma[:, 0])
    assert torch.equal(with_axis, without)
    (hidden, weight, bias), image, sigma = case()
    wanted = fused([hidden, weight, bias], image, torch.full_like(sigma, 0.7))
    assert torch.equal(fused([hidden, weight, bias], image, 0.7), wanted)
    first = [hidden[:, 0], weight[0], bias[0]]
    assert torch.equal(fused(first, image, 0.7), fused(first, image, torch.full((3,), 0.7)))


@pytest.mark.parametrize("wanted", ["image", "sigma"])
def test_an_image_or_sigma_that_wants_a_gradient_takes_the_chain(backend, device, wanted):
    """And the layer's tensors get theirs from it too."""
    leaves, image, sigma = case(b=2)
    found = []
    for loss in (fused, lambda leaves, *others: unfused(predictions(leaves), *others)):
        own = [t.clone().to(device).requires_grad_() for t in leaves]
        given = {"image": image.to(device).float() / 255, "sigma": sigma.clone().to(device)}
        given[wanted].requires_grad_()
        found.append(torch.autograd.grad(loss(own, *given.values()), [given[wanted], *own]))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-5)


def test_float64_stays_float64(backend, device):
    check(*case(dtype=torch.float64), device)


def test_tokens_of_all_steps_are_not_copied(device):
    leaves, image, sigma = case(k=3, dim=128, b=60)
    image, sigma = image.to(device), sigma.to(device)
    check_tokens_of_all_steps(lambda leaves: fused(leaves, image, sigma), leaves, device)


def test_gradcheck():
    leaves, image, sigma = case(b=2, grid=(1, 2), dim=3, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(
        lambda *w: fused(w, image, sigma.double()), leaves, nondet_tol=0
    )


def test_opcheck_and_compile(device):
    leaves, image, sigma = case(b=1, k=1, grid=(1, 1), dim=2)
    leaves = [t.to(device).requires_grad_() for t in leaves]
    image, sigma = image.to(device), sigma.to(device)
    args = (*leaves, image, sigma, PATCH, "mse", MEAN, STD, 2.0, 0, 4, True)
    torch.library.opcheck(linear_blur_recon.linear_blur_recon_op.op, args)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(hidden):
        return fused([2 * hidden, *leaves[1:]], image, sigma)

    step(leaves[0]).backward()
    compiled = [t.grad.clone() for t in leaves]
    for leaf in leaves:
        leaf.grad = None
    fused([2 * leaves[0], *leaves[1:]], image, sigma).backward()
    for a, leaf in zip(compiled, leaves, strict=True):
        torch.testing.assert_close(a, leaf.grad)


def test_autocast_casts_as_linear_does():
    leaves, image, sigma = case()
    leaves = [t.requires_grad_() for t in leaves]
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused(leaves, image, sigma)
    loss.backward()
    half = fused([t.detach().bfloat16() for t in leaves], image, sigma)
    assert torch.equal(loss, half)
    assert leaves[1].grad.dtype == torch.float32


def test_autocast_leaves_float64_alone_as_linear_does():
    leaves, image, sigma = case(dtype=torch.float64)
    wanted = fused(leaves, image, sigma)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(leaves, image, sigma), wanted)


@pytest.mark.parametrize("biased", [True, False])
def test_tokens_without_channels_leave_the_bias(device, biased):
    leaves, image, sigma = case(dim=0)
    check(leaves if biased else [*leaves[:2], None], image, sigma, device)


def test_empty_batches_give_zero_and_runs_the_same_bits(backend, device):
    leaves, image, sigma = case(b=2)
    leaves = [t.to(device) for t in leaves]
    image, sigma = image.to(device), sigma.to(device)
    values = [fused(leaves, image, sigma) for _ in range(3)]
    if backend == "torch" and device.type == "cuda":  # the band's taps are added in any order
        torch.testing.assert_close(values[1:], values[:1] * 2)
    else:
        assert len({value.item() for value in values}) == 1
    hidden, weight = leaves[0][:0].requires_grad_(), leaves[1].requires_grad_()
    loss = fused([hidden, weight, None], image[:0], sigma[:0])
    loss.backward()
    assert loss.item() == 0
    assert weight.grad.count_nonzero() == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(2, 7, 5)}, ValueError, r"weight: expected \(2, 48, 5\)"),
        ({"bias": torch.zeros(47)}, ValueError, r"bias: expected \(2, 48\)"),
        ({"weight": torch.zeros(48, 5).double()}, TypeError, "weight: expected hidden's"),
        ({"hidden": torch.zeros(3, 1, 6, 5)}, ValueError, "hidden: .* as in image and sigma"),
        ({"hidden": torch.zeros(3, 6, 5)}, ValueError, r"hidden: expected tokens \[B, K, L, D\]"),
        ({"hidden": torch.zeros(3, 2, 5, 5)}, ValueError, "hidden: expected 6 tokens, the image's"),
        ({"hidden": torch.zeros(())}, ValueError, r"hidden: expected tokens \[B, K, L, D\]"),
        ({"sigma": torch.ones(2, 2)}, ValueError, r"sigma: expected \[B, K\] or \[B\] with B=3"),
        ({"sigma": -1.0}, ValueError, "sigma: expected a finite number"),
        ({"sigma": torch.full((3, 2), 2.1)}, ValueError, "sigma: expected values in 0..max_sigma"),
        ({"max_sigma": 0.0}, ValueError, "max_sigma: expected a finite number > 0"),
        ({"patch_size": 5}, ValueError, "weight: expected"),
        ({"image": torch.zeros(3, 3, 8, 9)}, ValueError, "patch_size: expected a divisor of size"),
        ({"mean": MEAN}, ValueError, "mean, std: expected both or neither"),
        ({"reduction": "none"}, ValueError, "reduction"),
        ({"loss": "huber"}, ValueError, "loss"),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    (hidden, weight, bias), image, sigma = case()
    call = {"hidden": hidden, "weight": weight, "bias": bias, "image": image, "sigma": sigma}
    with pytest.raises(error, match=f"^{message}"):
        linear_blur_recon_loss(**{**call, "patch_size": PATCH, **change})


def test_the_module_is_the_function():
    leaves, image, sigma = case()
    options = {"loss": "smooth_l1", "mean": MEAN, "std": STD, "reduction": "sum", "max_sigma": 3.0}
    module = LinearBlurReconLoss(patch_size=PATCH, **options)
    assert torch.equal(module(*leaves, image, sigma), fused(leaves, image, sigma, **options))
    assert "max_sigma=3.0" in repr(module)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_sima": 1.0}, TypeError, "max_sima"),
        ({"layout": "patch"}, TypeError, "layout"),
        ({"patch_size": None}, TypeError, "patch_size: expected an integer"),
        ({"patch_size": 0}, ValueError, "patch_size: expected an integer >= 1"),
        ({"loss": "mae"}, ValueError, "loss: expected one of"),
        ({"reduction": "none"}, ValueError, "reduction: expected one of"),
        ({"mean": MEAN}, ValueError, "mean, std: expected both or neither"),
        ({"max_sigma": 0.0}, ValueError, "max_sigma: expected a finite number > 0"),
    ],
)
def test_the_module_refuses_a_wrong_option_when_it_is_made(options, error, message):
    with pytest.raises(error, match=message):
        LinearBlurReconLoss(**{"patch_size": PATCH, **options})
