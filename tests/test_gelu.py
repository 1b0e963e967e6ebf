"""GELU in C, against float64."""

import pytest
import torch
import torch.nn.functional as F

from fastequi.kernels import native, native_gelu, toolchain
from fastequi.kernels.backend import force
from fastequi.kernels.gelu import gelu
from fastequi.models.mlp import Mlp
from tests.support.native import expect_the_same_bits_of_any_threads, instruction_set

pytestmark = pytest.mark.skipif(native.obstacle() is not None, reason="no C kernels")


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch):
    monkeypatch.setattr(native_gelu, "LEAST", 1)


@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
@pytest.mark.parametrize("count", [1, 7, 16, 4096, 20_001])
def test_value_and_gradient_equal_float64(isa, count, monkeypatch):
    x = torch.linspace(-12, 12, count).requires_grad_()
    grad = torch.randn(count, generator=torch.Generator().manual_seed(0))
    exact = x.detach().double().requires_grad_()
    wanted = F.gelu(exact)
    (slope,) = torch.autograd.grad(wanted, exact, grad.double())
    with instruction_set(isa, monkeypatch):
        found = gelu(x)
        (ours,) = torch.autograd.grad(found, x, grad)
    torch.testing.assert_close(found.double(), wanted, rtol=3e-7, atol=3e-7)
    torch.testing.assert_close(ours.double(), slope, rtol=1e-6, atol=1e-6)


def test_what_is_not_finite_is_as_float64_has_it():
    """In float32 with AVX-512 PyTorch makes NaN of infinity, and infinity of 3e38."""
    x = torch.tensor([float("inf"), float("-inf"), float("nan"), 3e38, -3e38, 0.0, -0.0, 1e-40])
    torch.testing.assert_close(gelu(x), F.gelu(x.double()).float(), equal_nan=True)
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    (ours,) = torch.autograd.grad(gelu(leaf).sum(), leaf)
    (theirs,) = torch.autograd.grad(F.gelu(exact).sum(), exact)
    torch.testing.assert_close(ours[2:], theirs[2:].float(), equal_nan=True)


def test_the_same_bits_with_any_number_of_threads():
    x = torch.randn(30_011, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def call():
        out = gelu(x)
        return out, torch.autograd.grad(out, x, torch.ones_like(out))[0]

    expect_the_same_bits_of_any_threads(call)


def test_any_layout_type_and_derivative(monkeypatch):
    calls = []
    run = native_gelu.gelu
    monkeypatch.setattr(native_gelu, "gelu", lambda *a: (calls.append(1), run(*a)))
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    assert gelu(x).shape == x.shape
    assert len(calls) == 1
    for other in (x.T, x.double(), x.bfloat16(), x[:0]):
        assert torch.equal(gelu(other), F.gelu(other))
    with force("torch"):
        assert torch.equal(gelu(x), F.gelu(x))
    assert len(calls) == 1

    def second(f, leaf):
        (first,) = torch.autograd.grad(f(leaf).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(second(gelu, leaf), second(F.gelu, leaf))
    torch.testing.assert_close(torch.func.vmap(gelu)(x), F.gelu(x))
    torch.testing.assert_close(
        torch.func.grad(lambda v: gelu(v).sum())(x),
        torch.autograd.grad(F.gelu(leaf).sum(), leaf)[0],
    )
    out, each = gelu(leaf), torch.stack([torch.ones_like(x), 2 * torch.ones_like(x)])
    (batch,) = torch.autograd.grad(out, leaf, each, is_grads_batched=True)
    torch.testing.assert_close(batch[1], 2 * batch[0])


def test_an_mlp_uses_it_and_compiles_and_exports_without(monkeypatch):
    mlp = Mlp(8, 16)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    wanted = mlp.fc2(F.gelu(mlp.fc1(x)))
    calls = []
    run = native_gelu.gelu
    monkeypatch.setattr(native_gelu, "gelu", lambda *a: (calls.append(1), run(*a)))
    torch.testing.assert_close(mlp(x), wanted)
    assert len(calls) == 1
    torch._dynamo.reset()
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), wanted)
    assert "gelu" in str(torch.export.export(mlp, (x,)).graph)
    assert len(calls) == 1
