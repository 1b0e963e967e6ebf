"""The file an evaluation leaves: JSON that says what it is, written and read here alone.

Every file has
  "kind"         which evaluation wrote it, one of `KINDS`
  "schema"       `SCHEMA`, the version of this layout; files of another version are not read
  "encoder"      the evaluated encoder's name in the rows; "checkpoint": how the user named it
  "image_size"   of the encoder, pixels
  "machine"      processor, device, versions
  "data"         the images that were chosen, with "include" and "exclude" if patterns were given
  "test_seen_in_training"   {encoder: how many test images have the name and the size of one its run
                 was trained on; null: not known}
  "test_used_for_fitting"   how many test images are, by file or by bytes, among the images that the
                 probes were fitted on; 0 of parts of photographs; of a reconstruction there is none
  "seconds"      of the evaluation

and the tables of its kind, whose rows are `Row`s:
  equivariance   "tasks": {task: `fastequi.evaluate.pair_reports.Report`}; "budget" of the probes
  knn, linear    "scores": [`fastequi.evaluate.classification.ClassScore`]; "classes": how many;
                 "class_images": {class: [training, test images]}; "split": which images are for
                 training and for testing
  reconstruct    if there are decoders the fields of
                 `fastequi.evaluate.predicted_images.Predictions`;
                 "spectra": [`fastequi.evaluate.reconstruction.SpectrumRow`]
  rotnet         "scores", "classes", "class_images", "split" as of knn;
                 "rotation_accuracy": [`fastequi.evaluate.rotnet.RotationScore`]
  of geometry    "tables": {title: `fastequi.evaluate.geometry.figures.Table`}, of each of
                 `fastequi.evaluate.geometry.kinds.KINDS`
  all            "figures": [{"kind", "what", "figure", "beside", "file"}], the headline of each
                 evaluation that ran, as it is shown; "refused": {kind: why};
                 "without_data": {kind: the option that it needs}
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastequi.atomic import replace_text
from fastequi.data.sources import kept
from fastequi.data.sources.images import Source
from fastequi.data.sources.selection import Data, Selection
from fastequi.data.sources.splits import shared
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.kinds import KINDS as GEOMETRY
from fastequi.runtime.machine import machine
from fastequi.weights.files import INDEX, SUFFIXES

logger = logging.getLogger(__name__)

SCHEMA = 1
KINDS = ("equivariance", "knn", "linear", "reconstruct", "rotnet", *GEOMETRY, "all")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What every row of a table says of itself.

    Attributes:
        encoder: the encoder's name; None where no network is used (pixels, a constant).
        features: which of its features, such as "patch"; without an encoder what is used instead,
            such as "raw pair".
        is_baseline: no training went into it.
    """

    encoder: str | None
    features: str
    is_baseline: bool

    @property
    def label(self) -> str:
        """For tables."""
        return label(self.encoder, self.features)

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return dataclasses.asdict(self)


def label(encoder: str | None, features: str) -> str:
    """ "tir, z_equi", or "raw pair" where there is no encoder."""
    return features if encoder is None else f"{encoder}, {features}"


@dataclass(frozen=True)
class Result:
    """A result file that was read.

    Attributes:
        kind: one of `KINDS`.
        encoder: the evaluated encoder's name.
        document: the whole file; see the module.
    """

    kind: str
    encoder: str
    document: dict[str, Any]

    def is_own(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is of the evaluated encoder, not of a baseline or another encoder."""
        return not row["is_baseline"] and row["encoder"] == self.encoder

    def name(self, row: Mapping[str, Any]) -> str:
        """A row's label, without the name of the evaluated encoder."""
        return label(None if self.is_own(row) else row["encoder"], row["features"])


def read(found: Mapping[str, Any]) -> Result:
    """A result from the object in a file.

    Raises:
        ValueError: it is of another schema or of no known kind; says which.
    """
    if found.get("schema") != SCHEMA:
        raise ValueError(f"schema {found.get('schema')!r}, expected {SCHEMA}")
    if found.get("kind") not in KINDS:
        raise ValueError(f"kind {found.get('kind')!r}, expected one of {', '.join(KINDS)}")
    if not isinstance(found.get("encoder"), str):
        raise ValueError(f"encoder {found.get('encoder')!r}, expected a name")
    return Result(found["kind"], found["encoder"], dict(found))


def save(
    file: Path, *, kind: str, spec: str, encoder: Encoder, document: Mapping[str, Any]
) -> None:
    """Writes a result file; see the module.

    Args:
        file: replaced at once if it is there.
        kind: one of `KINDS`.
        spec: of the encoder, as it was named.
        encoder: that was evaluated.
        document: what its kind has besides; dataclasses become objects.
    """
    head = {
        "kind": kind,
        "schema": SCHEMA,
        "machine": machine(),
        "checkpoint": spec,
        "encoder": encoder.name,
        "image_size": encoder.image_size,
    }
    _say_replaced(file, spec, document.get("data"))
    write(file, json.dumps({**head, **document}, indent=1, default=_as_json) + "\n")


def _say_replaced(file: Path, spec: str, data: Any) -> None:
    """Names encoder and images of the result that is replaced, those that are others."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        encoder, images = before.get("checkpoint"), before.get("data")
    except (OSError, ValueError, AttributeError):
        return
    others = [encoder] if encoder and not _is_same(encoder, spec) else []
    if images and images != data:
        others.append(images if isinstance(images, str) else " ".join(map(str, images)))
    if others:
        logger.info("%s: the result of %s is replaced; --out keeps both", file, " on ".join(others))


def _is_same(encoder: str, spec: str) -> bool:
    """Whether two specs name one encoder, by other paths too."""
    ours, theirs = (Path(one).expanduser() for one in (encoder, spec))
    return encoder == spec or ours.absolute() == theirs.absolute()


def write(file: Path, text: str) -> None:
    """Replaces a file of results at once; what was there stays if that fails.

    Raises:
        ValueError: it cannot be written, as on a disk that became full.
    """
    try:
        replace_text(file, text)
    except OSError as error:
        raise _not_written(file, error) from error


def _as_json(value: Any) -> Any:
    if isinstance(value, Row):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, torch.dtype):
        return str(value)
    raise TypeError(f"document: {type(value).__name__} has no form in JSON")


def place(kind: str, spec: str, out: Path | None) -> Path:
    """`out`, else :func:`name_of` in the evaluated run's folder, else in the current folder.

    Raises:
        ValueError: it cannot be written.
    """
    folder = Path(spec).expanduser()
    return writable(out or (folder if folder.is_dir() else Path()) / name_of(kind, spec))


def name_of(kind: str, spec: str) -> str:
    """eval_KIND.json of a folder; of a file of weights or a function eval_KIND_NAME.json, as there
    may be several whose results are left in one folder."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return f"eval_{kind}.json"
    name = path.name.removesuffix(INDEX)
    stem = next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)
    return f"eval_{kind}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', stem)}.json"


def _not_written(file: Path, error: OSError) -> ValueError:
    return ValueError(f"--out: {file} cannot be written ({error.strerror})")


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
        raise _not_written(file, error) from error
    return file


def writable_folder(folder: Path, option: str = "--out") -> Path:
    """A folder that files can be written into, found out before there is anything to lose; it is
    made if it is not there.

    Raises:
        ValueError: it cannot be made or written, or is a file; names the option.
    """
    probe = folder / f".{platform.node()}.{os.getpid()}.tmp"
    what = "made"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        what = "written"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{option}: {folder} cannot be {what} ({error.strerror})") from error
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
                f"{spec} was trained on (contents are not compared)"
            )
    return found


def not_held_out(specs: Sequence[str], train: Source | None, test: Source | None) -> dict[str, Any]:
    """How many of the test images an encoder has seen, or probes are fitted on; says so, if any.

    Args:
        specs: of the encoders.
        train: that probes are fitted on; None: disjoint from the test images by construction.
        test: see :func:`seen_in_training`.

    Returns:
        "test_seen_in_training" and "test_used_for_fitting", as the files hold them.
    """
    fitted = 0 if train is None or test is None else shared(train, test)
    if test is not None and fitted:
        print(
            f"fitted and tested on the same images: {fitted} of the {len(test)} test images are "
            "among those fitted on"
        )
    seen = seen_in_training(specs, test)
    return {"test_seen_in_training": seen, "test_used_for_fitting": fitted}
