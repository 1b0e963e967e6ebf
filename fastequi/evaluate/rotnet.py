"""RotNet's own evaluation: how well it tells the turns, and what each of its blocks knows.

Every block's features, max-pooled to about 9,000 numbers as in the paper, go to a linear and a
non-linear classifier of the images' classes; block 2's also with few labels. Beside them stand the
same network at random initialisation, and the pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastequi.atomic import replace_text
from fastequi.build import build
from fastequi.config import Config
from fastequi.data.labelled import Labelled, mnist, per_class
from fastequi.data.sources.local import expect_local
from fastequi.evaluate.class_probes import (
    accuracy,
    conv_classes,
    few_labels,
    interval,
    linear_classes,
    nonlinear_classes,
)
from fastequi.evaluate.encoders import expect_finite
from fastequi.methods.rotnet import ANGLES, RotNet
from fastequi.runtime import checkpoint
from fastequi.runtime.devices import use_device
from fastequi.runtime.machine import machine

FEW = (10, 50)  # labels a class that the few-label probes get
_CONV_STEPS = 300  # of the convolutional probe, which costs more than all others together
_FEATURES = 9216  # numbers that a block's features are pooled to, at most


@dataclass(frozen=True)
class ClassScore:
    """What one probe reads from one block of one network.

    Attributes:
        per_class: labels of each class that it was fitted with; 0: all.
        accuracy, low, high: on the test set, with its 95 % interval.
    """

    network: str
    block: str
    probe: str
    per_class: int
    accuracy: float
    low: float
    high: float


@torch.no_grad()
def rotation_accuracy(method: RotNet, images: Tensor, batch: int = 250) -> dict[str, float]:
    """Share of turns told right: "all", and "0", "90", "180", "270" apart."""
    device = next(method.parameters()).device
    right = []
    for part in images.split(batch):
        logits = method.classify(method.turned(part.to(device)))
        expect_finite("rotnet", {"logits": logits})
        right.append((logits.argmax(1) == method.labels(len(part), device)).view(-1, 4).float())
    shares = torch.cat(right).mean(0).tolist()
    return {"all": sum(shares) / 4, **{str(a): s for a, s in zip(ANGLES, shares, strict=True)}}


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
        features = method.features(method.turned(part.to(device), upright[: len(part)]))
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
    networks: dict[str, RotNet],
    train: Labelled,
    test: Labelled,
    few: tuple[int, ...] = FEW,
    few_block: str = "block2",
) -> list[ClassScore]:
    """Linear and non-linear probes of every block; of one a convolutional one and few-label ones.

    Pixels come first.
    """

    def score(network: str, block: str, probe: str, per_class: int, pred: Tensor) -> ClassScore:
        share = accuracy(pred.cpu(), test.labels)
        return ClassScore(
            network, block, probe, per_class, share, *interval(share, len(test.labels))
        )

    labels = train.labels.long()
    rows = []
    pixels = [x.images.float().flatten(1) / 255 for x in (train, test)]
    rows.append(score("pixels", "", "linear", 0, linear_classes(pixels[0], labels, pixels[1])))
    for network, method in networks.items():
        method.eval()
        x, x_test = (block_features(method, part.images) for part in (train, test))
        target = labels.to(next(iter(x.values())).device)
        for block in x:
            pred = linear_classes(x[block], target, x_test[block])
            rows.append(score(network, block, "linear", 0, pred))
            pred = nonlinear_classes(x[block], target, x_test[block])
            rows.append(score(network, block, "non-linear", 0, pred))
        if few_block in x:
            maps = [
                torch.cat([found[few_block] for found in _block_maps(method, part.images)])
                for part in (train, test)
            ]
            pred = conv_classes(maps[0], target, maps[1], _CONV_STEPS)
            rows.append(score(network, few_block, "convolutional", 0, pred))
        for few_of_each in few if few_block in x else ():
            pick = few_labels(labels, few_of_each)
            pred = nonlinear_classes(x[few_block][pick], target[pick], x_test[few_block], 500)
            rows.append(score(network, few_block, "non-linear", few_of_each, pred))
    return rows


def table(rows: list[ClassScore]) -> Table:
    """For the terminal."""
    shown = Table(title="classes from frozen features", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("network", "block", "probe", "labels", "accuracy", "95 %"):
        shown.add_column(name, no_wrap=True)
    for row in rows:
        few = f"{row.per_class} a class" if row.per_class else "all"
        spread = f"{row.low:.3f}..{row.high:.3f}"
        shown.add_row(row.network, row.block, row.probe, few, f"{row.accuracy:.3f}", spread)
    return shown


def as_json(rows: list[ClassScore]) -> list[dict[str, Any]]:
    return [vars(row) for row in rows]


def judge(
    run_dir: Path, data: Path, train_images: int, test_images: int, device: str = "auto"
) -> None:
    """Prints both tables and writes them to `run_dir/rotnet.json`.

    Args:
        run_dir: of a run with system=rotnet.
        data: folder of an MNIST-like set, whose test images no run has seen.
        train_images, test_images: how many of each the probes use; 0: all.
        device: "auto", "cpu", "cuda" or "cuda:1".
    """
    where = use_device(device)
    expect_local("--data", data)
    file = run_dir / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"RUN: {run_dir} holds no config.json, expected a run's folder")
    config = Config.from_json(file.read_text())
    if config.system != "rotnet":
        raise ValueError(f"RUN: expected a run with system=rotnet, {run_dir} has {config.system}")
    newest = checkpoint.latest(run_dir / "checkpoints")
    if newest is None:
        raise FileNotFoundError(f"RUN: {run_dir} has no checkpoint yet")
    networks = {}
    for name in ("random init", "RotNet"):
        torch.manual_seed(config.train.seed)
        method = build(config).to(where).eval()
        assert isinstance(method, RotNet)
        networks[name] = method
    checkpoint.load(newest, networks["RotNet"])
    train = mnist(data, "train", train_images, config.data.image_size)
    test = mnist(data, "test", test_images, config.data.image_size)
    console, few = Console(), _few(train, test)
    names = [str(i) for i in range(int(train.labels.max()) + 1)]
    counted = per_class(names, train.labels, test.labels)
    console.print(
        f"{len(names)} classes, {len(train.images):,} training and {len(test.images):,} test images"
    )
    turns = rotation_accuracy(networks["RotNet"], test.images)
    each = ", ".join(f"{angle}° {share:.3f}" for angle, share in turns.items() if angle != "all")
    console.print(
        f"turns told right on {len(test.images):,} test images: {turns['all']:.3f} "
        f"(chance .25; {each})"
    )
    rows = class_scores(networks, train, test, few)
    console.print(table(rows))
    document = {
        "machine": machine(),
        "checkpoint": newest.name,
        "train_images": len(train.images),
        "test_images": len(test.images),
        "class_images": counted,
        "rotation_accuracy": turns,
        "classes": as_json(rows),
    }
    replace_text(run_dir / "rotnet.json", json.dumps(document, indent=1) + "\n")


def _few(train: Labelled, test: Labelled) -> tuple[int, ...]:
    """How many labels a class the few-label probes get; those that there are not are named.

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
