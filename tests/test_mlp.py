import pytest
import torch

from fastequi.models.mlp import Mlp, SwiGLU, hidden_width, make_mlp


def test_swiglu_is_its_formula():
    """(silu(W x) * (V x)) U, silu(x) = x / (1 + exp(-x)); Shazeer 2020, with biases."""
    torch.manual_seed(0)
    mlp, x = make_mlp("swiglu", 6, 10).double(), torch.randn(3, 6, dtype=torch.float64)
    assert isinstance(mlp, SwiGLU)
    (w, v), (b, c) = mlp.fc1.weight.split(10), mlp.fc1.bias.split(10)
    gate, up = x @ w.T + b, x @ v.T + c
    expected = (gate / (1 + (-gate).exp()) * up) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected, rtol=1e-12, atol=1e-12)


def test_gelu_is_its_formula():
    """x Φ(x), exactly, not its approximation by tanh."""
    torch.manual_seed(0)
    mlp, x = make_mlp("gelu", 6, 10).double(), torch.randn(3, 6, dtype=torch.float64)
    assert isinstance(mlp, Mlp)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = hidden @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dim", "ratio", "width"),
    [
        (1536, 4.0, 4096),  # DINOv2's giant
        (384, 6.0, 1536),  # DINOv3's small plus
        (1280, 6.0, 5120),  # huge plus
        (4096, 3.0, 8192),  # 7B
        (384, 4.0, 1024),
        (100, 4.0, 272),  # int(400 · 2/3) = 266, up to a multiple of 8
    ],
)
def test_swiglu_takes_two_thirds_of_the_ratio_as_published(dim, ratio, width):
    assert hidden_width("swiglu", dim, ratio) == width
    assert hidden_width("gelu", dim, ratio) == int(dim * ratio)
