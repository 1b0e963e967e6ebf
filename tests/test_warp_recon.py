"""The path loss against the eager chain in float64, on both backends."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastequi import SE2, WarpReconLoss, warp_recon_loss
from fastequi.kernels.pixel_loss import patchify
from tests.support.allocations import watched
from tests.support.tolerances import GRAD, LOSS
from tests.support.warp_recon import MEAN, STD, assert_near, case, eager


def check(pred, image, theta, device, *, patch=0, **options):
    """Value and both gradients of a mean loss against the float64 chain."""
    size = options.pop("size", None) or pred.shape[-2:]
    dtype = pred.dtype
    pred, image, theta = pred.to(device), image.to(device), theta.to(device)
    if patch:
        layout = {"layout": "patch", "patch_size": patch, "size": tuple(size)}
        tokens = patchify(pred, patch)
    else:
        layout, tokens = {}, pred
    ours_pred = tokens.clone().requires_grad_()
    ours_theta = theta.clone().requires_grad_()
    loss = warp_recon_loss(ours_pred, image, ours_theta, **layout, **options)
    loss.backward()
    ref_pred = tokens.detach().double().requires_grad_()
    ref_theta = theta.double().requires_grad_()
    expected = eager(ref_pred, image, ref_theta, patch=patch, size=size, **options).sum()
    expected = expected / max(pred.numel(), 1)
    expected.backward()
    scale = max(expected.abs().item(), 1e-3)
    assert abs(loss.item() - expected.item()) <= 10 * LOSS[dtype] * scale
    assert ours_pred.grad.dtype == dtype
    assert_near(ours_pred.grad, ref_pred.grad, GRAD[dtype])
    assert_near(ours_theta.grad, ref_theta.grad, max(GRAD[dtype], 2e-5))


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
def test_equals_the_eager_chain(backend, device, padding_mode, align_corners, loss, poisoned):
    options = {"padding_mode": padding_mode, "align_corners": align_corners, "loss": loss}
    check(*case(), device, mean=MEAN, std=STD, **options)


@pytest.mark.slow("triton", every=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("patch", [0, 4])
def test_prediction_dtypes_and_layouts(backend, device, dtype, patch, poisoned):
    pred, image, theta = case(size=(8, 12))
    check(pred.to(dtype), image, theta, device, patch=patch, mean=MEAN, std=STD)


@pytest.mark.slow("triton", every=2)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
def test_image_dtypes(backend, device, dtype):
    check(*case(image_dtype=dtype), device)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channel_counts(backend, device, channels):
    check(*case(c=channels), device)


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize(
    ("size", "source"),
    [((1, 1), (1, 1)), ((1, 7), (5, 1)), ((33, 40), (2, 3)), ((40, 33), (17, 64))],
)
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_ragged_and_tiny_sizes(backend, device, size, source, padding_mode):
    for align_corners in (False, True):
        pred, image, theta = case(size=size, source=source, b=1)
        options = {"padding_mode": padding_mode, "align_corners": align_corners}
        check(pred, image, theta, device, **options)


@pytest.mark.parametrize("zoom", [0.3, 3.0])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_zooms(backend, device, zoom, padding_mode):
    pred, image, theta = case(size=(16, 16), source=(16, 16))
    check(pred, image, theta * zoom, device, padding_mode=padding_mode)


def test_colour_then_normalisation(backend, device):
    pred, image, theta = case()
    color = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(5)) * 0.5
    for patch, size in ((0, (9, 14)), (3, (9, 12))):
        args = (pred[..., : size[0], : size[1]].contiguous(), image, theta, device)
        check(*args, color=color.to(device), mean=MEAN, std=STD, patch=patch)


@pytest.mark.parametrize("turn", [[[1, 0], [0, 1]], [[-1, 0], [0, 1]], [[0, 1], [-1, 0]]])
def test_no_border_pixel_of_a_flip_or_a_turn_lies_outside(backend, device, turn):
    """Aligned corners are sampled at -1 and 1, which float32 rounds."""
    theta = torch.tensor([[*turn[0], 0.0], [*turn[1], 0.0]], device=device).expand(1, 2, 2, 3)
    sizes = [(3, 8, 33), (5, 14, 33), (4, 9, 47)] if backend == "triton" else []
    for height, width, source in sizes or [(3, n, m) for n in range(2, 40) for m in (33, 65, 224)]:
        image = torch.zeros(1, 3, 5, source, device=device)
        ones = torch.ones(1, 2, 3, height, width, device=device)
        options = {"mask_outside": True, "align_corners": True, "padding_mode": "border"}
        kept = warp_recon_loss(ones, image, theta, loss="l1", reduction="sum", **options)
        assert kept == ones.numel(), (height, width, source)


@pytest.mark.parametrize("loss", ["mse", "smooth_l1"])
def test_mask_outside_divides_by_what_is_left(backend, device, loss):
    pred, image, theta = case(scale=1.5)
    pred, image, theta = (t.to(device) for t in (pred, image, theta))
    ours = pred.clone().requires_grad_()
    out = warp_recon_loss(ours, image, theta, loss=loss, mask_outside=True)
    out.backward()
    reference = pred.double().requires_grad_()
    total = eager(reference, image, theta, loss=loss, mask_outside=True).sum()
    # against a prediction of 0, targets of 1 count the values that are left
    kept = eager(pred * 0, image, theta, mask_outside=True, color=_ones_color(device)).sum()
    (total / kept).backward()
    torch.testing.assert_close(out.double(), total / kept, rtol=1e-5, atol=1e-6)
    assert_near(ours.grad, reference.grad, 1e-5)
    assert 0 < kept < pred.numel()
    everything_outside = theta.clone()
    everything_outside[..., 2] = 5.0
    ours.grad = None
    nothing = warp_recon_loss(ours, image, everything_outside, mask_outside=True)
    nothing.backward()
    assert nothing == 0
    assert ours.grad.abs().sum() == 0


def test_what_is_masked_out_may_be_nan(backend, device):
    pred, image, theta = (t.to(device) for t in case())
    theta = theta + 0.6
    clean = warp_recon_loss(pred, image, theta, mask_outside=True)
    ones = torch.ones(2, 3, 11, 8, device=device)
    inside = torch.ops.aten.grid_sampler_2d(
        ones, F.affine_grid(theta[:, 0], [2, 3, 9, 14], False), 0, 0, False
    )
    pred[:, 0] = torch.where(inside == 0, torch.nan, pred[:, 0])
    assert pred.isnan().any()
    torch.testing.assert_close(warp_recon_loss(pred, image, theta, mask_outside=True), clean)


def _ones_color(device):
    """A colour matrix that makes every target 1."""
    color = torch.zeros(2, 2, 3, 4, device=device)
    color[..., 3] = 1
    return color


def test_reductions(backend, device):
    pred, image, theta = (t.to(device) for t in case())
    sums = eager(pred, image, theta)
    each = warp_recon_loss(pred, image, theta, reduction="none")
    assert each.shape == (2, 2)
    torch.testing.assert_close(each.double(), sums / pred[0, 0].numel(), rtol=1e-5, atol=1e-6)
    total = warp_recon_loss(pred, image, theta, reduction="sum")
    torch.testing.assert_close(total.double(), sums.sum(), rtol=1e-5, atol=1e-6)
    ours = pred.clone().requires_grad_()
    weights = torch.tensor([[1.0, 2.0], [0.0, -3.0]], device=device)
    (warp_recon_loss(ours, image, theta, reduction="none") * weights).sum().backward()
    reference = pred.double().requires_grad_()
    (eager(reference, image, theta) / pred[0, 0].numel() * weights).sum().backward()
    assert_near(ours.grad, reference.grad, 1e-5)


def test_without_the_axis_of_steps(backend, device):
    pred, image, theta = (t.to(device) for t in case(k=1))
    with_steps = warp_recon_loss(pred, image, theta)
    assert torch.equal(warp_recon_loss(pred[:, 0], image, theta[:, 0]), with_steps)
    each = warp_recon_loss(pred[:, 0], image, theta[:, 0], reduction="none")
    assert each.shape == (2,)


def test_identity_is_plain_mse(backend, device):
    pred, image, _ = case(size=(12, 10), source=(12, 10))
    theta = torch.eye(2, 3).expand(2, 2, 2, 3)
    pred, image, theta = (t.to(device) for t in (pred, image, theta))
    expected = F.mse_loss(pred, (image.float() / 255)[:, None].expand_as(pred))
    torch.testing.assert_close(warp_recon_loss(pred, image, theta), expected)


def test_a_quarter_turn_is_rot90_with_zero_loss(backend, device):
    image = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)).to(device)
    theta = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], device=device).expand(2, 1, 2, 3)
    pred = torch.rot90(image, 1, (-2, -1))[:, None]
    assert warp_recon_loss(pred, image, theta) < 1e-10


def test_fully_outside_is_the_mean_square(backend, device):
    pred, image, theta = (t.to(device) for t in case())
    theta = theta.clone()
    theta[..., 2] = 1e4
    expected = pred.square().mean()
    torch.testing.assert_close(warp_recon_loss(pred, image, theta), expected)


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_theta_that_is_not_finite_gives_nan_for_its_step_alone(backend, device, padding_mode, bad):
    pred, image, theta = (t.to(device) for t in case())
    theta = theta.clone()
    theta[0, 1, 1, 2] = bad
    each = warp_recon_loss(pred, image, theta, padding_mode=padding_mode, reduction="none")
    assert each[0, 1].isnan()
    assert each.isfinite().sum() == 3


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_gradients_of_any_theta_belong_to_its_step(backend, device, padding_mode, bad):
    # PyTorch's own gradient of grid_sample ends the process at NaN in the last two modes
    pred, image, theta = (t.to(device) for t in case(size=(37, 9), source=(31, 90)))
    theta = theta.clone()
    theta[0, 1] = bad
    pred, theta = pred.requires_grad_(), theta.requires_grad_()
    warp_recon_loss(pred, image, theta, padding_mode=padding_mode, reduction="sum").backward()
    for grad in (pred.grad, theta.grad):
        assert grad[0, 1].isnan().all() or math.isfinite(bad)
        assert grad[0, 0].isfinite().all()
        assert grad[1].isfinite().all()


@pytest.mark.parametrize("huge", [1e30, -1e30, 1e9])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_huge_theta_reads_nothing_outside(backend, device, huge, padding_mode):
    pred, image, theta = (t.to(device) for t in case())
    theta = theta.clone()
    theta[0, 0, 0, 2] = huge
    theta[1, 0, 1, 0] = huge
    each = warp_recon_loss(pred, image, theta, padding_mode=padding_mode, reduction="none")
    assert each.isfinite().all()
    bound = (pred.abs().amax() + 1) ** 2
    assert (each <= bound).all()


@pytest.mark.slow("triton")
def test_strides_of_image_and_prediction_are_free(backend, device):
    pred, image, theta = (t.to(device) for t in case(size=(8, 8), source=(10, 12)))
    expected = warp_recon_loss(pred, image, theta)
    views = {
        "channels-last": image.contiguous(memory_format=torch.channels_last),
        "sliced": torch.cat([image, image], -1)[..., :12],
        "flipped twice": image.flip(-1).flip(-1),
        "expanded": image[:1].expand(2, -1, -1, -1),
    }
    for name, view in views.items():
        same = expected if name != "expanded" else warp_recon_loss(pred, view.contiguous(), theta)
        loss = warp_recon_loss(pred, view, theta)
        if name == "channels-last" and backend == "triton":  # another kernel, which sums otherwise
            torch.testing.assert_close(loss, same)
        else:
            assert torch.equal(loss, same), name
    tokens = patchify(pred, 4)  # [B, K, L, 48] as a channels-last convolution leaves it
    strided = tokens.transpose(1, 2).contiguous().transpose(1, 2)
    losses = []
    for value in (tokens, strided, torch.cat([tokens, tokens], 2)[:, :, :4]):
        leaf = value.detach().requires_grad_()
        loss = warp_recon_loss(leaf, image, theta, layout="patch", patch_size=4, size=(8, 8))
        loss.backward()
        losses.append((loss, leaf.grad))
    for loss, grad in losses[1:]:
        torch.testing.assert_close(loss, losses[0][0])
        torch.testing.assert_close(grad, losses[0][1])
    theta_t = theta.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(warp_recon_loss(pred, image, theta_t), expected)


@pytest.mark.parametrize(("b", "k"), [(0, 2), (2, 0)])
def test_empty_batches_give_zero_and_a_gradient(backend, device, b, k):
    pred = torch.zeros(b, k, 3, 4, 4, device=device, requires_grad=True)
    image = torch.zeros(b, 3, 4, 4, dtype=torch.uint8, device=device)
    loss = warp_recon_loss(pred, image, torch.zeros(b, k, 2, 3, device=device))
    loss.backward()
    assert loss == 0
    assert pred.grad.shape == pred.shape


@pytest.mark.slow("triton")
def test_same_bits_every_time(backend, device, poisoned):
    pred, image, theta = (t.to(device) for t in case(size=(40, 40), source=(40, 40)))
    runs = []
    for _ in range(3):
        leaf = pred.clone().requires_grad_()
        loss = warp_recon_loss(leaf, image, theta)
        loss.backward()
        runs.append((loss, leaf.grad))
    for loss, grad in runs[1:]:
        assert torch.equal(loss, runs[0][0])
        assert torch.equal(grad, runs[0][1])


def test_an_image_that_wants_a_gradient_gets_it(backend, device):
    pred, image, theta = case(image_dtype=torch.float32)
    pred, image, theta = (t.to(device) for t in (pred, image, theta))
    ours = image.clone().requires_grad_()
    warp_recon_loss(pred, ours, theta).backward()
    reference = image.double().requires_grad_()
    (eager(pred, reference, theta).sum() / pred.numel()).backward()
    assert_near(ours.grad, reference.grad, 1e-5)


def test_float64_gradcheck():
    g = torch.Generator().manual_seed(3)
    pred = torch.randn(1, 2, 2, 5, 6, generator=g, dtype=torch.float64, requires_grad=True)
    image = torch.rand(1, 2, 7, 5, generator=g, dtype=torch.float64)
    theta = torch.eye(2, 3, dtype=torch.float64) * 0.83 + 0.11 * torch.rand(
        1, 2, 2, 3, generator=g, dtype=torch.float64
    )
    theta.requires_grad_()
    for loss in ("mse", "smooth_l1"):
        assert torch.autograd.gradcheck(
            lambda p, t, loss=loss: warp_recon_loss(p, image, t, loss=loss), (pred, theta)
        )


def test_opcheck(device):
    from fastequi.kernels.warp_recon import warp_recon_op

    pred, image, theta = (t.to(device) for t in case(b=1, size=(4, 4), source=(5, 5)))
    color = torch.eye(3, 4, device=device).expand(1, 2, 3, 4).contiguous()
    rest = ("zeros", False, True, 2, False, True, True)
    args = (pred.requires_grad_(), image, theta, color, 4, 4, 0, "mse", MEAN, STD, *rest)
    torch.library.opcheck(warp_recon_op.op, args)


def test_retained_graphs_and_other_weights_give_the_right_gradient(backend, device):
    pred, image, theta = (t.to(device) for t in case())
    leaf = pred.clone().requires_grad_()
    inner = leaf * 1.0
    inner.retain_grad()
    loss = warp_recon_loss(inner, image, theta)
    loss.backward(retain_graph=True)
    once = leaf.grad.clone()
    (3 * loss).backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, 4 * once)
    loss.backward()
    torch.testing.assert_close(leaf.grad, 5 * once)
    torch.testing.assert_close(inner.grad, 5 * once)


def test_compiles_to_one_graph(backend, device):
    torch._dynamo.reset()
    pred, image, theta = (t.to(device) for t in case(b=1, size=(8, 8), source=(8, 8)))
    leaf = pred.clone().requires_grad_()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(p):
        return warp_recon_loss(2 * p, image, theta, mean=MEAN, std=STD)

    loss = step(leaf)
    loss.backward()
    plain = pred.clone().requires_grad_()
    expected = warp_recon_loss(2 * plain, image, theta, mean=MEAN, std=STD)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(leaf.grad, plain.grad)


@pytest.mark.slow("triton")
def test_the_target_is_never_stored(backend, device):
    """No allocation of a forward and backward is as large as the targets, but the gradient."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Allocations(TorchDispatchMode):
        sizes: list[tuple[str, int]] = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                    self.sizes.append((str(func), tensor.numel()))
            return out

    # more images than the CPU path takes at a time; small ones under the interpreter
    b, side = (24, 16) if backend == "triton" and device.type == "cpu" else (24, 160)
    pred, image, theta = case(b=b, size=(side, side), source=(8, 8))
    pred, image, theta = (t.to(device) for t in (pred, image, theta))
    pred.requires_grad_()
    with watched(Allocations()) as seen:
        warp_recon_loss(pred, image, theta).backward()
    large = [entry for entry in seen.sizes if entry[1] >= pred.numel() // 2]
    if backend == "triton" and device.type == "cpu":  # the interpreter copies what it is given
        copies = ("aten.copy_", "aten.set_")
        assert all(n.startswith((*copies, "aten.empty_like", "aten.detach")) for n, _ in large)
    else:
        written = {"aten.detach.default"}  # what allocates nothing
        if backend == "torch" and device.type == "cuda":
            written |= {"aten.mul.out", "aten.mul.out.default"}
        assert [n for n, _ in large if n not in written] == ["aten.empty_like.default"]


def test_the_module_holds_its_options(backend, device):
    pred, image, theta = (t.to(device) for t in case())
    module = WarpReconLoss(loss="l1", mean=MEAN, std=STD)
    assert torch.equal(
        module(pred, image, theta),
        warp_recon_loss(pred, image, theta, loss="l1", mean=MEAN, std=STD),
    )
    assert "loss='l1'" in repr(module)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"los": "l1"}, TypeError, "los"),
        ({"max_sigma": 1.0}, TypeError, "max_sigma"),
        ({"loss": "mae"}, ValueError, "loss: expected one of .*'mae'"),
        ({"layout": "patches"}, ValueError, "layout: .*did you mean 'patch'"),
        ({"padding_mode": "zero"}, ValueError, "padding_mode: .*did you mean 'zeros'"),
        ({"reduction": "men"}, ValueError, "reduction: .*did you mean 'mean'"),
        ({"patch_size": 4}, ValueError, "patch_size: only for layout"),
        ({"layout": "patch"}, ValueError, "patch_size: layout"),
        ({"mean": MEAN}, ValueError, "mean, std: expected both or neither"),
        ({"mean": MEAN, "std": (0.2,)}, ValueError, "std: expected a finite number, or 3 of them"),
        ({"mean": MEAN, "std": (0.2, 0.0, 0.2)}, ValueError, "std: expected values > 0"),
        ({"mean": torch.zeros(3), "std": STD}, TypeError, "mean: expected floats, got a tensor"),
        ({"size": 0}, ValueError, "size: expected a size or"),
        (
            {"layout": "patch", "patch_size": 4, "size": (8, 9)},
            ValueError,
            r"patch_size: expected a divisor of size \(8, 9\), got 4",
        ),
    ],
)
def test_the_module_refuses_a_wrong_option_when_it_is_made(options, error, message):
    with pytest.raises(error, match=message):
        WarpReconLoss(**options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"theta": torch.zeros(2, 2, 3, 3)}, ValueError, r"theta: expected \[B, K, 2, 3\].*3, 3"),
        ({"theta": torch.zeros(3, 2, 2, 3)}, ValueError, r"theta: .*B=2.*\(3, 2, 2, 3\)"),
        ({"theta": torch.zeros(2, 3)}, ValueError, r"theta: .*got \(2, 3\)$"),
        (
            {"theta": SE2().at([[0.0, 0, 0]], 1, 8)},
            TypeError,
            "theta: .* its .theta is one",
        ),
        (
            {"theta": torch.zeros(2, 2, 3)},
            ValueError,
            r"3, 9, 14\) with theta \(2, 2, 3\)",
        ),
        ({"theta": torch.zeros(2, 2, 2, 3).long()}, TypeError, "theta: expected float32"),
        ({"pred": torch.zeros(2, 3, 3, 9, 14)}, ValueError, "pred: expected B, K = 2, 2"),
        (
            {"pred": torch.zeros(2, 2, 4, 9, 14)},
            ValueError,
            r"C=3 as in image \(2, 3, 11, 8\), got",
        ),
        (
            {"pred": torch.zeros(2, 2, 11, 8, 3)},
            ValueError,
            "channels come before rows and columns",
        ),
        ({"pred": torch.zeros(2, 2, 9, 14)}, ValueError, r"pred: expected \[B, K, C, H, W\]"),
        ({"pred": torch.zeros(2, 2, 3, 9, 14).int()}, TypeError, "pred: expected float32"),
        ({"image": torch.zeros(2, 3, 11, 8).int()}, TypeError, "image: expected uint8"),
        ({"image": torch.zeros(3, 11, 8)}, ValueError, r"image: expected \[B, C, Hs, Ws\]"),
        ({"loss": "mae"}, ValueError, "loss: expected one of .*'mae'"),
        ({"padding_mode": "zero"}, ValueError, "padding_mode: .*did you mean 'zeros'"),
        ({"reduction": "men"}, ValueError, "reduction: .*did you mean 'mean'"),
        ({"layout": "patches"}, ValueError, "layout: .*did you mean 'patch'"),
        ({"mean": MEAN}, ValueError, "mean, std: expected both or neither"),
        (
            {"mean": (0.5,), "std": (0.5,)},
            ValueError,
            "mean: expected a finite number",
        ),
        ({"mean": MEAN, "std": (0.2, 0.0, 0.2)}, ValueError, "std: expected values > 0"),
        ({"color": torch.zeros(2, 2, 3, 3)}, ValueError, r"color: expected \[B, K, 3, 4\]"),
        ({"patch_size": 4}, ValueError, "patch_size: only for layout"),
        ({"layout": "patch", "pred": torch.zeros(2, 2, 4, 48)}, ValueError, "patch_size: layout"),
        (
            {"layout": "patch", "pred": torch.zeros(2, 2, 4, 48), "patch_size": 5},
            ValueError,
            r"pred: expected tokens of p\*p\*C = 5\*5\*3 = 75 values, got 48",
        ),
        (
            {"layout": "patch", "pred": torch.zeros(2, 2, 5, 48), "patch_size": 4},
            ValueError,
            "pred: 5 tokens are neither",
        ),
        (
            {"layout": "patch", "pred": torch.zeros(2, 2, 4, 48), "patch_size": 4, "size": (8, 9)},
            ValueError,
            r"patch_size: expected a divisor of size \(8, 9\), got 4",
        ),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    pred, image, theta = case()
    arguments = {"pred": pred, "image": image, "theta": theta, **change}
    with pytest.raises(error, match=message):
        warp_recon_loss(**arguments)


def test_a_float_image_in_bytes_is_refused_with_mean_and_std():
    pred, image, theta = case()
    with pytest.raises(ValueError, match=r"image: .*expected in 0..1, got values in 0\.\.255"):
        warp_recon_loss(pred, _spanning(image).float(), theta, mean=MEAN, std=STD)
    warp_recon_loss(pred, _spanning(image).float(), theta)  # without them any range is fine


def _spanning(image):
    image = image.clone()
    image[0, 0, 0, :2] = torch.tensor([0, 255])
    return image
