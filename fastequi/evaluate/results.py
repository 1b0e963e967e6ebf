"""Where an evaluation's figures go: JSON with the machine and what was judged.

eval_equivariance.json   "tasks": {task: {"names", "train_pairs", "test_pairs", "scores": [Score
                         and its "mean"]}}, see `fastequi.evaluate.pair_scores.Score`; "budget"
eval_equivariance_zero_fill.json   the same of zero-filled pairs
eval_knn.json, eval_linear.json   "scores": [`fastequi.evaluate.classification.Recognition`];
                         "class_images": {class: [training, test images]}, "split": which are which
eval_reconstruct.json    "psnr", "ssim": `fastequi.evaluate.reconstruction.Quality`;
                         "spectra": {features: `fastequi.evaluate.spectrum.Spectrum`}

All of them have "test_seen_in_training": {encoder: how many of the test images have the name and
the size of one that its run trained on; null: not known}.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastequi.atomic import replace_text
from fastequi.data.sources import kept
from fastequi.data.sources.image_sets import Data, Selection
from fastequi.data.sources.images import Source
from fastequi.evaluate.encoders import Encoder
from fastequi.runtime.machine import machine


def place(kind: str, spec: str, out: Path | None) -> Path:
    """`out`, else eval_KIND.json in the folder that was judged, else in the current one.

    Raises:
        ValueError: it cannot be written.
    """
    folder = Path(spec).expanduser()
    return writable(out or (folder if folder.is_dir() else Path()) / f"eval_{kind}.json")


def writable(file: Path) -> Path:
    """A file that can be written, found out before there is anything to lose; its folder is made.

    Raises:
        ValueError: it cannot.
    """
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        existed = file.exists()
        file.open("ab").close()
        if not existed:
            file.unlink()
    except OSError as error:
        raise ValueError(f"--out: {file} cannot be written ({error.strerror})") from error
    return file


def writable_folder(folder: Path) -> Path:
    """A folder that is there, or is made.

    Raises:
        ValueError: it cannot be made, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: {folder} cannot be made ({error.strerror})") from error
    return folder


def documented(data: Data | None) -> dict[str, Any]:
    """What the files hold of the images that were chosen: "data", and patterns if there are any."""
    if data is None:
        return {"data": "embedded photographs, by region"}
    return dict(Selection.of(data).to_json())


def seen_in_training(specs: Sequence[str], test: Source | None) -> dict[str, int | None]:
    """Of every encoder how many of the test images its run may have seen; says so, if any.

    Args:
        specs: see `fastequi.evaluate.encoders`.
        test: None for images that no run can have seen, or of which nothing is known.

    Returns:
        What the files hold as "test_seen_in_training".
    """
    if test is None:
        return {}
    found = {spec: kept.seen(Path(spec).expanduser(), test) for spec in specs}
    for spec, seen in found.items():
        if seen:
            print(
                f"{seen} of the {len(test)} test images have the name and the size of one that "
                f"{spec} was trained on"
            )
    return found


def save(file: Path, spec: str, encoder: Encoder, document: dict[str, Any]) -> None:
    """Writes {"machine", "checkpoint", "encoder", "image_size", **document}."""
    head = {
        "machine": machine(),
        "checkpoint": spec,
        "encoder": encoder.name,
        "image_size": encoder.image_size,
    }
    replace_text(file, json.dumps({**head, **document}, indent=1) + "\n")
