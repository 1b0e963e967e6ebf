"""Published accuracies to compare with, for the data sets they are known of.

From Lightly (https://docs.lightly.ai/getting_started/benchmarks.html). Those of the small
sets are maxima over epochs on the test images; accuracies measured here are of the last epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """What one data set's table says.

    Attributes:
        folders: how a folder that holds it may be named, in lower case and without "-" and "_".
        classes: how many it has; with the name it tells the set from its subsets.
        training: what was trained, and for how long.
        knn, linear: top-1 by method; empty where the table has none.
    """

    folders: tuple[str, ...]
    classes: int
    training: str
    knn: dict[str, float]
    linear: dict[str, float]


PUBLISHED = (
    Published(
        ("imagenette", "imagenette2", "imagenette160", "imagenette2160", "imagenette2320"),
        10,
        "Imagenette at 128 px, ResNet-18, 800 epochs, best epoch",
        {"SimCLR": 0.889, "DINO": 0.888, "VICReg": 0.845},
        {},
    ),
    Published(
        ("cifar10",),
        10,
        "CIFAR-10, ResNet-18, 200 epochs, best epoch",
        {"SimCLR": 0.847, "DINO": 0.840},
        {},
    ),
    Published(
        ("imagenet", "imagenet1k", "ilsvrc2012"),
        1000,
        "ImageNet-1k, ViT-S/16, 100 epochs",
        {"DINO": 0.675, "iBOT": 0.654},
        {"DINO": 0.733, "iBOT": 0.722},
    ),
)


def published(kind: str, data: str, classes: int) -> str:
    """One line to print beside results, or "" where nothing is known.

    Args:
        kind: "knn" or "linear".
        data: the folder's path; its last part names the set.
        classes: how many the folder has.
    """
    name = Path(data).expanduser().resolve().name.lower().replace("-", "").replace("_", "")
    for found in PUBLISHED:
        known = found.knn if kind == "knn" else found.linear
        if known and name in found.folders and classes == found.classes:
            figures = ", ".join(f"{method} {top1:.3f}" for method, top1 in known.items())
            return f"published {kind} top-1 ({found.training}): {figures}"
    return ""
