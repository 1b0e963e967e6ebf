"""Checks of the tensors that the functions take, and of options that go with them.

No check reads a GPU tensor's values, which would need a host sync, unless FASTEQUI_CHECK=1 is set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fastequi.functional import arguments
from fastequi.kernels.autograd import needs_operator
from fastequi.kernels.backend import transformed
from fastequi.kernels.pixel_loss import LOSSES
from fastequi.kernels.precision import linear_dtype
from fastequi.kernels.sampling import MATRIX, PADDING_MODES

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NAMES = {
    "clamp": ("none", "both", "teacher"),
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


def with_steps(
    pred: Tensor, theta: Tensor, color: Tensor | None, ndim: int, name: str = "pred"
) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """Adds the axis of steps where theta has none."""
    check_matrices(theta)
    if color is not None:
        check_floating("color", color)
    single = theta.ndim == 3
    if single:
        theta, pred = theta[:, None], pred[:, None]
        color = color[:, None] if color is not None and color.ndim == 3 else color
    if pred.ndim != ndim:
        what = "[B, K, C, H, W]" if ndim == 5 else "patch tokens [B, K, L, p*p*C]"
        what = "tokens [B, K, L, D]" if name == "hidden" else what
        what += " (no K for theta [B, 2, 3])"
        if single:
            pred, theta = pred[:, 0], theta[:, 0]
        raise ValueError(
            f"{name}: expected {what}, got {tuple(pred.shape)} with theta {tuple(theta.shape)}"
        )
    return pred, theta, color, single


def check_matrices(theta: Tensor) -> None:
    """[B, K, 2, 3] or [B, 2, 3]."""
    if isinstance(theta, tuple) and hasattr(theta, "theta"):
        raise TypeError("theta: expected a tensor, got a path's Transform; its .theta is one")
    check_floating("theta", theta)
    if theta.ndim not in (3, 4) or theta.shape[-2:] != (2, 3):
        raise ValueError(f"theta: expected [B, K, 2, 3] or [B, 2, 3], got {tuple(theta.shape)}")


def check_linear(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    image: Tensor,
    steps: int,
    values: int,
    path: str = "theta",
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with an axis of steps; `path` is the argument that has K of them."""
    given: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "weight": (weight, (steps, values, hidden.shape[3]))
    }
    if bias is not None:
        given["bias"] = (bias, (steps, values))
    found = []
    for name, (tensor, shape) in given.items():
        check_floating(name, tensor)
        # not `in (shape, shape[1:])`, which a compiler gets wrong where sizes are symbols
        wanted = shape if tensor.ndim == len(shape) else shape[1:]
        if tuple(tensor.shape) != wanted:
            raise ValueError(
                f"{name}: expected {shape} (K first) or {shape[1:]}, got {tuple(tensor.shape)}"
            )
        if linear_dtype(tensor) != linear_dtype(hidden):
            raise TypeError(f"{name}: expected hidden's {hidden.dtype}, got {tensor.dtype}")
        found.append(tensor.expand(shape))
    if tuple(hidden.shape[:2]) != (len(image), steps):
        raise ValueError(
            f"hidden: expected B, K = {len(image)}, {steps} as in image and {path}, "
            f"got shape {tuple(hidden.shape)}"
        )
    return found[0], found[1] if bias is not None else None


def check_names(**values: str) -> None:
    """Options of the image ops that are one of a few names, by their keyword."""
    for name, value in values.items():
        arguments.one_of(name, value, NAMES[name])


def recon_options(
    loss: str, layout: str, patch_size: int | None, mean: Values, std: Values, reduction: str
) -> None:
    """Options that the path losses share, as far as they can be checked without an image."""
    check_names(loss=loss, layout=layout, reduction=reduction)
    check_patch_size(layout, patch_size)
    lengths = [len(values) for values in (mean, std) if several(values)]
    normalisation(max(lengths, default=1), mean, std)


def several(values: Values) -> TypeGuard[Sequence[float]]:
    """Whether these are several numbers; a numpy array may be one."""
    several = isinstance(values, Iterable) and not isinstance(values, (Tensor, str))
    return several and getattr(values, "ndim", 1) > 0


def check_patch_size(layout: str, patch_size: int | None) -> int:
    """The patch size, or 0 for images."""
    if layout == "image":
        if patch_size is not None:
            raise ValueError(f'patch_size: only for layout="patch", got {patch_size}')
        return 0
    if patch_size is None:
        raise ValueError('patch_size: layout="patch" needs a size >= 1, got None')
    return arguments.integer("patch_size", patch_size)


def check_size(size: tuple[int, int], patch_size: int | None) -> None:
    if patch_size and (size[0] % patch_size or size[1] % patch_size):
        raise ValueError(f"patch_size: expected a divisor of size {tuple(size)}, got {patch_size}")


def check_floating(name: str, tensor: Tensor) -> None:
    check_dense(name, tensor)
    if tensor.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected float32, bfloat16, float16 or float64, got {tensor.dtype}"
        )


def check_integers(name: str, tensor: Tensor) -> None:
    check_dense(name, tensor)
    if tensor.dtype not in INTEGERS:
        raise TypeError(f"{name}: expected integers, got {tensor.dtype}")


def check_dense(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {tensor.layout}")


def check_image(image: Tensor, mean: Values, std: Values) -> tuple[Floats, Floats]:
    """Mean and std of every channel, or None."""
    check_dense("image", image)
    if image.dtype not in (torch.uint8, torch.uint16, *FLOATS):
        raise TypeError(f"image: expected uint8, uint16 or a floating dtype, got {image.dtype}")
    if image.ndim != 4 or 0 in image.shape[1:]:
        raise ValueError(f"image: expected [B, C, Hs, Ws], got {tuple(image.shape)}")
    for name, values in (("mean", mean), ("std", std)):
        if several(values):
            _expect_channels_first(image, len(values), name)
    mean, std = normalisation(image.shape[1], mean, std)
    if mean is not None and image.is_floating_point() and image.numel():
        check_range(image)
    return mean, std


def _expect_channels_first(image: Tensor, channels: int, other: str) -> None:
    """Raises ValueError where the last dimension has the other argument's channels, as of images
    that were read from files."""
    if image.shape[3] == channels != image.shape[1]:
        raise ValueError(
            f"image: expected [B, C, Hs, Ws] with C={channels} as in {other}, got "
            f"{tuple(image.shape)}; of [B, Hs, Ws, C] it is image.permute(0, 3, 1, 2)"
        )


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
        each: list[Any] = list(values) if several(values) else [values] * channels
        if torch.compiler.is_dynamo_compiling():
            each = [_specialised(v) for v in each]
        try:
            found.append([arguments.number(name, v) for v in each])
        except (TypeError, ValueError):
            each = []
        if len(each) != channels:
            raise ValueError(
                f"{name}: expected a finite number, or {channels} of them, one per channel, "
                f"got {values!r}"
            )
    if found[0] is not None and not 0 <= min(found[0]) <= max(found[0]) <= 1:
        raise ValueError(f"mean: expected 0 to 1, as of images in 0..1, got {mean}")
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
            f"{low:.4g}..{high:.4g} (divide by 255, or pass uint8 or uint16, or leave out both)"
        )


def with_range_checked(
    call: Callable[..., Tensor], place: int, image: Tensor, mean: Floats
) -> Callable[..., Tensor]:
    """A call that is made again for images like this one, its argument `place`: the values of
    floating ones are looked at every time, as :func:`check_image` does."""
    if mean is None or not image.is_floating_point() or not image.numel():
        return call

    def again(*given: Any) -> Tensor:
        check_range(given[place])
        return call(*given)

    return again


def check_theta(theta: Tensor, image: Tensor, single: bool = False) -> None:
    """[B, K, 2, 3]; `single`: it came as [B, 2, 3]."""
    if len(theta) != len(image):
        came = theta[:, 0] if single else theta
        raise ValueError(
            f"theta: expected [B, K, 2, 3] or [B, 2, 3] with B={len(image)} as in image, "
            f"got {tuple(came.shape)}"
        )


def check_color(color: Tensor | None, theta: Tensor, image: Tensor) -> None:
    """[B, K, C, C + 1] of up to four channels, or [B, K, C, 2] of any number."""
    if color is None:
        return
    channels = image.shape[1]
    ends = sorted({channels + 1, 2}, reverse=True) if channels <= MATRIX else [2]
    if tuple(color.shape) not in [(*theta.shape[:2], channels, n) for n in ends]:
        each = " or ".join(f"[B, K, {channels}, {n}]" for n in ends)
        raise ValueError(
            f"color: expected {each} with B, K = {tuple(theta.shape[:2])} as in theta, for images "
            f"of {channels} channels, got {tuple(color.shape)}"
        )


def check_out_dtype(dtype: torch.dtype, mean: Sequence[float] | None) -> None:
    if dtype == torch.uint8 and mean is not None:
        raise ValueError("dtype: uint8 cannot hold normalised values; leave out mean and std")
    if dtype != torch.uint8 and dtype not in FLOATS:
        raise TypeError(f"dtype: expected a floating dtype or uint8, got {dtype!r}")


def check_pred(
    pred: Tensor,
    image: Tensor,
    steps: int,
    layout: str,
    patch_size: int | None,
    size: tuple[int, int] | None,
    path: str = "theta",
    single: bool = False,
) -> tuple[int, tuple[int, int]]:
    """(patch size or 0, size of the target); `path` is the argument that has K steps; `single`: it
    and pred came without them."""
    channels = image.shape[1]
    came = tuple(pred[:, 0].shape if single else pred.shape)
    if tuple(pred.shape[:2]) != (len(image), steps):
        raise ValueError(
            f"pred: expected B, K = {len(image)}, {steps} as in image and {path}, got shape {came}"
        )
    patch_size = check_patch_size(layout, patch_size)
    if layout == "image":
        if pred.shape[2] != channels or 0 in pred.shape[3:]:
            last = pred.shape[4] == channels and pred.shape[2:4] == image.shape[2:]
            if not last:
                _expect_channels_first(image, pred.shape[2], "pred")
            said = "; channels come before rows and columns" if last else ""
            raise ValueError(
                f"pred: expected C={channels} as in image {tuple(image.shape)}, got {came}{said}"
            )
        found = (pred.shape[3], pred.shape[4])
        if size is not None and tuple(size) != found:
            if path == "theta":
                raise ValueError(f"size: expected pred's own {found}, or none, got {tuple(size)}")
            raise ValueError(f"pred: expected images of size {tuple(size)}, got {found}")
        return 0, found
    tokens, values = pred.shape[2:]
    if values != patch_size**2 * channels:
        raise ValueError(
            f"pred: expected tokens of p*p*C = {patch_size}*{patch_size}*{channels} = "
            f"{patch_size**2 * channels} values, got {values}"
        )
    return patch_size, patch_target("pred", tokens, image, patch_size, size, path)


def patch_target(
    name: str,
    tokens: int,
    image: Tensor,
    patch: int,
    size: tuple[int, int] | None,
    path: str = "theta",
) -> tuple[int, int]:
    """Size of the image that L patch tokens of the argument `name` make up."""
    if size is None:
        height, width = image.shape[2:]
        if height % patch == 0 == width % patch and (height // patch) * (width // patch) == tokens:
            return height, width
        side = round(tokens**0.5)  # of a symbol too, under torch.compile
        if side * side == tokens:
            return side * patch, side * patch
        raise ValueError(
            f"{name}: {tokens} tokens are neither the image's patches nor a square; give size, or "
            "leave out tokens that are no patches (CLS, registers)"
        )
    check_size(size, patch)
    if (size[0] // patch) * (size[1] // patch) != tokens:
        expected = (size[0] // patch) * (size[1] // patch)
        if path == "sigma":  # whose size is the image's, no argument
            raise ValueError(
                f"{name}: expected {expected} tokens, the image's patches of "
                f"patch_size={patch}, got {tokens}"
            )
        raise ValueError(
            f"size: {tuple(size)} has {expected} patches of patch_size={patch}, "
            f"but {name} has {tokens} tokens"
        )
    return int(size[0]), int(size[1])


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the memory that two tensors span overlaps; False where they have no addresses."""
    if needs_operator(a, b) or transformed() or not (a.numel() and b.numel()):
        return False
    (first, last), (start, end) = _span(a), _span(b)
    return a.device == b.device and first < end and start < last


def _span(x: Tensor) -> tuple[int, int]:
    """First address of a tensor's values and the one behind its last."""
    steps = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (steps + 1) * x.element_size()


def same_device(**tensors: Tensor | None) -> None:
    """Raises ValueError unless all are on the device of the first."""
    (reference, first), *others = tensors.items()
    assert first is not None
    for name, tensor in others:
        if tensor is not None and tensor.device != first.device:
            raise ValueError(
                f"{name}: expected on {first.device} as {reference} is, got {tensor.device}"
            )
