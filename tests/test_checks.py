"""Arguments of the fused losses and paths that cannot be are refused by their name."""

import re

import numpy as np
import pytest
import torch

import fastequi
from fastequi.functional import checks


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Z = rows(4, 8)
LOGITS = rows(2, 3, 8)
MAPS = rows(1, 2, 4, 4, 8)
BOXES = torch.tensor([0.1, 0.2, 0.8, 0.9]).expand(1, 2, 4)
TURNS = torch.zeros(1, 2, dtype=torch.long)
IMAGE = torch.rand(2, 3, 8, 8)
THETA = torch.eye(2, 3).expand(2, 2, 2, 3)
HIDDEN, WEIGHT = rows(2, 2, 4, 8), rows(48, 8)


def crop(**options):
    return fastequi.crop_align_loss(MAPS, MAPS, BOXES, BOXES, TURNS, **{"bins": 2, **options})


def linear(**options):
    given = {"weight": WEIGHT, "bias": None, "patch_size": 4, **options}
    weight, bias = given.pop("weight"), given.pop("bias")
    return fastequi.linear_warp_recon_loss(HIDDEN, weight, bias, IMAGE, THETA, **given)


def linear_blurred(**options):
    given = {"weight": WEIGHT, "bias": None, "patch_size": 4, **options}
    weight, bias = given.pop("weight"), given.pop("bias")
    return fastequi.linear_blur_recon_loss(HIDDEN, weight, bias, IMAGE, 1.0, **given)


def nt_xent(**options):
    return fastequi.nt_xent_loss(Z, Z.flip(0), **options)


def vicreg(**options):
    return fastequi.vicreg_loss(Z, Z.flip(0), **options)


def dino(**options):
    return fastequi.dino_loss(LOGITS, LOGITS, **options)


def ibot(**options):
    return fastequi.ibot_loss(Z, Z.flip(0), **options)


def koleo(**options):
    return fastequi.koleo_loss(Z, **options)


def correspondence(**options):
    return fastequi.correspondence_loss(Z, Z.flip(0), **{"top": 2, **options})


def gram(**options):
    return fastequi.gram_loss(LOGITS, LOGITS.flip(0), **options)


def recon(**options):
    return fastequi.warp_recon_loss(rows(2, 2, 3, 8, 8), IMAGE, THETA, **options)


def blurred(**options):
    return fastequi.gaussian_blur(IMAGE, **{"sigma": 1.0, **options})


def blur_recon(**options):
    return fastequi.blur_recon_loss(rows(2, 2, 3, 8, 8), IMAGE, **options)


def warped(**options):
    return fastequi.warp(IMAGE, THETA, **options)


NUMBERS = [
    (nt_xent, "temperature"), (dino, "student_temp"), (dino, "teacher_temp"), (koleo, "eps"),
    (vicreg, "inv_weight"), (vicreg, "var_weight"), (vicreg, "cov_weight"),
    (crop, "scale"), (blurred, "max_sigma"), (linear_blurred, "max_sigma"), (gram, "eps"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "name"), NUMBERS, ids=lambda x: getattr(x, "__name__", x))
def test_a_number_may_be_of_any_kind_but_must_be_one(call, name):
    value = 3.0 if name == "max_sigma" else 0.25
    wanted = call(**{name: value})
    for kind in (np.float32(value), np.array(value), torch.tensor(value, dtype=torch.float64)):
        got = call(**{name: kind})
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
    for bad in ("a", None, [1.0], True, torch.ones(2)):
        with pytest.raises(TypeError, match=f"^{name}: expected a number, got"):
            call(**{name: bad})
    with pytest.raises(TypeError, match=f"^{name}: it gets no gradient"):
        call(**{name: torch.tensor(value, requires_grad=True)})
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"^{name}: expected a finite number"):
            call(**{name: bad})


@pytest.mark.parametrize(
    ("call", "name"),
    [
        *((crop, "bins"), (correspondence, "top")),
        *((linear, "patch_size"), (linear_blurred, "patch_size")),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_count_must_be_an_integer(call, name):
    for bad in ("a", 2.5, None, True):
        with pytest.raises(TypeError, match=f"^{name}: expected an integer, got"):
            call(**{name: bad})
    with pytest.raises(ValueError, match=f"^{name}: expected an integer >= 1, got 0"):
        call(**{name: 0})
    assert torch.equal(call(**{name: np.int64(2 if name != "patch_size" else 4)}), call(
        **{name: 2 if name != "patch_size" else 4}
    ))  # fmt: skip


META = torch.zeros(8, device="meta")
REFUSED = [
    (dino, {"center": META}, ValueError, "center: expected on cpu as student is, got meta"),
    (dino, {"center": [0.0] * 8}, TypeError, "center: expected a tensor, got list"),
    (
        dino,
        {"center": torch.zeros(8, dtype=torch.complex64)},
        TypeError,
        "center: expected float32",
    ),
    (ibot, {"weight": META[:4]}, ValueError, "weight: expected on cpu as student is, got meta"),
    (ibot, {"weight": [0.25] * 4}, TypeError, "weight: expected a tensor, got list"),
    (linear, {"weight": 1.0}, TypeError, "weight: expected a tensor, got float"),
    (linear, {"bias": [0.0]}, TypeError, "bias: expected a tensor, got list"),
    (linear, {"size": (16, 8)}, ValueError, r"size: \(16, 8\) has 8 patches"),
    (linear_blurred, {"weight": 1.0}, TypeError, "weight: expected a tensor, got float"),
    (linear_blurred, {"bias": META}, ValueError, r"bias: expected \(2, 48\)"),
    (
        linear_blurred,
        {"weight": WEIGHT.to("meta")},
        ValueError,
        "weight: expected on cpu as image is, got meta",
    ),
    (linear_blurred, {"patch_size": 8}, ValueError, r"weight: expected \(2, 192, 8\)"),
    (recon, {"align_corners": 2}, TypeError, "align_corners: expected True or False, got 2"),
    (recon, {"mask_outside": "x"}, TypeError, "mask_outside: expected True or False, got 'x'"),
    (recon, {"color": [1.0]}, TypeError, "color: expected a tensor, got list"),
    (crop, {"pairs": [(0.7, 0)]}, TypeError, "pairs: expected pairs of integers"),
    (crop, {"pairs": 5}, TypeError, "pairs: expected pairs of integers, got 5"),
    (crop, {"pairs": [(0,)]}, TypeError, "pairs: expected pairs of integers"),
    (correspondence, {"top": 5}, ValueError, r"top: expected an integer in 1 \.\. 4, got 5"),
    (dino, {"inplace": None}, TypeError, "inplace: expected True or False, got None"),
    (dino, {"iterations": 2.5}, TypeError, "iterations: expected an integer, got 2.5"),
    (dino, {"group": "a"}, TypeError, "group: expected a .*, .world. or None, got .a."),
    (
        nt_xent,
        {"group": "a"},
        TypeError,
        "group: expected a ProcessGroup, .world. or None, got .a.",
    ),
    (koleo, {"eps": -1.0}, ValueError, "eps: expected a finite number >= 0, got -1.0"),
    (gram, {"eps": -1.0}, ValueError, "eps: expected a finite number >= 0, got -1.0"),
    (gram, {"clamp": None}, ValueError, "clamp: expected one of .*, got None"),
    (gram, {"across_images": "x"}, TypeError, "across_images: expected True or False, got 'x'"),
    (gram, {"reduction": "sums"}, ValueError, "reduction: expected one of .* did you mean 'sum'"),
    (recon, {"size": 9}, ValueError, r"size: expected pred's own \(8, 8\), or none"),
    (recon, {"mean": np.array("a"), "std": 0.5}, ValueError, "mean: expected a finite number"),
    (recon, {"mean": True, "std": 0.5}, ValueError, "mean: expected a finite number"),
    (recon, {"mean": 123.7, "std": 58.4}, ValueError, "mean: expected 0 to 1, .* got 123.7"),
    (recon, {"mean": -0.1, "std": 0.5}, ValueError, "mean: expected 0 to 1, .* got -0.1"),
    (linear, {"patch_size": 16}, ValueError, r"weight: expected \(2, 768, 8\)"),
    (linear, {"size": (16, 8)}, ValueError, "size: .* but hidden has 4 tokens"),
    (warped, {"size": "32"}, ValueError, r"size: expected a size or \(height, .* got '32'"),
    (warped, {"dtype": "int8"}, TypeError, "dtype: expected a floating dtype or uint8, got 'int8'"),
    (blurred, {"dtype": "int8"}, TypeError, "dtype: expected a floating dtype, got 'int8'"),
    (blurred, {"sigma": rows(3)}, ValueError, r"sigma: .* B=2 as in image, got \(3,\)"),
    (blur_recon, {"sigma": rows(3)}, ValueError, r"sigma: .* B=2 as in image, got \(3,\)"),
    (blur_recon, {"sigma": rows(2, 2, 1)}, ValueError, r"sigma: expected \[B, K\] or \[B\]"),
    (nt_xent, {"sizes": [4, 4]}, ValueError, r"sizes: expected 1, one of .*, got \[4, 4\]"),
    (koleo, {"sizes": [4, 4]}, ValueError, r"sizes: expected 1, one of .*, got \[4, 4\]"),
    (vicreg, {"sizes": [4, 4]}, ValueError, r"sizes: expected 1, one of .*, got \[4, 4\]"),
]


@pytest.mark.parametrize(
    ("call", "options", "kind", "message"),
    REFUSED,
    ids=[f"{call.__name__}-{message[:30]}" for call, _, _, message in REFUSED],
)
def test_what_does_not_fit_is_refused_by_name(call, options, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        call(**options)


def test_the_reference_of_a_device_is_named():
    with pytest.raises(ValueError, match=r"^z2: expected on cpu as z1 is, got meta"):
        fastequi.nt_xent_loss(Z, Z.to("meta"))
    with pytest.raises(TypeError, match=r"^z: expected a dense tensor, got torch.sparse_coo"):
        checks.check_floating("z", Z.to_sparse())
    with pytest.raises(ValueError, match=r"^z1, z2: expected at least one channel, got \(4, 0\)"):
        fastequi.vicreg_loss(Z[:, :0], Z[:, :0])


LAST = IMAGE.permute(0, 2, 3, 1)
THREE = (0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    ("call", "other"),
    [
        (lambda: fastequi.warp_recon_loss(rows(2, 2, 3, 8, 8), LAST, THETA), "pred"),
        (lambda: fastequi.blur_recon_loss(rows(2, 1, 3, 8, 8), LAST, 1.0), "pred"),
        (lambda: fastequi.warp(LAST, THETA, mean=THREE, std=0.2), "mean"),
        (lambda: fastequi.gaussian_blur(LAST, 1.0, mean=0.5, std=THREE), "std"),
    ],
)
def test_an_image_whose_channels_come_last_is_told_so(call, other):
    expected = f"image: expected [B, C, Hs, Ws] with C=3 as in {other}, got (2, 8, 8, 3); of"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}"):
        call()


def test_rows_without_channels_and_layers_without_prototypes_are_refused():
    for call, name in (
        (lambda: fastequi.koleo_loss(Z[:, :0]), "z"),
        (lambda: fastequi.nt_xent_loss(Z[:, :0], Z[:, :0]), "z1, z2"),
        (lambda: fastequi.correspondence_loss(Z[:, :0], Z[:, :0], top=1), "student"),
        (lambda: fastequi.linear_dino_loss(LOGITS, Z[:0], LOGITS, Z[:0]), "prototypes"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected "):
            call()


def test_mean_and_std_may_be_numpy_numbers():
    wanted = recon(mean=0.5, std=0.25)
    assert torch.equal(recon(mean=np.array(0.5), std=np.float32(0.25)), wanted)
    assert torch.equal(recon(mean=[np.float32(0.5)] * 3, std=np.full(3, 0.25)), wanted)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fastequi.DINOLoss(8, targets="soft"), "targets: expected one of"),
        (lambda: fastequi.DINOLoss(8, student_temp=0.0), "student_temp: expected a finite number"),
        (lambda: fastequi.NTXentLoss(temperature=-1.0), "temperature: expected a finite number"),
        (lambda: fastequi.DINOLoss(8, center_momentum=2.0), "center_momentum: expected a finite"),
        (lambda: fastequi.DINOLoss(0), "prototypes: expected an integer >= 1, got 0"),
        (lambda: fastequi.VICRegLoss(cov_weight=float("inf")), "cov_weight: expected a finite"),
        (lambda: fastequi.GramLoss(eps=-1.0), "eps: expected a finite number"),
        (lambda: fastequi.BlurReconLoss(max_sigma=-1.0), "max_sigma: expected a finite number"),
        (
            lambda: fastequi.LinearBlurReconLoss(patch_size=4, max_sigma=-1.0),
            "max_sigma: expected a finite number",
        ),
    ],
)
def test_modules_refuse_their_options_when_they_are_made(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


PARAMS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        (
            fastequi.Rotation(),
            (PARAMS, 0.5, 8),
            r"params: expected \[B, 1\] \(angle\), got \(2, 3\)",
        ),
        (
            fastequi.Blur(),
            (torch.zeros(2), 0.5, 8),
            r"params: expected \[B, 1\] \(sigma\), got \(2,\)",
        ),
        (fastequi.SE2(), (PARAMS, [], 8), r"t: expected fractions of the path, 0 \.\. 1, got \[\]"),
        (fastequi.SE2(), (PARAMS, [0.5, 1.5], 8), "t: expected fractions"),
        (fastequi.SE2(), (PARAMS, float("nan"), 8), "t: expected fractions"),
        (fastequi.SE2(), (PARAMS, 0.5, -32), "size: expected a size or"),
        (fastequi.Color(), (torch.zeros(2, 4), 0.5, "a"), "size: expected a size or"),
        (fastequi.SE2(), (PARAMS, 0.5, (8,)), "size: expected a size or"),
    ],
)
def test_paths_refuse_what_does_not_fit(path, args, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        path.at(*args)


def test_modules_refuse_flags_when_they_are_made():
    for options in ({"align_corners": 2}, {"mask_outside": "x"}):
        with pytest.raises(TypeError, match=f"^{next(iter(options))}: expected True or False"):
            fastequi.WarpReconLoss(**options)
        with pytest.raises(TypeError, match=f"^{next(iter(options))}: expected True or False"):
            fastequi.LinearWarpReconLoss(patch_size=4, **options)
    with pytest.raises(TypeError, match=r"^inplace: expected True or False"):
        fastequi.IBOTLoss(8, inplace=1)


def test_paths_take_arrays_and_rows_of_numbers():
    path, values = fastequi.SE2(), [[10.0, 1.0, 2.0], [-5.0, 0.0, 1.0]]
    wanted = path.at(torch.tensor(values), [0.5, 1.0], 8).theta
    for params in (values, np.array(values, np.float32)):
        for t in (np.array([0.5, 1.0]), torch.tensor([0.5, 1.0]), (0.5, 1)):
            assert torch.equal(path.at(params, t, np.int64(8)).theta, wanted)
    whole = fastequi.Rotation().at(torch.tensor([[90]]), 1, 8).theta
    torch.testing.assert_close(whole, fastequi.Rotation().at(torch.tensor([[90.0]]), 1.0, 8).theta)


@pytest.mark.parametrize("path", [fastequi.SE2(), fastequi.Color(), fastequi.Blur()])
def test_all_paths_check_what_they_are_asked_for(path):
    good = {"params": torch.zeros(2, len(path.names)), "t": 0.5, "size": 8}
    for name, bad in (
        ("params", "a"),
        ("params", torch.zeros(2, len(path.names) + 1)),
        ("params", torch.zeros(len(path.names))),
        ("params", torch.zeros(2, len(path.names), dtype=torch.complex64)),
        ("t", None),
        ("t", "a"),
        ("t", torch.tensor([0.5, -1.0])),
        ("t", np.array([0.5, np.nan])),
        ("size", None),
        ("size", 8.5),
        ("size", 0),
        ("zoom", 0.0),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected "):
            path.at(**{**good, name: bad})


@pytest.mark.parametrize("targets", ["softmax", "sinkhorn"])
@pytest.mark.parametrize("layers", [False, True])
def test_rows_of_weight_0_may_hold_anything(backend, targets, layers):
    student, teacher = rows(6, 16), rows(6, 16, seed=1)
    weight = torch.tensor([1.0, 0, 1, 0, 1, 1]) / 4
    given = {"prototypes": rows(8, 16, seed=2), "teacher_prototypes": rows(8, 16, seed=3)}

    def run(student, teacher):
        leaves = [student.clone().requires_grad_()]
        options = {}
        if layers:
            options = {name: value.clone() for name, value in given.items()}
            leaves.append(options["prototypes"].requires_grad_())
        loss = fastequi.ibot_loss(leaves[0], teacher, weight=weight, targets=targets, **options)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    wanted = run(student, teacher)
    student[1], teacher[3], teacher[1] = float("nan"), float("inf"), float("nan")
    for got, value in zip(run(student, teacher), wanted, strict=True):
        torch.testing.assert_close(got, value, rtol=0, atol=0)


def test_an_inplace_student_may_not_share_its_memory_with_the_teacher():
    logits = rows(3, 2, 8).requires_grad_() * 1
    with pytest.raises(ValueError, match=r"^inplace: teacher shares the student's memory"):
        fastequi.dino_loss(logits, logits.detach()[:2], inplace=True)
    halves = (rows(4, 2, 8).requires_grad_() * 1).chunk(2)  # apart, though of one storage
    wanted = fastequi.dino_loss(halves[0], halves[1].detach())
    assert torch.equal(fastequi.dino_loss(halves[0], halves[1].detach(), inplace=True), wanted)


@pytest.mark.parametrize("layers", [False, True])
def test_rows_of_weight_0_may_hold_anything_under_torch_func(layers):
    student, teacher, weight = rows(4, 8), rows(4, 8, seed=1), torch.tensor([0.5, 0.5, 0, 0])
    given = {"teacher_prototypes": rows(6, 8, seed=3)} if layers else {}

    def run(leaf, student, teacher):
        if layers:
            given["prototypes"] = leaf
            return fastequi.ibot_loss(student, teacher, weight=weight, **given)
        return fastequi.ibot_loss(leaf + student, teacher, weight=weight)

    leaf = rows(6, 8, seed=2) if layers else torch.zeros(4, 8)
    wanted = torch.func.grad(run)(leaf, student, teacher)
    student[2], teacher[3] = float("nan"), float("nan")
    torch.testing.assert_close(torch.func.grad(run)(leaf, student, teacher), wanted)


def test_a_batch_that_is_not_finite_leaves_the_centre_as_it_is():
    loss = fastequi.DINOLoss(8)
    loss(LOGITS, LOGITS)
    loss.update()
    before = loss.center.value.clone()
    assert before.abs().sum() > 0
    loss(LOGITS, LOGITS * float("nan"))
    loss.update()
    assert torch.equal(loss.center.value, before)
    loss(LOGITS, LOGITS)
    loss.update()
    assert not torch.equal(loss.center.value, before)
    assert loss.center.value.isfinite().all()


def test_boxes_get_no_gradient_with_and_without_autocast():
    for on in (False, True):
        boxes, student = BOXES.clone().requires_grad_(), MAPS.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            loss = fastequi.crop_align_loss(student, MAPS, boxes, boxes, TURNS, bins=2)
        loss.backward()
        assert boxes.grad is None
        assert student.grad.isfinite().all()


def test_turns_may_be_of_any_integer_type():
    turns = torch.tensor([[1, 3]])
    wanted = fastequi.crop_align_loss(MAPS, MAPS.flip(2), BOXES, BOXES, turns, bins=2)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        got = fastequi.crop_align_loss(MAPS, MAPS.flip(2), BOXES, BOXES, turns.to(dtype), bins=2)
        assert torch.equal(got, wanted)


def test_a_warp_of_no_images_is_part_of_the_graph():
    image, theta = torch.zeros(0, 3, 8, 8).requires_grad_(), torch.zeros(0, 2, 3).requires_grad_()
    fastequi.warp(image, theta).sum().backward()
    assert image.grad.shape == image.shape
    assert theta.grad.shape == theta.shape


@pytest.mark.parametrize(
    "loss",
    ["warp_recon_loss", "blur_recon_loss", "linear_warp_recon_loss", "linear_blur_recon_loss"],
)
def test_float16_gradients_of_a_mean_do_not_overflow_on_the_way(backend, device, loss):
    """2 (pred - target) is beyond float16 from 32,752 on, divided by their number it is not."""
    image, theta = torch.zeros(1, 3, 8, 8, device=device), torch.eye(2, 3, device=device)[None]
    pred = torch.full((1, 3, 8, 8), 6e4, dtype=torch.float16, device=device).requires_grad_()
    if loss == "warp_recon_loss":
        leaf, value = pred, fastequi.warp_recon_loss(pred, image, theta)
    elif loss == "blur_recon_loss":
        leaf, value = pred, fastequi.blur_recon_loss(pred, image, 1.0)
    else:
        leaf = pred.detach().view(192, 1).requires_grad_()
        token = torch.ones(1, 1, 1, dtype=torch.float16, device=device)
        path = theta if loss == "linear_warp_recon_loss" else 1.0
        value = getattr(fastequi, loss)(token, leaf, None, image, path, patch_size=8)
    value.backward()
    assert value.isfinite()
    wanted = torch.full_like(leaf.grad, 2 * 6e4 / 192).float()
    torch.testing.assert_close(leaf.grad.float(), wanted, rtol=1e-3, atol=0)


@pytest.mark.slow("triton")
@pytest.mark.parametrize("path", ["warp", "blur"])
@pytest.mark.parametrize(("scale", "grid", "batch"), [(10.0, 2, 2), (1.0, 2, 2), (0.1, 14, 16)])
def test_float16_gradients_of_a_last_layer_keep_their_range(
    backend, device, path, scale, grid, batch
):
    """Neither do sums over a token's 48 values overflow, nor small ones of many tokens vanish."""
    g = torch.Generator().manual_seed(0)
    shape = batch, 2, grid**2, 7
    hidden = (torch.randn(shape, generator=g) * scale).half().to(device)
    weight = (torch.randn(2, 48, 7, generator=g) * scale).half().to(device)
    image = (torch.rand(batch, 3, 4 * grid, 4 * grid, generator=g) * scale / 10).to(device)
    at = torch.eye(2, 3, device=device).expand(batch, 2, 2, 3) if path == "warp" else 1.0
    loss = getattr(fastequi, f"linear_{path}_recon_loss")
    found = []
    for leaves in ((hidden, weight), (hidden.float(), weight.float())):
        own = [t.clone().requires_grad_() for t in leaves]
        factor = 1.0 if scale > 1 else 2.0**16
        value = loss(*own, None, image, at, patch_size=4)
        grads = torch.autograd.grad(value * factor, own)
        found.append([value.detach(), *grads])
    for half, whole in zip(*found, strict=True):
        assert half.isfinite().all()
        assert (half.float() - whole).norm() < 5e-3 * whole.norm()
