"""The options of each evaluation of geometry, and what they call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastequi.cli.image_options import Patterned, Several, images_of
from fastequi.cli.parsing import parse
from fastequi.cli.vit_options import VitOptions

Family = Literal["rotation", "translation", "se2", "homography"]


@dataclass(frozen=True)
class GeometryOptions(Patterned, VitOptions):
    """What all of them take."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run's folder, a checkpoint's, a file or folder of weights, or module:function."""
    data: Several = ()
    """See each evaluation; embedded photographs by default, where they serve."""
    against: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further encoder for the tables, such as the base without TIR."""
    seed: int = 0
    """Of what is drawn."""
    device: str = "auto"
    """Where it runs: auto, cpu, cuda or cuda:1."""
    out: Path | None = None
    """JSON file; eval_KIND.json in the CHECKPOINT folder by default."""
    cache: Path | None = None
    """Folder for maps of tokens, which other evaluations of the same images find; by default in
    fastequi's cache folder."""
    cache_gb: float = 20.0
    """Gigabytes that they may take there; 0: none are kept."""

    def frame(self) -> dict[str, Any]:
        """What the frame takes of them."""
        names = "against", "device", "out", "cache", "cache_gb"
        return {**{name: getattr(self, name) for name in names}, "stated": self.stated()}


@dataclass(frozen=True)
class MatchOptions(GeometryOptions):
    """Recall of tokens' nearest neighbours between two views of a photograph, clean and with
    changed light, beside baselines: raw patches, position only, a random init."""

    test_data: Several = ()
    """Photographs, all of which are used; else every fifth of --data."""
    families: tuple[Family, ...] = ("rotation", "translation", "se2", "homography")
    """What lies between the views."""
    pairs: int = 1000
    """Of each family."""


def match(argv: list[str]) -> None:
    options = parse(MatchOptions, "fastequi eval match", argv)
    if options.pairs < 2:
        raise ValueError(f"--pairs: expected >= 2, got {options.pairs}")

    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.matching import evaluate_matches

    data, test = images_of(options, options.data), images_of(options, options.test_data)
    run = partial(evaluate_matches, data, test, options.families, options.pairs, options.seed)
    evaluate("match", options.checkpoint, run, **options.frame())


@dataclass(frozen=True)
class LayersOptions(GeometryOptions):
    """Equivariance and invariance of the tokens of every block, under turns, flips and shifts that
    are exact on their grid, beside baselines: raw patches, position only, a random init."""

    test_data: Several = ()
    """Photographs, all of which are used; else every fifth of --data."""
    windows: int = 200
    """Squares of photographs that figures are means over."""
    each: bool = False
    """A table for every turn, flip and shift, instead of means over each group."""


def layers(argv: list[str]) -> None:
    options = parse(LayersOptions, "fastequi eval layers", argv)
    if options.windows < 2:
        raise ValueError(f"--windows: expected >= 2, got {options.windows}")

    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.layers import evaluate_layers
    from fastequi.evaluate.results import place
    from fastequi.report.geometry import draw_layers

    data, test = images_of(options, options.data), images_of(options, options.test_data)
    run = partial(evaluate_layers, data, test, options.windows, options.each, options.seed)
    evaluate("layers", options.checkpoint, run, **options.frame())
    file = place("layers", options.checkpoint, options.out)
    if drawing := draw_layers(file):
        print(drawing)


@dataclass(frozen=True)
class PositionOptions(GeometryOptions):
    """R² of a token's row and column, read from the tokens of every block by ridge regression, and
    the same after the directions that say them are projected out, beside baselines."""

    test_data: Several = ()
    """Photographs for testing, instead of every fifth."""
    windows: int = 500
    """Squares of training photographs, on whose tokens the regression is fitted."""
    test_windows: int = 200
    """Squares of test photographs."""


def position(argv: list[str]) -> None:
    options = parse(PositionOptions, "fastequi eval position", argv)
    for name, least in (("windows", 10), ("test_windows", 2)):
        if getattr(options, name) < least:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option}: expected >= {least}, got {getattr(options, name)}")

    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.position import evaluate_position

    data, test = images_of(options, options.data), images_of(options, options.test_data)
    counts = options.windows, options.test_windows
    run = partial(evaluate_position, data, test, *counts, options.seed)
    evaluate("position", options.checkpoint, run, **options.frame())
