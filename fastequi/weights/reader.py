"""A ViT from a *.safetensors file, with what its metadata or a config.json beside it say of it.

A run's model.safetensors holds the run's settings as metadata; other files have a config.json
beside them, a run's or timm's (`hub_config.py`). What neither says is assumed, with a warning,
where one value is usual, or an error asks for it; see `fastequi.weights.architecture`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastequi.build import build_encoder
from fastequi.config import Config
from fastequi.data.config import DataConfig
from fastequi.weights.hub_config import HubConfig
from fastequi.weights.published import computes_otherwise, named_size
from fastequi.weights.architecture import (
    UNSTATED,
    Stated,
    expect_tensors,
    from_shapes,
    plain,
    settled,
)
from fastequi.models.vit import VisionTransformer
from fastequi.runtime import checkpoint

logger = logging.getLogger(__name__)

Floats = tuple[float, ...]
State = dict[str, Tensor]
_DEFAULTS = DataConfig()


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A network's tensors and how it is made.

    Attributes:
        state: fits what `make` makes.
        make: the architecture, freshly initialised from torch's generator.
        mean, std: of the normalisation.
        config: of the run that wrote them, if known.
    """

    state: State
    make: Callable[[], VisionTransformer]
    mean: Floats
    std: Floats
    config: Config | None = None


def load_weights(path: Path, stated: Stated = UNSTATED, insist: bool = True) -> Weights:
    """The ViT in a file; what is changed and assumed is logged in one line.

    Args:
        path: a *.safetensors file.
        stated: what the caller knows of it.
        insist: where the file says otherwise, the caller is right; else the file.

    Raises:
        ValueError: names the file and what is wrong with it, or which option is needed.
    """
    tensors, metadata = _tensors(path)
    where, said = _said(path, metadata)
    try:
        state, remarks = plain(tensors)
        if isinstance(said, Config):
            weights = _of_run(state, said, where, stated if insist else UNSTATED)
        else:
            weights = _of_hub(
                state, said, where=where, stated=stated, insist=insist, remarks=remarks
            )
    except ValueError as error:
        raise ValueError(f"CHECKPOINT: {path}: {error}") from error
    if remarks:
        logger.warning("%s: %s", path, "; ".join(remarks))
    return weights


def read_config(where: str | Path, text: str) -> Config:
    """A run's settings from JSON.

    Args:
        where: the text is from, for messages.
        text: of a config.json.

    Raises:
        ValueError: says where they are from and what is wrong with them.
    """
    try:
        return Config.from_json(text)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{where}: not a run's settings: {error}") from error


def _tensors(path: Path) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"CHECKPOINT: {path} is no safetensors file ({error})") from error


def _said(path: Path, metadata: dict[str, str]) -> tuple[str, Config | HubConfig]:
    """Which file describes the network ("" if none does), and what it says."""
    if checkpoint.SETTINGS in metadata:
        where = f"{path}'s metadata"
        return where, read_config(f"CHECKPOINT: {where}", metadata[checkpoint.SETTINGS])
    beside = path.with_name("config.json")
    if not beside.is_file():
        return "", HubConfig()
    try:
        text = beside.read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"CHECKPOINT: {beside} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"CHECKPOINT: {beside}: expected a JSON object, got {text.strip()[:80]}")
    if "method" in found or "system" in found:
        return str(beside), read_config(f"CHECKPOINT: {beside}", text)
    try:
        return str(beside), HubConfig.of(found)
    except ValueError as error:
        raise ValueError(f"CHECKPOINT: {beside}: {error}") from error


def _of_run(state: State, config: Config, where: str, stated: Stated) -> Weights:
    model, data = config.model, config.data
    if not model.name.startswith("vit_"):
        raise ValueError(f"it is a ViT, and {where} says {model.name}")

    def make() -> VisionTransformer:
        return build_encoder(model, data.image_size)

    expect_tensors(state, make)
    side = data.image_size
    with torch.device("meta"):
        own = Stated(make().num_heads, (side, side))
    if stated.over(own) != own:
        raise ValueError(
            f"--num-heads, --img-size: {where} says {own.num_heads} heads and {side} px: leave "
            f"them out"
        )
    return Weights(state=state, make=make, mean=data.mean, std=data.std, config=config)


def _of_hub(
    state: State,
    said: HubConfig,
    *,
    where: str,
    stated: Stated,
    insist: bool,
    remarks: list[str],
) -> Weights:
    options = from_shapes(state)
    own = said.stated
    if said.architecture is not None:
        heads_known = own.over(stated).num_heads is not None
        own = own.over(
            _by_name(said, options["embed_dim"], where, known=heads_known, remarks=remarks)
        )
    known = stated.over(own) if insist else own.over(stated)
    if insist and known != own.over(stated):
        remarks.append(f"--num-heads, --img-size go before what {where} says")
    options, assumed = settled(state, options, known)
    if options["in_chans"] != 3:
        raise ValueError(f"in_chans: expected 3, as images have, got {options['in_chans']}")
    if said.mean is None or said.std is None:
        assumed.append("ImageNet's mean and std")
    if assumed:
        remarks.append(
            f"assumed {', '.join(assumed)}; --num-heads, --img-size or a config.json beside it "
            f"say otherwise"
        )
    return Weights(
        state=state,
        make=lambda: VisionTransformer(**options),
        mean=said.mean or _DEFAULTS.mean,
        std=said.std or _DEFAULTS.std,
    )


def _by_name(said: HubConfig, width: int, where: str, *, known: bool, remarks: list[str]) -> Stated:
    """The heads that belong to timm's name of the network; needed unless they are `known`."""
    name = str(said.architecture)
    if computes_otherwise(name):
        raise ValueError(f"{where} says architecture {name!r}, whose GELU or norms are others")
    size = named_size(name)
    if size is None:
        if not known:
            raise ValueError(
                f"num_heads: {where} says architecture {name!r}, which is no ViT known here; say "
                f"--num-heads if it is a plain one"
            )
        remarks.append(f"architecture {name!r} is none known here, and is read as a plain ViT")
        return UNSTATED
    dim = said.embed_dim or size[0]
    if not known and dim != width:
        raise ValueError(
            f"{where} says architecture {name!r} of {dim} channels, the tensors have {width}; say "
            f"--num-heads if it is a plain ViT"
        )
    return Stated(size[1])
