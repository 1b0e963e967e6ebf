"""Low-rank adapters on a ViT's linear layers: W x + α/r · B A x, where A and B alone are learned.

Hu et al., LoRA: Low-rank adaptation of large language models, ICLR 2022, as their loralib has it: B
begins at 0, so that nothing changes at first. The product is never formed in training: r·(in + out)
weights have gradients and optimiser moments instead of in·out, and no gradient of W is computed. A
run's model.safetensors holds W + α/r · B A under the layer's own name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastequi.functional import arguments
from fastequi.models.vit import VisionTransformer

_DOWN, _UP = "lora_a", "lora_b"


class LoRALinear(nn.Linear):
    """A linear layer that keeps its parameters, frozen and under their names, and has an adapter.

    A state dict without adapters is a plain layer's: loaded, it computes what that layer does.

    Args:
        base: the layer; its parameters are taken over.
        rank: r.
        alpha: α; the adapter's output is multiplied by α/r.

    Attributes:
        lora_a: [r, in_features], uniform in ±1/√in_features at first, as loralib's.
        lora_b: [out_features, r], zeros at first.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        self.alpha = alpha
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        bound = 1 / math.sqrt(base.in_features)
        nn.init.uniform_(self.lora_a, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return super().forward(x) + self.alpha / len(self.lora_a) * change

    def plain(self) -> nn.Linear:
        """A layer without an adapter that computes the same."""
        with torch.device("meta"):
            layer = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        weight = _merged(self.weight.detach(), self.lora_a, self.lora_b, self.alpha)
        layer.weight = nn.Parameter(weight, self.weight.requires_grad)
        layer.bias = self.bias
        return layer

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        names = f"{prefix}{_DOWN}", f"{prefix}{_UP}"
        if f"{prefix}weight" in state and not any(name in state for name in names):
            state[names[0]], state[names[1]] = self.lora_a, torch.zeros_like(self.lora_b)
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={len(self.lora_a)}, alpha={self.alpha:g}"


def adapt(encoder: VisionTransformer, rank: int, alpha: float) -> None:
    """Freezes a ViT and gives the linear layers of its blocks adapters, in place.

    Those are qkv and proj of the attention, fc1 and fc2 of the MLP (of SwiGLU fc1 is gate and up).

    Args:
        rank: r; 0 changes nothing.
        alpha: α; with α = r the adapter's output counts as it is.

    Raises:
        TypeError, ValueError: names the argument.
    """
    arguments.integer("rank", rank, 0)
    arguments.number("alpha", alpha, above=0)
    if not rank:
        return
    if rank > (dim := encoder.embed_dim):
        raise ValueError(f"rank: expected at most {dim}, the encoder's channels, got {rank}")
    encoder.requires_grad_(False)
    for block in encoder.blocks:
        for part in block.children():
            for name, layer in list(part.named_children()):  # norms and gains have no linear layer
                if isinstance(layer, nn.Linear):
                    setattr(part, name, LoRALinear(layer, rank, alpha))


def merge(module: nn.Module) -> None:
    """Replaces all adapted layers of a module by plain ones that compute the same, in place."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoRALinear):
                setattr(parent, name, layer.plain())


def merged(state: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The state dict of :func:`merge`'s result, from that of a module with adapters.

    Args:
        state: whole tensors; without adapters it is returned as it is.
        alpha: α of :func:`adapt`.
    """
    plain = {name: value for name, value in state.items() if not name.endswith((_DOWN, _UP))}
    for name in state:
        if name.endswith(_DOWN):
            layer = name.removesuffix(_DOWN)
            factors = state[name], state[f"{layer}{_UP}"]
            plain[f"{layer}weight"] = _merged(plain[f"{layer}weight"], *factors, alpha)
    return plain


@torch.no_grad()
def _merged(weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """W + α/r · B A, [out, in]."""
    return weight + alpha / len(a) * (b @ a)
