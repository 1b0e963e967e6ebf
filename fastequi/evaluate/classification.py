"""What frozen features know of classes: nearest neighbours and a linear probe beside raw pixels.

Every kind of features is averaged over its tokens. Raw pixels (at most 32x32) and the same encoder
at random initialisation stand in the same table: features that do not beat pixels say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from fastequi.data.labelled import LabelledSet
from fastequi.evaluate.class_probes import accuracy, interval, knn_classes, linear_probe
from fastequi.evaluate.encoders import Encoder
from fastequi.evaluate.tasks import shown
from fastequi.functional.normalise import normalise as normalised

KS = (5, 10, 20, 200)
TEMPERATURE = 0.07
RAW = "raw pixels"


@dataclass(frozen=True)
class Recognition:
    """One figure of the table.

    Attributes:
        features: "raw pixels", or an encoder's label and which of its features.
        probe: "knn, k=20" or "linear".
        accuracy: on the test set, the mean over seeds.
        low, high: its 95 % interval (Wilson's).
        seeds: the accuracy of every seed; neighbours have none to draw.
        penalties: chosen for every seed of the linear probe.
    """

    features: str
    probe: str
    accuracy: float
    low: float
    high: float
    seeds: tuple[float, ...]
    penalties: tuple[float, ...] = ()


@torch.no_grad()
def pooled_features(
    encoders: Mapping[str, Encoder], data: LabelledSet
) -> tuple[dict[str, Tensor], Tensor]:
    """Features [N, D] by the table's names, raw pixels first, and labels [N]; one pass a size."""
    found: dict[str, list[Tensor]] = {RAW: []}
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
                    pooled = tokens[name].float().mean(1)
                    found.setdefault(f"{label}, {name}", []).append(pooled)
    return {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(labels)


def normalise(images: Tensor, encoder: Encoder) -> Tensor:
    """uint8 images [B, 3, H, W] as an encoder takes them."""
    return normalised(images, encoder.mean, encoder.std)


Split = tuple[dict[str, Tensor], Tensor]  # of pooled_features


def knn_rows(
    train: Split,
    test: Split,
    ks: Sequence[int] = KS,
    on_row: Callable[[str], None] = lambda _: None,
) -> list[Recognition]:
    """Nearest neighbours of every kind of features, for those k that the training set has."""
    (x, y), (x_test, y_test) = train, test
    rows = []
    for name in x:
        on_row(f"knn of {name}")
        usable = [k for k in ks if k <= len(y)] or [len(y)]
        for k, pred in knn_classes(x[name], y, x_test[name], usable, TEMPERATURE).items():
            share = accuracy(pred, y_test)
            limits = interval(share, len(y_test))
            rows.append(Recognition(name, f"knn, k={k}", share, *limits, (share,)))
    return rows


def linear_rows(
    train: Split, test: Split, seeds: int = 3, on_row: Callable[[str], None] = lambda _: None
) -> list[Recognition]:
    """The linear probe of every kind of features; a seed draws the fifth that chooses."""
    (x, y), (x_test, y_test) = train, test
    rows = []
    for name in x:
        on_row(f"linear probe of {name}")
        pairs = linear_probe(x[name], y, x_test[name], seeds=range(seeds))
        shares = tuple(accuracy(pred, y_test) for pred, _ in pairs)
        mean = sum(shares) / seeds
        chosen = tuple(penalty for _, penalty in pairs)
        rows.append(Recognition(name, "linear", mean, *interval(mean, len(y_test)), shares, chosen))
    return rows


def table(rows: Sequence[Recognition], title: str) -> Table:
    """For the terminal: a row for each kind of features, its interval behind every figure."""
    probes = list(dict.fromkeys(row.probe for row in rows))
    drawn = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("features", no_wrap=True)
    for probe in probes:
        drawn.add_column(probe, no_wrap=True)
    for name in dict.fromkeys(row.features for row in rows):
        found = {row.probe: row for row in rows if row.features == name}
        cells = [f"{r.accuracy:.3f} ({r.low:.3f}..{r.high:.3f})" for r in found.values()]
        drawn.add_row(name, *cells)
    return drawn
