"""Vision transformer under timm's parameter names.

A state dict of timm's `vit_{tiny,small,base,large}_patch16_224` loads strictly (num_classes=1000
for one with its classifier), and DINOv2's, with registers (timm's `reg_token`, placed after the
class token) and SwiGLU. DINOv3's, MAE's and others' have the same architecture under other names.
Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021; registers: Darcet et al., ICLR 2024;
LayerScale: Touvron et al., ICCV 2021; drop path: Huang et al., ECCV 2016.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastequi.functional import arguments
from fastequi.models.attention import BACKENDS
from fastequi.models.encoder import TokenEncoder, Tokens
from fastequi.models.mlp import MLPS, hidden_width
from fastequi.models.positions import Grid, resize_pos_embed
from fastequi.models.rope import AxialRope
from fastequi.models.transformer import Block, BlockShape, Size, parts

POSITIONS = ("learned", "rope")


class Embedded(NamedTuple):
    """What the first block takes of a group of images.

    Attributes:
        tokens: [B, num_prefix_tokens + L, D].
        grid: patches along height and width, L of them; rotary positions need it.
    """

    tokens: Tensor
    grid: Grid


class VisionTransformer(TokenEncoder):
    """Pre-norm ViT that returns every token after the final norm.

    `forward` gives them as one tensor, as timm's `forward_features` does; `forward_features` gives
    the same by name.

    Args:
        img_size: side of the images the position embedding is made for, in pixels, or their height
            and width; other sizes are accepted and the embedding resized.
        patch_size: side of a patch in pixels; must divide every image's sides.
        in_chans: channels of the images.
        num_classes: outputs of `head`, which is loaded and kept but not used by forward; 0: none.
        embed_dim, depth, num_heads: the transformer's size.
        mlp_ratio: hidden channels of a block's MLP over embed_dim; with SwiGLU two thirds of it
            count, so that the weights are as many (:func:`fastequi.models.mlp.hidden_width`).
        qkv_bias: queries, keys and values have a bias. Weights without one of the keys (DINOv3,
            BEiT) are held with zeros there, which further training changes.
        drop_path: rate at the last block, growing linearly from 0; less than 1.
        init_values: initial LayerScale gain; None leaves LayerScale out.
        class_token: prepend a class token.
        reg_tokens: number of register tokens.
        no_embed_class: the position embedding covers patches only (timm's register models).
        checkpoint_activations: recompute blocks in the backward to save memory.
        attention: backend of `fastequi.models.attention`.
        pos: "learned", an embedding that is added to the tokens, or "rope", rotations of queries
            and keys (:class:`fastequi.models.rope.AxialRope`); then `pos_embed` is None.
        mlp: "gelu" or "swiglu".
        mlp_hidden: the MLP's exact hidden channels, instead of `mlp_ratio`.
        norm_eps: epsilon of all norms. timm's ViTs and DINOv2 have 1e-6, DINOv3 1e-5, Hugging
            Face's ViT and MAE 1e-12.
        final_norm: a norm after the last block. False is for networks whose only norm there comes
            after the mean over tokens (timm's `fc_norm`): their tokens are not normalised at all,
            and that norm, like a classifier, is none of this network's.
        rope_theta, rope_rescale, rope_jitter, rope_shift: of the rotations; the last three change
            coordinates at random in training.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.

    Attributes:
        img_size: height and width that the position embedding is made for.
        num_prefix_tokens: class and register tokens before the patch tokens.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        init_values: float | None = None,
        class_token: bool = True,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        checkpoint_activations: bool = False,
        attention: str = "auto",
        pos: str = "learned",
        mlp: str = "gelu",
        mlp_hidden: int | None = None,
        norm_eps: float = 1e-6,
        final_norm: bool = True,
        rope_theta: float = 100.0,
        rope_rescale: float = 1.0,
        rope_jitter: float = 1.0,
        rope_shift: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("patch_size", patch_size), ("in_chans", in_chans),
                            ("embed_dim", embed_dim), ("num_heads", num_heads)):  # fmt: skip
            arguments.integer(name, value)
        for name, value in (("depth", depth), ("num_classes", num_classes),
                            ("reg_tokens", reg_tokens)):  # fmt: skip
            arguments.integer(name, value, 0)
        arguments.number("drop_path", drop_path, least=0, below=1)
        arguments.number("mlp_ratio", mlp_ratio, above=0)
        arguments.number("norm_eps", norm_eps, above=0)
        arguments.one_of("attention", attention, BACKENDS)
        arguments.one_of("pos", pos, POSITIONS)
        arguments.one_of("mlp", mlp, MLPS)
        if mlp_hidden is None:
            mlp_hidden = hidden_width(mlp, embed_dim, mlp_ratio)
        else:
            arguments.integer("mlp_hidden", mlp_hidden)
        if embed_dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of {embed_dim}, got {num_heads}")
        self.embed_dim, self.patch_size, self.in_chans = embed_dim, patch_size, in_chans
        self.num_heads = num_heads
        self.num_prefix_tokens = int(class_token) + reg_tokens
        self.no_embed_class = no_embed_class
        self.checkpoint_activations = checkpoint_activations
        self.img_size = arguments.two_sizes("img_size", img_size)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        height, width = self.grid_size(*self.img_size)
        self.pos_embed: nn.Parameter | None = None
        self.rope: AxialRope | None = None
        if pos == "rope":
            box = rope_rescale, rope_jitter, rope_shift
            self.rope = AxialRope(embed_dim // num_heads, rope_theta, *box)
        else:
            embedded = height * width + (0 if no_embed_class else self.num_prefix_tokens)
            self.pos_embed = nn.Parameter(torch.zeros(1, embedded, embed_dim))
        shape = BlockShape(
            embed_dim, num_heads, mlp_hidden, mlp, qkv_bias, init_values, norm_eps, attention
        )
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(shape, rate) for rate in rates)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if final_norm else nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.apply(_init_linear)
        if self.pos_embed is not None:
            nn.init.normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)

    @property
    def has_class_token(self) -> bool:
        return self.cls_token is not None

    def grid_size(self, height: int, width: int) -> Grid:
        """Patches along height and width.

        Raises:
            ValueError: the patch size does not divide the image.
        """
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images: expected sides divisible by patch_size={self.patch_size}, "
                f"got {height}x{width}"
            )
        return height // self.patch_size, width // self.patch_size

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to tokens [B, num_prefix_tokens + L, embed_dim], prefix first."""
        return self.encode([self.embed(x)])[0]

    def forward_groups(self, groups: Sequence[Tensor]) -> list[Tokens]:
        """The tokens of groups of images [B_i, C, H_i, W_i], all groups in one pass."""
        return [self.split(tokens) for tokens in self.encode([self.embed(x) for x in groups])]

    def embed(
        self, x: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Embedded:
        """Images [B, C, H, W] to what the first block takes of them.

        Args:
            mask: [B, L] bool, patches whose embedding is replaced before positions are added.
            mask_token: [embed_dim], what stands in their place.
        """
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"images: expected [B, {self.in_chans}, H, W], got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"images: expected floats, normalised, got {x.dtype}")
        grid = self.grid_size(*x.shape[-2:])
        if torch.jit.is_tracing():  # sizes are tensors, and become constants
            grid = int(grid[0]), int(grid[1])
        patches = self.patch_embed(x)
        if mask is not None and mask_token is not None:
            patches = torch.where(mask[..., None], mask_token.to(patches.dtype), patches)
        return Embedded(self._with_prefix(patches, grid), grid)

    def encode(self, groups: Sequence[Embedded]) -> list[Tensor]:
        """Blocks and final norm on groups of images, from :meth:`embed`, in one pass (multi-crop).

        Returns:
            The tokens [B_i, N_i, embed_dim] of each group.
        """
        return self.encode_both(groups, len(self.blocks))[0]

    def encode_both(
        self, groups: Sequence[Embedded], block: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As :meth:`encode`, and the tokens after the first `block` blocks, without a norm.

        Args:
            groups: from :meth:`embed`.
            block: 0 .. depth.

        Raises:
            TypeError: a group is not from :meth:`embed`.
        """
        sizes, last, kept = self._rows_after(groups, (block,))
        final, middle = (
            [part.reshape(*size, self.embed_dim) for part, size in parts(rows, sizes)]
            for rows in (self.norm(last), kept[block])
        )
        return final, middle

    def forward_blocks(self, x: Tensor) -> list[Tokens]:
        """The tokens of images [B, C, H, W] before the first block and after each, in one pass.

        The final norm is applied to all, as DINOv2 and timm do by default for tokens of earlier
        blocks: without it few channels of large values rule their cosines. So the last of the
        depth + 1 are what :meth:`forward_features` gives.
        """
        every = range(len(self.blocks) + 1)
        ((images, tokens),), _, kept = self._rows_after([self.embed(x)], every)
        shape = images, tokens, self.embed_dim
        return [self.split(self.norm(kept[block]).reshape(shape)) for block in every]

    def _rows_after(
        self, groups: Sequence[Embedded], blocks: Collection[int]
    ) -> tuple[list[Size], Tensor, dict[int, Tensor]]:
        """The blocks on groups of images.

        Returns:
            (images and tokens of each group, rows [Σ B_i N_i, D] after the last block, those after
            some numbers of blocks).
        """
        for group in groups:
            if not isinstance(group, Embedded):
                kind = type(group).__name__
                raise TypeError(f"groups: expected what embed() returns, got {kind}")
        # an int() would fix sizes
        sizes = [(tokens.shape[0], tokens.shape[1]) for tokens, _ in groups]
        rotations = None
        if self.rope is not None:
            prefix = self.num_prefix_tokens
            rotations = [self.rope(grid, prefix, tokens) for tokens, grid in groups]
        rows = [tokens.flatten(0, 1) for tokens, _ in groups]
        x = rows[0] if len(rows) == 1 else torch.cat(rows)
        kept = {0: x} if 0 in blocks else {}
        for i, layer in enumerate(self.blocks, 1):
            if self.checkpoint_activations and self.training:
                x = checkpoint(layer, x, sizes, rotations, use_reentrant=False)
            else:
                x = layer(x, sizes, rotations)
            if i in blocks:
                kept[i] = x
        return sizes, x, kept

    def _with_prefix(self, patches: Tensor, grid: Grid) -> Tensor:
        """The tokens of the first block: prefix tokens, patches, and learned positions added."""
        positions = self._positions(grid)
        if positions is None:  # adding them ends autocast's type, which residuals should not have
            patches = patches.to(self.patch_embed.proj.weight.dtype)
        prefix: list[Tensor] = [t for t in (self.cls_token, self.reg_token) if t is not None]
        if positions is not None and (self.no_embed_class or not prefix):
            patches, positions = patches + positions, None
        if not prefix:
            return patches
        tokens = torch.cat(prefix, 1).expand(patches.shape[0], -1, -1).to(patches.dtype)
        tokens = torch.cat([tokens, patches], 1)
        return tokens if positions is None else tokens + positions

    def _positions(self, grid: Grid) -> Tensor | None:
        if self.pos_embed is None:
            return None
        own = self.grid_size(*self.img_size)
        free = any(isinstance(n, torch.SymInt) for n in grid)  # exported: no branch on the size
        if not free and grid == own:
            return self.pos_embed
        return resize_pos_embed(self.pos_embed, grid, self._embedded_prefix(), own)

    def _embedded_prefix(self) -> int:
        return 0 if self.no_embed_class else self.num_prefix_tokens

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Resizes a position embedding made for square images of another size."""
        key = f"{prefix}pos_embed"
        found, own = state.get(key), self.pos_embed
        if (
            found is not None and own is not None
            and found.ndim == 3 and found.shape[1] != own.shape[1]
        ):  # fmt: skip
            places = found.shape[1] - self._embedded_prefix()
            if places > 0 and math.isqrt(places) ** 2 == places:
                grid = self.grid_size(*self.img_size)
                state[key] = resize_pos_embed(found, grid, self._embedded_prefix())
        super()._load_from_state_dict(state, prefix, *rest)


class PatchEmbed(nn.Module):
    """Non-overlapping patches, projected: a convolution's parameters, computed as one GEMM."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        # the initialisation of a linear layer on the flattened patch, as timm's
        bound = 1 / math.sqrt(in_chans * patch_size**2)
        nn.init.uniform_(self.proj.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, L, D], rows first."""
        patch, (batch, chans, height, width) = self.proj.kernel_size[0], x.shape
        x = x.reshape(batch, chans, height // patch, patch, width // patch, patch)
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # B h w C p q
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


def _init_linear(module: nn.Module) -> None:
    """Xavier, as in the JAX ViT and MAE: unlike a fixed 0.02 it suits narrow models too."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vit_tiny(**options: Any) -> VisionTransformer:
    """192 wide, 12 deep, 3 heads."""
    return VisionTransformer(**{"embed_dim": 192, "depth": 12, "num_heads": 3, **options})


def vit_small(**options: Any) -> VisionTransformer:
    """384 wide, 12 deep, 6 heads."""
    return VisionTransformer(**{"embed_dim": 384, "depth": 12, "num_heads": 6, **options})


def vit_base(**options: Any) -> VisionTransformer:
    """768 wide, 12 deep, 12 heads."""
    return VisionTransformer(**{"embed_dim": 768, "depth": 12, "num_heads": 12, **options})


def vit_large(**options: Any) -> VisionTransformer:
    """1024 wide, 24 deep, 16 heads."""
    return VisionTransformer(**{"embed_dim": 1024, "depth": 24, "num_heads": 16, **options})


def vit_so150m(**options: Any) -> VisionTransformer:
    """896 wide, 18 deep, 14 heads, MLPs of 2304: timm's, whose shape is chosen for GPUs."""
    size = {"embed_dim": 896, "depth": 18, "num_heads": 14, "mlp_ratio": 2.572}
    return VisionTransformer(**{**size, **options})


def vit_giant(**options: Any) -> VisionTransformer:
    """DINOv2's: 1536 wide, 40 deep, 24 heads, SwiGLU of 4096."""
    size = {"embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp": "swiglu"}
    return VisionTransformer(**{**size, **options})


def vit_huge_plus(**options: Any) -> VisionTransformer:
    """DINOv3's: 1280 wide, 32 deep, 20 heads, SwiGLU of 5120."""
    size = {"embed_dim": 1280, "depth": 32, "num_heads": 20, "mlp": "swiglu", "mlp_ratio": 6.0}
    return VisionTransformer(**{**size, **options})


_MODELS: dict[str, Callable[..., VisionTransformer]] = {
    f.__name__: f
    for f in (vit_tiny, vit_small, vit_base, vit_large, vit_so150m, vit_giant, vit_huge_plus)
}


def create(name: str, **options: Any) -> VisionTransformer:
    """A ViT by name; an unknown one is an error that names the nearest."""
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"model: expected one of {', '.join(_MODELS)}, got {name!r}{hint}")
    return _MODELS[name](**options)
