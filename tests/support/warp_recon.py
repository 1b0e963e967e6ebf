"""The path loss's reference, the chain a user would write without it, and inputs to compare on."""

import itertools

import torch
import torch.nn.functional as F

from fastequi.kernels.pixel_loss import patchify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


ERRORS = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


def eager(pred, image, theta, *, color=None, loss="mse", patch=0, mean=None, std=None, size=None,
          padding_mode="zeros", align_corners=False, mask_outside=False):  # fmt: skip
    """The chain a user writes today, one (image, step) at a time, in float64; [B, K] of sums."""
    image = image.double() / {torch.uint8: 255, torch.uint16: 65535}.get(image.dtype, 1)
    pred, theta = pred.double(), theta.double()
    size = size or pred.shape[-2:]
    rows = []
    for b, k in itertools.product(range(theta.shape[0]), range(theta.shape[1])):
        shape = [1, image.shape[1], *size]
        grid = F.affine_grid(theta[b, k][None], shape, align_corners=align_corners)
        target = F.grid_sample(
            image[b][None], grid, padding_mode=padding_mode, align_corners=align_corners
        )
        if color is not None:
            *columns, shift = color[b, k].double().unbind(1)
            gains = len(columns) == 1 < len(shift)
            matrix = torch.diag(columns[0]) if gains else torch.stack(columns, 1)
            target = torch.einsum("ij,bjhw->bihw", matrix, target) + shift.view(1, -1, 1, 1)
        if mean is not None:
            mean_t, std_t = (torch.tensor(v).double().view(1, -1, 1, 1) for v in (mean, std))
            target = (target - mean_t.to(target)) / std_t.to(target)
        keep = torch.ones_like(target)
        if mask_outside:
            keep = keep * (grid.abs() <= 1 + 2**-20).all(-1)[:, None]
        if patch:
            target, keep = patchify(target, patch), patchify(keep, patch)
        rows.append((ERRORS[loss](pred[b, k][None], target, reduction="none") * keep).sum())
    return torch.stack(rows).view(theta.shape[:2])


def case(seed=0, b=2, k=2, c=3, size=(9, 14), source=(11, 8), image_dtype=torch.uint8, scale=0.7):
    g = torch.Generator().manual_seed(seed)
    if image_dtype in (torch.uint8, torch.uint16):
        most = 2 ** (8 * image_dtype.itemsize)
        image = torch.randint(most, (b, c, *source), generator=g).to(image_dtype)
    else:
        image = torch.rand(b, c, *source, generator=g).to(image_dtype)
    pred = torch.randn(b, k, c, *size, generator=g)
    theta = torch.eye(2, 3) * 0.9 + scale * (torch.rand(b, k, 2, 3, generator=g) - 0.5)
    return pred, image, theta


def assert_near(ours, reference, tolerance):
    error = (ours.double() - reference).norm() / reference.norm().clamp(min=1e-12)
    assert error <= tolerance, f"relative error {error:.2e}"
