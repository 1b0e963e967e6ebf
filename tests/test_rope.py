"""Rotary positions against the paper's formula in complex numbers, and what follows from it."""

import itertools
import math

import pytest
import torch

from fastequi.models.rope import AxialRope, rotate

F64 = torch.zeros(0, dtype=torch.float64)


def turned(x, grid, prefix, theta):
    """[N, D] float64, token by token: pair i as a complex number, times exp(i angle)."""
    dim = x.shape[-1]
    z = torch.complex(x[:, : dim // 2], x[:, dim // 2 :])
    rows = []
    for n in range(len(x)):
        row, column = divmod(n - prefix, grid[1])
        y, x_ = 2 * (row + 0.5) / grid[0] - 1, 2 * (column + 0.5) / grid[1] - 1
        periods = [theta ** (4 * j / dim) for j in range(dim // 4)]
        angles = [2 * math.pi * c / period for c in (y, x_) for period in periods]
        spin = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles], dtype=z.dtype)
        rows.append(z[n] if n < prefix else z[n] * spin)
    z = torch.stack(rows)
    return torch.cat([z.real, z.imag], -1)


@pytest.mark.parametrize("theta", [100.0, 10000.0])
@pytest.mark.parametrize("grid", [(3, 5), (1, 1), (4, 4)])
@pytest.mark.parametrize("prefix", [0, 5])
def test_it_is_the_papers_formula(grid, prefix, theta):
    x = torch.randn(2, prefix + grid[0] * grid[1], 3, 16, dtype=torch.float64)
    found = rotate(x, AxialRope(16, theta)(grid, prefix, x))
    for image in range(2):
        for head in range(3):
            expected = turned(x[image, :, head], grid, prefix, theta)
            torch.testing.assert_close(found[image, :, head], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[:, :prefix], x[:, :prefix])


def test_scores_depend_on_the_difference_of_positions_alone():
    """The same query and key everywhere: q·k of places (a, b) is that of (a + s, b + s)."""
    grid = (5, 6)
    q, k = torch.randn(2, 16, dtype=torch.float64).unbind()
    rotation = AxialRope(16)(grid, 0, q)
    turned_q, turned_k = (rotate(x.expand(1, 30, 1, 16), rotation)[0, :, 0] for x in (q, k))
    scores = (turned_q @ turned_k.T).view(*grid, *grid)
    by_difference = {}
    for a, b, c, d in torch.cartesian_prod(*(torch.arange(n) for n in (*grid, *grid))).tolist():
        by_difference.setdefault((a - c, b - d), []).append(scores[a, b, c, d].item())
    for values in by_difference.values():
        assert values == pytest.approx([values[0]] * len(values), abs=1e-12)
    firsts = sorted(values[0] for values in by_difference.values())
    assert min(b - a for a, b in itertools.pairwise(firsts)) > 1e-9  # and all differ
    lengths = turned_q.norm(dim=-1)
    torch.testing.assert_close(lengths, q.norm().expand(30))


def coordinates(rope, grid):
    """Rows' and columns' coordinates [h], [w], read back from the longest period's angles."""
    cos, sin = rope(grid, 0, F64)
    angles = torch.atan2(sin, cos).unflatten(0, grid)
    quarter, period = rope.head_dim // 4, rope.theta ** (1 - 4 / rope.head_dim)
    y, x = angles[:, 0, quarter - 1], angles[0, :, 2 * quarter - 1]
    return y * period / (2 * math.pi), x * period / (2 * math.pi)


def slow(**box):
    """One whose longest period is long enough to read coordinates of any box from it."""
    return AxialRope(64, 1e6, **box)


def test_a_finer_grid_has_patches_inside_the_coarser_ones():
    coarse, fine = coordinates(slow(), (3, 4)), coordinates(slow(), (6, 8))
    for some, more in zip(coarse, fine, strict=True):
        torch.testing.assert_close(more.view(-1, 2).mean(1), some)
    torch.testing.assert_close(coarse[0], torch.tensor([-2 / 3, 0, 2 / 3], dtype=torch.float64))


def test_without_a_random_box_training_is_evaluation_and_draws_nothing():
    before = torch.get_rng_state()
    trained, evaluated = (AxialRope(16).train(mode)((3, 4), 1, F64) for mode in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(trained, evaluated, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    changed = AxialRope(16, rescale=2.0, jitter=2.0, shift=1.0)
    assert all(
        torch.equal(a, b) for a, b in zip(changed.eval()((3, 4), 1, F64), evaluated, strict=True)
    )


def draws(number=1500, **box):
    """Slopes and offsets [number, 2] of both axes' coordinates over the still ones."""
    torch.manual_seed(0)
    rope, still = slow(**box).train(), coordinates(slow(), (2, 4))
    found = []
    for _ in range(number):
        axes = zip(coordinates(rope, (2, 4)), still, strict=True)
        found.append([((x[-1] - x[0]) / (s[-1] - s[0]), x.mean()) for x, s in axes])
    return torch.tensor(found, dtype=torch.float64).unbind(-1)


def assert_uniform(values, bound):
    """On [-bound, bound], by its moments and its edges; of 1500 values."""
    assert values.abs().max() <= bound * (1 + 1e-6)
    assert values.max() > 0.98 * bound
    assert values.min() < -0.98 * bound
    assert abs(values.mean()) < 0.06 * bound
    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_rescaling_stretches_the_box_as_a_whole():
    slopes, offsets = draws(rescale=2.0)
    torch.testing.assert_close(slopes[:, 0], slopes[:, 1])
    assert_uniform(slopes[:, 0].log(), math.log(2))
    assert offsets.abs().max() < 1e-6


def test_jitter_stretches_each_axis_by_itself():
    slopes, offsets = draws(jitter=1.5)
    for axis in (0, 1):
        assert_uniform(slopes[:, axis].log(), math.log(1.5))
    assert abs(torch.corrcoef(slopes.log().T)[0, 1]) < 0.1
    assert offsets.abs().max() < 1e-6


def test_a_shift_moves_each_axis_by_itself_and_is_stretched_with_the_box():
    slopes, offsets = draws(shift=0.3)
    torch.testing.assert_close(slopes, torch.ones_like(slopes))
    for axis in (0, 1):
        assert_uniform(offsets[:, axis], 0.3)
    assert abs(torch.corrcoef(offsets.T)[0, 1]) < 0.1
    slopes, offsets = draws(shift=0.3, rescale=2.0, jitter=1.5)
    for axis in (0, 1):  # the shift comes first
        assert_uniform(offsets[:, axis] / slopes[:, axis], 0.3)


def test_it_is_computed_in_float32_and_cast():
    x = torch.randn(2, 12, 2, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rotation = AxialRope(16)((3, 4), 0, x)
        assert {table.dtype for table in rotation} == {torch.float32}
        found = rotate(x, rotation)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rotate(x.float(), rotation).bfloat16())


def test_heads_need_whole_pairs_of_both_axes():
    with pytest.raises(ValueError, match=r"num_heads: .* a multiple of 4 .* got 6 channels"):
        AxialRope(6)
