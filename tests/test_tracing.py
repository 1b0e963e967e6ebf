"""Ops under tracers, dispatch modes and transforms: the right graph, and nothing left behind."""

import importlib

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from fastequi.functional import (
    blur_recon_loss,
    correspondence_loss,
    crop_align_loss,
    dino_loss,
    gaussian_blur,
    gram_loss,
    koleo_loss,
    nt_xent_loss,
    rot90_batch,
    vicreg_loss,
    warp,
    warp_recon_loss,
)
from fastequi.kernels import constants, dino

BOXES = torch.tensor([[[0.0, 0, 4, 4], [1, 0, 3, 4]]])
TURNS = torch.zeros(1, 2, dtype=torch.int32)
THETA = torch.tensor([[[0.9, -0.3, 0.1], [0.3, 0.9, 0.0]]]).expand(2, 1, 2, 3)
SCALE = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}

# name -> (function of one tensor, that tensor's shape)
OPS = {
    "gaussian_blur": (lambda x: gaussian_blur(x, 1.0, **SCALE).sum(), (2, 3, 8, 8)),
    "blur_recon_loss": (
        lambda x: blur_recon_loss(x, torch.full((2, 3, 8, 8), 0.5), 1.0, **SCALE),
        (2, 1, 3, 8, 8),
    ),
    "warp": (lambda x: warp(x, THETA, **SCALE).sum(), (2, 3, 8, 8)),
    "warp_recon_loss": (
        lambda x: warp_recon_loss(x, torch.full((2, 3, 8, 8), 0.5), THETA, **SCALE),
        (2, 1, 3, 8, 8),
    ),
    "dino_loss": (lambda x: dino_loss(x, x.detach().flip(0) * 0.5), (2, 4, 16)),
    "sinkhorn": (
        lambda x: dino_loss(x, x.detach().flip(0) * 0.5, targets="sinkhorn"),
        (2, 4, 16),
    ),
    "nt_xent_loss": (lambda x: nt_xent_loss(x, x.flip(1)), (6, 5)),
    "koleo_loss": (lambda x: koleo_loss(x), (6, 5)),
    "vicreg_loss": (lambda x: vicreg_loss(x, x.flip(1) * 0.5), (6, 5)),
    "correspondence_loss": (lambda x: correspondence_loss(x, x.detach().flip(2), top=2), (2, 5, 6)),
    "gram_loss": (lambda x: gram_loss(x, x.detach().flip(2)[:, :, :4]), (2, 5, 6)),
    "crop_align_loss": (
        lambda x: crop_align_loss(x, x.detach().flip(2), BOXES, BOXES, TURNS, bins=2),
        (1, 2, 4, 4, 6),
    ),
    "rot90_batch": (
        lambda x: rot90_batch((255 * x).to(torch.uint8), **SCALE)[0].sum(),
        (2, 3, 8, 8),
    ),
}


@pytest.fixture(params=OPS)
def op(request):
    """(the function, two inputs)."""
    function, shape = OPS[request.param]
    generator = torch.Generator().manual_seed(0)
    return function, [torch.rand(shape, generator=generator) for _ in range(2)]


def traced(function, x):
    return torch.jit.trace(function, (x,), check_trace=False)


@pytest.mark.parametrize("tracer", [lambda f, x: make_fx(f)(x), traced], ids=["make_fx", "jit"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_graph_computes_what_the_function_does_on_other_inputs(op, tracer):
    function, (first, second) = op
    expected = function(first), function(second)
    graph = tracer(function, first)
    for x, wanted in zip((first, second), expected, strict=True):
        torch.testing.assert_close(graph(x), wanted)


class Counting(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        type(self).calls += 1
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_every_result(op):
    """And the gradient is right."""
    function, (x, _) = op
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    before = Counting.calls
    with Counting():
        value = function(leaf)
        grads = torch.autograd.grad(value, leaf) if value.requires_grad else ()
    assert Counting.calls > before
    expected = function(other)
    # a sum of some hundred values, in PyTorch where a mode looks on, else by a kernel
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    if grads:
        torch.testing.assert_close(grads[0], torch.autograd.grad(expected, other)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_transforms_and_tracers_leave_nothing_that_later_calls_get(op):
    """Tensors that are kept from one call to the next are plain ones."""
    function, (x, _) = op
    constants._kept.cache_clear()
    for kept in (
        dino.pairs_of,
        dino.own_pairs,
        importlib.import_module("fastequi.functional.dino")._filled,
    ):
        kept.cache_clear()
    inside = torch.func.functionalize(function)(x)
    made = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(x)(x)
    expected = function(x)
    torch.testing.assert_close(inside, expected, rtol=1e-4, atol=1e-5)  # in plain PyTorch
    torch.testing.assert_close(made, expected)
    compiled = torch.compile(function, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


def test_kept_tensors_are_made_once_and_can_be_saved_for_a_backward():
    device = torch.device("cpu")
    with torch.inference_mode():
        first = dino.pairs_of(3, 2, 7, device)
    assert not first.is_inference()
    assert dino.pairs_of(3, 2, 7, device) is first
    assert dino.pairs_of(3, 2, 8, device) is not first
    with Counting():
        assert dino.pairs_of(3, 2, 7, device) is not first
    with torch.inference_mode():
        kept = constants.constants((0.25, 4.0), device, torch.float32)
    assert not kept.is_inference()
    assert constants.constants((0.25, 4.0), device, torch.float32) is kept
