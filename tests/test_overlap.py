"""Windows added up where they overlap, against transposed convolutions of mirrored tiles."""

import pytest
import torch
import torch.nn.functional as F

from fastequi.kernels import overlap
from tests.support.tolerances import LOSS

GRIDS = [(2, 3), (1, 4), (1, 1), (3, 2)]


def as_convolved(windows, grid, patch, over):
    """[b, i·p, j·p, C]: every window placed by a transposed convolution, the margin folded back."""
    side = patch + 2 * over
    channels = windows.shape[-1] // side**2
    tiles = windows.double().unflatten(-1, (side, side, channels)).unflatten(1, grid)
    maps = tiles.permute(0, 3, 4, 5, 1, 2).flatten(1, 3)  # b, (p q c), i, j
    kernel = torch.zeros(side, side, channels, channels, side, side, dtype=torch.float64)
    for c in range(channels):
        for p in range(side):
            for q in range(side):
                kernel[p, q, c, c, p, q] = 1
    image = F.conv_transpose2d(maps, kernel.flatten(0, 2), stride=patch)
    height, width = grid[0] * patch, grid[1] * patch
    for axis, size in ((2, height), (3, width)):
        inside = image.narrow(axis, over, size).clone()
        inside.narrow(axis, 0, over).add_(image.narrow(axis, 0, over).flip(axis))
        end = inside.narrow(axis, size - over, over)
        end.add_(image.narrow(axis, over + size, over).flip(axis))
        image = inside
    return image.permute(0, 2, 3, 1)


def as_image(patches, grid, patch):
    tiles = patches.unflatten(-1, (patch, patch, -1)).unflatten(1, grid)
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


@pytest.mark.slow("triton", every=4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("patch", "over", "channels"), [(4, 1, 3), (4, 2, 1), (5, 2, 5)])
def test_windows_become_the_image(backend, device, grid, patch, over, channels, dtype, poisoned):
    side, generator = patch + 2 * over, torch.Generator().manual_seed(0)
    shape = 2, grid[0] * grid[1], side * side * channels
    windows = torch.randn(shape, generator=generator).to(device, dtype)
    found = overlap.overlap_add(windows, grid, patch, over)
    assert found.dtype == dtype
    wanted = as_convolved(windows.detach().cpu(), grid, patch, over)
    rtol = LOSS[dtype] if dtype.itemsize > 2 else torch.finfo(dtype).eps
    torch.testing.assert_close(
        as_image(found.detach().cpu(), grid, patch).double(), wanted, rtol=rtol, atol=1e-6
    )


@pytest.mark.slow("triton", every=4)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("patch", "over", "channels"), [(4, 1, 3), (4, 2, 1), (5, 2, 5)])
def test_the_way_back_is_the_adjoint(backend, device, grid, patch, over, channels, poisoned):
    """Which autograd finds of the reference."""
    side, generator = patch + 2 * over, torch.Generator().manual_seed(0)
    windows = torch.randn(2, 3, grid[0] * grid[1], side**2 * channels, generator=generator)
    windows = windows.to(device).requires_grad_()
    patches = overlap.overlap_add(windows, grid, patch, over)
    gradient = torch.randn(patches.shape, generator=generator).to(device)
    (wanted,) = torch.autograd.grad(patches, windows, gradient)
    assert torch.equal(overlap.overlap_spread(gradient, grid, patch, over), wanted)


def test_empty_batches_stay_empty(backend, device):
    windows = torch.zeros(0, 6, 36, device=device)
    assert overlap.overlap_add(windows, (2, 3), 4, 1).shape == (0, 6, 16)
    patches = torch.zeros(0, 6, 16, device=device)
    assert overlap.overlap_spread(patches, (2, 3), 4, 1).shape == (0, 6, 36)
