"""`fastequi eval rotnet`: a finished run's rotation accuracy and its blocks' probes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console

from fastequi.atomic import replace_text
from fastequi.build import build
from fastequi.config import Config
from fastequi.data.labelled import Labelled, mnist, per_class
from fastequi.data.sources.local import expect_local
from fastequi.evaluate.rotnet import FEW, as_json, class_scores, rotation_accuracy, table
from fastequi.methods.rotnet import RotNet
from fastequi.runtime import checkpoint
from fastequi.runtime.devices import use_device
from fastequi.runtime.machine import machine


def judge(
    run_dir: Path, data: Path, train_images: int, test_images: int, device: str = "auto"
) -> None:
    """Prints both tables and writes them to `run_dir/rotnet.json`.

    Args:
        run_dir: of a run with method=rotnet.
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
    if config.method != "rotnet":
        raise ValueError(f"RUN: expected a run with method=rotnet, {run_dir} has {config.method}")
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
