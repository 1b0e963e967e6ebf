"""Views of a network's features, as numbers that `fastequi.report.sheets` draws.

Colours of its patch features (PCA), the attention of its last block, and the angle predicted from
its features as an image is rotated. They work on any :class:`Encoder`; nothing here draws from
torch's global generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from fastequi.evaluate.checked import noise
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.probes import r2, ridge_probe
from fastequi.functional import warp
from fastequi.models.rope import Rotation
from fastequi.models.transformer import Attention, Rotations, Size
from fastequi.paths import se2_matrix

_CELLS = 24  # tokens along a picture that is shown: enough to recognise what is in it
_BATCH = 250
_WHITENED = 64  # leading principal components of the tokens that are compared, in ...
_GROUPS = 4  # ... groups of their own: R² .57, .67, .68 with 1, 4, 8 after 40 s of the demo
_GRID = 4  # tokens are averaged to at most 4x4 first, so that ridge has 4 · 16² inputs


def patch_name(encoder: Encoder) -> str:
    """The features shown: "patch", or the last that a network without patches gives."""
    return "patch" if "patch" in encoder.names else encoder.names[-1]


def shown_size(encoder: Encoder) -> int:
    """Side in pixels of a picture of at least 24 tokens, and large enough for rotated views."""
    cell = _cell(encoder)
    least = max(_CELLS * cell, math.ceil(encoder.image_size * 2**0.5))
    return -(-least // cell) * cell


def _cell(encoder: Encoder) -> int:
    """Pixels between two tokens; the whole view where its tokens do not divide it."""
    size, name = encoder.image_size, patch_name(encoder)
    image = noise(size, encoder.device, encoder.in_chans)
    side = math.isqrt(encoder.features(image)[name].shape[1])
    return size // side if size % side == 0 else size


def dense_tokens(encoder: Encoder, images: Tensor) -> Tensor:
    """Tokens of images larger than the encoder was made for, [B, C, S, T] to [B, h, w, D].

    A window of the encoder's own size slides over the image, and a token is the mean over all
    windows that contain it, so that positions are never interpolated. S and T are multiples of the
    pixels between two tokens.
    """
    size, cell, name = encoder.image_size, _cell(encoder), patch_name(encoder)
    grid = images.shape[-2] // cell, images.shape[-1] // cell
    inside = size // cell
    rows, columns = (_starts(n, inside) for n in grid)
    total, count = None, torch.zeros(*grid, 1, device=images.device)
    for y in rows:
        for x in columns:
            view = images[:, :, y * cell : y * cell + size, x * cell : x * cell + size]
            tokens = encoder.features(view)[name].float()
            side = math.isqrt(tokens.shape[1])
            tokens = tokens.unflatten(1, (side, side))
            if side != inside:  # a grid that does not divide the view: resampled to one token
                tokens = tokens.mean((1, 2), keepdim=True)
            if total is None:
                total = tokens.new_zeros(len(images), *grid, tokens.shape[-1])
            total[:, y : y + inside, x : x + inside] += tokens
            count[y : y + inside, x : x + inside] += 1
    if total is None:
        raise ValueError(f"images: expected sides of at least {size} px, got {images.shape[-2:]}")
    return total / count


def _starts(n: int, inside: int) -> list[int]:
    """Starts of windows of `inside` tokens on n tokens: a quarter window apart, large ones half."""
    last = n - inside
    step = max(inside // (4 if inside <= 8 else 2), 1)
    return sorted({*range(0, last, step), last}) if last >= 0 else []


def pca_colors(tokens: Tensor | list[Tensor]) -> list[Tensor]:
    """The first three principal components of all tokens as red, green and blue.

    Args:
        tokens: [h, w, D] of every image; one basis serves them all.

    Returns:
        [h, w, 3] each, in 0..1: the middle 98 % of a component spans it. A component's sign is
        that of its skewness, so that a repeated call gives the same colours.
    """
    every = torch.cat([t.flatten(0, 1) for t in tokens]).double()
    mean = every.mean(0)
    _, _, basis = torch.linalg.svd(every - mean, full_matrices=False)
    parts = (every - mean) @ basis[:3].T
    parts = F.pad(parts, (0, 3 - parts.shape[1]))
    parts = parts * torch.where(parts.pow(3).sum(0) < 0, -1.0, 1.0)
    picks = parts[:: -(-len(parts) // 100_000)]  # quantile() takes no more than 16 million
    low, high = picks.quantile(torch.tensor([0.01, 0.99], dtype=parts.dtype), 0)
    colors = ((parts - low) / (high - low).clamp(min=1e-9)).clamp(0, 1).float()
    sizes = [t.shape[0] * t.shape[1] for t in tokens]
    return [c.view(*t.shape[:2], 3) for c, t in zip(colors.split(sizes), tokens, strict=True)]


@torch.no_grad()
def last_attention(encoder: Encoder, images: Tensor) -> Tensor | None:
    """The last block's attention [B, heads, h, w]: its softmax(q kᵀ / √d), computed once more.

    The class token's attention to the patches if there is one; else the attention that each patch
    gets, the mean over all patches.

    Args:
        encoder: any; the last `fastequi.models.transformer.Attention` that runs in it is shown.
        images: [B, C, H, W], normalised.

    Returns:
        None if there is no such block (a convolutional network, the user's own function).
    """
    seen: list[tuple[Attention, Tensor, Size, Rotation | None]] = []

    def note(module: object, args: tuple[Tensor, list[Size], Rotations]) -> None:
        if isinstance(module, Attention):
            x, sizes, rotations = args
            seen[:] = [(module, x, sizes[0], rotations[0] if rotations else None)]

    hook = register_module_forward_pre_hook(note)
    try:
        patches = encoder.features(images).get("patch")
    finally:
        hook.remove()
    if not seen or patches is None:
        return None
    block, x, size, rotation = seen[0]
    weights = attention_weights(block, x.unflatten(0, size), rotation)
    prefix = size[1] - patches.shape[1]
    from_patches = weights[:, :, prefix:, prefix:].mean(2)
    attention = weights[:, :, 0, prefix:] if "cls" in encoder.names else from_patches
    side = math.isqrt(patches.shape[1])
    return attention.unflatten(-1, (side, side))


def attention_weights(block: Attention, x: Tensor, rotation: Rotation | None = None) -> Tensor:
    """softmax(q kᵀ / √d) [B, heads, N, N] of normed tokens [B, N, D], in float32."""
    q, k, _ = block.heads(block.qkv(x).float(), (x.shape[0], x.shape[1]), rotation)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    return scores.softmax(-1)


def rotated(windows: Tensor, degrees: Tensor, encoder: Encoder) -> Tensor:
    """Views [B, C, H, W], normalised, out of uint8 or float windows, rotated by `degrees` [B].

    Counter-clockwise; a window √2 times as wide as the view leaves no corner empty.
    """
    size = (encoder.image_size, encoder.image_size)
    still = torch.zeros(len(degrees), 2, device=degrees.device)
    theta = se2_matrix(degrees, still, size, size[0] / windows.shape[-1])
    scale: dict[str, Any] = {"mean": encoder.mean, "std": encoder.std}
    return warp(windows, theta, size=size, padding_mode="reflection", **scale)


@dataclass(frozen=True)
class Sweep:
    """The angles predicted for images at several rotations.

    Attributes:
        degrees: [T] the true angles.
        predicted: [B, T] in degrees, by a probe fitted on windows of other images.
        r2: of the angle over rotated windows of the shown images, uniform in the sweep's range.
    """

    degrees: Tensor
    predicted: Tensor
    r2: float


def sweep(
    encoder: Encoder,
    *,
    shown: Tensor,
    train: Tensor,
    test: Tensor,
    degrees: Tensor,
    seed: int = 0,
) -> Sweep:
    """The angle that a ridge probe predicts as images are rotated.

    A rotation is a relation between two images, which no linear map of their concatenated features
    can express. So the probe gets the similarities of every token of the rotated image with every
    token of the upright one: tokens are whitened by the training windows and compared by the cosine
    (see :func:`similarities`); ridge regression is linear in these.

    Args:
        encoder: any.
        shown: [B, C, W, W] uint8 or floats in 0..1, W at least √2 times the encoder's view.
        train, test: [N, C, W, W] windows of other images, and of those shown.
        degrees: [T] that the shown ones are rotated by.
        seed: of the angles of `train` and `test`.
    """
    half = float(degrees.abs().max())
    generator = torch.Generator().manual_seed(seed)
    angles = [
        ((2 * torch.rand(len(part), generator=generator) - 1) * half).to(shown.device)
        for part in (train, test)
    ]
    angles_shown = degrees.to(shown.device).repeat(len(shown))
    frames = shown.repeat_interleave(len(degrees), 0)
    tokens = [
        (_tokens(encoder, part, torch.zeros_like(by)), _tokens(encoder, part, by))
        for part, by in ((train, angles[0]), (test, angles[1]), (frames, angles_shown))
    ]
    fitted = torch.cat(tokens[0]).flatten(0, 1)
    x, x_test, x_shown = (similarities(*pair, fitted) for pair in tokens)
    pred = ridge_probe(x, angles[0][:, None] / half, torch.cat([x_test, x_shown])) * half
    score = r2(pred[: len(test)], angles[1][:, None]).item()
    return Sweep(degrees, pred[len(test) :].view(len(shown), -1).cpu(), score)


def _tokens(encoder: Encoder, windows: Tensor, degrees: Tensor) -> Tensor:
    """[N, L, D] of rotated windows, L at most 16."""
    parts = []
    for some, by in zip(windows.split(_BATCH), degrees.split(_BATCH), strict=True):
        tokens = encoder.features(rotated(some, by, encoder))[patch_name(encoder)].float()
        side = math.isqrt(tokens.shape[1])
        maps = tokens.transpose(1, 2).unflatten(2, (side, side))
        parts.append(F.adaptive_avg_pool2d(maps, min(side, _GRID)).flatten(2).transpose(1, 2))
    return torch.cat(parts)


def similarities(first: Tensor, second: Tensor, fitted: Tensor) -> Tensor:
    """Cosines of every token of one image with every token of the other, [N, groups · L · L].

    Args:
        first, second: [N, L, D].
        fitted: [M, D] tokens whose mean and principal components whiten both.
    """
    mean = fitted.mean(0)
    centred = (fitted - mean).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(fitted))
    kept = min(_WHITENED, len(values))
    values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
    whiten = (vectors / (values + 1e-6 * values[0]).sqrt()).float()
    pairs = ((first - mean) @ whiten, (second - mean) @ whiten)
    a, b = ([F.normalize(g, dim=-1) for g in z.tensor_split(_GROUPS, -1)] for z in pairs)
    return torch.cat([(x @ y.mT).flatten(1) for x, y in zip(a, b, strict=True)], 1)
