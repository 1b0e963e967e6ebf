"""Optimisers, schedules and the weight EMA."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastequi.muon import Muon
from fastequi.sharded import is_sharded, whole

logger = logging.getLogger(__name__)

# no weight decay, as for norms and biases: these are learned offsets; the names in timm's and our
# ViTs, then in torchvision's and transformers'
_NO_DECAY = (
    *("bias", "pos_embed", "cls_token", "reg_token"),
    *("class_token", "pos_embedding", "position_embeddings", "register_tokens"),
    *("distillation_token", "relative_position_bias_table"),
)


def param_groups(
    model: nn.Module,
    weight_decay: float,
    encoder: nn.Module | None = None,
    layer_decay: float = 1.0,
    patch_embed_lr: float = 1.0,
    muon: bool = False,
    muon_encoder: bool = True,
    muon_lr: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups: matrices and filters decay; biases, norms, gains and embeddings do not.

    Args:
        encoder: part of the model with layer-wise decay of the learning rate, as in BEiT and
            DINOv2: one factor of `layer_decay` for the last block, two for the one before, and for
            the embeddings one more than for the first block; none for the final norm.
        layer_decay, patch_embed_lr: factors; the second is for the patch embedding, in addition.
        muon: matrices of transformer blocks (weights below a module named `blocks`) have groups of
            their own.
        muon_encoder: those of the encoder, too.
        muon_lr: a further factor on their rate.

    Raises:
        TypeError: no module.

    Returns:
        AdamW's groups, each with "lr_scale", "decays", "encoder" (whether it is of the encoder) and
        "orthogonal" beside its weight_decay; "orthogonal" is how many matrices lie below one
        another in each of the group's, else 0.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    inside = {} if encoder is None else {id(p): name for name, p in encoder.named_parameters()}
    depth = len({name.split(".")[1] for name in inside.values() if name.startswith("blocks.")})
    groups: dict[tuple[float, bool, int, bool], list[nn.Parameter]]
    groups = {(1.0, True, 0, False): [], (1.0, False, 0, False): []}
    named = dict(model.named_parameters())
    for name, param in named.items():
        if not param.requires_grad:
            continue
        scale = _rate(inside.get(id(param)), depth, layer_decay, patch_embed_lr)
        axes = sum(n > 1 for n in param.shape)  # a gain may have the shape [C, 1, 1]
        decays = axes >= 2 and name.rsplit(".", 1)[-1] not in _NO_DECAY
        own = id(param) in inside
        number = _matrices(name, named) if muon and (muon_encoder or not own) else 0
        scale *= muon_lr if number else 1.0
        groups.setdefault((scale, decays, number, own), []).append(param)
    return [
        {
            "params": params,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": scale,
            "decays": decays,
            "orthogonal": number,
            "encoder": own,
        }
        for (scale, decays, number, own), params in groups.items()
    ]


def _matrices(name: str, named: Mapping[str, nn.Parameter]) -> int:
    """How many matrices lie below one another in a parameter of a transformer block, else 0."""
    param, parts = named[name], name.split(".")
    if param.ndim != 2 or "blocks" not in parts or parts[-1] != "weight":
        return 0
    if parts[-2] == "fc1":  # SwiGLU's gate and up: twice as many rows as the next layer takes
        after = named.get(".".join([*parts[:-2], "fc2", "weight"]))
        return 2 if after is not None and len(param) == 2 * after.shape[1] else 1
    return 3 if parts[-2] == "qkv" and len(param) == 3 * param.shape[1] else 1


def _rate(name: str | None, depth: int, layer_decay: float, patch_embed_lr: float) -> float:
    """The factor on a parameter's learning rate, by its name in the encoder."""
    if name is None or name.startswith(("norm.", "head.")):
        return 1.0
    if name.startswith("blocks."):
        return layer_decay ** (depth - int(name.split(".")[1]))
    own = patch_embed_lr if name.startswith("patch_embed.") else 1.0
    return own * layer_decay ** (depth + 1)


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    **rates: Any,
) -> torch.optim.AdamW:
    """AdamW over :func:`param_groups`, which takes `rates`; one fused update for all parameters."""
    groups = param_groups(model, weight_decay, **rates)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def muon(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.95,
    **rates: Any,
) -> Muon:
    """Muon for the matrices of transformer blocks, AdamW for all else.

    Args:
        model: a module whose blocks are below one named `blocks`, as in timm's and our ViTs.
        lr, weight_decay: of both.
        betas: AdamW's.
        momentum: Muon's.
        rates: muon_encoder, muon_lr, encoder and the other arguments of :func:`param_groups`.

    Raises:
        ValueError: there is no such matrix; or muon_encoder=False without the encoder.
    """
    outside = not rates.get("muon_encoder", True)
    if outside and rates.get("encoder") is None:
        raise ValueError("encoder: expected the module that muon_encoder=False leaves to AdamW")
    groups = param_groups(model, weight_decay, muon=True, **rates)
    if not any(group["orthogonal"] for group in groups):
        if not outside:
            raise ValueError("model: expected weights below a module named `blocks`, found none")
        logger.info(
            "AdamW updates all parameters and Muon none: muon_encoder=False leaves the encoder to "
            "AdamW, and outside it is no matrix of a transformer block; Muon updates no others"
        )
    return Muon(groups, lr, betas, momentum)


def sgd(
    model: nn.Module, lr: float, weight_decay: float, momentum: float = 0.9, **rates: Any
) -> torch.optim.SGD:
    """SGD with Nesterov's momentum over :func:`param_groups`, which takes `rates`."""
    groups = param_groups(model, weight_decay, **rates)
    nesterov = momentum > 0
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum:  # the fused update does not write the first step's buffer if the step is skipped
        for param in filter(lambda p: p.requires_grad, model.parameters()):
            optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
    return optimizer


def schedule(
    optimizer: torch.optim.Optimizer, lr: float, weight_decay: float, encoder: float = 1.0
) -> None:
    """Sets learning rate and weight decay for a step, with each group's own factors.

    Args:
        encoder: a further factor on the rate of the encoder's groups.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] * (encoder if group["encoder"] else 1.0)
        if group["decays"]:
            group["weight_decay"] = weight_decay


def warmup_cosine(progress: float, base: float, final: float = 0.0, warmup: float = 0.0) -> float:
    """Linear warm-up from 0, then half a cosine from `base` to `final`.

    Args:
        progress: share of the training done, clipped to [0, 1].
        warmup: share of the training spent warming up.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return base * progress / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-12)))
    return final + (base - final) * cosine


def thawed(progress: float, frozen: float, warmup: float) -> float:
    """Factor on the rate of an encoder that was frozen at first: 0, then a warm-up of its own to 1.

    Its moments begin after the frozen share, so its first steps are as large as the rate lets them.

    Args:
        progress: share of the training done.
        frozen: share during which the encoder is frozen; 0: never, the factor is 1.
        warmup: share of the training over which the factor rises.
    """
    if progress < frozen:
        return 0.0
    return 1.0 if progress >= frozen + warmup or not frozen else (progress - frozen) / warmup


def clip_gradients(params: Sequence[nn.Parameter], clip: float, per_tensor: bool) -> Tensor:
    """Clips gradients to a norm of `clip` (0: no clipping); returns their total norm before, [].

    Args:
        per_tensor: clip each parameter's norm by itself, as in DINO, instead of the total norm.
    """
    if not per_tensor or not clip:
        return whole(nn.utils.clip_grad_norm_(params, clip or math.inf))
    grads = [p.grad for p in params if p.grad is not None]
    norms = [whole(norm) for norm in torch._foreach_norm(grads)]
    torch._foreach_mul_(grads, [(clip / (norm + 1e-6)).clamp(max=1) for norm in norms])
    return torch.linalg.vector_norm(torch.stack(norms))


def stepped(progress: float, base: float, milestones: Sequence[float], factor: float) -> float:
    """`base` times `factor` for every milestone (share of the training) that is passed."""
    return base * factor ** sum(progress >= share for share in milestones)


def take_step(optimizer: torch.optim.Optimizer, taken: Tensor | None = None) -> None:
    """The optimiser's step; if `taken`, [] float32, is 0, nothing changes, moments included.

    Fused optimisers read the flag on the device, like a gradient scaler's.
    """
    if taken is not None:
        optimizer.grad_scale, optimizer.found_inf = None, 1 - taken  # type: ignore[attr-defined]
    optimizer.step()


@torch.no_grad()
def lerp_(
    ours: list[Tensor], theirs: list[Tensor], weight: float, taken: Tensor | None = None
) -> None:
    """ours ← ours + weight · (theirs - ours), times `taken`, [] 1 or 0 on the device, if given."""
    for in_parts in (False, True):  # sharded and other tensors cannot be in one list
        pairs = zip(ours, theirs, strict=True)
        mine = [(x, y) for x, y in pairs if is_sharded(x) is in_parts]
        if not mine:
            continue
        x, y = map(list, zip(*mine, strict=True))
        if taken is None:
            torch._foreach_lerp_(x, y, weight)
            continue
        change = torch._foreach_sub(y, x)
        torch._foreach_mul_(change, weight * taken)
        torch._foreach_add_(x, change)


class WeightEMA:
    """Exponential moving average of a model's parameters and float buffers (Polyak averaging).

    The momentum of update n is min(momentum, (1 + n)/(10 + n)), so that the first weights are
    forgotten soon. Integer buffers are copied.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        if not 0 < momentum < 1:
            raise ValueError(f"momentum: expected 0 < momentum < 1, got {momentum}")
        self.momentum, self.updates = momentum, 0
        self.tensors = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, taken: Tensor | None = None) -> None:
        """Moves towards the model's values, unless `taken`, [], is 0."""
        self.updates += 1
        keep = min(self.momentum, (1 + self.updates) / (10 + self.updates))
        ours: list[Tensor] = []
        theirs: list[Tensor] = []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                ours.append(self.tensors[name])
                theirs.append(value)
            else:
                self.tensors[name].copy_(value)
        lerp_(ours, theirs, 1 - keep, taken)

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors
