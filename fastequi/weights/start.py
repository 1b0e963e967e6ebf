"""A run that starts from weights: what they make of its settings, and the weights in its networks.

A run keeps the file's path and hash in its config (`config.init`), and is resumed from its own
checkpoints without the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastequi.build import build_encoder
from fastequi.config import Config, InitConfig, ModelConfig
from fastequi.limits import NETWORKS
from fastequi.methods.method import Method
from fastequi.models import vit
from fastequi.models.mlp import hidden_width
from fastequi.models.vit import VisionTransformer
from fastequi.weights.architecture import Asked, Stated, options_of
from fastequi.weights.reader import Weights, fill, load_weights
from fastequi.weights.report import Report

INIT = Asked(
    *("--init", "--model.num-heads", "--init.img-size", "--init.network", "--init.channels"),
    of_num_heads="the recipe's own number does not count beside --init",
)

_SIZE = ("embed_dim", "depth", "num_heads", "mlp", "mlp_hidden")  # of which the name says some
_REST = (
    *("patch_size", "qkv_bias", "norm_eps", "final_norm", "pos", "embed_class", "rope_theta"),
    *("reg_tokens", "class_token"),
)


def init_weights(
    init: InitConfig, num_heads: int | None = None, in_chans: int | None = None
) -> Weights:
    """The weights that a run starts from.

    Args:
        init: which, and what is asked of them.
        num_heads: of the model's settings, for a file that does not say them.
        in_chans: of the run's images; None: not known yet.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or is not the one that `init` describes.
    """
    sides = (init.img_size[0], init.img_size[-1]) if init.img_size else None
    kept = init.channels or None
    stated = Stated(num_heads, sides, init.network, init.patch_size, kept, in_chans)
    weights = load_weights(Path(init.path), stated, insist=False, asked=INIT)
    own = weights.options["img_size"]
    if sides is not None and init.patch_size is None and own != sides:
        shown = " ".join(map(str, own)), " ".join(map(str, sides))
        raise ValueError(
            f"--init.img-size: expected {shown[0]}, as {init.path} says, got {shown[1]}"
        )
    if init.sha256 and (found := weights.sha256()) != init.sha256:
        expected = f"the file of init.sha256 {init.sha256}"
        raise ValueError(f"--init: expected {expected}, got {init.path} of {found}")
    return weights


def settings_of(weights: Weights) -> dict[str, Any]:
    """The fields of :class:`ModelConfig` that weights determine; None: as the name says."""
    options = _as_settings(weights.options)
    size = {name: options[name] for name in _SIZE}
    names = [name for name in _names() if _named(name) == size]
    own: Mapping[str, Any] = dict.fromkeys(_SIZE) if names else size
    rest = {name: options[name] for name in _REST if name in options}
    gains = {"layer_scale": options["init_values"], "mlp_ratio": None}
    return {"name": names[0] if names else "vit_small", **own, **rest, **gains}


def expect_settings(model: ModelConfig, weights: Weights) -> None:
    """Raises ValueError that names a setting, its value and the weights', where they differ."""
    with torch.device("meta"):
        own = _as_settings(options_of(build_encoder(model, model.patch_size)))
    theirs = _as_settings(weights.options)
    for name in (*_SIZE, *_REST):
        if own.get(name) != theirs.get(name, own.get(name)):
            raise ValueError(
                f"model.{name}: expected {theirs[name]}, as in the weights {weights.path}, or "
                f"nothing said of it beside --init, got {own.get(name)}"
            )
    ratio, hidden = model.mlp_ratio, theirs["mlp_hidden"]
    if ratio is not None and hidden_width(own["mlp"], own["embed_dim"], ratio) != hidden:
        raise ValueError(
            f"model.mlp_ratio: expected none, or what gives the {hidden} hidden channels of the "
            f"weights {weights.path}, got {ratio}"
        )
    if (own["init_values"] is None) != (theirs["init_values"] is None):
        expected = "none" if theirs["init_values"] is None else "a value"
        raise ValueError(
            f"model.layer_scale: expected {expected}, as in the weights {weights.path}, got "
            f"{model.layer_scale}"
        )


def start(method: Method, config: Config) -> tuple[Config, Report]:
    """Fills the encoder that is trained, and its teacher, with `config.init`'s weights.

    Args:
        method: freshly built.
        config: that it was built with; its model's settings are those of the weights.

    Returns:
        The config with the file's hash, and what was loaded, resized and left out.

    Raises:
        FileNotFoundError, ValueError: see :func:`init_weights` and :func:`expect_settings`.
    """
    model, data = config.model, config.data
    with torch.device("meta"):
        heads = build_encoder(model, data.image_size).num_heads
    weights = init_weights(config.init, heads, data.in_chans)
    expect_settings(model, weights)
    report = weights.report
    for network in {id(one): one for one in (method.encoder, method.backbone)}.values():
        assert isinstance(network, VisionTransformer)
        report = fill(network, weights)
    own, theirs = ((each.mean, each.std) for each in (data, weights))
    if weights.says_normalisation:
        is_theirs = "the weights' own" if own == theirs else f"the weights are made for {theirs}"
        report.said.append(f"data.mean and data.std are {own}, {is_theirs}")
    config = replace(config, init=replace(config.init, sha256=weights.sha256()))
    return config, report


def _as_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """A ViT's arguments, with `embed_class` as the settings have it."""
    found = dict(options)
    if "no_embed_class" in found:
        found["embed_class"] = not found.pop("no_embed_class")
    return found


def _names() -> list[str]:
    """The ViTs that a config can name."""
    return [name for name in NETWORKS if name.startswith("vit_")]


@cache
def _named(name: str) -> dict[str, Any]:
    """The size of a ViT by its name."""
    with torch.device("meta"):
        options = options_of(vit.create(name))
    return {key: options[key] for key in _SIZE}
