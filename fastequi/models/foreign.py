"""A network of another package as an encoder: its last map, or its tokens, are the patch tokens.

Nothing of the network is assumed. It is asked by forwards of one image: how many channels, which
grid, how many pixels between two tokens, and which of its parameters the tokens depend on.
`fastequi.models.foreign_names` makes one by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastequi.models.encoder import TokenEncoder
from fastequi.models.positions import Grid

Features = Callable[[nn.Module, Tensor], Tensor]
"""A network and images [B, C, H, W] to a map [B, D, h, w] or tokens [B, N, D], row by row."""

_MORE = 32  # cells by which a wider image is wider: a stride that is wrong by a pixel then shows


@dataclass(frozen=True)
class Reading:
    """How tokens are read from a network.

    Attributes:
        features: its map or tokens. The network is an argument, so that a copy reads its own.
        num_prefix_tokens: of the N tokens, those before the patches; of a map none.
        class_token: the first of them is a class token.
        stride: pixels between two tokens, where the package says it; None: it does not.
    """

    features: Features
    num_prefix_tokens: int = 0
    class_token: bool = False
    stride: int | None = None


class ForeignEncoder(TokenEncoder):
    """A network behind the contract of :class:`~fastequi.models.encoder.TokenEncoder`.

    Args:
        name: for messages.
        network: takes normalised images [B, C, H, W], on any device.
        reading: how tokens are read from it.
        image_size: side in pixels of the images that it is asked with.
        in_chans: C, their channels.

    Raises:
        ValueError: it gives no grid of tokens for these images; says what it gives.

    Attributes:
        unused: names of parameters that no token depends on (a classifier, a pooler). They need no
            gradient from now on, and keep their values.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        reading: Reading,
        image_size: int,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        if next(network.parameters(), None) is None:
            raise ValueError(f"model.name: {name}: expected a network with parameters, got none")
        self.name, self.wrapped, self.reading = name, network, reading
        self.num_prefix_tokens, self.in_chans = reading.num_prefix_tokens, in_chans
        out = self._asked_with(image_size, image_size)
        self.embed_dim = out.shape[1 if out.ndim == 4 else 2]
        rows, columns = self._cells(out, image_size, image_size)
        if rows != columns or image_size % rows:
            raise ValueError(
                f"data.image_size: {name} gives {rows}x{columns} tokens for {image_size}x"
                f"{image_size} px, expected whole pixels between two tokens, got "
                f"{image_size / rows:g}"
            )
        self.patch_size = image_size // rows
        self._expect_stride(image_size)
        self._grids = {(image_size, image_size): (rows, columns)}
        self.unused = self._freeze_unused(image_size)

    @property
    def has_class_token(self) -> bool:
        return self.reading.class_token

    @property
    def network(self) -> nn.Module:
        return self.wrapped

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to tokens [B, num_prefix_tokens + L, embed_dim], prefix first."""
        out = self.reading.features(self.wrapped, x)
        return out.flatten(2).transpose(1, 2) if out.ndim == 4 else out

    def grid_size(self, height: int, width: int) -> Grid:
        """Patch tokens along height and width; a size that is new is asked by a forward."""
        if (height, width) not in self._grids:
            stride = self.patch_size
            if height % stride or width % stride:
                raise ValueError(
                    f"images: expected sides divisible by {stride}, the stride of {self.name}, got "
                    f"{height}x{width}"
                )
            out = self._asked_with(height, width)
            grid = self._cells(out, height, width)
            if grid != (height // stride, width // stride):
                raise ValueError(
                    f"images: {self.name} gives {grid[0]}x{grid[1]} tokens for {height}x{width} "
                    f"px, expected one every {stride} px"
                )
            self._grids[height, width] = grid
        return self._grids[height, width]

    def _asked_with(self, height: int, width: int) -> Tensor:
        """Its output for one image of a size; see :func:`dry_forward`."""
        features = self.reading.features
        return dry_forward(self.name, self.wrapped, features, (self.in_chans, height, width))

    def _cells(self, out: Tensor, height: int, width: int) -> Grid:
        """Rows and columns of its output for images of a size.

        Raises:
            ValueError: tokens that are no grid, or a map with another shape than the images.
        """
        shape, prefix = list(out.shape), self.num_prefix_tokens
        if out.ndim == 3:
            places = shape[1] - prefix
            rows = max(round((max(places, 0) * height / width) ** 0.5), 1)
            columns = places // rows
            if rows * columns == places > 0 and rows * width == columns * height:
                return rows, columns
            raise ValueError(
                f"model.name: {self.name} gives {shape[1]} tokens for {height}x{width} px, "
                f"{places} of them patches', expected as many as a grid of the image's shape has "
                f"(a square's is square): where some of them are class or register tokens, which "
                f"come first, the module's attribute num_prefix_tokens says how many; it is "
                f"{prefix}"
            )
        if height == width and shape[2] != shape[3]:
            raise ValueError(
                f"model.name: {self.name} gives {shape} for {height}x{width} px, expected a map "
                f"[B, D, h, w], channels second, with h = w"
            )
        return shape[2], shape[3]

    def _expect_stride(self, size: int) -> None:
        """Raises ValueError unless tokens really lie S / h pixels apart.

        A network may pad an image or cut it: of 100 px a ResNet makes 4 cells of 32 px, not of 25.
        So it is asked for a wider image too. One that takes no other size must see all of it.
        """
        stride, said = self.patch_size, self.reading.stride
        rows = size // stride
        wrong = f"data.image_size: {self.name} gives {rows}x{rows} tokens for {size}x{size} px"
        multiple = "expected a multiple of its stride"
        if said is not None:
            if said != stride:
                raise ValueError(f"{wrong}, {multiple} {said}, got {size}")
            return
        height, width = min(2 * stride, size), size + _MORE * stride
        try:
            out = self._asked_with(height, width)
        except ValueError:  # the network's own refusal of another size
            if self._sees_borders(size):
                return
            raise ValueError(f"{wrong} and does not see all of them, {multiple}") from None
        try:
            fits = self._cells(out, height, width) == (height // stride, width // stride)
        except ValueError:
            fits = False
        if not fits:
            more = f"{list(out.shape)} for {height}x{width} px"
            raise ValueError(f"{wrong} but {more}, {multiple}, got {size}")

    def _sees_borders(self, size: int) -> bool:
        """Whether the last row and column of an image change its tokens."""
        with _asked(self.wrapped) as like, torch.no_grad():
            images = _noise(self.in_chans, size, size, like)
            other = images.clone()
            other[:, :, -1], other[:, :, :, -1] = 3.0, -3.0
            first, second = (self.reading.features(self.wrapped, x) for x in (images, other))
        return not torch.equal(first, second)

    def _freeze_unused(self, size: int) -> list[str]:
        """The names of parameters without influence on the tokens, which need no gradient now."""
        named = {n: p for n, p in self.wrapped.named_parameters() if p.requires_grad}
        found: tuple[Tensor | None, ...] = ()
        with _asked(self.wrapped) as like, torch.enable_grad():
            out = self.reading.features(self.wrapped, _noise(self.in_chans, size, size, like))
            if out.requires_grad:
                params = list(named.values())
                found = torch.autograd.grad(out.float().sum(), params, allow_unused=True)
        if all(grad is None for grad in found):
            raise ValueError(f"model.name: {self.name} has no parameter that needs a gradient")
        unused = [name for name, grad in zip(named, found, strict=True) if grad is None]
        for name in unused:
            named[name].requires_grad_(False)
        return unused

    def described(self) -> str:
        """What was found out, as a line: grids, channels and parameters that are not trained."""
        grids = [f"{h}x{w} px {r}x{c}" for (h, w), (r, c) in self._grids.items()]
        said = (
            f"{self.name}: tokens of {self.embed_dim} channels, {self.patch_size} px apart; grid "
            f"of {', of '.join(grids)}; {self.num_prefix_tokens} prefix tokens"
        )
        if not self.unused:
            return said
        more = f" and {len(self.unused) - 3} more" if len(self.unused) > 3 else ""
        shown = ", ".join(self.unused[:3]) + more
        return f"{said}; no token depends on {shown}, which are not trained"


def dry_forward(
    name: str, network: nn.Module, features: Features, image: tuple[int, int, int]
) -> Tensor:
    """What a network gives for one image; leaves it and the generators as they were.

    Args:
        name: for messages.
        network: any.
        features: what is read of it.
        image: the image's channels, height and width.

    Raises:
        ValueError: it takes no such image, or gives no map and no tokens.
    """
    try:
        with _asked(network) as like, torch.no_grad():
            out = features(network, _noise(*image, like))
    except Exception as error:  # of another package: of any kind
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ValueError(
            f"model.name: {name} does not take images {[1, *image]} ({what}){_channels(image[0])}"
        ) from error
    shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
    kinds = isinstance(out, Tensor) and out.is_floating_point() and out.ndim in (3, 4)
    if not kinds or len(out) != 1 or 0 in out.shape:
        raise ValueError(
            f"model.name: {name}: expected a map [B, D, h, w] or tokens [B, N, D] of floats, got "
            f"{shape} for {[1, *image]}{_chosen(out)}"
        )
    return out


@contextmanager
def _asked(network: nn.Module) -> Iterator[Tensor]:
    """Eval mode and forked generators; gives a parameter, for device and type of images."""
    like = next(network.parameters())
    modes = [(part, part.training) for part in network.modules()]
    try:
        with torch.random.fork_rng([like.device] if like.is_cuda else []):
            network.eval()
            yield like
    finally:
        for part, mode in modes:
            part.training = mode


def _chosen(out: object) -> str:
    """How a network is used whose output holds a tensor of several."""
    if isinstance(out, Tensor):
        return ""
    return "; a module of yours that calls it and returns that tensor alone can be named instead"


def _channels(in_chans: int) -> str:
    """What one may have forgotten of images that are not RGB."""
    if in_chans == 3:
        return ""
    return f"; expected a network of {in_chans} input channels, as data.channels says"


def _noise(in_chans: int, height: int, width: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, in_chans, height, width, generator=generator).to(like.device, like.dtype)
