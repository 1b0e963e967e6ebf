"""The fast Triton kernel, by the same chain in float64; what it must leave to the general one."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastequi import warp_recon_loss
from fastequi.kernels import packed, warp_recon, warp_recon_packed
from fastequi.kernels.pixel_loss import patchify
from fastequi.kernels.target import Sums, Target
from tests.support.allocations import sizes_of
from tests.support.packed import interleaved, predictions, thetas
from tests.support.tolerances import GRAD, LOSS
from tests.support.warp_recon import MEAN, STD, assert_near, eager

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("only_packed")


def check(pred, image, theta, device, patch=0, reduction="mean", **options):
    """Value and gradient."""
    size, dtype = pred.shape[-2:], pred.dtype
    layout = {"layout": "patch", "patch_size": patch, "size": tuple(size)} if patch else {}
    tokens = patchify(pred, patch) if patch else pred
    ours = tokens.detach().to(device).requires_grad_()
    theta, image = theta.to(device), image.to(device)
    if "color" in options:
        options["color"] = options["color"].to(device)
    loss = warp_recon_loss(ours, image, theta, reduction=reduction, **layout, **options)
    loss.sum().backward()
    reference = tokens.detach().to(device).double().requires_grad_()
    sums = eager(reference, image, theta, patch=patch, size=size, **options)
    kept = pred[0, 0].numel()
    if options.get("mask_outside"):
        white = {**options, "loss": "l1", "color": None, "mean": None, "std": None}
        nothing = torch.full_like(reference, 2.0)  # against 2, errors of targets 0..1 are 1..2
        black = torch.zeros_like(image)
        kept = eager(nothing.detach(), black, theta, patch=patch, size=size, **white) / 2
        kept = kept.clamp(min=1) if reduction == "none" else kept.sum().clamp(min=1)
    elif reduction == "mean":
        kept = pred.numel()
    expected = sums / kept if reduction == "none" else sums.sum() / kept
    expected = expected if reduction != "sum" else sums.sum()
    expected.sum().backward()
    scale = expected.abs().max().clamp(min=1e-3)
    assert ((loss.double() - expected).abs() <= 10 * LOSS[dtype] * scale).all()
    assert ours.grad.dtype == dtype
    assert_near(ours.grad, reference.grad, GRAD[dtype])


@pytest.mark.slow(every=7)
@pytest.mark.parametrize("texel", [3, 4])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
def test_equals_the_chain(device, texel, padding_mode, align_corners, loss, poisoned):
    image = interleaved(1, (20, 27), texel)  # rows of 81 bytes begin anywhere in a word
    options = {"padding_mode": padding_mode, "align_corners": align_corners, "loss": loss}
    check(
        predictions(1, 2, (16, 24)), image, thetas(1, 2), device, 8, mean=MEAN, std=STD, **options
    )


@pytest.mark.slow
def test_later_calls_of_one_signature_read_their_own_values(device):
    """What is prepared once depends on shapes and options alone."""
    for seed in range(3):
        pred, image = predictions(2, 2, (16, 24), seed=seed), interleaved(2, (20, 28), 3, seed)
        check(pred, image, thetas(2, 2, seed=seed), device, 8, mean=MEAN, std=STD)


@pytest.mark.slow(every=7)
@pytest.mark.parametrize("texel", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("patch", "size"), [(4, (8, 12)), (8, (16, 24)), (16, (16, 48)), (32, (32, 64)), (0, (5, 40))]
)
def test_layouts_and_dtypes(device, texel, dtype, patch, size, poisoned):
    pred, image = predictions(2, 2, size, dtype), interleaved(2, (40, 36), texel)
    check(pred, image, thetas(2, 2, zoom=0.6), device, patch, mean=MEAN, std=STD)
    if not patch:  # pixel by pixel, as a channels-last convolution leaves it
        pred = pred.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        check(pred, image, thetas(2, 2, zoom=0.6), device, mean=MEAN, std=STD)


def colours():
    return torch.eye(3, 4) + 0.3 * torch.rand(
        2, 2, 3, 4, generator=torch.Generator().manual_seed(5)
    )


@pytest.mark.slow("8-dtype1-3", "8-dtype0")
@pytest.mark.parametrize("texel", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("patch", [0, 8])
def test_colour_and_mask(device, texel, dtype, patch):
    pred, image = predictions(2, 2, (8, 24), dtype), interleaved(2, (24, 24), texel)
    check(pred, image, thetas(2, 2), device, patch, color=colours())
    options = {"mean": MEAN, "std": STD, "mask_outside": True, "reduction": "none"}
    check(pred, image, thetas(2, 2, shift=0.4), device, patch, **options)


@pytest.mark.slow(every=4)
@pytest.mark.slow("8-sum")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("patch", [0, 8])
def test_reductions(device, patch, reduction):
    pred, image = predictions(2, 2, (8, 24)), interleaved(2, (24, 24), 3)
    options = {"mean": MEAN, "std": STD, "reduction": reduction}
    check(pred, image, thetas(2, 2), device, patch, color=colours(), **options)
    if reduction != "none":  # above
        check(pred, image, thetas(2, 2, shift=0.4), device, patch, mask_outside=True, **options)


@pytest.mark.slow(every=4)
@pytest.mark.parametrize("texel", [3, 4])
@pytest.mark.parametrize(
    ("degrees", "zoom", "shift"),
    [(0, 1, 0), (45, 1, 0), (90, 1, 0), (10, 0.5, 0), (10, 2, 0), (10, 1, 1.7), (0, 1, 5)],
)
def test_families_of_transformations(device, texel, degrees, zoom, shift):
    pred, image = predictions(1, 2, (32, 32)), interleaved(1, (32, 32), texel)
    theta = thetas(1, 2, degrees, zoom, shift, jitter=0)
    check(pred, image, theta, device, 16, mean=MEAN, std=STD)


def test_tiles_inside_and_at_the_border_are_both_met():
    """The geometry above reaches both branches: some tiles wholly inside, some not."""
    theta = thetas(1, 1, 20.0, 0.6, jitter=0)
    grid = F.affine_grid(theta[0], [1, 3, 32, 32], align_corners=False).abs().amax(-1)[0]
    assert (grid < 0.9).all()  # zoom 0.6: inside
    grid = F.affine_grid(thetas(1, 1, 45.0, jitter=0)[0], [1, 3, 32, 32], align_corners=False)
    assert (grid.abs() > 1).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_theta_that_is_not_finite_gives_nan_for_its_step_alone(device, bad):
    theta = thetas(2, 2).clone()
    theta[0, 1, 1, 2] = bad
    pred = predictions(2, 2, (8, 8)).to(device).requires_grad_()
    image = interleaved(2, (8, 8), 3).to(device)
    each = warp_recon_loss(pred, image, theta.to(device), reduction="none")
    each.sum().backward()
    assert each.isnan().tolist() == [[False, True], [False, False]]
    assert pred.grad[0, 1].isnan().all()
    assert pred.grad.isnan().sum() == pred[0, 0].numel()


def test_nothing_is_written_outside_the_results(device):
    """Canaries around prediction and gradient; the image's last word is its last byte's."""
    pred = torch.full((3, 1, 16, 48), 7.0, device=device)
    image = interleaved(1, (9, 9), 3).to(device)[:, :, :8, :8]
    leaf = pred[1:2].detach().requires_grad_()
    loss = warp_recon_loss(
        leaf[:, :, :4], image, thetas(1, 1, shift=1.0).to(device), layout="patch", patch_size=4,
        size=(8, 8),
    )  # fmt: skip
    loss.backward()
    assert (leaf.grad[:, :, 4:] == 0).all()
    assert (leaf.grad[:, :, :4] != 0).any()
    assert (pred == 7).all()


@pytest.mark.slow
def test_same_bits_every_time_and_no_state_stays(device, poisoned):
    pred, image = predictions(2, 3, (32, 32)).to(device), interleaved(2, (32, 32), 3).to(device)
    theta = thetas(2, 3).to(device)
    runs = []
    for _ in range(3):
        leaf = pred.clone().requires_grad_()
        loss = warp_recon_loss(leaf, image, theta)
        loss.backward()
        runs.append((loss, leaf.grad))
    for loss, grad in runs[1:]:
        assert torch.equal(loss, runs[0][0])
        assert torch.equal(grad, runs[0][1])


def test_the_gradient_is_rescaled_only_where_it_must_be(device):
    pred, image = predictions(1, 2, (16, 16)).to(device), interleaved(1, (16, 16), 3).to(device)
    theta = thetas(1, 2).to(device)
    leaf = pred.clone().requires_grad_()
    loss = warp_recon_loss(leaf, image, theta)
    loss.backward(retain_graph=True)
    once = leaf.grad.clone()
    (2.5 * loss).backward(retain_graph=True)  # not in place: the graph is kept
    torch.testing.assert_close(leaf.grad, 3.5 * once)
    (2.5 * loss).backward()
    torch.testing.assert_close(leaf.grad, 6 * once)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("planar image", {"image": lambda i: i.contiguous()}),
        ("float image", {"image": lambda i: i / 255}),
        ("one texel wide", {"image": lambda i: i[..., :1]}),
        ("begins within a word", {"image": lambda i: i[..., 1:]}),
        ("patches of 6", {"patch": 6}),
        ("13 pixels wide", {"size": (13, 13)}),
        ("gradient by theta", {"theta": lambda t: t.clone().requires_grad_()}),
    ],
)
def test_what_it_does_not_read_goes_to_the_general_kernel(device, name, change):
    patch, size = change.get("patch", 0), change.get("size", (12, 12))
    image, theta = interleaved(1, (12, 12), 3).to(device), thetas(1, 1).to(device)
    image, theta = change.get("image", id_)(image), change.get("theta", id_)(theta)
    pred = predictions(1, 1, size).to(device)
    layout = {"layout": "patch", "patch_size": patch, "size": size} if patch else {}
    with pytest.raises(AssertionError, match="the general kernel ran"):
        warp_recon_loss(patchify(pred, patch) if patch else pred, image, theta, **layout)


def id_(value):
    return value


@pytest.mark.slow  # 8.6 GB of addresses
def test_offsets_beyond_two_to_the_31_under_the_interpreter():
    """Two images whose predictions lie 2^31 values apart: 8.6 GB of addresses, hardly used."""
    if torch.cuda.is_available():
        pytest.skip("the GPU has a test of its own")
    far = 2**31 + 48
    shape, strides = (2, 1, 4, 48), (far, 192, 48, 1)
    pred, grad = (
        torch.empty(far + 192, dtype=torch.bfloat16).as_strided(shape, strides) for _ in range(2)
    )
    pred.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    image, theta = interleaved(2, (8, 8), 3), thetas(2, 1)
    target = Target(8, 8, 4, "mse", MEAN, STD)
    total, nothing = torch.empty(2, 1), torch.empty(0)
    tiles = warp_recon_packed.tiles_of(pred, image, target)
    sums = Sums(total, nothing, grad, nothing)
    warp_recon.warp_recon_packed(pred, image, theta, None, target, 1.0, sums, tiles)
    leaf = pred.double().contiguous().requires_grad_()
    expected = eager(leaf, image, theta, patch=4, size=(8, 8), mean=MEAN, std=STD)
    expected.sum().backward()
    torch.testing.assert_close(total.double(), expected, rtol=2e-5, atol=1e-6)
    assert_near(grad, leaf.grad, GRAD[torch.bfloat16])


def test_sides_that_float32_cannot_place_are_left_to_the_general_kernel():
    """The margin of unmasked tiles is a sixteenth of a pixel, which covers rounding up to there."""
    long = torch.zeros(2 * 3 * 2**15, dtype=torch.uint8)
    for width, texel in ((2**15, 0), (2**15 - 4, 3)):
        image = long[: 2 * 3 * width].view(1, 2, width, 3).permute(0, 3, 1, 2)
        assert packed.interleaved(image) == texel
        tall = image.transpose(2, 3).contiguous(memory_format=torch.channels_last)
        assert packed.interleaved(tall) == texel


@pytest.mark.slow
def test_a_launch_looks_at_no_value_and_allocates_by_shapes_alone(device):
    """What a CUDA graph may contain: the same operators on the same sizes, whatever the numbers."""
    pred, image = predictions(2, 2, (16, 16)).to(device), interleaved(2, (16, 16), 3).to(device)
    target = Target(16, 16, 0, "mse", MEAN, STD)
    tiles = warp_recon_packed.tiles_of(pred, image, target)
    warp_recon_loss(pred, image, thetas(2, 2).to(device))  # the device's counter is made once
    calls = []
    for theta in (thetas(2, 2), thetas(2, 2, shift=9.0), thetas(2, 2) * math.nan):
        for shape in ((), (2, 2)):
            sums = Sums(*(torch.empty(n, device=device) for n in (shape, 0, pred.shape, 0)))
            arguments = (pred, image, theta.to(device), None, target, 0.5, sums, tiles)
            calls.append(sizes_of(lambda a=arguments: warp_recon_packed.warp_recon_packed(*a)))
    assert calls[0::2] == [calls[0]] * 3
    assert calls[1::2] == [calls[1]] * 3
    assert ("aten.empty.memory_format", 4) in calls[0]
    looks = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.is_nonzero.default"}
    assert not looks & {name for name, _ in calls[0] + calls[1]}


@pytest.mark.gpu
@pytest.mark.parametrize("texel", [3, 4])
@pytest.mark.parametrize(("b", "k"), [(256, 8), (8, 4)])
def test_real_sizes_against_float64(device, texel, b, k):
    """Patch tokens of 224² images in bf16: every gradient, the loss of every image and step."""
    image = interleaved(b, (224, 224), texel).to(device)
    theta = thetas(b, k, jitter=1.0).to(device)
    pred = torch.randn(b, k, 196, 768, device=device, dtype=torch.bfloat16).requires_grad_()
    options = {"layout": "patch", "patch_size": 16, "mean": MEAN, "std": STD}
    each = warp_recon_loss(pred, image, theta, reduction="none", **options)
    loss = warp_recon_loss(pred, image, theta, **options)
    loss.backward()
    for start in range(0, b, 8):
        part = slice(start, start + 8)
        leaf = pred[part].detach().double().requires_grad_()
        sums = eager(leaf, image[part], theta[part], patch=16, size=(224, 224), mean=MEAN, std=STD)
        sums.sum().backward()
        torch.testing.assert_close(each[part].double(), sums / 150528, rtol=2e-5, atol=1e-6)
        assert_near(pred.grad[part], leaf.grad / pred.numel(), GRAD[torch.bfloat16])
    torch.testing.assert_close(loss, each.mean(), rtol=1e-5, atol=0)


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31(device):
    b, k = 1900, 8  # 2.3e9 values
    image = interleaved(1, (224, 224), 3).to(device).expand(b, -1, -1, -1)
    image = image.clone(memory_format=torch.channels_last)
    theta = thetas(1, k).to(device).expand(b, -1, -1, -1).contiguous()
    one = torch.randn(1, k, 196, 768, device=device, dtype=torch.bfloat16)
    pred = one.expand(b, -1, -1, -1).clone().requires_grad_()
    options = {"layout": "patch", "patch_size": 16, "mean": MEAN, "std": STD}
    each = warp_recon_loss(pred, image, theta, reduction="none", **options)
    each.sum().backward()
    assert (each == each[0]).all()
    assert (pred.grad == pred.grad[0]).all()
    first = one.clone().requires_grad_()
    alone = warp_recon_loss(first, image[:1], theta[:1], reduction="none", **options)
    assert torch.equal(alone[0], each[0])


@pytest.mark.gpu
def test_one_launch_forward_none_of_size_backward_and_no_sync(device):
    from torch.profiler import ProfilerActivity, profile

    pred = torch.randn(4, 2, 196, 768, device=device, dtype=torch.bfloat16).requires_grad_()
    image, theta = interleaved(4, (224, 224), 3).to(device), thetas(4, 2).to(device)
    options = {"layout": "patch", "patch_size": 16, "mean": MEAN, "std": STD}
    warp_recon_loss(pred, image, theta, **options).backward()  # compiled, constants in place
    torch.cuda.set_sync_debug_mode("error")
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as forward:
            loss = warp_recon_loss(pred, image, theta, **options)
        with profile(activities=[ProfilerActivity.CUDA]) as backward:
            (grad,) = torch.autograd.grad(loss, pred)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    launched = [e.name for e in forward.events() if e.device_type.name == "CUDA"]
    assert launched == ["warp_recon_packed_kernel"]
    launched = [e.name for e in backward.events() if e.device_type.name == "CUDA"]
    assert len(launched) == 2  # autograd's own one, and the kernel that looks at it
    assert grad.isfinite().all()


@pytest.mark.gpu
def test_a_training_step_is_captured_in_a_cuda_graph(device):
    """Loss, backward and optimiser replayed on new data give what eager steps give."""
    options = {"layout": "patch", "patch_size": 16, "mean": MEAN, "std": STD}
    batches = [
        (
            torch.randn(4, 2, 196, 64, device=device),
            interleaved(4, (224, 224), 3, seed=s).to(device),
        )
        for s in range(4)
    ]
    theta = thetas(4, 2).to(device)

    def trained(captured):
        torch.manual_seed(0)
        decoder = torch.nn.Linear(64, 768, device=device)
        optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3, capturable=True)
        hidden, image = (t.clone() for t in batches[0])

        def step():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                pred = decoder(hidden)
            loss = warp_recon_loss(pred, image, theta, **options)
            loss.backward()
            optimizer.step()
            return loss

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                static = step()
        losses = []
        for new_hidden, new_image in batches:
            hidden.copy_(new_hidden)
            image.copy_(new_image)
            if captured:
                graph.replay()
            losses.append((static if captured else step()).detach().clone())
        return torch.stack(losses), decoder.weight

    eager_losses, eager_weight = trained(False)
    losses, weight = trained(True)
    torch.testing.assert_close(losses, eager_losses)
    torch.testing.assert_close(weight, eager_weight)


@pytest.mark.slow
def test_a_training_step_compiles_to_one_graph(device):
    """Encoder, decoder and loss traced whole, trained for three steps beside the eager ones."""
    torch._dynamo.reset()
    image, theta = interleaved(2, (16, 16), 3).to(device), thetas(2, 2).to(device)

    def trained(wrap):
        torch.manual_seed(0)
        encoder = torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.GELU()).to(device)
        decoder = torch.nn.Linear(32, 2 * 48).to(device)
        parameters = [*encoder.parameters(), *decoder.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        tokens = patchify(image.float() / 255, 4)

        def forward(tokens):
            pred = decoder(encoder(tokens)).unflatten(-1, (2, 48)).transpose(1, 2)
            return warp_recon_loss(
                pred, image, theta, layout="patch", patch_size=4, mean=MEAN, std=STD
            )

        step, losses = wrap(forward), []
        for _ in range(3):
            optimizer.zero_grad()
            loss = step(tokens)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = trained(lambda f: torch.compile(f, fullgraph=True, backend=backend))
    eager_losses = trained(lambda f: f)
    assert eager_losses[2] < eager_losses[0]
    torch.testing.assert_close(compiled, eager_losses, rtol=1e-4, atol=1e-5)
