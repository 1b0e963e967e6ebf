"""Checks of the sigmas that images are blurred by, and of what goes along with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastequi.functional import arguments
from fastequi.functional.checks import can_look, check_floating, several


def as_sigma(
    sigma: Tensor | float, image: Tensor, max_sigma: float, steps: int | None = None
) -> Tensor:
    """One number for all images (and steps) as a tensor [B] (or [B, K])."""
    if isinstance(sigma, Tensor):
        check_floating("sigma", sigma)
        return sigma
    if several(sigma):
        raise TypeError(f"sigma: expected a tensor [B, K] or [B], or a number, got {sigma!r}")
    shape = (len(image),) if steps is None else (len(image), steps)
    same = arguments.number("sigma", sigma, least=0)
    if same > max_sigma:
        raise ValueError(f"sigma: expected at most max_sigma={max_sigma:g} pixels, got {same:g}")
    dtype = torch.promote_types(image.dtype, torch.float32)
    return torch.full(shape, same, dtype=dtype, device=image.device)


def with_sigma(
    pred: Tensor, sigma: Tensor | float, image: Tensor, max_sigma: float, ndim: int, name: str
) -> tuple[Tensor, Tensor, bool]:
    """(the argument `name` and sigma with an axis of steps, whether that has been added)."""
    sigma = as_sigma(sigma, image, max_sigma, pred.shape[1] if pred.ndim == ndim else None)
    check_sigma(sigma, image, max_sigma)
    single = sigma.ndim == 1
    if pred.ndim != ndim - single:
        what = "[B, K, C, H, W]" if ndim == 5 else "patch tokens [B, K, L, p*p*C]"
        what = "tokens [B, K, L, D]" if name == "hidden" else what
        raise ValueError(f"{name}: expected {what} (no K for sigma [B]), got {tuple(pred.shape)}")
    if single:
        sigma, pred = sigma[:, None], pred[:, None]
    return pred, sigma, single


def check_sigma(sigma: Tensor, image: Tensor, max_sigma: float) -> None:
    """Its shape, [B, K] or [B], and what values it has."""
    if sigma.ndim not in (1, 2) or len(sigma) != len(image):
        one = "" if sigma.ndim else "; one number for all is a float, or sigma.expand(B)"
        raise ValueError(
            f"sigma: expected [B, K] or [B] with B={len(image)} as in image, "
            f"got {tuple(sigma.shape)}{one}"
        )
    check_sigma_range(sigma, max_sigma)


def check_sigma_range(sigma: Tensor, max_sigma: float) -> None:
    if not can_look(sigma) or not sigma.numel():
        return
    sigma = sigma.detach()
    within = sigma.clamp(0, min(max_sigma, torch.finfo(sigma.dtype).max))
    if torch.equal(within, sigma):  # not of NaN
        return
    bad = sigma[within != sigma]
    limit = f"0..max_sigma={max_sigma}"
    raise ValueError(f"sigma: expected values in {limit} pixels, got {bad[0].item():.4g}")


def with_sigma_checked(
    call: Callable[..., Tensor], given: Tensor | None, sigma: Tensor, max_sigma: float
) -> Callable[..., Tensor]:
    """A call whose last argument is sigma, whose values are looked at, or the one number for all
    that `sigma` is filled with. A sigma that was given is not kept."""
    if given is None:
        return lambda *tensors: call(*tensors[:-1], sigma)

    def again(*tensors: Tensor) -> Tensor:
        check_sigma_range(tensors[-1], max_sigma)
        return call(*tensors)

    return again
