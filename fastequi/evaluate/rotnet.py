"""`fastequi eval rotnet`: how well a RotNet predicts rotations, and class probes on its blocks.

Every block's features, max-pooled to about 9,000 numbers as in the paper, go to a linear and a
non-linear classifier of the images' classes; block 2's also to a convolutional one and with few
labels. Baselines are chance, raw pixels, and the same network at random initialisation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastequi.data.labelled import (
    Files,
    Labelled,
    LabelledSet,
    described,
    labelled_sets,
    per_class,
)
from fastequi.data.sources.selection import Data
from fastequi.evaluate.checked import expect_finite
from fastequi.evaluate.class_probes import (
    accuracy,
    conv_classes,
    few_labels,
    linear_classes,
    nonlinear_classes,
)
from fastequi.evaluate.classification import RAW, ClassScore, class_score
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import expect_the_same_images, load_all
from fastequi.evaluate.photo_windows import values_of
from fastequi.evaluate.results import Row, documented, not_held_out, place, save
from fastequi.methods.rotnet import ANGLES, RotNet
from fastequi.runtime.devices import expect_memory

FEW = (10, 50)  # labels a class that the few-label probes get
_CONV_STEPS = 300  # of the convolutional probe, which costs more than all others together
_FEATURES = 9216  # numbers that a block's features are pooled to, at most
_RAW_SIZE = 32  # px: larger images are averaged to it for the probe of raw pixels


@dataclass(frozen=True, kw_only=True)
class RotationScore(Row):
    """One row: the share of rotations that a network's own classifier predicts correctly.

    Attributes:
        accuracy: over all four rotations.
        by_rotation: of each, by its angle in degrees: "0", "90", "180", "270".
    """

    accuracy: float
    by_rotation: dict[str, float]


CHANCE = RotationScore(
    encoder=None,
    features="chance",
    is_baseline=True,
    accuracy=1 / len(ANGLES),
    by_rotation={str(angle): 1 / len(ANGLES) for angle in ANGLES},
)


@torch.no_grad()
def rotation_score(name: str, method: RotNet, images: Tensor, batch: int = 250) -> RotationScore:
    """The accuracy of the rotations predicted for images [N, C, H, W], uint8 or uint16, each
    in all four."""
    device = next(method.parameters()).device
    correct = []
    for part in images.split(batch):
        logits = method.classify(method.rotated(part.to(device)))
        expect_finite(name, {"logits": logits})
        pred = logits.argmax(1)
        correct.append((pred == method.labels(len(part), device)).view(-1, 4).float())
    shares = torch.cat(correct).mean(0).tolist()
    return RotationScore(
        encoder=name,
        features="classifier",
        is_baseline=False,
        accuracy=sum(shares) / 4,
        by_rotation={str(a): s for a, s in zip(ANGLES, shares, strict=True)},
    )


def block_features(method: RotNet, images: Tensor, batch: int = 500) -> dict[str, Tensor]:
    """Every block's features of upright images, max-pooled and flattened: name to [N, D]."""
    found: dict[str, list[Tensor]] = {}
    for maps in _block_maps(method, images, batch):
        for name, each in maps.items():
            found.setdefault(name, []).append(_pooled(each))
    return {name: torch.cat(parts) for name, parts in found.items()}


@torch.no_grad()
def _block_maps(method: RotNet, images: Tensor, batch: int = 500) -> Iterator[dict[str, Tensor]]:
    """Of every batch of upright images, every block's features as maps [B, C, h, w]."""
    device = next(method.parameters()).device
    upright = torch.zeros(batch, dtype=torch.int32, device=device)
    for part in images.split(batch):
        features = method.features(method.rotated(part.to(device), upright[: len(part)]))
        expect_finite("rotnet", features)
        sides = {name: round(tokens.shape[1] ** 0.5) for name, tokens in features.items()}
        yield {
            name: tokens.float().transpose(1, 2).unflatten(2, (sides[name], sides[name]))
            for name, tokens in features.items()
        }


def _pooled(maps: Tensor) -> Tensor:
    """[B, C, h, w] to [B, D], D near 9,000."""
    side = maps.shape[-1]
    fits = max(int((_FEATURES / maps.shape[1]) ** 0.5), 1)
    return (F.adaptive_max_pool2d(maps, fits) if fits < side else maps).flatten(1)


def class_scores(
    encoders: Mapping[str, Encoder],
    train: Labelled,
    test: Labelled,
    *,
    few: tuple[int, ...] = FEW,
    few_block: str = "block2",
) -> list[ClassScore]:
    """Linear and non-linear probes of every block; of one a convolutional one and few-label ones.

    Raw pixels come first.

    Args:
        encoders: of RotNet runs, by the names that rows have.
        train, test: images, at the encoders' size.
        few: labels a class that the few-label probes get.
        few_block: the block that they and the convolutional probe use.
    """
    rows: list[ClassScore] = []

    def add(row: Row, probe: str, pred: Tensor, labels_per_class: int = 0) -> None:
        share, n = accuracy(pred.cpu(), test.labels), len(test.labels)
        rows.append(class_score(row, probe, share, n, labels_per_class=labels_per_class))

    labels = train.labels.long()
    pixels = [_raw_pixels(part.images) for part in (train, test)]
    add(RAW, "linear", linear_classes(pixels[0], labels, pixels[1]))
    del pixels
    for name, encoder in encoders.items():
        method = _rotnet(encoder)
        x, x_test = (block_features(method, part.images) for part in (train, test))
        target = labels.to(next(iter(x.values())).device)
        for block in x:
            row = Row(encoder=name, features=block, is_baseline=encoder.is_baseline)
            add(row, "linear", linear_classes(x[block], target, x_test[block]))
            add(row, "non-linear", nonlinear_classes(x[block], target, x_test[block]))
        if few_block not in x:
            continue
        row = Row(encoder=name, features=few_block, is_baseline=encoder.is_baseline)
        maps = [
            torch.cat([found[few_block] for found in _block_maps(method, part.images)])
            for part in (train, test)
        ]
        add(row, "convolutional", conv_classes(maps[0], target, maps[1], _CONV_STEPS))
        for n in few:
            pick = few_labels(labels, n)
            fitted = x[few_block][pick], target[pick], x_test[few_block]
            add(row, "non-linear", nonlinear_classes(*fitted, steps=500), labels_per_class=n)
    return rows


def _raw_pixels(images: Tensor) -> Tensor:
    """Images [N, C, H, W], averaged to at most 32x32, as [N, D] in 0..1."""
    size, top = min(images.shape[-1], _RAW_SIZE), torch.iinfo(images.dtype).max
    if images.shape[-1] == size:
        return images.float().flatten(1) / top
    parts = [F.adaptive_avg_pool2d(part.float() / top, size) for part in images.split(500)]
    return torch.cat(parts).flatten(1)


def _rotnet(encoder: Encoder) -> RotNet:
    """An encoder's method.

    Raises:
        ValueError: it is no RotNet run.
    """
    if not isinstance(encoder.method, RotNet):
        raise ValueError(f"CHECKPOINT: expected a run with method=rotnet, {encoder.name} is none")
    return encoder.method


def table(rows: Sequence[ClassScore]) -> Table:
    """Of classes, for the terminal."""
    shown = Table(title="classes from frozen features", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("features", "probe", "labels", "accuracy", "95 %"):
        shown.add_column(name, no_wrap=True)
    for row in rows:
        few = f"{row.labels_per_class} a class" if row.labels_per_class else "all"
        cells = row.label, row.probe, few, f"{row.accuracy:.3f}", f"{row.low:.3f}..{row.high:.3f}"
        shown.add_row(*cells)
    return shown


def rotation_table(rows: Sequence[RotationScore], images: int) -> Table:
    """Of predicted rotations, for the terminal."""
    title = f"rotations predicted correctly, {images:,} test images"
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("encoder", "accuracy", *(f"{angle}°" for angle in ANGLES)):
        shown.add_column(name, no_wrap=True)
    for row in rows:
        shares = (row.accuracy, *row.by_rotation.values())
        shown.add_row(row.encoder or row.features, *(f"{share:.3f}" for share in shares))
    return shown


def evaluate_rotnet(
    spec: str,
    *,
    data: Data,
    test_data: Data | None = None,
    against: Sequence[str] = (),
    train_images: int = 5000,
    test_images: int = 2000,
    share: float = 1.0,
    device: str = "auto",
    out: Path | None = None,
) -> list[ClassScore]:
    """Prints both tables and writes them.

    Args:
        spec: a RotNet run, or one of its checkpoints.
        data, test_data: see `fastequi.data.labelled.labelled_sets`.
        against: further RotNet runs, of the same channels, values and image size.
        train_images, test_images: how many of each; 0: all.
        share: of an image's shorter side that its centred square takes.
        device: "auto", "cpu", "cuda" or "cuda:1".
        out: the JSON file; by default see `fastequi.evaluate.results.place`.

    Raises:
        ValueError: an encoder is no RotNet run, or of other images than the first, or a class of
            the test images has no training image.
    """
    encoder, encoders = load_all(spec, against, device)
    expect_the_same_images(encoder, encoders)
    size, values = encoder.image_size, values_of(encoder)
    for name, other in encoders.items():
        _rotnet(other)
        if other.image_size != size:
            raise ValueError(
                f"--against: expected images of {size} px, as {spec} takes, {name} takes "
                f"{other.image_size}"
            )
    splits = labelled_sets(data, train_images, test_images, share, test_data, values)
    file = place("rotnet", spec, out)
    sources = [part.source if isinstance(part, Files) else None for part in splits]
    used = not_held_out((spec, *against), *sources)
    console, start = Console(), time.monotonic()
    print(described(*splits))
    counts, cpu = [len(part) for part in splits], torch.device("cpu")
    # the images as they are decoded, the features of one encoder's blocks as float32
    each = encoder.in_chans * size**2 * (1 if values.is_rgb else 2) + 4 * _FEATURES * len(
        encoder.names
    )
    expect_memory("--test-images", counts[1], each, cpu, reserved=each)
    expect_memory("--train-images", counts[0], each, cpu, reserved=counts[1] * each)
    train, test = (_gathered(part, size, encoder.device) for part in splits)
    few, names = _few(train, test), splits[0].classes
    rotations = [
        rotation_score(name, _rotnet(other), test.images)
        for name, other in encoders.items()
        if not other.is_baseline
    ]
    console.print(rotation_table([CHANCE, *rotations], len(test.images)))
    rows = class_scores(encoders, train, test, few=few)
    console.print(table(rows))
    document = {
        **documented(data),
        "classes": len(names),
        "class_images": per_class(names, train.labels, test.labels),
        "split": {"train": splits[0].what, "test": splits[1].what},
        "train_images": len(train.images),
        "test_images": len(test.images),
        **used,
        "rotation_accuracy": [CHANCE, *rotations],
        "scores": rows,
        "seconds": time.monotonic() - start,
    }
    save(file, kind="rotnet", spec=spec, encoder=encoder, document=document)
    print(f"{time.monotonic() - start:.0f} s; {file}")
    return rows


def _gathered(data: LabelledSet, size: int, device: torch.device) -> Labelled:
    """All images of a split in memory, at size x size."""
    parts = [(images.cpu(), labels.cpu()) for images, _, labels in data.batches(size, device)]
    images, labels = zip(*parts, strict=True)
    return Labelled(torch.cat(images), torch.cat(labels))


def _few(train: Labelled, test: Labelled) -> tuple[int, ...]:
    """How many labels a class the few-label probes get; prints those that there are too few for.

    Raises:
        ValueError: a class of the test images has no training image.
    """
    counts = torch.bincount(train.labels.long())
    least = int(counts[counts > 0].min())
    lacking = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if lacking:
        raise ValueError(f"--train-images: {len(train.labels)} hold none of classes {lacking}")
    for n in FEW:
        if n > least:
            print(f"no probe of {n} labels a class: one has {least} of the training images")
    return tuple(n for n in FEW if n <= least)
