"""Gradients of images that are warped or blurred, and of those that targets are made of, against
the chains that a user would write, in float64."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastequi import blur_recon_loss, gaussian_blur, warp, warp_recon_loss
from fastequi.kernels.gaussian_blur import gaussian_blur_ref
from fastequi.kernels.target import BlurTarget, Target
from fastequi.kernels.warp import warp_ref
from tests.support import warp_recon
from tests.support.warp_recon import MEAN, STD, assert_near, case

PADDINGS = ("zeros", "border", "reflection")


def _problem(channels=3, color=None, steps=2, image_dtype=torch.float32, scale=1.2, size=(9, 14)):
    """(image, θ, colour, gradient of the warped images)."""
    _, image, theta = case(c=channels, k=steps, image_dtype=image_dtype, scale=scale, size=size)
    g = torch.Generator().manual_seed(1)
    columns = {None: 0, "matrix": channels + 1, "gain": 2}[color]
    mixing = torch.randn(2, steps, channels, columns, generator=g) if columns else None
    return image, theta, mixing, torch.randn(2, steps, channels, *size, generator=g)


def _by_image(loss, image, *others):
    leaf = image.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), [leaf, *others])


@pytest.mark.slow("triton", every=4)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("channels", "color"),
    [
        *[(3, None), (3, "matrix"), (3, "gain"), (1, "matrix"), (2, None)],
        *[(4, "matrix"), (5, "gain"), (9, None)],
    ],
)
def test_of_warped_images(backend, device, padding_mode, align_corners, channels, color, poisoned):
    given = (t if t is None else t.to(device) for t in _problem(channels, color))
    image, theta, mixing, slope = given
    norm = {"mean": [0.4] * channels, "std": [0.1 + c / 9 for c in range(channels)]}
    options = {"padding_mode": padding_mode, "align_corners": align_corners}
    out = warp(image.requires_grad_(), theta, color=mixing, size=(9, 14), **norm, **options)
    assert out.grad_fn.name() == "_WarpBackward"  # not the reference's
    (ours,) = torch.autograd.grad(out, image, slope)
    target = Target(9, 14, 0, "none", *norm.values(), **options)

    def exact(x):
        return (warp_ref(x, theta.double(), mixing, target, torch.float64) * slope).sum()

    assert ours.dtype == image.dtype
    assert_near(ours, *_by_image(exact, image.double()), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("image_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("single", [False, True])
def test_of_any_types_and_strides(backend, device, dtype, image_dtype, single):
    image, theta, _, slope = _problem(steps=1, image_dtype=image_dtype)
    image = image.to(device).contiguous(memory_format=torch.channels_last)
    theta, slope = theta.to(device), slope.to(device, dtype).movedim(2, -1).contiguous()
    slope = slope.movedim(-1, 2)
    target = Target(9, 14)

    def exact(x):
        return (warp_ref(x, theta.double(), None, target, torch.float64) * slope).sum()

    (wanted,) = _by_image(exact, image.double())
    if single:
        theta, slope = theta[:, 0], slope[:, 0]
    for _ in range(2):  # and by what the first call has prepared
        leaf = image.detach().requires_grad_()
        out = warp(leaf, theta, size=(9, 14), dtype=dtype)
        (ours,) = torch.autograd.grad(out, leaf, slope)
        assert (out.dtype, ours.dtype) == (dtype, image_dtype)
        assert_near(ours, wanted, 1e-5 if image_dtype == torch.float32 else 5e-3)


@pytest.mark.slow("triton", every=6)
@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
@pytest.mark.parametrize("patch", [0, 4])
@pytest.mark.parametrize("mask_outside", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("wants", ["image", "pred image", "pred image theta"])
@pytest.mark.parametrize("single", [False, True])
def test_of_the_path_loss(backend, device, loss, patch, mask_outside, reduction, wants, single):
    drawn = case(image_dtype=torch.float32, size=(8, 12), scale=0.9, k=1 if single else 2)
    pred, image, theta = (t.to(device) for t in drawn)
    if patch:
        pred = warp_recon.patchify(pred, patch).contiguous()
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]], device=device)[:, : theta.shape[1]]
    given = {"pred": pred, "image": image, "theta": theta}
    wide = {name: t.double().requires_grad_() for name, t in given.items()}
    options = {"loss": loss, "patch": patch, "mask_outside": mask_outside, "size": (8, 12)}
    norm = {"mean": MEAN, "std": STD}
    sums = warp_recon.eager(*wide.values(), **norm, **options)
    counted = warp_recon.eager(
        torch.ones_like(wide["pred"]), image.double() * 0, theta, **options | {"loss": "l1"}
    )  # pred 1 against 0: as many errors of 1 as there are values
    each = sums / counted
    exact = sums.sum() / counted.sum() if reduction == "mean" else (each * weight).sum()
    names = wants.split()
    exacts = torch.autograd.grad(exact, [wide[name] for name in names])
    if single:
        given |= {"pred": pred[:, 0], "theta": theta[:, 0]}
    layout = {"layout": "patch", "patch_size": patch, "size": (8, 12)} if patch else {}
    layout |= {"loss": loss, "mask_outside": mask_outside, "reduction": reduction}
    for _ in range(2):  # the first call prepares the second
        leaves = {n: t.detach().clone().requires_grad_(n in names) for n, t in given.items()}
        value = warp_recon_loss(*leaves.values(), **norm, **layout)
        total = value if reduction == "mean" else (value.view(weight.shape) * weight).sum()
        ours = torch.autograd.grad(total, [leaves[name] for name in names])
        for name, found, wanted in zip(names, ours, exacts, strict=True):
            if name != "theta" or not mask_outside:
                assert_near(found.view(wanted.shape), wanted, 1e-4)
    wanted = exact if reduction == "mean" else each.view(value.shape)
    assert_near(value.detach(), wanted.detach(), 1e-5)


@pytest.mark.parametrize("kind", ["path loss", "blur"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_do_not_round_the_images_gradient(backend, device, kind, dtype):
    pred, image, theta = (t.to(device) for t in case(image_dtype=torch.float32, source=(9, 14)))
    pred = pred.to(dtype)

    def loss(x, p=pred):
        if kind == "blur":
            return blur_recon_loss(p, x, 1.0 if p.ndim == 4 else torch.ones(2, 2, device=device))
        return warp_recon_loss(p, x, theta)

    (wanted,) = _by_image(lambda x: loss(x, pred.float()), image)
    leaf = pred.detach().requires_grad_()
    ours, by_pred = _by_image(lambda x: loss(x, leaf), image, leaf)
    assert by_pred.dtype == dtype
    assert_near(ours, wanted.double(), 1e-6)


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("source", [(9, 14), (33, 40), (1, 7), (2, 5), (1, 1)])
@pytest.mark.parametrize("most", [2.0, 9.0])
def test_of_blurred_images(backend, device, source, most):
    _, image, _ = case(source=source, image_dtype=torch.float32)
    g = torch.Generator().manual_seed(0)
    sigma, slope = torch.rand(2, 2, generator=g) * most, torch.randn(2, 2, 3, *source, generator=g)
    sigma[0, 0] = 0.0
    image, sigma, slope = image.to(device), sigma.to(device), slope.to(device)
    target = BlurTarget(mean=MEAN, std=STD, max_sigma=most)

    def exact(x):
        return (gaussian_blur_ref(x, sigma.double(), target, torch.float64) * slope).sum()

    out = gaussian_blur(image.requires_grad_(), sigma, mean=MEAN, std=STD, max_sigma=most)
    assert out.grad_fn.name() == "_BlurBackward"
    (ours,) = torch.autograd.grad(out, image, slope)
    assert_near(ours, *_by_image(exact, image.double()), 1e-5)


@pytest.mark.parametrize("patch", [0, 4])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_of_the_loss_against_blurred_images(backend, device, patch, reduction):
    pred, image, _ = (
        t.to(device) for t in case(image_dtype=torch.float32, size=(8, 12), source=(8, 12))
    )
    sigma = torch.tensor([[0.5, 2.0], [0.1, 1.3]], device=device)
    layout = {"layout": "patch", "patch_size": patch} if patch else {}
    given = warp_recon.patchify(pred, patch) if patch else pred
    options = {"mean": MEAN, "std": STD, "reduction": reduction, **layout}
    (ours,) = _by_image(lambda x: blur_recon_loss(given, x, sigma, **options).sum(), image)

    def exact(x):
        target = BlurTarget(mean=MEAN, std=STD)
        made = gaussian_blur_ref(x, sigma.double(), target, torch.float64)
        each = (pred - made).square().mean((2, 3, 4))
        return each.mean() if reduction == "mean" else each.sum()

    assert_near(ours, *_by_image(exact, image.double()), 1e-5)


def test_a_warp_is_differentiated_again(backend, device):
    """As a penalty on the gradient of a network behind it does."""
    image, theta, mixing, _ = (t.to(device) for t in _problem(color="matrix"))
    norm = {"color": mixing, "size": (9, 14), "mean": MEAN, "std": STD}

    def penalty(x):
        (grad,) = torch.autograd.grad(warp(x, theta, **norm).pow(3).sum(), x, create_graph=True)
        return grad.square().sum()

    (ours,) = _by_image(penalty, image)
    wide = theta.double()
    target = Target(9, 14, 0, "none", MEAN, STD)
    matrix = torch.stack(  # the warp is affine in the image
        [
            warp_ref(unit.view_as(image[:1]), wide[:1], mixing[:1], target, torch.float64).flatten()
            for unit in torch.eye(image[0].numel(), dtype=torch.float64, device=device)
        ],
        1,
    )
    start = warp_ref(image[:1].double() * 0, wide[:1], mixing[:1], target, torch.float64).flatten()
    matrix = matrix - start[:, None]

    def exact(x):
        grad = 3 * (matrix @ x.flatten() + start).square() @ matrix
        return grad.square().sum()

    assert_near(ours[:1], *_by_image(exact, image[:1].double()), 1e-4)


@pytest.mark.parametrize("op", ["warp", "gaussian_blur"])
def test_second_derivatives_by_batches_of_gradients(backend, device, op):
    _, image, theta = (t.to(device) for t in case(image_dtype=torch.float32, source=(4, 5)))
    image, sigma = image[:1, :1], torch.ones(1, 1, device=device)

    def cubes(x):
        made = warp(x, theta[:1]) if op == "warp" else gaussian_blur(x, sigma)
        return made.pow(3).sum()

    one, many = (
        torch.autograd.functional.hessian(cubes, image, vectorize=vectorize)
        for vectorize in (False, True)
    )
    torch.testing.assert_close(one, many)

    def penalty(x, vectorize):
        grad = torch.autograd.functional.jacobian(cubes, x, create_graph=True, vectorize=vectorize)
        return grad.square().sum()

    plain, batched = (_by_image(lambda x, v=v: penalty(x, v), image)[0] for v in (False, True))
    assert plain.abs().sum() > 0
    torch.testing.assert_close(plain, batched)


def test_a_blur_is_differentiated_again(backend, device):
    _, image, _ = (t.to(device) for t in case(image_dtype=torch.float32))
    sigma = torch.ones(2, 2, device=device)

    def penalty(x, blur):
        (grad,) = torch.autograd.grad(blur(x).pow(3).sum(), x, create_graph=True)
        return grad.square().sum()

    (ours,) = _by_image(lambda x: penalty(x, lambda x: gaussian_blur(x, sigma)), image)
    target = BlurTarget()
    (wanted,) = _by_image(
        lambda x: penalty(x, lambda x: gaussian_blur_ref(x, sigma.double(), target, torch.float64)),
        image.double(),
    )
    assert_near(ours, wanted, 1e-5)


@pytest.mark.parametrize("name", ["warp_recon_loss", "blur_recon_loss"])
def test_a_loss_says_that_it_is_not(backend, device, name):
    pred, image, theta = (t.to(device) for t in case(image_dtype=torch.float32, source=(9, 14)))
    image, pred = image.requires_grad_(), pred.requires_grad_()
    other = theta if name == "warp_recon_loss" else torch.ones(2, 2, device=device)
    loss = {"warp_recon_loss": warp_recon_loss, "blur_recon_loss": blur_recon_loss}[name]
    (grad,) = torch.autograd.grad(loss(pred, image, other), image, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name}: its gradient is computed in the forward"):
        grad.square().sum().backward()


def test_compiled(device):
    pred, image, theta = (t.to(device) for t in case(image_dtype=torch.float32))
    torch._dynamo.reset()

    def loss(x, p):
        return warp_recon_loss(p, x, theta)

    leaves = image.requires_grad_(), pred.requires_grad_()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    ours = torch.autograd.grad(compiled(*leaves), leaves)
    for found, wanted in zip(ours, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_batch_of_gradients_at_once(backend, device):
    pred, image, theta = (
        t.to(device) for t in case(image_dtype=torch.float32, size=(8, 12), source=(8, 12))
    )
    sigma, patches = torch.ones(2, 2, device=device), warp_recon.patchify(pred, 4)
    layout = {"layout": "patch", "patch_size": 4, "reduction": "none"}
    matrix = torch.rand(2, 2, 3, 4, generator=torch.Generator().manual_seed(1)).to(device)
    gain = matrix[..., :2]
    calls = {
        "warp": lambda x: warp(x, theta),
        "matrices": lambda x: warp(x, theta, color=matrix),
        "gains": lambda x: warp_recon_loss(pred, x, theta, color=gain, reduction="none"),
        "blur": lambda x: gaussian_blur(x, sigma),
        "path loss": lambda x: warp_recon_loss(pred, x, theta, reduction="none"),
        "of patches": lambda x: warp_recon_loss(patches, x, theta, **layout),
        "blurred": lambda x: blur_recon_loss(patches, x, sigma, **layout),
    }
    for name, call in calls.items():
        leaf = image.detach().requires_grad_()
        out = call(leaf)
        g = torch.Generator().manual_seed(0)
        several = torch.randn(3, *out.shape, generator=g).to(device)
        (ours,) = torch.autograd.grad(out, leaf, several, is_grads_batched=True)
        for slope, found in zip(several, ours, strict=True):
            (wanted,) = torch.autograd.grad(call(leaf), leaf, slope)
            torch.testing.assert_close(found, wanted, msg=name)


def test_activations_that_are_made_again_in_the_backward(backend, device):
    """torch.utils.checkpoint gives what was saved once."""
    pred, image, theta = (t.to(device) for t in case(image_dtype=torch.float32, source=(9, 14)))
    leaves = pred.requires_grad_(), image.requires_grad_()
    sigma = torch.ones(2, 2, device=device)
    for loss in (
        lambda p, x: warp_recon_loss(p, x, theta),
        lambda p, x: blur_recon_loss(p, x, sigma),
        lambda p, x: (p - warp(x, theta, size=(9, 14))).square().mean(),
        lambda p, x: (p - gaussian_blur(x, sigma)).square().mean(),
    ):
        again = checkpoint(loss, *leaves, use_reentrant=False)
        ours = torch.autograd.grad(again, leaves)
        for found, wanted in zip(ours, torch.autograd.grad(loss(*leaves), leaves), strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["warp", "blur", "path loss", "blurred"])
def test_matrices_made_in_inference_mode(backend, device, name):
    pred, image, theta = (t.to(device) for t in case(image_dtype=torch.float32, source=(9, 14)))
    calls = {
        "warp": lambda x, theta, sigma: warp(x, theta).square().sum(),
        "blur": lambda x, theta, sigma: gaussian_blur(x, sigma).square().sum(),
        "path loss": lambda x, theta, sigma: warp_recon_loss(pred, x, theta),
        "blurred": lambda x, theta, sigma: blur_recon_loss(pred, x, sigma),
    }
    sigma = torch.ones(2, 2, device=device)
    with torch.inference_mode():
        made = theta * 1, sigma * 1
    for _ in range(2):
        (ours,) = _by_image(lambda x: calls[name](x, *made), image)
        (wanted,) = _by_image(lambda x: calls[name](x, theta, sigma), image)
        assert torch.equal(ours, wanted)


def test_hooks_may_give_saved_matrices_back_in_other_memory(backend, device):
    pred, image, theta = (t.to(device) for t in case(image_dtype=torch.float32))

    def unpacked(tensor):
        if tensor.shape[-2:] == (2, 3):
            return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
        return tensor

    for loss in (
        lambda x: warp(x, theta).square().sum(),
        lambda x: warp_recon_loss(pred, x, theta),
    ):
        (wanted,) = _by_image(loss, image)
        for _ in range(2):
            leaf = image.clone().requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpacked):
                value = loss(leaf)
                (ours,) = torch.autograd.grad(value, leaf)
            assert_near(ours, wanted.double(), 1e-6)


@pytest.mark.parametrize("loss", [False, True])
def test_matrices_must_stay_until_the_backward(backend, device, loss):
    pred, image, theta = (t.to(device) for t in case(image_dtype=torch.float32))
    image = image.requires_grad_()
    out = warp_recon_loss(pred, image, theta) if loss else warp(image, theta)
    theta.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_matrix_that_is_not_finite_gives_its_image_nan(backend, device, padding_mode, bad):
    image, theta, _, slope = (None if t is None else t.to(device) for t in _problem())
    theta[1, 1, 0, 2] = bad
    out = warp(image.requires_grad_(), theta, size=(9, 14), padding_mode=padding_mode)
    (grad,) = torch.autograd.grad(out, image, slope, retain_graph=True)
    assert grad[1].isnan().all()
    assert grad[0].isfinite().all()
    slope[1, 1] = 0  # what nobody asks about
    assert torch.autograd.grad(out, image, slope)[0].isfinite().all()


def test_empty(backend, device):
    _, image, theta = (t.to(device) for t in case(image_dtype=torch.float32))
    none, nowhere = image[:0].requires_grad_(), theta[:0]
    warp(none, nowhere).sum().backward()
    assert none.grad.shape == none.shape
    gaussian_blur(none, torch.ones(0, 2, device=device)).sum().backward()
    assert none.grad.shape == none.shape
