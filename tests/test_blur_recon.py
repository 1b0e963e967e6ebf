"""The path loss against blurred images, by a direct convolution in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastequi import BlurReconLoss, blur_recon_loss
from fastequi.kernels.blur_recon import blur_recon_op
from fastequi.kernels.pixel_loss import patchify
from tests.support.blur import SIGMAS, eager
from tests.support.tolerances import GRAD
from tests.support.warp_recon import MEAN, STD, assert_near, case


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
@pytest.mark.parametrize("patch", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient(backend, device, loss, patch, dtype, poisoned):
    pred, image, _ = case(size=(12, 36), source=(12, 36))
    pred, image, sigma = pred.to(device, dtype), image.to(device), SIGMAS.to(device)
    target = eager(image, sigma)
    if patch:
        pred, target = patchify(pred, patch), patchify(target, patch)
    ours = pred.clone().requires_grad_()
    layout = {"layout": "patch", "patch_size": patch} if patch else {}
    value = blur_recon_loss(ours, image, sigma, loss=loss, **layout)
    value.backward()
    reference = pred.double().requires_grad_()
    function = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[loss]
    expected = function(reference, target)
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert_near(ours.grad, reference.grad, GRAD[dtype])
    each = blur_recon_loss(pred, image, sigma, loss=loss, reduction="none", **layout)
    torch.testing.assert_close(each.mean(), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_patches_of_any_number_of_steps(backend, device, steps):
    """Three steps: a program of four blurs one for nothing."""
    pred, image, _ = case(b=1, k=steps, size=(12, 40), source=(12, 40))
    image, sigma = image.to(device), torch.linspace(0.4, 2.0, steps, device=device)[None]
    pred = patchify(pred, 4).to(device, torch.bfloat16).requires_grad_()
    value = blur_recon_loss(pred, image, sigma, layout="patch", patch_size=4)
    value.backward()
    reference = pred.detach().double().requires_grad_()
    expected = F.mse_loss(reference, patchify(eager(image, sigma), 4))
    expected.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert_near(pred.grad, reference.grad, GRAD[torch.bfloat16])


def test_the_reference_differentiates_image_and_sigma(backend, device):
    pred, image, _ = case(size=(20, 20), source=(20, 20), image_dtype=torch.float32)
    pred, image, sigma = pred.to(device), image.to(device), SIGMAS.to(device)
    leaves = [t.clone().requires_grad_() for t in (pred, image, sigma)]
    blur_recon_loss(*leaves).backward()
    references = [t.double().requires_grad_() for t in (pred, image, sigma)]
    F.mse_loss(references[0], eager(*references[1:])).backward()
    for leaf, reference in zip(leaves, references, strict=True):
        assert_near(leaf.grad, reference.grad, 1e-4)


def test_empty_and_same_bits(backend, device):
    pred, image, _ = (t.to(device) for t in case(size=(16, 16), source=(16, 16)))
    sigma = SIGMAS.to(device)
    assert blur_recon_loss(pred[:0], image[:0], sigma[:0]) == 0
    values = {blur_recon_loss(pred, image, sigma).item() for _ in range(3)}
    assert len(values) == 1
    module = BlurReconLoss(max_sigma=2.0)
    assert module(pred, image, sigma).item() in values


def test_opcheck_and_compile(device):
    torch._dynamo.reset()
    pred, image, _ = (t.to(device) for t in case(b=2, size=(6, 6), source=(6, 6)))
    sigma = SIGMAS.to(device)
    args = (pred.requires_grad_(), image, sigma, 0, "mse", MEAN, STD, 2.0, 1)
    for reduce in (False, True):
        torch.library.opcheck(blur_recon_op.op, (*args, reduce, True))
    compiled = torch.compile(blur_recon_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pred, image, sigma), blur_recon_loss(pred, image, sigma))


def test_bad_input_names_the_argument():
    pred, image, _ = case(size=(8, 8), source=(8, 8))
    with pytest.raises(ValueError, match=r"sigma: expected \[B, K\] or \[B\] with B=2"):
        blur_recon_loss(pred, image, torch.ones(3, 2))
    with pytest.raises(ValueError, match="pred: expected images of"):
        blur_recon_loss(pred[..., :4], image, SIGMAS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_sima": 1.0}, TypeError, "max_sima"),
        ({"padding_mode": "zeros"}, TypeError, "padding_mode"),
        ({"loss": "mae"}, ValueError, "loss: expected one of"),
        ({"reduction": "men"}, ValueError, "reduction: .*did you mean 'mean'"),
        ({"patch_size": 4}, ValueError, "patch_size: only for layout"),
        ({"mean": MEAN}, ValueError, "mean, std: expected both or neither"),
        ({"max_sigma": 0.0}, ValueError, "max_sigma: expected a finite number > 0"),
    ],
)
def test_the_module_refuses_a_wrong_option_when_it_is_made(options, error, message):
    with pytest.raises(error, match=message):
        BlurReconLoss(**options)
