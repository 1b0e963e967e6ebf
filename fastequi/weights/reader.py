"""A ViT from a file or a folder of weights in any known layout, as one of ours.

Files are read by `files.py`, the encoder in them is found by `encoder.py`. A run's
model.safetensors holds the run's settings as metadata; other files have a config.json beside them,
a run's, timm's or transformers' (`hub_config.py`). What neither says is assumed, and reported,
where one value is usual, or an error asks for it; see `architecture.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastequi.build import build_encoder
from fastequi.config import Config
from fastequi.data.config import DataConfig
from fastequi.models.vit import VisionTransformer
from fastequi.weights import adapt, timm
from fastequi.weights.architecture import (
    ASKED,
    PATCHES,
    UNSTATED,
    Asked,
    Stated,
    UnlikeError,
    expect_tensors,
    from_shapes,
    options_of,
    settled,
)
from fastequi.weights.beside import Beside, described, normalised
from fastequi.weights.encoder import encoder_of
from fastequi.weights.files import Contents, read_weights
from fastequi.weights.hub_config import Floats
from fastequi.weights.layouts import Layout
from fastequi.weights.published import computes_otherwise, file_size, named_size, usual_depth
from fastequi.weights.report import Report

State = dict[str, Tensor]
Options = dict[str, Any]

_CHANS = 3
_DEFAULTS = DataConfig()


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A network's tensors and how it is made.

    Attributes:
        path: of the file or folder.
        sha256: of the file, made when called.
        layout: that it was recognised as, which also writes it.
        state: under our names, float32; fits what `make` makes.
        options: of the architecture.
        make: the architecture, freshly initialised from torch's generator.
        mean, std: of the normalisation.
        says_normalisation: whether the file, or one beside it, says them.
        config: of the run that wrote them, if known.
        values: `data.channels` and `data.value_range` of its images; "" where nothing says them.
        report: what was done.
    """

    path: Path
    sha256: Callable[[], str]
    layout: Layout
    state: State
    options: Options
    make: Callable[[], VisionTransformer]
    mean: Floats
    std: Floats
    says_normalisation: bool
    config: Config | None = None
    values: tuple[str, str] = ("", "")
    report: Report


def load_weights(
    path: Path, stated: Stated = UNSTATED, insist: bool = True, asked: Asked = ASKED
) -> Weights:
    """The ViT in a file or a folder; what is changed and assumed is in the report.

    Args:
        path: a *.safetensors, *.pth, *.pt or *.bin file, an index of shards, or a folder.
        stated: what the caller knows of it and asks for.
        insist: where the file says otherwise, the caller is right; else the file.
        asked: how the caller's options are called, for messages.

    Raises:
        FileNotFoundError: there is no such file, or not all of its shards.
        ValueError: names the file and what is wrong with it, or which option is needed.
    """
    try:
        return _loaded(read_weights(path), stated, insist, asked)
    except (FileNotFoundError, ValueError) as error:
        said = str(error)
        named = said if str(path) in said.partition(": ")[0] else f"{path}: {said}"
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{asked.file}: {named}") from error


def fill(network: VisionTransformer, weights: Weights) -> Report:
    """Loads weights into a ViT of the same architecture; positions and channels are made to fit.

    Returns:
        The weights' report, with what was resized.

    Raises:
        ValueError: another architecture; names the tensors.
    """
    told = weights.report
    report = replace(told, resized=[*told.resized], unexpected=[*told.unexpected])
    state, options = dict(weights.state), weights.options
    head = [] if isinstance(network.head, torch.nn.Linear) else ["head.weight", "head.bias"]
    if unused := {name: state.pop(name) for name in head if name in state}:
        report.unexpected.append(f"a classifier: {', '.join(unused)}")
        report.tensors -= len(unused)
        report.parameters -= sum(tensor.numel() for tensor in unused.values())
    if network.in_chans != options["in_chans"]:
        state[PATCHES] = adapt.channels(state[PATCHES], network.in_chans)
        report.resized.append(
            f"patch embedding of {options['in_chans']} channels for {network.in_chans}"
        )
    grid, source = network.grid_size(*network.img_size), _grid(options)
    positions = state.get("pos_embed")
    if positions is not None and grid != source:
        prefix = positions.shape[1] - source[0] * source[1]
        state["pos_embed"] = adapt.positions(positions, grid, prefix, source)
        old, new = ("x".join(map(str, sides)) for sides in (source, grid))
        report.resized.append(f"positions of {old} patches to {new}")
    try:
        expect_tensors(state, lambda: VisionTransformer(**options_of(network)))
    except UnlikeError as error:
        what = "the encoder that they are for"
        raise ValueError(f"{weights.path}: {error.told(what, str)}") from error
    network.load_state_dict(state)
    return report


def _grid(options: Options) -> tuple[int, int]:
    height, width = options["img_size"]
    return height // options["patch_size"], width // options["patch_size"]


def _loaded(contents: Contents, stated: Stated, insist: bool, asked: Asked) -> Weights:
    report, beside = Report(str(contents.path)), described(contents)
    layout, state, facts = encoder_of(contents.tensors, stated, asked, report)
    contents.tensors.clear()  # the rest of a checkpoint may be large
    try:
        if beside.run is not None:
            make = _of_run(state, beside, stated if insist else UNSTATED, asked)
            with torch.device("meta"):
                options = options_of(make())
            mean: Floats | None = beside.run.data.mean
            std: Floats | None = beside.run.data.std
        else:
            found = _Found(contents, layout, beside, facts, asked, report)
            options = found.options(state, stated, insist)
            make = None
            mean, std = normalised(contents, beside, options["in_chans"])
    except UnlikeError as error:
        what = f"{layout.name} (the nearest layout)"
        raise ValueError(error.told(what, layout.spelled)) from error
    says, of_tensors = mean is not None and std is not None, options
    state, options = _of_channels(state, options, stated, beside, asked, report)
    values = beside.values if options is of_tensors else ("", "")
    if options is not of_tensors:
        make = None
    if mean is None or std is None:
        mean, std = _unsaid(options["in_chans"], stated, asked, report)
    elif options is not of_tensors:
        mean, std = (_kept(values, stated.channels) for values in (mean, std))
    if stated.patch_size is not None and stated.patch_size != options["patch_size"]:
        state, options = _of_patches(state, options, stated.patch_size, report)
        make = None
    report.tensors = len(state)
    report.parameters = sum(tensor.numel() for tensor in state.values())
    words = f"{asked.num_heads}, {asked.img_size}"
    report.otherwise = f"{words} or a config.json beside it (mean and std too) say otherwise"
    return Weights(
        path=contents.path,
        sha256=contents.sha256,
        layout=layout,
        state=state,
        options=options,
        make=make or partial(VisionTransformer, **options),
        mean=mean,
        std=std,
        says_normalisation=says,
        config=beside.run,
        values=values,
        report=report,
    )


def _of_run(
    state: State, beside: Beside, stated: Stated, asked: Asked
) -> Callable[[], VisionTransformer]:
    """Makes the encoder of a run, which the tensors have to fit."""
    assert beside.run is not None
    model, side = beside.run.model, beside.run.data.image_size
    if not model.name.startswith("vit_"):
        raise ValueError(f"it is a ViT, and {beside.where} says {model.name}")
    make = partial(build_encoder, model, side, beside.run.data.in_chans)
    expect_tensors(state, make)
    with torch.device("meta"):
        heads = make().num_heads
    given = stated.num_heads or heads, stated.img_size or (side, side)
    if given != (heads, (side, side)):
        words = f"{asked.num_heads}, {asked.img_size}"
        told = f"{beside.where} says {heads} heads and {side} px"
        raise ValueError(f"{words}: {told}: leave them out")
    return make


@dataclass(frozen=True)
class _Found:
    """All that is known of a network that is no run's."""

    contents: Contents
    layout: Layout
    beside: Beside
    facts: Options
    asked: Asked
    report: Report

    def options(self, state: State, stated: Stated, insist: bool) -> Options:
        """Arguments of the architecture; drops tensors that no token depends on from `state`."""
        layout, hub, where = self.layout, self.beside.hub, self.beside.where
        options = from_shapes(state, rope=layout.rope)
        if not options["final_norm"]:
            self.report.missing.append("the last norm: fc_norm is of the mean, tokens have none")
        if after := [name for name in state if name.startswith("fc_norm.")]:
            self.report.unexpected.append(f"a norm of the mean: {', '.join(after)}")
            for name in after:
                del state[name]
        self._expect_as_said(options)
        self._remark_on_depth(options)
        options["norm_eps"] = hub.norm_eps or layout.norm_eps
        if layout.rope:
            options["rope_theta"] = hub.rope_theta or self.facts.get("rope_theta", 100.0)
        own = hub.stated.over(Stated(self._heads(options["embed_dim"], stated)))
        known = stated.over(own) if insist else own.over(stated)
        if insist and known != own.over(stated):
            words = f"{self.asked.num_heads}, {self.asked.img_size}"
            told = f"{where} says" if where else "is usual"
            self.report.said.append(f"{words} go before what {told}")
        options, assumed = settled(state, options, known, self.asked)
        self.report.assumed += assumed
        return options

    def _expect_as_said(self, options: Options) -> None:
        """Raises ValueError where config.json contradicts the tensors."""
        hub, where = self.beside.hub, self.beside.where
        for name, (option, value) in hub.shapes.items():
            if options[option] != value:
                raise ValueError(f"{where} says {name} {value}, the tensors have {options[option]}")
        if self.layout.name == timm.DINOV3.name and hub.rope_type != "dinov3":
            if hub.architecture is None:
                self.report.assumed.append("DINOv3's rotary positions")
            elif "dinov3" not in hub.architecture:
                raise ValueError(
                    f"{where} says architecture {hub.architecture!r}, whose rotary positions are "
                    f"not DINOv3's"
                )

    def _remark_on_depth(self, options: Options) -> None:
        """Of a file that lost its last blocks the rest is a ViT as well."""
        said = any(option == "depth" for option, _ in self.beside.hub.shapes.values())
        usual, depth = usual_depth(options["embed_dim"]), options["depth"]
        if not said and usual is not None and depth < usual:
            self.report.said.append(
                f"{depth} blocks, where published ViTs of {options['embed_dim']} channels have "
                f"{usual}: is the file whole?"
            )

    def _heads(self, width: int, stated: Stated) -> int | None:
        """Attention heads from all but config.json's own words and the caller's."""
        hub, stem = self.beside.hub, self.contents.files[0].stem
        heads = self.facts.get("num_heads") or self.layout.heads.get(width)
        published = file_size(stem)
        if heads is None and published is not None and published[0] == width:
            heads = published[1]
            self.report.said.append(f"num_heads {heads}, by the file's name, {stem}")
        if hub.architecture is None or hub.rope_type is not None:  # then all is in the arguments
            return heads
        known = heads is not None or hub.stated.over(stated).num_heads is not None
        return self._heads_by_name(hub.architecture, width, known) or heads

    def _heads_by_name(self, name: str, width: int, known: bool) -> int | None:
        """The heads that belong to timm's name of a network; needed unless they are `known`."""
        where, option = self.beside.where, self.asked.num_heads
        if computes_otherwise(name):
            raise ValueError(f"{where} says architecture {name!r}, whose GELU or norms are others")
        size = named_size(name)
        if size is None:
            if not known:
                raise ValueError(
                    f"num_heads: {where} says architecture {name!r}, which is no ViT known here; "
                    f"say {option} if it is a plain one"
                )
            self.report.said.append(
                f"architecture {name!r} is none known here, and is read as a plain ViT"
            )
            return None
        dim = self.beside.hub.embed_dim or size[0]
        if not known and dim != width:
            raise ValueError(
                f"{where} says architecture {name!r} of {dim} channels, the tensors have {width}; "
                f"say {option} if it is a plain ViT"
            )
        return size[1]


def _of_channels(
    state: State, options: Options, stated: Stated, beside: Beside, asked: Asked, report: Report
) -> tuple[State, Options]:
    """For images of the stated channels; where nothing is stated, of as many as the weights have,
    but of three in the place of a single one, unless that is of a run or an export."""
    own, kept, wanted = options["in_chans"], stated.channels, stated.in_chans
    repeated = own == 1 and (wanted == _CHANS or (wanted is None and not beside.says_channels))
    if kept is None and not repeated:
        if wanted not in (None, own):
            raise ValueError(
                f"in_chans: expected {wanted}, as images have, got {own}; {asked.channels} says "
                f"which are kept"
            )
        return state, options
    made = _CHANS if kept is None else len(kept)
    if wanted not in (None, made):
        listed = " ".join(map(str, kept or ()))
        raise ValueError(f"{asked.channels}: expected {wanted}, as images have, got {listed}")
    weight = adapt.channels(state[PATCHES], made, kept)
    how = "repeated and divided by 3" if kept is None else f"those of channels {kept}"
    report.resized.append(f"patch embedding of {own} channels for {made}, {how}")
    return {**state, PATCHES: weight}, {**options, "in_chans": made}


def _kept(values: Floats, channels: tuple[int, ...] | None) -> Floats:
    """Mean or std of the channels that are kept, of one that is repeated."""
    return values * _CHANS if channels is None else tuple(values[index] for index in channels)


def _unsaid(channels: int, stated: Stated, asked: Asked, report: Report) -> tuple[Floats, Floats]:
    """The mean and std of weights of which nothing says them: ImageNet's, of three channels.

    Raises:
        ValueError: there are other channels, whose images have not said themselves how many.
    """
    if channels == _CHANS:
        report.assumed.append("ImageNet's mean and std")
        return _DEFAULTS.mean, _DEFAULTS.std
    if stated.in_chans is None and not stated.channels:
        raise ValueError(
            f"in_chans: expected {_CHANS}, as ImageNet's mean and std have and nothing says others,"
            f" got {channels}; {asked.channels} says which are kept"
        )
    report.assumed.append("values in 0..1 that are not normalised")
    return (0.0,) * channels, (1.0,) * channels


def _of_patches(state: State, options: Options, size: int, report: Report) -> tuple[State, Options]:
    """For patches of another size: images stay as large as multiples of it allow."""
    own = options["patch_size"]
    report.resized.append(f"patch embedding of {own} px patches to {size} px, by pseudo-inverse")
    height, width = (max(round(side / size), 1) * size for side in options["img_size"])
    made = {**options, "patch_size": size, "img_size": (height, width)}
    state = {**state, PATCHES: adapt.patches(state[PATCHES], size)}
    if "pos_embed" in state and (source := _grid(options)) != (grid := _grid(made)):
        prefix = state["pos_embed"].shape[1] - source[0] * source[1]
        state["pos_embed"] = adapt.positions(state["pos_embed"], grid, prefix, source)
        old, new = ("x".join(map(str, sides)) for sides in (source, grid))
        report.resized.append(f"positions of {old} patches to {new}")
    return state, made
