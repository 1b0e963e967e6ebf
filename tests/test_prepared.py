"""Calls of one signature: what is done once does not go stale, and gives the same bits."""

import gc
import importlib
import threading
import weakref

import pytest
import torch

from fastequi.functional import (
    blur_recon_loss,
    correspondence_loss,
    crop_align_loss,
    dino_loss,
    gaussian_blur,
    gram_loss,
    ibot_loss,
    koleo_loss,
    nt_xent_loss,
    rot90_batch,
    vicreg_loss,
    warp,
    warp_recon_loss,
)
from fastequi.kernels import backend, native, prepared
from tests.support.native import NEEDS_C
from tests.support.warp_recon import MEAN, STD, case

pytestmark = NEEDS_C


def module(name):
    return importlib.import_module(f"fastequi.functional.{name}")  # its function has that name


KOLEO = module("koleo")._CALLS
CALLS = (
    KOLEO,
    module("dino")._DINO,
    module("dino")._IBOT,
    *(
        module(name)._CALLS
        for name in (
            *("warp_recon", "warp", "nt_xent", "gaussian_blur", "blur_recon", "gram", "vicreg"),
            *("crop_align", "correspondence", "rot90_batch"),
        )
    ),
)


@pytest.fixture(autouse=True)
def forgotten():
    for calls in CALLS:
        calls._known.clear()


def path(**options):
    pred, image, theta = case(b=3, k=2)

    def call(pred):
        return warp_recon_loss(pred, image, theta, mean=MEAN, std=STD, **options)

    return call, pred


def one_step():
    """Predictions without the axis of steps, a colour matrix."""
    pred, image, theta = case(b=3, k=1)
    color = torch.eye(3, 4).expand(3, 3, 4).contiguous() * 0.9

    def call(pred):
        return warp_recon_loss(pred, image, theta[:, 0].contiguous(), color=color, loss="l1")

    return call, pred[:, 0].contiguous()


def views():
    _, image, theta = case(b=3, k=2)
    return (lambda scale: warp(image, theta * scale, mean=MEAN, std=STD)), torch.tensor(1.0)


def blurred(sigma):
    _, image, _ = case(b=3, k=2)
    return (lambda x: gaussian_blur(image.float() * x, sigma)), torch.tensor(0.9)


def blur_loss(sigma, steps):
    _, image, _ = case(b=3, k=2)
    pred = torch.randn(3, steps, *image.shape[1:])

    def call(pred):
        return blur_recon_loss(pred, image, sigma, mean=MEAN, std=STD)

    return call, pred if steps > 1 else pred[:, 0].contiguous()


def turned():
    _, image, _ = case(b=3, k=2)
    side = min(image.shape[2:])
    square = image[..., :side, :side].float()
    return (
        lambda x: rot90_batch((square * x).round().byte(), mean=MEAN, std=STD),
        torch.tensor(0.9),
    )


def cropped(dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    maps = torch.randn(4, 3, 5, 6, 16, generator=generator).to(dtype)
    low = torch.rand(2, 2, 3, 2, generator=generator) * 30
    boxes = torch.cat([low, low + 40], -1)
    turns = torch.randint(4, (2, 3), generator=generator)
    options = {"bins": 3, "scale": 1 / 16, "pairs": [(0, 1), (1, 0)]}
    return (lambda x: crop_align_loss(x, maps[2:], *boxes, turns, **options)), maps[:2]


def matched(dtype=torch.float32, patches=6):
    generator = torch.Generator().manual_seed(4)
    views = torch.randn(4, 3, patches, 16, generator=generator).to(dtype)
    options = {"top": patches // 2, "pairs": [(0, 1), (1, 0), (1, 1)]}
    return (lambda x: correspondence_loss(x, views[2:], **options)), views[:2]


LOGITS = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
HIGH = LOGITS.mT.contiguous()  # more rows than columns
OPS = {
    "path": path,
    "path, sum": lambda: path(reduction="sum"),
    "path, none": lambda: path(reduction="none"),
    "path, mask": lambda: path(mask_outside=True),
    "path, one step": one_step,
    "warp": views,
    "blur, a number": lambda: blurred(1.3),
    "blur": lambda: blurred(torch.tensor([[0.4, 1.0], [1.5, 2.0], [0.0, 0.7]])),
    "blur, one step": lambda: blurred(torch.tensor([0.4, 1.0, 2.0])),
    "blur loss, a number": lambda: blur_loss(1.3, 2),
    "blur loss": lambda: blur_loss(torch.tensor([[0.4, 1.0], [1.5, 2.0], [0.0, 0.7]]), 2),
    "blur loss, one step": lambda: blur_loss(torch.tensor([0.4, 1.0, 2.0]), 1),
    "dino": lambda: (lambda x: dino_loss(x, LOGITS[:2], center=LOGITS[0, 0]), LOGITS * 0.7),
    "ibot": lambda: (lambda x: ibot_loss(x, LOGITS), LOGITS * 0.7),
    "ibot, weights": lambda: (
        lambda x: ibot_loss(x, LOGITS, weight=(x.detach()[..., 0] > 0).float()),
        LOGITS * 0.7,
    ),
    "nt_xent": lambda: (lambda x: nt_xent_loss(x, LOGITS[1]), LOGITS[0]),
    "koleo": lambda: (lambda x: koleo_loss(x), LOGITS[0]),
    "vicreg": lambda: (lambda x: vicreg_loss(x, LOGITS[1], inv_weight=3), LOGITS[0]),
    "vicreg, many rows": lambda: (lambda x: vicreg_loss(HIGH[1], x), HIGH[0]),
    "crop_align": cropped,
    "crop_align, bfloat16": lambda: cropped(torch.bfloat16),
    "correspondence": matched,
    "correspondence, bfloat16": lambda: matched(torch.bfloat16),
    "correspondence, many patches": lambda: matched(patches=150),
    "correspondence, without pairs": lambda: (
        lambda x: correspondence_loss(x, LOGITS[1:], top=3),
        LOGITS[:2] * 0.7,
    ),
    "rot90_batch": turned,
    "gram": lambda: (lambda x: gram_loss(x, LOGITS, clamp="teacher"), LOGITS.flip(0) * 0.7),
    "gram, none": lambda: (
        lambda x: gram_loss(x, LOGITS, reduction="none"),
        LOGITS.flip(0) * 0.7,
    ),
    "gram, across images": lambda: (
        lambda x: gram_loss(x, LOGITS, across_images=True),
        LOGITS.flip(0) * 0.7,
    ),
}


def outcome(call, x):
    """Value and gradient, if there is one."""
    value = call(x)
    if not value.requires_grad:
        return [value]
    return [value.detach(), torch.autograd.grad(value.sum(), x)[0]]


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]()


def in_four_threads(work):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def kept():
    return sum(len(calls._known) for calls in CALLS)


@pytest.mark.parametrize("grad", [False, True])
def test_a_later_call_gives_the_same_bits_as_the_first(op, grad):
    call, x = op
    others = [x.clone(), x * 0.5, x.clone()]
    for other in others:
        other.requires_grad_(grad)
    first = outcome(call, others[0])
    assert kept() == 1
    halved, again = outcome(call, others[1]), outcome(call, others[2])
    assert kept() == 1
    for calls in CALLS:
        calls._known.clear()
    for ours, wanted in zip(halved, outcome(call, others[1]), strict=True):  # as a first call
        assert torch.equal(ours, wanted)
    for ours, wanted in zip(again, first, strict=True):
        assert torch.equal(ours, wanted)
        assert ours.shape == wanted.shape
        assert ours.stride() == wanted.stride()


def test_results_of_one_call_are_not_overwritten_by_the_next(op):
    call, x = op
    values = [call(x), call(0.5 * x + 0.1 * x.square())]
    assert not torch.equal(*values)
    assert torch.equal(values[0], call(x))


def test_what_a_call_depends_on_is_in_its_signature():
    """Else a call prepared for one would be made for the other."""
    x = torch.zeros(2, 3)
    base = prepared.signature((x,), (1, "mse", [0.5, 1.0]))
    assert prepared.signature((x.clone(),), (1, "mse", [0.5, 1.0])) == base
    others = [
        ((x.double(),), (1, "mse", [0.5, 1.0])),
        ((x.T.contiguous().T,), (1, "mse", [0.5, 1.0])),
        ((torch.zeros(3, 2),), (1, "mse", [0.5, 1.0])),
        ((x.clone().requires_grad_(),), (1, "mse", [0.5, 1.0])),
        ((torch._neg_view(x),), (1, "mse", [0.5, 1.0])),
        ((x,), (True, "mse", [0.5, 1.0])),
        ((x,), (1.0, "mse", [0.5, 1.0])),
        ((x,), (1, "l1", [0.5, 1.0])),
        ((x,), (1, "mse", (0.5, 1.0))),
        ((x,), (1, "mse", [0.5, 1.5])),
        ((None,), (1, "mse", [0.5, 1.0])),
    ]
    found = [prepared.signature(*other) for other in others]
    assert None not in found
    assert len({base, *found}) == 1 + len(others)
    with torch.no_grad():
        assert prepared.signature((x,), (1, "mse", [0.5, 1.0])) != base
    with backend.force("torch"):
        assert prepared.signature((x,), (1, "mse", [0.5, 1.0])) != base
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert prepared.signature((x,), (1, "mse", [0.5, 1.0])) != base
    finally:
        torch.set_num_threads(threads)


def test_calls_that_are_unlike_the_next_one_are_not_kept():
    x = torch.zeros(2, 3)
    assert prepared.signature((x,), (torch.tensor(1.0),)) is None  # may change in place
    assert prepared.signature((x,), ([torch.tensor(1.0)],)) is None
    assert prepared.signature((x.to_sparse(),), ()) is None
    assert torch.func.vmap(lambda y: x.sum() if prepared.signature((y,), ()) is None else y)(x).ndim
    with torch._subclasses.FakeTensorMode() as mode:
        assert prepared.signature((mode.from_tensor(x),), ()) is None


def test_a_dtype_that_names_another_result_is_another_call():
    _, image, theta = case(b=2, k=1)
    assert warp(image, theta).dtype == torch.float32
    assert warp(image, theta, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert warp(image, theta).dtype == torch.float32


def test_bad_input_is_an_error_after_good_input():
    call, pred = path()
    call(pred)
    _, image, theta = case(b=3, k=2)
    with pytest.raises(ValueError, match="pred"):
        call(pred[:2])
    with pytest.raises(TypeError, match="pred"):
        call(pred.long())
    with pytest.raises(TypeError, match="align_corners"):
        warp_recon_loss(pred, image, theta, mean=MEAN, std=STD, align_corners=0)
    bad = image.float()  # 0..255 with mean and std of 0..1: looked at in every call
    warp_recon_loss(pred, bad / 255, theta, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match=r"image: .* 0\.\.1"):
        warp_recon_loss(pred, bad, theta, mean=MEAN, std=STD)


def test_sigmas_are_looked_at_in_every_call():
    image = torch.rand(2, 1, 8, 8)
    sigma = torch.tensor([0.5, 1.0])
    for _ in range(2):
        gaussian_blur(image, sigma)
        blur_recon_loss(image, image, sigma)
    for bad in (2.5, -0.1, torch.nan):
        sigma[1] = bad
        with pytest.raises(ValueError, match=r"sigma: expected values in 0\.\.max_sigma=2\.0"):
            gaussian_blur(image, sigma)
        with pytest.raises(ValueError, match=r"sigma: expected values in 0\.\.max_sigma=2\.0"):
            blur_recon_loss(image, image, sigma)


def test_the_gradient_of_a_later_call_is_scaled_kept_and_refused_as_the_first_ones():
    call, pred = path()
    leaf = pred.clone().requires_grad_()
    (plain,) = torch.autograd.grad(call(leaf), leaf)
    for _ in range(2):
        value = call(leaf)
        (first,) = torch.autograd.grad(3 * value, leaf, retain_graph=True)
        (second,) = torch.autograd.grad(value, leaf)
        torch.testing.assert_close(first, 3 * plain)
        assert torch.equal(second, plain)
        (grad,) = torch.autograd.grad(call(leaf), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="warp_recon_loss: its gradient is computed"):
            grad.sum().backward()
    value = torch.utils.checkpoint.checkpoint(call, leaf, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(value, leaf)[0], plain)


def test_an_image_that_wants_a_gradient_gets_it():
    """The same shapes, once without and once with."""
    pred, image, theta = case(b=2, k=1)
    floats = image.float() / 255
    warp_recon_loss(pred, floats, theta)
    leaf = floats.clone().requires_grad_()
    (grad,) = torch.autograd.grad(warp_recon_loss(pred, leaf, theta), leaf)
    assert grad.abs().sum() > 0
    turned = theta.clone().requires_grad_()
    for _ in range(2):
        (grad,) = torch.autograd.grad(warp_recon_loss(pred, floats, turned), turned)
        assert grad.abs().sum() > 0


def test_another_default_device_and_inference_mode_do_not_matter(op):
    call, x = op
    expected = call(x)
    try:
        torch.set_default_device("meta")
        assert torch.equal(call(x), expected)
    finally:
        torch.set_default_device(None)
    with torch.inference_mode():
        assert torch.equal(call(x), expected)


def test_threads_of_one_process_do_not_disturb_each_other():
    """The struct of a call is its own; ctypes lets others run meanwhile."""
    call, pred = path()
    inputs = [pred * factor for factor in (1.0, 0.5, 0.25, 2.0)]
    expected = [call(x) for x in inputs]
    wrong = []

    def work(i):
        for _ in range(200):
            if not torch.equal(call(inputs[i]), expected[i]):
                wrong.append(i)

    in_four_threads(work)
    assert not wrong


def test_old_signatures_are_forgotten(monkeypatch):
    monkeypatch.setattr(prepared, "_MOST", 3)
    for rows in range(2, 9):
        koleo_loss(torch.randn(rows, 4))
    assert len(KOLEO._known) == 3


def test_kernels_that_do_not_run_are_not_prepared(monkeypatch):
    call, pred = path()
    with backend.force("torch"):
        expected = call(pred)
    monkeypatch.setattr(native, "call", lambda *given: pytest.fail("C ran"))
    monkeypatch.setattr(native, "kernel", lambda *given: pytest.fail("C ran"))
    with backend.force("torch"):
        torch.testing.assert_close(call(pred), expected)


def test_nothing_of_the_first_call_is_kept_alive():
    """Logits, or the graph of a sigma that a network gave."""
    alive = []
    for rows in range(3, 6):
        student, teacher = (torch.randn(rows, 64).requires_grad_(i == 0) for i in range(2))
        sigma = torch.rand(rows, requires_grad=True)
        tensors = student, teacher, sigma
        ibot_loss(student, teacher).backward()
        gaussian_blur(torch.rand(rows, 1, 8, 8), sigma * 1.0)
        gaussian_blur(torch.rand(rows, 1, 8, 9), sigma.detach()[:])
        blur_recon_loss(torch.rand(rows, 1, 8, 8), torch.rand(rows, 1, 8, 8), sigma * 1.0)
        alive += [weakref.ref(tensor) for tensor in tensors]
        alive.append(weakref.ref(sigma.untyped_storage()))
        del student, teacher, sigma, tensors
    gc.collect()
    assert kept() >= 9
    assert not [ref for ref in alive if ref() is not None]


def test_memory_that_was_freed_is_an_error_after_good_input(op):
    """A null pointer would end the process."""
    call, x = op
    call(x)
    gone = x.clone()
    gone.untyped_storage().resize_(0)
    for tensor in (gone, torch._efficientzerotensor(x.shape)):
        assert prepared.signature((tensor,), ()) is None
    image, theta = (
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.eye(2, 3).expand(2, 2, 3).clone(),
    )
    warp(image, theta)
    freed = image.clone()
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="expected values in memory"):
        warp(freed, theta)


@pytest.mark.parametrize("name", ["native", "torch"])
def test_a_loss_may_be_changed_in_place_before_its_backward(op, name):
    """loss /= steps of accumulation, as any of PyTorch's."""
    call, x = op
    leaf = x.clone().requires_grad_()
    with backend.force(name):
        value = call(leaf)
        if not value.requires_grad:
            pytest.skip("no gradient")
        value = value.sum() if value.ndim else value
        (expected,) = torch.autograd.grad(value, leaf)
        value = call(leaf)
        value /= 2
        if value.ndim:
            value = value.sum()
        (halved,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(halved, expected / 2)


def test_types_inside_sequences_are_other_signatures():
    _, image, theta = case(b=2, k=1)
    warp(image, theta, size=(8, 8))
    with pytest.raises((TypeError, ValueError), match="size"):
        warp(image, theta, size=(8.0, 8.0))


def test_many_threads_fill_the_table():
    errors = []

    def work(i):
        try:
            for n in range(400):
                koleo_loss(torch.zeros(2 + (n + 37 * i) % 300, 3))
        except Exception as error:
            errors.append(error)

    in_four_threads(work)
    assert not errors
    assert len(KOLEO._known) <= prepared._MOST


def test_weights_of_rows_compile_to_one_graph():
    """What is asked of a weight before a call is prepared is not asked under a compiler."""
    torch._dynamo.reset()
    weight = torch.rand(3, 4)

    def call(x, weight):
        return ibot_loss(x, LOGITS, weight=weight)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(LOGITS * 0.7, weight), call(LOGITS * 0.7, weight))


def test_later_launches_compute_from_later_values(device):
    """A GPU keeps the compiled kernel of the first call of a signature."""
    generator = torch.Generator().manual_seed(0)
    with backend.force("triton"):
        for _ in range(3):
            pred = torch.randn(2, 2, 4, 48, generator=generator).to(device).requires_grad_()
            image = torch.randint(0, 256, (2, 8, 8, 3), generator=generator, dtype=torch.uint8)
            image = image.to(device).permute(0, 3, 1, 2)
            matrices = (torch.randn(2, 2, 2, 3, generator=generator) * 0.3).to(device)
            loss = warp_recon_loss(pred, image, matrices, layout="patch", patch_size=4)
            (3 * loss).backward()
            with backend.force("torch"):
                leaf = pred.detach().requires_grad_()
                wanted = warp_recon_loss(leaf, image, matrices, layout="patch", patch_size=4)
                (3 * wanted).backward()
            torch.testing.assert_close(loss, wanted)
            torch.testing.assert_close(pred.grad, leaf.grad, rtol=1e-4, atol=1e-7)
