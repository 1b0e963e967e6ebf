"""Augmented views of decoded images, in one pass from their values."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastequi.functional import arguments, checks
from fastequi.kernels import fused_views as _views
from fastequi.kernels import native
from fastequi.kernels.autograd import needs_operator
from fastequi.kernels.backend import transformed
from fastequi.kernels.graphs import outside_of_graphs
from fastequi.kernels.sampling import LARGEST
from fastequi.kernels.target import DrawnViews, ViewTarget

_DTYPES = (*LARGEST, *checks.FLOATS)
_PHOTOS = (*LARGEST, torch.float32)


@outside_of_graphs
def fused_views(
    photos: Sequence[Tensor],
    windows: Tensor,
    *,
    size: int | tuple[int, int],
    photo: Tensor | None = None,
    color: Tensor | None = None,
    sigma: Tensor | None = None,
    solarize: Tensor | None = None,
    gain: Tensor | None = None,
    channels: Sequence[int] | None = None,
    value_range: tuple[float, float] | Sequence[tuple[float, float]] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Crop and resize, mirror, colour, blur, solarize and normalise: what DALI's operators or
    torchvision's do one after the other, with parameters that the caller has drawn. Compiled
    functions call it as it is, as the parameters' values decide what runs.

    Args:
        photos: [H, W, C] each, uint8, uint16 or float32 alike, of any sizes, such as
            `torch.from_numpy` of decoded images, on one device, where the views are made. The other
            tensors are read on the CPU, where they are drawn: those of a GPU are waited for, with a
            host sync each.
        windows: [V, 4] corners y0, x0, y1, x1 in pixels, whose edges are whole numbers, of a
            floating dtype, within the photographs; x0 > x1 mirrors left to right, y0 > y1 top to
            bottom. Resampled linearly, with antialiasing where the view is smaller; as by DALI's
            `roi_start`, pixels beside the window have their part in the samples at its border, and
            those of the photograph's border go on beyond it.
        size: (H, W) of the views, or one number for both.
        photo: [V] integers, the photograph of every view; None where there are as many of both.
        color: [V, 3, 4] affine maps of RGB in 0..1 (:func:`fastequi.paths.color_matrix`), what
            leaves the range is cut off; where three channels are taken.
        sigma: [V] of a Gaussian blur in pixels of the view, 0 for none, at most 64; the kernel
            reaches ceil(3 sigma) pixels, borders are reflected without the edge pixel.
        solarize: [V] bool, where values of 128 of 255 and above are inverted.
        gain: [V, C, 2] or [V, C, 3] of every channel taken, after `color`: x becomes
            gain x + offset, cut off at 0 and 1, to the power of an exponent where there are three.
        channels: the photographs' channels that are taken, C numbers from 0; all by default.
        value_range: (low, high), one for all channels taken or one for each: these values become 0
            and 1, as float32 holds them; what lies outside is cut off first. By default what whole
            numbers of the type can be, and 0..1 of floats. NaN makes NaN, of whole numbers 0, of
            the pixels near it.
        mean, std: C floats each in 0..1, one for all, or neither.
        dtype: of the views; uint8 and uint16 are not normalised.

    Returns:
        [V, C, H, W] in 0..1 or normalised, or 0..255 for uint8 and 0..65535 for uint16; three
        channels of uint8 are channels last in memory. Nothing is rounded between the operations. No
        gradient.

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
    if color is not None:
        _expect_within("color", color, _MOST_COLOR)
    if sigma is not None:
        _check_sigma(_numbers("sigma", sigma))
    stored = photos[0].shape[2] if photos else 3
    taken = _checked_channels(channels, stored)
    if color is not None and len(taken) != 3:
        raise ValueError(f"color: expected three channels, got {len(taken)}")
    gain = _checked_gain(gain, (count, len(taken)), device)
    ranges = _checked_range(value_range, photos, taken, gain is not None)
    mean, std = checks.normalisation(len(taken), mean, std)
    if dtype not in _DTYPES:
        raise TypeError(f"dtype: expected uint8, uint16 or a floating dtype, got {dtype!r}")
    if dtype in LARGEST and mean is not None:
        raise ValueError(
            f"dtype: {str(dtype).removeprefix('torch.')} cannot hold normalised values; leave out "
            "mean and std"
        )
    target = ViewTarget(*target_size, mean, std, taken, ranges)
    drawn = DrawnViews(photos, photo, windows, color, sigma, solarize, gain)
    return _views.fused_views(drawn, target, dtype)


def _check_sigma(sigma: NDArray[Any]) -> None:
    wrong = ~((sigma >= 0) & (sigma <= _MOST_SIGMA))  # of NaN too
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"sigma: expected values in 0..{_MOST_SIGMA:g} pixels, got {sigma[row]:g} in row {row}"
        )


_MOST_SIGMA, _MOST_COLOR, _MOST_EXPONENT = 64.0, 1e6, 64.0
MOST_VALUE = 1e30  # of a range, either way


def _numbers(name: str, values: Tensor) -> NDArray[Any]:
    """A parameter's values; one by one under a transform, whose tensors have no memory.

    Raises:
        ValueError: it has none that can be read, as under vmap or of fake tensors.
    """
    if not (transformed() or needs_operator(values)):
        with suppress(RuntimeError):  # a compiler's tensors of a transform
            return values.numpy()
    try:
        one_by_one = [value.item() for value in values.reshape(-1)]
    except RuntimeError as error:
        raise ValueError(f"{name}: expected values that can be read: {error}") from error
    return np.array(one_by_one).reshape(values.shape)


def _expect_within(name: str, values: Tensor, most: float) -> None:
    """Raises ValueError unless all are numbers of that size at most, and none NaN."""
    numbers = _numbers(name, values)
    if numbers.size and not np.abs(numbers).max() <= most:
        wrong = numbers[~(np.abs(numbers) <= most)]
        raise ValueError(f"{name}: expected numbers up to {most:g}, got {wrong[0]:g}")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _checked_photos(
    photos: Sequence[Tensor], device: torch.device
) -> tuple[list[Tensor], torch.device]:
    """Photographs whose pixels lie side by side, and their device; the given one for none."""
    if isinstance(photos, Tensor) or not isinstance(photos, Sequence):
        got = f"one of {tuple(photos.shape)}" if isinstance(photos, Tensor) else _kind(photos)
        raise TypeError(f"photos: expected a list of tensors [H, W, C], got {got}")
    found: list[Tensor] = []
    for i, image in enumerate(photos):
        if not isinstance(image, Tensor) or image.dtype not in _PHOTOS:
            raise TypeError(
                f"photos[{i}]: expected a tensor of uint8, uint16 or float32, got {_kind(image)}"
            )
        shape = image.shape
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"photos[{i}]: expected [H, W, C], got {tuple(shape)}")
        if not found:
            dtype, device, depth = image.dtype, image.device, shape[2]
            if image.is_meta:
                raise ValueError(f"photos[{i}]: expected pixels in memory, got a tensor on meta")
        if image.device != device:
            raise ValueError(
                f"photos[{i}]: expected on {device} as photos[0] is, got {image.device}"
            )
        if image.dtype != dtype or shape[2] != depth:
            raise ValueError(
                f"photos[{i}]: expected {depth} channels of {dtype} as photos[0] "
                f"has, got {shape[2]} of {image.dtype}"
            )
        row, pixel, value = image.stride()
        if (pixel, value) != (depth, 1) or row < 0:
            image = image.contiguous()
        found.append(image.resolve_neg() if image.is_neg() else image)
    return found, device


def _checked_channels(channels: Sequence[int] | None, stored: int) -> tuple[int, ...]:
    if channels is None:
        return tuple(range(stored))
    try:
        taken = tuple(operator.index(c) for c in channels)
    except TypeError:
        taken = ()
    if not taken:
        raise TypeError(f"channels: expected numbers of channels, got {channels!r}")
    if not all(0 <= c < stored for c in taken):
        raise ValueError(f"channels: expected 0 .. {stored - 1}, got {list(taken)}")
    return taken


def _checked_gain(
    gain: Tensor | None, shape: tuple[int, int], device: torch.device
) -> Tensor | None:
    """[V, C, 3]: an exponent of 1 where none is given."""
    if gain is None:
        return None
    checks.check_floating("gain", gain)
    if gain.ndim != 3 or gain.shape[:2] != shape or gain.shape[2] not in (2, 3):
        got = tuple(gain.shape)
        raise ValueError(f"gain: expected [{shape[0]}, {shape[1]}, 2] or [..., 3], got {got}")
    gain = _on_host("gain", gain, device)
    if gain.shape[2] == 2:
        gain = torch.cat([gain, torch.ones_like(gain[..., :1])], 2)
    _expect_within("gain", gain[..., :2], _MOST_COLOR)
    exponent, most = _numbers("gain", gain[..., 2]), _MOST_EXPONENT
    if (wrong := exponent[~((exponent >= 1 / most) & (exponent <= most))]).size:
        raise ValueError(f"gain: expected exponents of 1/{most:g} to {most:g}, got {wrong[0]:g}")
    return gain.contiguous()


def is_range(low: float, high: float) -> bool:
    """Whether it can be brought to 0..1 in float32, in which its ends have to differ."""
    ends = torch.tensor((low, high), dtype=torch.float32)
    within = -MOST_VALUE <= low < high <= MOST_VALUE  # nor NaN
    return within and high - low >= 1 / MOST_VALUE and bool(ends[0] < ends[1])


def _checked_range(
    given: tuple[float, float] | Sequence[tuple[float, float]] | None,
    photos: list[Tensor],
    taken: tuple[int, ...],
    changed: bool,
) -> tuple[tuple[float, float], ...] | None:
    """One for each channel taken; None for photographs of three bytes that are taken whole."""
    dtype = photos[0].dtype if photos else torch.uint8
    if given is None:
        rgb = dtype == torch.uint8 and (not photos or photos[0].shape[2] == 3)
        if rgb and taken == (0, 1, 2) and not changed:
            return None
        return ((0.0, LARGEST.get(dtype, 1.0)),) * len(taken)
    try:
        pairs: Any = given if isinstance(given[0], Sequence) else [given]
        found = tuple((float(low), float(high)) for low, high in pairs)
    except (TypeError, ValueError, IndexError):
        raise TypeError(
            f"value_range: expected (low, high), or such pairs, got {given!r}"
        ) from None
    if len(found) not in (1, len(taken)):
        raise ValueError(f"value_range: expected 1 or {len(taken)} pairs, got {len(found)}")
    if not all(is_range(low, high) for low, high in found):
        raise ValueError(
            f"value_range: expected low < high within ±{MOST_VALUE:g}, {1 / MOST_VALUE:g} apart "
            f"and in float32 too, got {given!r}"
        )
    # a width between other ends than those at which values are cut off would not fit
    held = tuple((float(np.float32(low)), float(np.float32(high))) for low, high in found)
    return held * (len(taken) if len(found) == 1 else 1)


def _on_host(name: str, values: Tensor, device: torch.device) -> Tensor:
    """A parameter as the kernels read it: on the CPU, dense, floating ones in float32."""
    if values.device.type != "cpu" and values.device != device:
        here = "cpu" if device.type == "cpu" else f"cpu, or {device} as photos are"
        raise ValueError(f"{name}: expected on {here}, got {values.device}")
    if values.requires_grad or values.device.type != "cpu":
        values = values.detach().cpu()
    if values.is_floating_point():
        return native.floats(values)
    return values.resolve_neg().contiguous()


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
        if count and not photos:
            raise ValueError(f"photos: expected at least one for {count} windows, got none")
        if len(photos) != count:
            raise ValueError(
                f"photo: needed where there are {len(photos)} photographs for {count} windows"
            )
        return torch.arange(count, dtype=torch.int32, device="cpu")
    checks.check_integers("photo", photo)
    if photo.shape != (count,):
        raise ValueError(f"photo: expected [{count}] as windows has rows, got {tuple(photo.shape)}")
    photo = _on_host("photo", photo, device)
    places = _numbers("photo", photo)
    least, most = (places.min(), places.max()) if count else (0, -1)
    if least < 0 or most >= len(photos):
        raise ValueError(f"photo: expected 0 .. {len(photos) - 1}, got {least} .. {most}")
    return photo.to(torch.int32)


def _if_channels_first(image: Tensor) -> str:
    """A hint where a photograph looks like [C, H, W]."""
    first, _, last = image.shape
    return "; photos are [H, W, C]" if first < last else ""


def _check_windows(windows: Tensor, photos: list[Tensor], photo: Tensor) -> None:
    if not len(windows):
        return
    corners = _numbers("windows", windows)
    sides = np.array([tuple(image.shape) for image in photos])[_numbers("photo", photo), :2]
    first, last = corners[:, :2], corners[:, 2:]
    low, high = np.minimum(first, last), np.maximum(first, last)
    slack = 1e-3  # pixels, of what float32 makes of a fraction
    fits = (low >= -slack) & (high <= sides + slack)  # not NaN either
    if not fits.all():
        v = int(np.flatnonzero(~fits.all(1))[0])
        raise ValueError(
            f"windows: expected y and x within the photograph's {sides[v].tolist()}, got "
            f"{corners[v].tolist()} in row {v}{_if_channels_first(photos[int(photo[v])])}"
        )
    if (empty := (low == high).any(1)).any():
        v = int(empty.argmax())
        raise ValueError(
            f"windows: expected windows with an area, got an empty one, {corners[v].tolist()} in "
            f"row {v}"
        )
