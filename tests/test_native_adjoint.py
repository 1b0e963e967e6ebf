"""The adjoint of a warp in C, against the backward of grid_sample."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastequi import warp
from fastequi.kernels import backend, native, native_warp
from fastequi.kernels.sampling import as_matrices
from fastequi.kernels.target import Target
from fastequi.kernels.warp_adjoint import warp_adjoint_ref

needs_compiler = pytest.mark.skipif(native.obstacle() is not None, reason="no C kernels")
PADDINGS = ("zeros", "border", "reflection")


@needs_compiler
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_the_same_bits_with_any_number_of_threads(channels):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, channels, 61, 75, generator=generator, requires_grad=True)
    theta = torch.tensor([[0.9, 0.3, 0.1], [-0.3, 0.9, 0.0]]).expand(3, 2, 2, 3)
    slope = torch.randn(3, 2, channels, 61, 75, generator=generator)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with backend.force("native"):
                found += torch.autograd.grad(warp(image, theta), image, slope)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


wild = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, 1e-38, 0.0])
tame = st.floats(-3, 3, width=32)
sizes = st.integers(1, 37)


@st.composite
def problems(draw, entries):
    b, k, c = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6)))
    size, source = (draw(sizes), draw(sizes)), (draw(sizes), draw(sizes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = draw(st.lists(entries, min_size=6 * b * k, max_size=6 * b * k))
    theta = torch.tensor(values).view(b, k, 2, 3)
    columns = draw(st.sampled_from([0, 2, c + 1 if c <= 4 else 2]))
    color = torch.randn(b, k, c, columns, generator=generator) if columns else None
    slope = torch.randn(b, k, c, *size, generator=generator)
    slope = slope.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
    norm = ([0.5] * c, [0.25] * c) if draw(st.booleans()) else (None, None)
    padding_mode = draw(st.sampled_from(PADDINGS))
    target = Target(*size, 0, "none", *norm, padding_mode, draw(st.booleans()))
    return slope, theta, color, target, source


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(problems(tame))
def test_fuzz_equals_the_backward_of_grid_sample(problem):
    slope, theta, color, target, source = problem
    ours = native_warp.warp_adjoint(slope, theta, _matrices(color, slope), target, source)
    wanted = warp_adjoint_ref(slope, theta, color, target, source)
    # a point on the border may fall on either side of it, where reflection and align_corners meet
    apart = (ours - wanted).abs() > 2e-3 * wanted.abs().max().clamp(min=1e-3)
    assert apart.float().mean() <= 0.01


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(problems(st.one_of(wild, tame)))
def test_fuzz_any_theta_is_nan_or_a_number_for_its_image_alone(problem):
    slope, theta, color, target, source = problem
    found = native_warp.warp_adjoint(slope, theta, _matrices(color, slope), target, source)
    bad = ~theta.isfinite().flatten(1).all(1)
    assert found[bad].isnan().all()
    assert not found[~bad].isnan().any()


def _matrices(color, slope):
    return as_matrices(color, slope.shape[2])
