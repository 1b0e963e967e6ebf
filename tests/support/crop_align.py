"""RoIAlign by loops over bins and samples."""

import math

import torch


def sampled(image, x, y):
    """[C] of an image [h, w, C] between the centres of its cells, the edge's beyond them."""
    height, width = image.shape[:2]
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    right, down = x - x0, y - y0
    upper = (1 - right) * image[y0, x0] + right * image[y0, x1]
    lower = (1 - right) * image[y1, x0] + right * image[y1, x1]
    return (1 - down) * upper + down * lower


def aligned(image, box, bins):
    """[bins, bins, C]: every bin is the mean of its samples (He et al., 2017; Detectron2)."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (float(v) for v in box)
    x0, x1 = (min(max(x, 0.0), width) - 0.5 for x in (x0, x1))
    y0, y1 = (min(max(y, 0.0), height) - 0.5 for y in (y0, y1))
    wide, high = (x1 - x0) / bins, (y1 - y0) / bins
    across, down = max(math.ceil(wide), 1), max(math.ceil(high), 1)
    rows = []
    for i in range(bins):
        for j in range(bins):
            xs = [x0 + wide * (j + (m + 0.5) / across) for m in range(across)]
            ys = [y0 + high * (i + (n + 0.5) / down) for n in range(down)]
            points = [sampled(image, x, y) for y in ys for x in xs]
            rows.append(torch.stack(points).mean(0))
    return torch.stack(rows).unflatten(0, (bins, bins))
