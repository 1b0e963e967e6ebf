"""Attention of few tokens in C, against float64."""

import pytest
import torch

from fastequi.kernels import native, native_short_attention, toolchain
from fastequi.kernels import short_attention as module
from fastequi.kernels.backend import force
from fastequi.kernels.short_attention import is_faster, short_attention, short_attention_ref
from fastequi.models.attention import attention, self_attention
from tests.support.native import expect_the_same_bits_of_any_threads, instruction_set

pytestmark = pytest.mark.skipif(native.obstacle() is not None, reason="no C kernels")

SHAPES = [
    (1, 1, 1, 16),
    (3, 2, 2, 32),
    (2, 5, 3, 48),
    (5, 16, 2, 64),
    (3, 17, 2, 64),
    (2, 37, 3, 32),
    (2, 50, 1, 80),
    (1, 63, 2, 128),
    (2, 64, 2, 64),
    (1, 99, 1, 32),
]


def given(shape, seed=0, scale=1.0, dtype=torch.float32):
    batch, tokens, heads, width = shape
    generator = torch.Generator().manual_seed(seed)
    qkv = scale * torch.randn(batch, tokens, 3, heads, width, generator=generator)
    grad = torch.randn(batch, tokens, heads, width, generator=generator)
    return qkv.to(dtype).requires_grad_(), grad.to(dtype)


def exact(qkv, grad):
    """softmax(q kᵀ / √D) v and its gradient, in float64."""
    leaf = qkv.detach().double().requires_grad_()
    q, k, v = (x.transpose(1, 2) for x in leaf.unbind(2))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    out = (weights @ v).transpose(1, 2)
    return out.detach(), torch.autograd.grad(out, leaf, grad.double())[0]


def expect_near(found, wanted, rtol=2e-5):
    """In units of the largest value."""
    assert ((found.double() - wanted).abs().max() <= rtol * wanted.abs().max()).item()


@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_equal_float64(shape, isa, monkeypatch):
    qkv, grad = given(shape)
    with instruction_set(isa, monkeypatch):
        assert is_faster(qkv)
        out = short_attention(qkv)
        (found,) = torch.autograd.grad(out, qkv, grad)
        with torch.no_grad():
            assert torch.equal(short_attention(qkv), out)
    wanted = exact(qkv, grad)
    expect_near(out, wanted[0])
    expect_near(found, wanted[1])


@pytest.mark.parametrize("scale", [1e-3, 8.0, 100.0])
def test_logits_of_any_size(scale):
    """Up to thousands, of which float32's rounding is as large as a probability."""
    qkv, grad = given((2, 19, 2, 64), seed=1, scale=scale)
    out = short_attention(qkv)
    (found,) = torch.autograd.grad(out, qkv, grad)
    wanted = exact(qkv, grad)
    loose = 2e-5 * max(scale**2 / 8, 1)
    expect_near(out, wanted[0], loose)
    expect_near(found, wanted[1], loose)


def test_strides_do_not_matter():
    qkv, grad = given((3, 18, 2, 32))
    other = qkv.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    turned = grad.transpose(1, 2).contiguous().transpose(1, 2)
    assert not other.is_contiguous()
    assert not turned.is_contiguous()
    for leaf, by in ((other, grad), (qkv, turned)):
        out = short_attention(leaf)
        assert torch.equal(out, short_attention(qkv))
        assert torch.equal(
            torch.autograd.grad(out, leaf, by)[0],
            torch.autograd.grad(short_attention(qkv), qkv, grad)[0],
        )


def test_the_same_bits_with_any_number_of_threads():
    qkv, grad = given((7, 16, 3, 32))

    def call():
        out = short_attention(qkv)
        return out, torch.autograd.grad(out, qkv, grad)[0]

    expect_the_same_bits_of_any_threads(call)


def test_no_image_or_head_sees_another():
    qkv, grad = given((3, 16, 2, 32))
    spoilt = qkv.detach().clone()
    spoilt[1, 4, 1, 0, 3] = float("nan")  # a key of the first head of image 1
    spoilt.requires_grad_()
    out = short_attention(spoilt)
    (found,) = torch.autograd.grad(out, spoilt, grad)
    whole = short_attention(qkv)
    (wanted,) = torch.autograd.grad(whole, qkv, grad)
    assert out[1, :, 0].isnan().all()
    assert found[1, :, :2, 0].isnan().all()
    for where in ((0,), (2,), (1, slice(None), 1)):
        assert torch.equal(out[where], whole[where])
    assert torch.equal(found[[0, 2]], wanted[[0, 2]])
    assert torch.equal(found[1, :, :, 1], wanted[1, :, :, 1])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, native_short_attention.TOKENS + 1, 1, 16), torch.float32),
        ((1, 4, 1, 24), torch.float32),
        ((1, 4, 1, 16), torch.float64),
        ((0, 4, 1, 16), torch.float32),
    ],
)
def test_what_c_does_not_take_is_pytorchs(shape, dtype):
    qkv, _ = given(shape, dtype=dtype)
    assert not is_faster(qkv)
    assert torch.equal(short_attention(qkv), short_attention_ref(qkv))
    assert torch.equal(self_attention(qkv), attention(*qkv.unbind(2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    qkv, grad = given((2, 9, 2, 32), dtype=dtype)
    out = self_attention(qkv)
    (found,) = torch.autograd.grad(out, qkv, grad)
    assert out.dtype == found.dtype == dtype
    wide = qkv.detach().float().requires_grad_()
    wanted = short_attention(wide)
    assert torch.equal(out, wanted.to(dtype))
    assert torch.equal(found, torch.autograd.grad(wanted, wide, grad.float())[0].to(dtype))


def test_autocast_changes_nothing():
    qkv, grad = given((2, 9, 2, 32))
    with torch.autocast("cpu", torch.bfloat16):
        out = self_attention(qkv)
        (found,) = torch.autograd.grad(out, qkv, grad)
    plain = self_attention(qkv)
    assert torch.equal(out, plain)
    assert torch.equal(found, torch.autograd.grad(plain, qkv, grad)[0])


def test_every_derivative_is_there():
    qkv, grad = given((2, 5, 2, 16))
    leaf = qkv.detach().double().requires_grad_()

    def second(x, f):
        (first,) = torch.autograd.grad(f(x), x, grad.to(x.dtype), create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(
        second(qkv, short_attention).double(),
        second(leaf, short_attention_ref),
        rtol=1e-3,
        atol=1e-4,
    )
    plain = qkv.detach()
    torch.testing.assert_close(
        torch.func.grad(lambda x: (short_attention(x) * grad).sum())(plain),
        torch.autograd.grad(short_attention(qkv), qkv, grad)[0],
    )
    torch.testing.assert_close(
        torch.func.vmap(short_attention)(plain[None]), short_attention(plain)[None]
    )
    out = short_attention(qkv)
    several = torch.stack([grad, 2 * grad])
    (batch,) = torch.autograd.grad(out, qkv, several, is_grads_batched=True)
    torch.testing.assert_close(batch[1], 2 * batch[0])


def test_compilers_and_exports_see_pytorchs():
    qkv, _ = given((2, 9, 2, 32))

    class Whole(torch.nn.Module):
        def forward(self, x):
            return self_attention(x)

    torch._dynamo.reset()
    compiled = torch.compile(Whole(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(qkv), self_attention(qkv))
    exported = torch.export.export(Whole(), (qkv.detach(),))
    assert "scaled_dot_product" in str(exported.graph)


def test_the_path_is_that_of_the_backend(monkeypatch):
    qkv, _ = given((2, 9, 2, 32))
    calls = []
    run = native_short_attention.forward
    monkeypatch.setattr(
        module.native_short_attention, "forward", lambda *a: (calls.append(1), run(*a))
    )
    self_attention(qkv)
    assert len(calls) == 1
    with force("torch"):
        self_attention(qkv)
    self_attention(qkv, backend="sdpa")
    attention(*qkv.unbind(2))
    assert len(calls) == 1
