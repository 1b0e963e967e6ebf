r"""Transformation paths: a family g_θ with its range, and every point between identity and g_θ.

A path draws one parameter vector per image and gives the transformation at any fraction t in
[0, 1] of it: t = 1 is the second view, t = k/(K+1) are the images TIR reconstructs (Wang et al.
2026, section 3: θ_k = kθ/(K+1)). One code computes both, so they cannot drift apart.

A point of a path is a :class:`Transform`: an output-to-input matrix in `F.affine_grid`'s
convention, a colour matrix, a blur sigma, or None where the path leaves that alone.

How to add a path is said in fastequi/evaluate/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastequi.functional import arguments, checks
from fastequi.kernels.constants import constants
from fastequi.philox import Draws

Fractions = Sequence[float] | float  # of the way along a path, 0..1
Size = tuple[int, int] | int

DEFAULT_MAX_SIGMA = 2.0  # of the blur ops, in pixels
_REFERENCE_SIZE = 224  # the paper states its translations in pixels of a 224 px image

# ITU-R BT.601 YIQ, in which DALI's color_twist rotates hue and scales saturation.
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.321), (0.211, -0.523, 0.311))


def _color_maps() -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Luma kept, chroma kept, chroma rotated by 90 degrees: three matrices that map RGB."""
    to_yiq = np.array(_RGB_TO_YIQ)
    luma = np.diag([1.0, 0.0, 0.0])
    rotated = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    maps = (np.linalg.inv(to_yiq) @ part @ to_yiq for part in (luma, np.eye(3) - luma, rotated))
    return tuple(tuple(map(tuple, one.tolist())) for one in maps)


_COLOR_MAPS = _color_maps()


class Transform(NamedTuple):
    """Points of a path for B images at T fractions; None where the path is the identity.

    Attributes:
        theta: [B, T, 2, 3] output-to-input affine, normalised coordinates.
        color: [B, T, 3, 4] affine map of RGB in 0..1, or [B, T, C, 2] a gain and an offset of each
            channel.
        sigma: [B, T] Gaussian blur in pixels of the view.
    """

    theta: Tensor
    color: Tensor | None = None
    sigma: Tensor | None = None


def fractions(num_steps: int) -> list[float]:
    """The K fractions strictly between the two views: k/(K+1), k = 1..K."""
    if num_steps < 0:
        raise ValueError(f"num_steps: expected K >= 0, got {num_steps}")
    return [k / (num_steps + 1) for k in range(1, num_steps + 1)]


def se2_matrix(degrees: Tensor, pixels: Tensor, size: Size, zoom: float = 1.0) -> Tensor:
    """Output-to-input matrices of a rotation about the centre and a translation.

    The image is rotated counter-clockwise by `degrees`, then its content moves by `pixels` (right,
    down), as seen on the screen.

    Args:
        degrees: [...] counter-clockwise angle.
        pixels: [..., 2] shift (x, y) in pixels of the output.
        size: (height, width) of the output in pixels, or one number for both; a rotation stays
            rigid when they differ.
        zoom: output size over source size where the source shows a margin around the view
            (32/48 for a 32 px view in a 48 px source); 1 if both show the same field.

    Returns:
        [..., 2, 3] in the convention of `F.affine_grid(align_corners=False)`.
    """
    height, width = arguments.two_sizes("size", size)
    angle = degrees * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    shift_x, shift_y = pixels[..., 0] * (2 / width), pixels[..., 1] * (2 / height)
    aspect = height / width
    # x_in = R(x_out - shift); with y pointing down a counter-clockwise rotation maps out to in by
    # [[cos, -sin], [sin, cos]], and normalised coordinates scale the cross terms by the aspect.
    a, b, d, e = cos, -sin * aspect, sin / aspect, cos
    rows = [a, b, -(a * shift_x + b * shift_y), d, e, -(d * shift_x + e * shift_y)]
    return zoom * torch.stack(rows, -1).unflatten(-1, (2, 3))


def color_matrix(brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue as one affine map of RGB in 0..1.

    x ↦ b·(½ + c·(YIQ⁻¹·S·H·YIQ·x − ½)), where S scales and H rotates the chroma plane: the maths
    of DALI's `color_twist` (whose grey is 128 of 255 rather than ½). torchvision differs: it mixes
    with grey means and rotates hue in HSV.

    Args:
        brightness, contrast, saturation: [...] factors, 1 leaves the image alone.
        hue: [...] share of 360°, 0 leaves the image alone; positive: red becomes yellow.

    Returns:
        [..., 3, 4].
    """
    angle = hue * (2 * math.pi)
    cos, sin = saturation * angle.cos(), saturation * angle.sin()
    luma, chroma, rotated = constants(_COLOR_MAPS, hue.device, hue.dtype)
    # sums, not matrix products, which autocast would round
    linear = luma + cos[..., None, None] * chroma + sin[..., None, None] * rotated
    linear = (brightness * contrast)[..., None, None] * linear
    offset = (brightness * (0.5 - 0.5 * contrast))[..., None, None].expand(*hue.shape, 3, 1)
    return torch.cat([linear, offset], -1)


def recolored(images: Tensor, matrix: Tensor) -> Tensor:
    """RGB [N, 3, H, W] by affine maps [N, 3, 4], such as :func:`color_matrix`'s."""
    return torch.baddbmm(matrix[..., 3:], matrix[..., :3], images.flatten(2)).view_as(images)


class Path(Protocol):
    """A transformation path; its parameters are rows of a tensor and part of the batch.

    A path shrinks its parameters linearly, t · θ (section 3 of the paper): of a rotation together
    with a translation, half the way twice is not quite the whole way.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""

    def scales(self, size: int) -> tuple[float, ...]:
        """Half-width of each parameter's range in its unit, for a square view of `size` px."""

    def sample(self, draws: Draws | int, size: int) -> Tensor:
        """[B, P] parameters of B images, float32, on the CPU, uniform within the ranges.

        The columns are :attr:`names`, in the units that the class says.

        Args:
            draws: the counter-based numbers of a run's samples; or B, to draw them by PyTorch's
                default generator.
            size: pixels of a square view.
        """
        scales = self.scales(arguments.integer("size", size))
        unit = _drawn(draws, len(scales))
        return unit * torch.tensor(scales, dtype=unit.dtype)

    def at(self, params: Tensor, t: Fractions, size: Size, *, zoom: float = 1.0) -> Transform:
        """The transformations at some fractions of the way from the identity.

        Matrices map the output's coordinates to the input's, normalised to -1 .. 1 as of
        `F.affine_grid(align_corners=False)`: the same one fits an image and its maps of features,
        whatever their resolutions. Angles are counter-clockwise, shifts right and down, as seen on
        the screen.

        Args:
            params: [B, P] as :meth:`sample` gives them, or an array or rows of numbers: degrees,
                and pixels of a view of that size.
            t: fractions in 0..1: T of them, or one number, of which T is 1. ``theta[:, 0]`` is
                without the axis.
            size: the view's (height, width) in pixels, or one number for both.
            zoom: as in :func:`se2_matrix`.

        Returns:
            A :class:`Transform`: theta [B, T, 2, 3]; color [B, T, 3, 4] or [B, T, C, 2] and sigma
            [B, T] of paths that change these, else None. Of a path that does not move the image
            theta is the identity times `zoom`.

        Raises:
            TypeError, ValueError: arguments that do not fit; names the argument.
        """


def _drawn(draws: Draws | int, n: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """[B, n] uniform numbers."""
    if isinstance(draws, Draws):
        return torch.from_numpy(draws.uniform("path", n, low, high))
    try:
        images = arguments.integer("draws", draws, least=0)
    except TypeError:
        said = f"draws: expected a number of images, or Draws, got {type(draws).__name__}"
        raise TypeError(said) from None
    return low + (high - low) * torch.rand(images, n, dtype=torch.float32, device="cpu")


class _Points(NamedTuple):
    """What :meth:`Path.at` is asked for, checked."""

    params: Tensor
    t: list[Tensor | float]
    size: tuple[int, int]
    zoom: float

    def along(self) -> Tensor:
        """[B, T, P]: every parameter shrunk linearly towards the identity."""
        # stacked from scalars: a tensor of fractions would be a copy to the GPU in every step
        return torch.stack([self.params * fraction for fraction in self.t], 1)

    def still(self) -> Tensor:
        """[B, T, 2, 3]: no motion."""
        eye = self.zoom * torch.eye(2, 3, dtype=self.params.dtype, device=self.params.device)
        return eye.expand(len(self.params), len(self.t), 2, 3)


def _points(names: Sequence[str], params: Tensor, t: Fractions, size: Size, zoom: float) -> _Points:
    return _Points(
        _parameters(names, params),
        _each(t),
        arguments.two_sizes("size", size),
        arguments.number("zoom", zoom, above=0),
    )


def _parameters(names: Sequence[str], params: Any) -> Tensor:
    """[B, P] of a path; numpy arrays and lists become tensors."""
    if not isinstance(params, Tensor):
        try:
            params = torch.as_tensor(params)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"params: expected a tensor [B, {len(names)}], {error}") from None
    if params.ndim != 2 or params.shape[1] != len(names):
        columns = ", ".join(names)
        raise ValueError(
            f"params: expected [B, {len(names)}] ({columns}), got {tuple(params.shape)}"
        )
    params = params.float() if params.dtype in checks.INTEGERS else params
    checks.check_floating("params", params)
    return params


def _each(t: Any) -> list[Tensor | float]:
    """One fraction or several; a tensor on a GPU is not checked, which would be a host sync."""
    several = isinstance(t, Iterable) and getattr(t, "ndim", 1) > 0  # a tensor may be one number
    if isinstance(t, str) or (several and getattr(t, "ndim", 1) > 1):
        raise TypeError(f"t: expected fractions of the path, 0 .. 1, got {t!r}")
    each = list(t) if several else [t]
    try:
        found = [f if _unread(f) else arguments.number("t", f, least=0, most=1) for f in each]
    except ValueError:
        found = []
    if not found:
        raise ValueError(f"t: expected fractions of the path, 0 .. 1, got {t}")
    return found


def _unread(fraction: Any) -> bool:
    if not isinstance(fraction, Tensor):
        return False
    return fraction.requires_grad or not checks.can_look(fraction)


def _check_range(name: str, value: float) -> None:
    try:
        arguments.number(name, value, least=0)
    except ValueError:
        raise ValueError(f"{name}: expected a finite half-range >= 0, got {value}") from None


@dataclass(frozen=True)
class SE2(Path):
    """Rotation about the centre, counter-clockwise, then a shift of the content right and down::

        params = SE2(degrees=30).sample(8, 224)               # of 8 images [8, 3]: angle, tx, ty
        theta = SE2().at(params, 1.0, 224).theta[:, 0]        # [8, 2, 3]
        warp(images, theta), warp(features, theta)            # 224 px, and maps of any resolution

    Its parameters are [B, 3]: "angle" in degrees, "tx" and "ty" in pixels of the view.

    Args:
        degrees: half-range of the angle.
        pixels: half-range of each shift, in pixels of a 224 px view; scaled with the view.
    """

    degrees: float = 45.0
    pixels: float = 10.0
    names = ("angle", "tx", "ty")

    def __post_init__(self) -> None:
        _check_range("degrees", self.degrees)
        _check_range("pixels", self.pixels)

    def scales(self, size: int) -> tuple[float, ...]:
        shift = self.pixels * size / _REFERENCE_SIZE
        return (self.degrees, shift, shift)

    def at(self, params: Tensor, t: Fractions, size: Size, *, zoom: float = 1.0) -> Transform:
        points = _points(self.names, params, t, size, zoom)
        p = points.along()
        return Transform(se2_matrix(p[..., 0], p[..., 1:], points.size, points.zoom))


@dataclass(frozen=True)
class Rotation(Path):
    """Rotation about the centre, counter-clockwise.

    Its parameter is [B, 1]: "angle" in degrees.

    Args:
        degrees: half-range of the angle.
    """

    degrees: float = 45.0
    names = ("angle",)

    def __post_init__(self) -> None:
        _check_range("degrees", self.degrees)

    def scales(self, size: int) -> tuple[float, ...]:
        return (self.degrees,)

    def at(self, params: Tensor, t: Fractions, size: Size, *, zoom: float = 1.0) -> Transform:
        points = _points(self.names, params, t, size, zoom)
        angle = points.along()[..., 0]
        shift = angle.new_zeros(*angle.shape, 2)
        return Transform(se2_matrix(angle, shift, points.size, points.zoom))


@dataclass(frozen=True)
class Translation(Path):
    """Shift of the content right and down.

    Its parameters are [B, 2]: "tx" and "ty" in pixels of the view.

    Args:
        pixels: half-range of each shift, in pixels of a 224 px view; scaled with the view.
    """

    pixels: float = 10.0
    names = ("tx", "ty")

    def __post_init__(self) -> None:
        _check_range("pixels", self.pixels)

    def scales(self, size: int) -> tuple[float, ...]:
        return (self.pixels * size / _REFERENCE_SIZE,) * 2

    def at(self, params: Tensor, t: Fractions, size: Size, *, zoom: float = 1.0) -> Transform:
        points = _points(self.names, params, t, size, zoom)
        shift = points.along()
        angle = torch.zeros_like(shift[..., 0])
        return Transform(se2_matrix(angle, shift, points.size, points.zoom))


@dataclass(frozen=True)
class Color(Path):
    """Brightness, contrast, saturation and hue of RGB, by :func:`color_matrix`.

    Its parameters are [B, 4]: "brightness", "contrast" and "saturation" are how far each factor is
    from 1, "hue" is a share of 360°; 0 is the identity. A point's color is [B, T, 3, 4].

    Args:
        brightness, contrast, saturation: half-range of each factor around 1.
        hue: half-range, as a share of 360°.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    names = ("brightness", "contrast", "saturation", "hue")

    def __post_init__(self) -> None:
        for name in self.names:
            _check_range(name, getattr(self, name))

    def scales(self, size: int) -> tuple[float, ...]:
        return (self.brightness, self.contrast, self.saturation, self.hue)

    def at(self, params: Tensor, t: Fractions, size: Size, *, zoom: float = 1.0) -> Transform:
        points = _points(self.names, params, t, size, zoom)
        b, c, s, hue = points.along().unbind(-1)
        return Transform(points.still(), color=color_matrix(1 + b, 1 + c, 1 + s, hue))


@dataclass(frozen=True)
class Gain(Path):
    """Gain (factor 1 ± range) and offset (± range) of every channel, drawn independently.

    For images whose channels are not RGB, in the place of :class:`Color`; values are in 0..1. Its
    parameters are [B, 2C]: "gain0", ... are how far each gain is from 1, then "offset0", ... are
    what is added; 0 is the identity. A point's color is [B, T, C, 2]::

        image = torch.rand(1, 2, 64, 64)
        params = torch.tensor([[0.2, -0.1, 0.05, 0.0]])       # two channels: 1.2 x + 0.05, 0.9 x
        halfway = Gain(channels=2).at(params, 0.5, 64).color  # [1, 1, 2, 2]
        motion = SE2().at([[30.0, 4.0, -2.0]], 0.5, 64)       # of 30 degrees, 4 and -2 pixels
        warp(image, motion.theta, color=halfway)              # [1, 1, 2, 64, 64]

    Args:
        channels: of the images.
        gain: half-range of each factor around 1.
        offset: half-range of what is added to each channel.
    """

    channels: int = 3
    gain: float = 0.4
    offset: float = 0.1

    def __post_init__(self) -> None:
        arguments.integer("channels", self.channels)
        _check_range("gain", self.gain)
        _check_range("offset", self.offset)

    @property
    def names(self) -> tuple[str, ...]:
        """("gain0", ..., "offset0", ...)."""
        return tuple(f"{n}{c}" for n in ("gain", "offset") for c in range(self.channels))

    def scales(self, size: int) -> tuple[float, ...]:
        return (self.gain,) * self.channels + (self.offset,) * self.channels

    def at(self, params: Tensor, t: Fractions, size: Size, *, zoom: float = 1.0) -> Transform:
        points = _points(self.names, params, t, size, zoom)
        gain, offset = points.along().split(self.channels, -1)
        return Transform(points.still(), color=torch.stack([1 + gain, offset], -1))


@dataclass(frozen=True)
class Blur(Path):
    """Gaussian blur; the path is σ_k = kσ/(K+1) (our choice).

    Its parameter is [B, 1]: "sigma" in pixels of the view, whatever its size, drawn from `low` to
    `high`; 0 is the identity. A point's sigma is [B, T].

    Args:
        low: the smallest sigma that is drawn, in pixels.
        high: the largest.
    """

    low: float = 0.1
    high: float = 2.0
    names = ("sigma",)

    def __post_init__(self) -> None:
        _check_range("low", self.low)
        if not self.low <= arguments.number("high", self.high):
            raise ValueError(f"high: expected low <= high < inf, got {self.low} and {self.high}")

    @property
    def max_sigma(self) -> float:
        """What the blur ops need for this path: its largest sigma, rounded up to whole pixels."""
        return max(DEFAULT_MAX_SIGMA, float(math.ceil(self.high)))

    def scales(self, size: int) -> tuple[float, ...]:
        return (self.high,)

    def sample(self, draws: Draws | int, size: int) -> Tensor:
        return _drawn(draws, 1, self.low, self.high)

    def at(self, params: Tensor, t: Fractions, size: Size, *, zoom: float = 1.0) -> Transform:
        points = _points(self.names, params, t, size, zoom)
        return Transform(points.still(), sigma=points.along()[..., 0])
