"""`fastequi eval knn`, `fastequi eval linear`: classes from frozen features beside raw pixels."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fastequi.data.labelled import Files, described, labelled_sets, per_class
from fastequi.data.sources.image_sets import Data, Selection
from fastequi.evaluate.classification import (
    RAW,
    TEMPERATURE,
    Recognition,
    knn_rows,
    linear_rows,
    pooled_features,
    table,
)
from fastequi.evaluate.encoders import load_all
from fastequi.evaluate.published import published
from fastequi.evaluate.results import documented, place, save, seen_in_training
from fastequi.models.timm_names import UNSTATED, Stated


def verdicts(rows: Sequence[Recognition], name: str) -> list[str]:
    """For every kind of an encoder's features: more or less than raw pixels by the same probe.

    Neighbours are 20, or as many as there are: nothing is chosen by what comes out.
    """
    probes = list(dict.fromkeys(row.probe for row in rows))
    probe = next((p for p in probes if p == "knn, k=20"), probes[0])
    same = {row.features: row for row in rows if row.probe == probe}
    raw, told = same[RAW], []
    for features, row in same.items():
        if features.startswith(f"{name}, "):
            than = "more than" if row.low > raw.high else "about as much as"
            than = "less than" if row.high < raw.low else than
            figures = f"{row.accuracy:.3f}, {than} raw pixels: {raw.accuracy:.3f}"
            told.append(f"{features} by {probe}: {figures}")
    return told


def judge(
    kind: str,
    spec: str,
    data: Data,
    against: Sequence[str] = (),
    train_images: int = 0,
    test_images: int = 0,
    share: float = 1.0,
    seeds: int = 3,
    device: str = "auto",
    out: Path | None = None,
    stated: Stated = UNSTATED,
    test_data: Data | None = None,
) -> list[Recognition]:
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
        out: the JSON file; see `fastequi.evaluate.results`.
        stated: what a file does not tell; see `fastequi.evaluate.encoders.load_all`.
    """
    encoder, encoders = load_all(spec, against, device, stated)
    splits = labelled_sets(data, train_images, test_images, share, test_data)
    file = place(kind, spec, out)
    tested = splits[1].source if isinstance(splits[1], Files) else None
    seen = seen_in_training((spec, *against), tested)
    console, start = Console(), time.monotonic()
    print(described(*splits))
    with console.status("") as status:
        status.update("features of the training images")
        train = pooled_features(encoders, splits[0])
        status.update("features of the test images")
        test = pooled_features(encoders, splits[1])
        if kind == "knn":
            rows = knn_rows(train, test, on_row=status.update)
        else:
            rows = linear_rows(train, test, seeds, status.update)
    counts, names = (len(train[1]), len(test[1])), splits[0].classes
    each = per_class(names, train[1], test[1])
    for name in (name for name in names if not each[name][0]):
        print(f"no training image of class {name} could be decoded")
    title = f"{len(names)} classes by {kind}, {counts[0]:,} training and {counts[1]:,} test images"
    console.width = max(console.width, 140 if kind == "knn" else 80)
    console.print(table(rows, title))
    for line in verdicts(rows, encoder.name):
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
        "test_seen_in_training": seen,
        "temperature": TEMPERATURE if kind == "knn" else None,
        "scores": [dataclasses.asdict(row) for row in rows],
        "seconds": time.monotonic() - start,
    }
    save(file, spec, encoder, document)
    print(f"{time.monotonic() - start:.0f} s; {file}")
    return rows
