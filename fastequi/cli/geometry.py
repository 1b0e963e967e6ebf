"""The options of each evaluation of geometry, and what they call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from fastequi.cli.image_options import Patterned, Several, Tolerant, expect_places, flat, images_of
from fastequi.cli.parsing import at_least, is_given, parse
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
    """JSON file; eval_KIND.json in the CHECKPOINT folder by default, of a file eval_KIND_FILE.json
    in the current folder."""
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
class PhotographOptions(Tolerant, GeometryOptions):
    """What those take that need photographs alone."""


@dataclass(frozen=True)
class MatchOptions(PhotographOptions):
    """Recall of tokens' nearest neighbours between two views of a photograph, clean and with
    changed light, beside baselines: raw patches, position only, a random init. With SPair-71k's
    folder as --data instead PCK of its keypoints."""

    test_data: Several = ()
    """Photographs, all of which are used; else every fifth of --data."""
    families: tuple[Family, ...] = ("rotation", "translation", "se2", "homography")
    """What lies between the views."""
    pairs: int = 1000
    """Of each family."""
    side: int | None = None
    """Of the squares that SPair-71k's images become, in pixels; the encoder's own by default."""


@dataclass(frozen=True)
class HomographyOptions(PhotographOptions):
    """Corner errors of homographies between two views of a photograph, clean and with changed
    light, estimated from matches of tokens (RANSAC, least squares) and by a head of three
    convolutions, beside baselines: no motion, raw patches, position only, a random init. With
    HPatches' sequences as --data, or a folder of two images and OpenCV's XML file, those pairs."""

    test_data: Several = ()
    """Photographs for testing; else every fifth of --data."""
    pairs: int = 500
    """That are tested."""
    train_pairs: int = 2000
    """Pairs of training photographs that the head is fitted on; 0: no head."""
    epochs: int = 20
    """Of the head."""
    side: int | None = None
    """Shorter side of HPatches' images as encoders see them, in pixels, rounded to a multiple of
    the patch size; the encoder's own by default."""


@dataclass(frozen=True)
class LayersOptions(PhotographOptions):
    """Equivariance and invariance of the tokens of every block, under turns, flips and shifts that
    are exact on their grid, beside baselines: raw patches, position only, a random init."""

    test_data: Several = ()
    """Photographs, all of which are used; else every fifth of --data."""
    windows: int = 200
    """Squares of photographs that figures are means over."""
    each: bool = False
    """A table for every turn, flip and shift, instead of means over each group."""


@dataclass(frozen=True)
class PositionOptions(PhotographOptions):
    """R² of a token's row and column, read from the tokens of every block by ridge regression, and
    the same after the directions that say them are projected out, beside baselines."""

    test_data: Several = ()
    """Photographs for testing, instead of every fifth."""
    windows: int = 500
    """Squares of training photographs, on whose tokens the regression is fitted."""
    test_windows: int = 200
    """Squares of test photographs."""


@dataclass(frozen=True)
class PropagateOptions(GeometryOptions):
    """J and F of masks that are carried from the first frame of a video to the others by the
    similarity of tokens, as DINO's script does, beside baselines: raw patches, position only, a
    random init. --data is a folder in DAVIS 2017's layout (`fastequi data scenes` makes one), or in
    JHMDB's, of whose joints PCK is measured; --include and --exclude are of its clips."""

    side: int = 0
    """Shorter side of the frames as encoders see them, in pixels; 0: 480 of DAVIS, as DINO has it,
    and 320 of JHMDB, whose frames become squares."""


def match(argv: list[str]) -> None:
    options = parse(MatchOptions, "fastequi eval match", argv)
    at_least(options, 2, "pairs")
    if not options.families:
        raise ValueError(f"--families: expected some of {', '.join(get_args(Family))}, got none")
    if len(set(options.families)) < len(options.families):
        said = " ".join(options.families)
        raise ValueError(f"--families: expected each once, got {said}")

    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.keypoints import evaluate_keypoints
    from fastequi.evaluate.geometry.matching import evaluate_matches
    from fastequi.evaluate.geometry.spair import is_spair

    folder = _folder(options, is_spair, argv, "SPair-71k")
    if folder is not None:
        of_keypoints = partial(evaluate_keypoints, folder, options.side)
        evaluate("match", options.checkpoint, of_keypoints, **options.frame())
        return
    data = images_of(options, options.data)
    test = images_of(options, options.test_data, "--test-data")
    run = partial(evaluate_matches, data, test, options.families, options.pairs, options.seed)
    evaluate("match", options.checkpoint, run, **options.frame())


def homography(argv: list[str]) -> None:
    options = parse(HomographyOptions, "fastequi eval homography", argv)
    at_least(options, 2, "pairs")
    at_least(options, 0, "train_pairs", zero="no head")
    at_least(options, 1, "epochs")

    from fastequi.evaluate.geometry.corner_head import HeadFit
    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.homography import Budget, evaluate_homographies
    from fastequi.evaluate.geometry.homography_pairs import holds_homographies
    from fastequi.evaluate.geometry.homography_sequences import evaluate_sequences

    folder = _folder(options, holds_homographies, argv, "pairs of known homography")
    if folder is not None:
        of_sequences = partial(evaluate_sequences, folder, options.side)
        evaluate("homography", options.checkpoint, of_sequences, **options.frame())
        return
    data = images_of(options, options.data)
    test = images_of(options, options.test_data, "--test-data")
    fit = HeadFit(epochs=options.epochs, seed=options.seed)
    budget = Budget(options.pairs, options.train_pairs, fit, options.seed)
    run = partial(evaluate_homographies, data, test, budget)
    evaluate("homography", options.checkpoint, run, **options.frame())


def layers(argv: list[str]) -> None:
    options = parse(LayersOptions, "fastequi eval layers", argv)
    at_least(options, 2, "windows")
    if options.out is not None and options.out.suffix == ".svg":
        raise ValueError(f"--out: expected a JSON file, got {options.out}, where the plot goes")

    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.layers import evaluate_layers
    from fastequi.evaluate.results import place
    from fastequi.report.geometry import draw_layers

    data = images_of(options, options.data)
    test = images_of(options, options.test_data, "--test-data")
    run = partial(evaluate_layers, data, test, options.windows, options.each, options.seed)
    evaluate("layers", options.checkpoint, run, **options.frame())
    file = place("layers", options.checkpoint, options.out)
    if drawing := draw_layers(file):
        print(drawing)


def position(argv: list[str]) -> None:
    options = parse(PositionOptions, "fastequi eval position", argv)
    at_least(options, 10, "windows")
    at_least(options, 2, "test_windows")

    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.position import evaluate_position

    data = images_of(options, options.data)
    test = images_of(options, options.test_data, "--test-data")
    counts = options.windows, options.test_windows
    run = partial(evaluate_position, data, test, *counts, options.seed)
    evaluate("position", options.checkpoint, run, **options.frame())


def propagate(argv: list[str]) -> None:
    options = parse(PropagateOptions, "fastequi eval propagate", argv)
    if is_given("--seed", argv):
        raise ValueError("--seed: nothing is drawn here")
    at_least(options, 0, "side", zero="480, of JHMDB 320")
    expect_places(options.data, "a folder of clips in DAVIS 2017's or JHMDB's layout")
    chosen = options.selection(options.data)
    if len(chosen.places) != 1:
        raise ValueError(f"--data: expected one folder, got {' '.join(chosen.places)}")

    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.jhmdb import is_jhmdb
    from fastequi.evaluate.geometry.poses import SIDE, evaluate_poses
    from fastequi.evaluate.geometry.propagate import SHORTER_SIDE, evaluate_clips

    root = Path(chosen.places[0]).expanduser()
    if is_jhmdb(root):
        run = partial(evaluate_poses, root, chosen.patterns, options.side or SIDE)
    else:
        run = partial(evaluate_clips, root, chosen.patterns, options.side or SHORTER_SIDE)
    evaluate("propagate", options.checkpoint, run, **options.frame())


_OF_PHOTOGRAPHS = (
    *("--test-data", "--include", "--exclude", "--tolerate"),
    *("--families", "--pairs", "--train-pairs", "--epochs"),
)


def _folder(
    options: MatchOptions | HomographyOptions,
    is_layout: Callable[[Path], bool],
    argv: list[str],
    what: str,
) -> Path | None:
    """The folder of --data if it has a layout of its own; None: it is of photographs.

    Raises:
        ValueError: an option is given that says nothing of that layout, or of photographs.
    """
    places = [Path(place).expanduser() for place in flat(options.data)]
    found = next((place for place in places if is_layout(place)), None)
    if found is None:
        if options.side is not None:
            raise ValueError(f"--side: expected --data to be a folder of {what} beside it")
        return None
    if len(places) > 1:
        raise ValueError(f"--data: expected {found} alone, a folder of {what}")
    for option in _OF_PHOTOGRAPHS:
        if is_given(option, argv):
            raise ValueError(f"{option}: for photographs, {found} is a folder of {what}")
    if options.side is not None:
        at_least(options, 1, "side")
    return found
