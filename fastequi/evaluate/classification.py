"""`fastequi eval knn`, `fastequi eval linear`: classes predicted from frozen features.

Every kind of features is averaged over its tokens. Raw pixels (at most 32x32) and the same encoder
at random initialisation are baselines in the same table.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastequi.data.labelled import RAW_SIZE, Files, LabelledSet, described, labelled_sets, per_class
from fastequi.data.sources.selection import Data, Selection
from fastequi.evaluate.checked import noise
from fastequi.evaluate.class_probes import accuracy, interval, knn_classes, linear_probe
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import expect_the_same_images, load_all
from fastequi.evaluate.photo_windows import values_of
from fastequi.evaluate.published import published
from fastequi.evaluate.results import Row, documented, not_held_out, place, save
from fastequi.evaluate.tasks import shown
from fastequi.functional.normalise import normalise as normalised
from fastequi.runtime.devices import expect_memory
from fastequi.runtime.progress import Status
from fastequi.weights.architecture import UNSTATED, Stated

logger = logging.getLogger(__name__)

KS = (5, 10, 20, 200)
TEMPERATURE = 0.07
RAW = Row(encoder=None, features="raw pixels", is_baseline=True)


@dataclass(frozen=True, kw_only=True)
class ClassScore(Row):
    """One row: the accuracy of one probe on one kind of features.

    Attributes:
        probe: "knn, k=20", "linear", "non-linear" or "convolutional".
        labels_per_class: that the probe was fitted with; 0: all.
        accuracy: on the test set, the mean over seeds.
        low, high: its 95 % interval (Wilson's).
        seeds: the accuracy of every seed; neighbours have none to draw.
        penalties: chosen for every seed of the linear probe.
    """

    probe: str
    labels_per_class: int = 0
    accuracy: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()
    penalties: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Pooled:
    """One kind of features of a split: what its rows say, and [N, D]."""

    row: Row
    features: Tensor


@torch.no_grad()
def pooled_features(
    encoders: Mapping[str, Encoder], data: LabelledSet
) -> tuple[list[Pooled], Tensor]:
    """Features in the table's order, raw pixels first, and labels [N]; one pass a size."""
    found: dict[Row, list[Tensor]] = {RAW: []}
    labels: list[Tensor] = []
    by_size: dict[int, dict[str, Encoder]] = {}
    for label, encoder in encoders.items():
        by_size.setdefault(encoder.image_size, {})[label] = encoder
    for first, (size, group) in enumerate(by_size.items()):
        device = next(iter(group.values())).device
        for images, pixels, target in data.batches(size, device):
            if not first:
                found[RAW].append(pixels)
                labels.append(target)
            for label, encoder in group.items():
                tokens = encoder.features(normalise(images, encoder))
                for name in shown(encoder):
                    row = Row(encoder=label, features=name, is_baseline=encoder.is_baseline)
                    found.setdefault(row, []).append(tokens[name].float().mean(1))
    return [Pooled(row, torch.cat(parts)) for row, parts in found.items()], torch.cat(labels)


def _check_memory(encoders: Mapping[str, Encoder], train: int, test: int) -> None:
    """Raises ValueError if the features of that many images do not fit into the free memory."""
    channels = next(iter(encoders.values())).in_chans
    widths = [channels * RAW_SIZE**2]  # of raw pixels, at most
    for encoder in encoders.values():
        tokens = encoder.features(noise(encoder.image_size, encoder.device, encoder.in_chans))
        widths += [tokens[name].shape[-1] for name in shown(encoder)]
    each = 4 * (sum(widths) + max(widths))  # one kind twice: joined, or standardised
    device = next(iter(encoders.values())).device
    expect_memory("--test-images", test, each, device, reserved=each)
    expect_memory("--train-images", train, each, device, reserved=test * each)


def normalise(images: Tensor, encoder: Encoder) -> Tensor:
    """uint8 or uint16 images [B, C, H, W] as an encoder takes them."""
    return normalised(images, encoder.mean, encoder.std)


Split = tuple[list[Pooled], Tensor]  # of pooled_features


def knn_rows(
    train: Split,
    test: Split,
    ks: Sequence[int] = KS,
    on_row: Callable[[str], None] = lambda _: None,
) -> list[ClassScore]:
    """Nearest neighbours of every kind of features, for those k that the training set has."""
    (x, y), (x_test, y_test) = train, test
    usable = [k for k in ks if k <= len(y)] or [len(y)]
    if lacking := [str(k) for k in ks if k > len(y)]:
        logger.info("knn: k = %s left out, of %d training images", ", ".join(lacking), len(y))
    rows = []
    for fitted, tested in zip(x, x_test, strict=True):
        on_row(f"knn of {fitted.row.label}")
        found = knn_classes(fitted.features, y, tested.features, usable, temperature=TEMPERATURE)
        for k, pred in found.items():
            share = accuracy(pred, y_test)
            rows.append(class_score(fitted.row, f"knn, k={k}", share, len(y_test), seeds=(share,)))
    return rows


def linear_rows(
    train: Split, test: Split, seeds: int = 3, on_row: Callable[[str], None] = lambda _: None
) -> list[ClassScore]:
    """The linear probe of every kind of features; a seed draws the fifth that chooses."""
    (x, y), (x_test, y_test) = train, test
    rows = []
    for fitted, tested in zip(x, x_test, strict=True):
        on_row(f"linear probe of {fitted.row.label}")
        pairs = linear_probe(fitted.features, y, tested.features, seeds=range(seeds))
        shares = tuple(accuracy(pred, y_test) for pred, _ in pairs)
        mean, chosen = sum(shares) / seeds, tuple(penalty for _, penalty in pairs)
        n = len(y_test)
        rows.append(class_score(fitted.row, "linear", mean, n, seeds=shares, penalties=chosen))
    return rows


def class_score(
    row: Row,
    probe: str,
    share: float,
    n: int,
    *,
    labels_per_class: int = 0,
    seeds: tuple[float, ...] = (),
    penalties: tuple[float, ...] = (),
) -> ClassScore:
    """A row with the interval of an accuracy on n test images."""
    low, high = interval(share, n)
    return ClassScore(
        encoder=row.encoder,
        features=row.features,
        is_baseline=row.is_baseline,
        probe=probe,
        labels_per_class=labels_per_class,
        accuracy=share,
        low=low,
        high=high,
        seeds=seeds,
        penalties=penalties,
    )


def table(rows: Sequence[ClassScore], title: str) -> Table:
    """For the terminal: a row for each kind of features, its interval behind every figure."""
    probes = list(dict.fromkeys(row.probe for row in rows))
    drawn = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("features", no_wrap=True)
    for probe in probes:
        drawn.add_column(probe, no_wrap=True)
    for label in dict.fromkeys(row.label for row in rows):
        found = {row.probe: row for row in rows if row.label == label}
        cells = [f"{r.accuracy:.3f} ({r.low:.3f}..{r.high:.3f})" for r in found.values()]
        drawn.add_row(label, *cells)
    return drawn


def comparisons(rows: Sequence[ClassScore], encoder: str, test_images: int) -> list[str]:
    """For every kind of an encoder's features: more or less than raw pixels by the same probe.

    If the intervals overlap, that the difference is within chance with so many test images.
    Neighbours are 20, or as many as there are: nothing is chosen by its result.
    """
    probes = list(dict.fromkeys(row.probe for row in rows))
    probe = next((p for p in probes if p == "knn, k=20"), probes[0])
    same = [row for row in rows if row.probe == probe]
    raw, lines = next(row for row in same if row.encoder is None), []
    for row in same:
        if row.encoder == encoder:
            figures = f"{row.accuracy:.3f}, raw pixels {raw.accuracy:.3f}"
            if row.low > raw.high:
                figures = f"{row.accuracy:.3f}, more than raw pixels: {raw.accuracy:.3f}"
            elif row.high < raw.low:
                figures = f"{row.accuracy:.3f}, less than raw pixels: {raw.accuracy:.3f}"
            else:
                figures += f"; with {test_images:,} test images the difference is within chance"
            lines.append(f"{row.label} by {probe}: {figures}")
    return lines


def evaluate_classes(
    kind: str,
    spec: str,
    *,
    data: Data,
    test_data: Data | None = None,
    against: Sequence[str] = (),
    train_images: int = 0,
    test_images: int = 0,
    share: float = 1.0,
    seeds: int = 3,
    device: str = "auto",
    out: Path | None = None,
    stated: Stated = UNSTATED,
) -> list[ClassScore]:
    """Prints the table and writes it.

    Args:
        kind: "knn" or "linear".
        spec: of the encoder; see `fastequi.evaluate.encoders`.
        data, test_data: see `fastequi.data.labelled.labelled_sets`.
        against: further encoders.
        train_images, test_images: how many of each; 0: all.
        share: of an image's shorter side that its centred square takes.
        seeds: of the linear probe.
        device: "auto", "cpu", "cuda" or "cuda:1".
        out: the JSON file; by default see `fastequi.evaluate.results.place`.
        stated: what a file does not say; see `fastequi.evaluate.encoders.load_all`.
    """
    encoder, encoders = load_all(spec, against, device, stated)
    expect_the_same_images(encoder, encoders)
    values = values_of(encoder)
    splits = labelled_sets(data, train_images, test_images, share, test_data, values)
    file = place(kind, spec, out)
    sources = [part.source if isinstance(part, Files) else None for part in splits]
    used = not_held_out((spec, *against), *sources)
    console, start = Console(), time.monotonic()
    print(described(*splits))
    _check_memory(encoders, len(splits[0]), len(splits[1]))
    with Status(console) as status:
        status.update("features of the training images")
        train = pooled_features(encoders, splits[0])
        status.update("features of the test images")
        test = pooled_features(encoders, splits[1])
        if kind == "knn":
            rows = knn_rows(train, test, on_row=status.update)
        else:
            rows = linear_rows(train, test, seeds, on_row=status.update)
    counts, names = (len(train[1]), len(test[1])), splits[0].classes
    each = per_class(names, train[1], test[1])
    for name in (name for name in names if not each[name][0]):
        print(f"no training image of class {name} could be decoded")
    title = f"{len(names)} classes by {kind}, {counts[0]:,} training and {counts[1]:,} test images"
    console.width = max(console.width, 140 if kind == "knn" else 80)
    console.print(table(rows, title))
    for line in comparisons(rows, encoder.name, counts[1]):
        print(line)
    selection = Selection.of(data)
    alone = len(selection.places) == 1 and not selection.patterns and test_data is None
    anchors = published(kind, selection.places[0], len(names)) if alone else ""
    if anchors:
        print(anchors)
    document = {
        **documented(data),
        "classes": len(names),
        "class_images": each,
        "split": {"train": splits[0].what, "test": splits[1].what},
        "published": anchors,
        "train_images": counts[0],
        "test_images": counts[1],
        **used,
        "temperature": TEMPERATURE if kind == "knn" else None,
        "scores": rows,
        "seconds": time.monotonic() - start,
    }
    save(file, kind=kind, spec=spec, encoder=encoder, document=document)
    print(f"{time.monotonic() - start:.0f} s; {file}")
    return rows
