"""Augmented views of decoded photographs, in one pass from their bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.functional import arguments, checks
from fastequi.kernels import fused_views as _views
from fastequi.kernels.target import DrawnViews, ViewTarget

_DTYPES = (torch.uint8, *checks.FLOATS)


def fused_views(
    photos: Sequence[Tensor],
    windows: Tensor,
    *,
    size: int | tuple[int, int],
    photo: Tensor | None = None,
    color: Tensor | None = None,
    sigma: Tensor | None = None,
    solarize: Tensor | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Crop and resize, mirror, colour, blur, solarize and normalise: what DALI's operators or
    torchvision's do one after the other, with parameters that the caller has drawn.

    Args:
        photos: [H, W, 3] uint8 each, of any sizes, such as `torch.from_numpy` of decoded images, on
            one device, where the views are made. The other tensors are read on the CPU, where they
            are drawn: those of a GPU are waited for, with a host sync each.
        windows: [V, 4] corners y0, x0, y1, x1 in pixels, within the photographs; x0 > x1 mirrors
            left to right. Resampled linearly, with antialiasing where the view is smaller.
        size: (H, W) of the views, or one number for both.
        photo: [V] integers, the photograph of every view; None where there are as many of both.
        color: [V, 3, 4] affine maps of RGB in 0..1 (:func:`fastequi.paths.color_matrix`), what
            leaves the range is cut off.
        sigma: [V] of a Gaussian blur in pixels of the view, 0 for none, at most 64; the kernel
            reaches ceil(3 sigma) pixels, borders are reflected without the edge pixel.
        solarize: [V] bool, where values of 128 of 255 and above are inverted.
        mean, std: three floats each in 0..1, one for all, or neither.
        dtype: of the views; uint8 is not normalised.

    Returns:
        [V, 3, H, W] in 0..1 or normalised; for uint8 [V, 3, H, W] in 0..255, channels last in
        memory. Nothing is rounded between the operations. No gradient.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    checks.check_floating("windows", windows)
    photos, device = _checked_photos(photos, windows.device)
    windows = _on_host("windows", windows, device)
    target_size = arguments.two_sizes("size", size)
    if windows.ndim != 2 or windows.shape[1] != 4:
        raise ValueError(f"windows: expected [V, 4], got {tuple(windows.shape)}")
    count = len(windows)
    photo = _checked_places(photo, count, photos, device)
    _check_windows(windows, photos, photo)
    color = _checked("color", color, (count, 3, 4), device)
    sigma = _checked("sigma", sigma, (count,), device)
    solarize = _checked("solarize", solarize, (count,), device)
    if color is not None and not (color.abs() <= _MOST_COLOR).all():  # nor NaN
        raise ValueError(f"color: expected numbers up to {_MOST_COLOR:g}, got others")
    if sigma is not None:
        checks.check_sigma_range(sigma, _MOST_SIGMA, "64")
    mean, std = checks.normalisation(3, mean, std)
    if dtype not in _DTYPES:
        raise TypeError(f"dtype: expected uint8 or a floating dtype, got {dtype!r}")
    if dtype == torch.uint8 and mean is not None:
        raise ValueError("dtype: uint8 cannot hold normalised values; leave out mean and std")
    target = ViewTarget(*target_size, mean, std)
    drawn = DrawnViews(photos, photo, windows, color, sigma, solarize)
    return _views.fused_views(drawn, target, dtype)


_MOST_SIGMA, _MOST_COLOR = 64.0, 1e6


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _checked_photos(
    photos: Sequence[Tensor], device: torch.device
) -> tuple[list[Tensor], torch.device]:
    """Photographs whose pixels lie side by side, and their device; the given one for none."""
    if isinstance(photos, Tensor) or not isinstance(photos, Sequence):
        got = f"one of {tuple(photos.shape)}" if isinstance(photos, Tensor) else _kind(photos)
        raise TypeError(f"photos: expected a list of tensors [H, W, 3], got {got}")
    found: list[Tensor] = []
    for i, image in enumerate(photos):
        if not isinstance(image, Tensor) or image.dtype != torch.uint8:
            raise TypeError(f"photos[{i}]: expected a uint8 tensor, got {_kind(image)}")
        if image.ndim != 3 or image.shape[2] != 3 or not image.numel():
            raise ValueError(f"photos[{i}]: expected [H, W, 3], got {tuple(image.shape)}")
        if image.is_meta:
            raise ValueError(f"photos[{i}]: expected pixels in memory, got a tensor on meta")
        if i > 0 and image.device != found[0].device:
            raise ValueError(
                f"photos[{i}]: expected on {found[0].device} as photos[0] is, got {image.device}"
            )
        side_by_side = image.stride()[1:] == (3, 1) and image.stride(0) >= 0
        found.append(image if side_by_side else image.contiguous())
    return found, found[0].device if found else device


def _on_host(name: str, values: Tensor, device: torch.device) -> Tensor:
    """A parameter as the kernels read it: on the CPU, dense, floating ones in float32."""
    if values.device.type != "cpu" and values.device != device:
        here = "cpu" if device.type == "cpu" else f"cpu, or {device} as photos are"
        raise ValueError(f"{name}: expected on {here}, got {values.device}")
    values = values.detach().cpu().resolve_neg()
    return (values.float() if values.is_floating_point() else values).contiguous()


def _checked(
    name: str, values: Tensor | None, shape: tuple[int, ...], device: torch.device
) -> Tensor | None:
    if values is None:
        return None
    if name != "solarize":
        checks.check_floating(name, values)
    elif not isinstance(values, Tensor) or values.dtype != torch.bool:
        raise TypeError(f"solarize: expected a bool tensor, got {_kind(values)}")
    if values.shape != shape:
        raise ValueError(f"{name}: expected {list(shape)}, got {tuple(values.shape)}")
    return _on_host(name, values, device)


def _checked_places(
    photo: Tensor | None, count: int, photos: list[Tensor], device: torch.device
) -> Tensor:
    if photo is None:
        if len(photos) != count:
            raise ValueError(
                f"photo: needed where there are {len(photos)} photographs for {count} windows"
            )
        return torch.arange(count, dtype=torch.int32, device="cpu")
    checks.check_integers("photo", photo)
    if photo.shape != (count,):
        raise ValueError(f"photo: expected [{count}] as windows has rows, got {tuple(photo.shape)}")
    photo = _on_host("photo", photo, device)
    if photo.numel() and not (photo.min() >= 0 and photo.max() < len(photos)):
        raise ValueError(
            f"photo: expected 0 .. {len(photos) - 1}, got {photo.min().item()} .. "
            f"{photo.max().item()}"
        )
    return photo.to(torch.int32)


def _check_windows(windows: Tensor, photos: list[Tensor], photo: Tensor) -> None:
    if not len(windows):
        return
    sides = windows.new_tensor([image.shape[:2] for image in photos])[photo.long()].repeat(1, 2)
    slack = 1e-3  # pixels, of what float32 makes of a fraction
    bad = ~((windows >= -slack) & (windows <= sides + slack)).all(1)
    if bad.any():
        v = int(bad.nonzero()[0])
        raise ValueError(
            f"windows: expected y and x within the photograph's {sides[v, :2].tolist()}, got "
            f"{windows[v].tolist()} in row {v}"
        )
    y0, x0, y1, x1 = windows.unbind(1)
    if ((y0 == y1) | (x0 == x1)).any():
        raise ValueError("windows: expected windows with an area, got an empty one")
