"""Checks of the arguments of `fastequi.functional`; errors name the argument.

No check reads a GPU tensor's values, which would need a host sync, unless FASTEQUI_CHECK=1 is set.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
from collections.abc import Iterable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from fastequi.kernels.autograd import needs_operator
from fastequi.kernels.backend import transformed
from fastequi.kernels.pixel_loss import LOSSES
from fastequi.kernels.precision import autocast_dtype
from fastequi.kernels.sampling import PADDING_MODES

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NAMES = {
    "loss": LOSSES,
    "layout": ("image", "patch"),
    "padding_mode": PADDING_MODES,
    "reduction": ("mean", "sum", "none"),
}
Values = Sequence[float] | float | None
Floats = list[float] | None
_CHECK_VALUES = os.environ.get("FASTEQUI_CHECK") == "1"


def can_look(tensor: Tensor) -> bool:
    """Whether a check may read values: not under a compiler or transform, on a GPU if enabled."""
    if needs_operator(tensor) or transformed():
        return False
    return tensor.device.type == "cpu" or _CHECK_VALUES


def two_sizes(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of one number or two."""
    whole = numbers.Integral, torch.SymInt
    both = tuple(size) if isinstance(size, Iterable) else (size, size)
    if len(both) != 2 or any(not isinstance(n, whole) or n < 1 for n in both):
        raise ValueError(f"{name}: expected a size or (height, width), each >= 1, got {size}")
    return both


def with_steps(
    pred: Tensor, theta: Tensor, color: Tensor | None, ndim: int, name: str = "pred"
) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """Adds the axis of steps where theta has none."""
    check_floating("theta", theta)
    single = theta.ndim == 3
    if single:
        theta, pred = theta[:, None], pred[:, None]
        color = color[:, None] if color is not None and color.ndim == 3 else color
    if pred.ndim != ndim:
        what = "[B, K, C, H, W]" if ndim == 5 else "patch tokens [B, K, L, p*p*C]"
        what = "tokens [B, K, L, D]" if name == "hidden" else what
        what += " (no K for theta [B, 2, 3])"
        shape = tuple(pred[:, 0].shape if single else pred.shape)
        raise ValueError(f"{name}: expected {what}, got {shape}")
    return pred, theta, color, single


def check_linear(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, steps: int, values: int
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with an axis of steps."""
    given: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "weight": (weight, (steps, values, hidden.shape[3]))
    }
    if bias is not None:
        given["bias"] = (bias, (steps, values))
    found = []
    for name, (tensor, shape) in given.items():
        if tuple(tensor.shape) not in (shape, shape[1:]):
            raise ValueError(
                f"{name}: expected {shape} (K first) or {shape[1:]}, got {tuple(tensor.shape)}"
            )
        if tensor.dtype != hidden.dtype and autocast_dtype(hidden.device.type) is None:
            raise TypeError(f"{name}: expected hidden's {hidden.dtype}, got {tensor.dtype}")
        found.append(tensor.expand(shape))
    return found[0], found[1] if bias is not None else None


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}: expected one of {tuple(allowed)}, got {value!r}{hint}")


def check_names(**values: str) -> None:
    """Options of the image ops that are one of a few names, by their keyword."""
    for name, value in values.items():
        one_of(name, value, NAMES[name])


def recon_options(
    loss: str, layout: str, patch_size: int | None, mean: Values, std: Values, reduction: str
) -> None:
    """Options that the path losses share, as far as they can be checked without an image."""
    check_names(loss=loss, layout=layout, reduction=reduction)
    check_patch_size(layout, patch_size)
    lengths = [len(values) for values in (mean, std) if _several(values)]
    normalisation(max(lengths, default=1), mean, std)


def _several(values: Values) -> TypeGuard[Sequence[float]]:
    return isinstance(values, Iterable) and not isinstance(values, Tensor)


def check_patch_size(layout: str, patch_size: int | None) -> int:
    """The patch size, or 0 for images."""
    if layout == "image":
        if patch_size is not None:
            raise ValueError(f'patch_size: only for layout="patch", got {patch_size}')
        return 0
    if patch_size is None or patch_size < 1:
        raise ValueError(f'patch_size: layout="patch" needs a size >= 1, got {patch_size}')
    return patch_size


def check_size(size: tuple[int, int], patch_size: int | None) -> None:
    if patch_size and (size[0] % patch_size or size[1] % patch_size):
        raise ValueError(f"patch_size: expected a divisor of size {tuple(size)}, got {patch_size}")


def check_max_sigma(max_sigma: float) -> None:
    if not 0 < max_sigma < math.inf:
        raise ValueError(f"max_sigma: expected a positive number of pixels, got {max_sigma}")


def check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected float32, bfloat16, float16 or float64, got {tensor.dtype}"
        )


def check_image(image: Tensor, mean: Values, std: Values) -> tuple[Floats, Floats]:
    """Mean and std of every channel, or None."""
    if not isinstance(image, Tensor):
        raise TypeError(f"image: expected a tensor, got {type(image).__name__}")
    if image.dtype != torch.uint8 and image.dtype not in FLOATS:
        raise TypeError(f"image: expected uint8 or a floating dtype, got {image.dtype}")
    if image.ndim != 4 or 0 in image.shape[1:]:
        raise ValueError(f"image: expected [B, C, Hs, Ws], got {tuple(image.shape)}")
    mean, std = normalisation(image.shape[1], mean, std)
    if mean is not None and image.is_floating_point() and image.numel():
        check_range(image)
    return mean, std


def normalisation(channels: int, mean: Values, std: Values) -> tuple[Floats, Floats]:
    """Mean and std of every channel, from as many numbers or one for all; None for neither."""
    if (mean is None) != (std is None):
        raise ValueError("mean, std: expected both or neither")
    found: list[Floats] = []
    for name, values in (("mean", mean), ("std", std)):
        if isinstance(values, Tensor):
            raise TypeError(f"{name}: expected floats, got a tensor; {name}.tolist() gives them")
        if values is None:
            found.append(None)
            continue
        each = list(values) if isinstance(values, Iterable) else [values] * channels
        if torch.compiler.is_dynamo_compiling():
            each = [_specialised(v) for v in each]
        if len(each) != channels or not all(
            isinstance(v, numbers.Real) and math.isfinite(v) for v in each
        ):
            raise ValueError(
                f"{name}: expected a finite float, or {channels}, one per channel, got {values}"
            )
        found.append([float(v) for v in each])
    if found[1] is not None and min(found[1]) <= 0:
        raise ValueError(f"std: expected values > 0, got {std}")
    return found[0], found[1]


def _specialised(value: float) -> float:
    """A number that a compiler keeps as a symbol, since it has changed, by its value."""
    from torch.fx.experimental.symbolic_shapes import guard_scalar

    return guard_scalar(value) if isinstance(value, (int, float)) else value


def check_range(image: Tensor) -> None:
    """A float image in 0..255 with mean and std of 0..1 is a common mistake."""
    if not can_look(image):
        return
    low, high = (v.item() for v in image.detach().aminmax())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"image: with mean and std, a floating image is expected in 0..1, got values in "
            f"{low:.4g}..{high:.4g} (divide by 255, or pass uint8)"
        )


def check_theta(theta: Tensor, image: Tensor) -> None:
    if theta.ndim != 4 or theta.shape[2:] != (2, 3) or len(theta) != len(image):
        raise ValueError(
            f"theta: expected [B, K, 2, 3] or [B, 2, 3] with B={len(image)} as in image, "
            f"got {tuple(theta.shape)}"
        )


def check_color(color: Tensor | None, theta: Tensor, image: Tensor) -> None:
    if color is None:
        return
    check_floating("color", color)
    if image.shape[1] != 3:
        raise ValueError(f"color: needs images of 3 channels, got {image.shape[1]}")
    if color.shape != (*theta.shape[:2], 3, 4):
        raise ValueError(
            f"color: expected [B, K, 3, 4] with B, K = {tuple(theta.shape[:2])} as in theta, "
            f"got {tuple(color.shape)}"
        )


def as_sigma(sigma: Tensor | float, image: Tensor, steps: int | None = None) -> Tensor:
    """One number for all images (and steps) as a tensor [B] (or [B, K])."""
    if not isinstance(sigma, Tensor) and isinstance(sigma, numbers.Real):
        shape = (len(image),) if steps is None else (len(image), steps)
        return torch.full(shape, float(sigma), dtype=torch.float32, device=image.device)
    check_floating("sigma", sigma)  # type: ignore[arg-type]
    return sigma  # type: ignore[return-value]


def check_sigma(sigma: Tensor, image: Tensor, max_sigma: float) -> None:
    if sigma.ndim != 2 or len(sigma) != len(image):
        raise ValueError(
            f"sigma: expected [B, K] or [B] with B={len(image)} as in image, "
            f"got {tuple(sigma.shape)}"
        )
    check_max_sigma(max_sigma)
    if not can_look(sigma):
        return
    bad = sigma.detach()[~((sigma >= 0) & (sigma <= max_sigma))]
    if bad.numel():
        raise ValueError(
            f"sigma: expected values in 0..max_sigma={max_sigma} pixels, got {bad[0].item():.4g}"
        )


def check_out_dtype(dtype: torch.dtype, mean: Sequence[float] | None) -> None:
    if dtype == torch.uint8 and mean is not None:
        raise ValueError("dtype: uint8 cannot hold normalised values; leave out mean and std")
    if dtype != torch.uint8 and dtype not in FLOATS:
        raise TypeError(f"dtype: expected a floating dtype or uint8, got {dtype}")


def check_pred(
    pred: Tensor,
    image: Tensor,
    steps: int,
    layout: str,
    patch_size: int | None,
    size: tuple[int, int] | None,
) -> tuple[int, tuple[int, int]]:
    """(patch size or 0, size of the target)."""
    channels = image.shape[1]
    if tuple(pred.shape[:2]) != (len(image), steps):
        raise ValueError(
            f"pred: expected B, K = {len(image)}, {steps} as in image and theta, "
            f"got shape {tuple(pred.shape)}"
        )
    patch_size = check_patch_size(layout, patch_size)
    if layout == "image":
        if pred.shape[2] != channels or 0 in pred.shape[3:]:
            raise ValueError(f"pred: expected C={channels} as in image, got {tuple(pred.shape)}")
        found = (pred.shape[3], pred.shape[4])
        if size is not None and tuple(size) != found:
            raise ValueError(f"pred: expected images of {tuple(size)}, got {found}")
        return 0, found
    tokens, values = pred.shape[2:]
    if values != patch_size**2 * channels:
        raise ValueError(
            f"pred: expected tokens of p*p*C = {patch_size}*{patch_size}*{channels} = "
            f"{patch_size**2 * channels} values, got {values}"
        )
    return patch_size, patch_target(tokens, image, patch_size, size)


def patch_target(
    tokens: int, image: Tensor, patch: int, size: tuple[int, int] | None
) -> tuple[int, int]:
    """Size of the image that L patch tokens make up."""
    if size is None:
        height, width = image.shape[2:]
        if height % patch == 0 == width % patch and (height // patch) * (width // patch) == tokens:
            return height, width
        side = round(tokens**0.5)  # of a symbol too, under torch.compile
        if side * side == tokens:
            return side * patch, side * patch
        raise ValueError(
            f"pred: {tokens} tokens are neither the image's patches nor a square; say size=(H, W)"
        )
    check_size(size, patch)
    if (size[0] // patch) * (size[1] // patch) != tokens:
        expected = (size[0] // patch) * (size[1] // patch)
        raise ValueError(f"pred: expected {expected} tokens for {tuple(size)}, got {tokens}")
    return int(size[0]), int(size[1])


def same_device(image: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.device != image.device:
            raise ValueError(f"{name}: expected on {image.device} as image is, got {tensor.device}")
