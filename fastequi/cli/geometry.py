"""The options of each evaluation of geometry, and what they call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastequi.cli.image_options import Patterned, Several, images_of
from fastequi.cli.parsing import is_given, parse
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
    if options.pairs < 2:
        raise ValueError(f"--pairs: expected >= 2, got {options.pairs}")

    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.matching import evaluate_matches

    data, test = images_of(options, options.data), images_of(options, options.test_data)
    run = partial(evaluate_matches, data, test, options.families, options.pairs, options.seed)
    evaluate("match", options.checkpoint, run, **options.frame())


def propagate(argv: list[str]) -> None:
    options = parse(PropagateOptions, "fastequi eval propagate", argv)
    if is_given("--seed", argv):
        raise ValueError("--seed: nothing is drawn here")
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
