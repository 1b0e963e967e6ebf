"""Published accuracies to compare with, for the data sets they are known of.

From Lightly (https://docs.lightly.ai/getting_started/benchmarks.html). Those of the small
sets are maxima over epochs on the test images; accuracies measured here are of the last epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Published:
    """The published accuracies of one data set.

    Attributes:
        folders: names of folders that hold it, in lower case and without "-" and "_".
        classes: how many it has; a subset of the same name has fewer.
        training: which network was trained, and for how long.
        knn, linear: top-1 by method; empty where the table has none.
    """

    folders: tuple[str, ...]
    classes: int
    training: str
    knn: dict[str, float]
    linear: dict[str, float] = field(default_factory=dict)


PUBLISHED = (
    Published(
        folders=(
            "imagenette",
            "imagenette2",
            "imagenette160",
            "imagenette2160",
            "imagenette2320",
        ),
        classes=10,
        training="Imagenette at 128 px, ResNet-18, 800 epochs, best epoch",
        knn={"SimCLR": 0.889, "DINO": 0.888, "VICReg": 0.845},
    ),
    Published(
        folders=("cifar10",),
        classes=10,
        training="CIFAR-10, ResNet-18, 200 epochs, best epoch",
        knn={"SimCLR": 0.847, "DINO": 0.840},
    ),
    Published(
        folders=("imagenet", "imagenet1k", "ilsvrc2012"),
        classes=1000,
        training="ImageNet-1k, ViT-S/16, 100 epochs",
        knn={"DINO": 0.675, "iBOT": 0.654},
        linear={"DINO": 0.733, "iBOT": 0.722},
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
