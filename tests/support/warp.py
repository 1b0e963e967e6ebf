"""The warp's reference: affine_grid and grid_sample in float64."""

import torch
import torch.nn.functional as F

from tests.support.warp_recon import MEAN, STD


def eager(image, theta, size, *, color=None, norm=False, padding_mode="zeros", align_corners=False):
    image = image.double() / {torch.uint8: 255, torch.uint16: 65535}.get(image.dtype, 1)
    b, k = theta.shape[:2]
    out = []
    for step in range(k):
        grid = F.affine_grid(theta[:, step].double(), [b, image.shape[1], *size], align_corners)
        x = F.grid_sample(image, grid, padding_mode=padding_mode, align_corners=align_corners)
        if color is not None:
            x = torch.einsum("bij,bjhw->bihw", color[:, step, :, :3].double(), x)
            x = x + color[:, step, :, 3, None, None].double()
        if norm:
            mean, std = (torch.tensor(v).double().view(3, 1, 1).to(x.device) for v in (MEAN, STD))
            x = (x - mean) / std
        out.append(x)
    return torch.stack(out, 1)
