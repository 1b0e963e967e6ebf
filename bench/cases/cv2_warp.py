"""OpenCV's warpAffine beside the cases that warp: it alone, without what they do with images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench.cases.geometry import in_pixels
from bench.opbench import Call, Inputs, Make, Provider, Unavailable


def cv2_warp(depth: type[np.generic]) -> Make:
    """A provider that warps the images of a case along its matrices, into memory that stays.

    Args:
        depth: np.float32, of images in 0..1; or np.uint8, in which OpenCV computes otherwise.
    """

    def make(inputs: Inputs, mode: str) -> Call:
        try:
            import cv2
        except Exception as error:
            raise Unavailable(f"opencv: {error}") from None
        cv2.setNumThreads(torch.get_num_threads())
        size, matrices = inputs["image"].shape[-1], inputs["theta"]
        one = 255 if depth is np.uint8 else 1
        wide = inputs["image"].float() / 255
        sources: Any = (wide * one).permute(0, 2, 3, 1).contiguous().numpy().astype(depth)
        pixels = in_pixels(matrices, size)[..., :2, :].double().numpy()
        out = np.empty((*matrices.shape[:2], size, size, 3), depth)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

        def call() -> dict[str, torch.Tensor]:
            for b in range(out.shape[0]):
                for k in range(out.shape[1]):
                    cv2.warpAffine(sources[b], pixels[b, k], (size, size), out[b, k], flags=flags)
            return {}

        call()
        grid = F.affine_grid(
            matrices.flatten(0, 1), [len(out) * out.shape[1], 3, size, size], False
        )
        expected = F.grid_sample(
            wide.repeat_interleave(matrices.shape[1], 0), grid, align_corners=False
        ).permute(0, 2, 3, 1)
        found = torch.from_numpy(out).flatten(0, 1).float() / one
        gap = (found - expected).norm() / expected.norm().clamp(min=1)
        if gap > 0.02:  # it interpolates in steps of a 32nd of a pixel
            raise Unavailable(f"cv2.warpAffine is off by {gap:.2g}")
        return call

    return make


ALONE = {
    "cv2.warpAffine alone": Provider(cv2_warp(np.float32), partial=True),
    "cv2.warpAffine alone, 8 bits": Provider(cv2_warp(np.uint8), partial=True),
}
