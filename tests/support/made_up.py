"""Folders of runs and sheets of tiles with figures that no training gave."""

import json
import math

import numpy as np

from fastequi.evaluate.results import SCHEMA
from fastequi.recipes import RECIPES
from fastequi.report.sheets import Sheet

ROWS = (  # encoder, features, is it a baseline
    *((None, features, True) for features in ("mean predictor", "raw pair", "pixel statistics")),
    ("random init", "z_equi", True),
    *(("{}", "z_equi", False), ("{}", "patch", False), ("{}_base", "patch", False)),
)
MACHINE = {"cpu": "Some <CPU> & co, 2 cores", "device": "cpu", "torch": "2.13.0"}
RECONSTRUCT = {
    "images": 512,
    "psnr": {"predicted": [29.123, 31.456], "nearer_view": [28.777, 30.888], "gain": 0.457,
             "low": 0.2, "high": 0.7},
    "ssim": {"predicted": [0.8123, 0.9], "nearer_view": [0.8, 0.91], "gain": -0.0012,
             "low": -0.01, "high": 0.007},
    "seams": {"predicted": 1.125, "target": 0.971},
    "pooled": {"predicted": 24.912, "nearer_view": 23.111, "gain": 1.801, "low": 1.2, "high": 2.4},
    "by_texture": [
        {"name": "most texture", "images": 128, "nearer_view": 19.0, "gain": 2.2, "pooled": 2.31},
        {"name": "least texture", "images": 128, "nearer_view": 44.0, "gain": -4.5, "pooled": -3.6},
    ],
    "by_angle": [
        {"name": "0..10°", "images": 90, "nearer_view": 36.0, "gain": -3.8, "pooled": -1.4}
    ],
    "spectra": [{"encoder": "run", "features": "z_equi", "is_baseline": False, "tokens": "all",
                 "channels": 192, "rank": 118, "variance": 0.298, "participation": 2.64,
                 "entropy": 4.05}],
}  # fmt: skip


def of_kind(kind, encoder, document):
    """What `fastequi.evaluate.results.save` makes of a document."""
    head = {"kind": kind, "schema": SCHEMA, "encoder": encoder, "machine": MACHINE}
    return {**head, "checkpoint": encoder, "image_size": 32, **document}


def row_of(encoder, features, is_baseline):
    return {"encoder": encoder, "features": features, "is_baseline": is_baseline}


def scores(names, run, shift=0.0):
    rows = []
    for i, (encoder, features, is_baseline) in enumerate(ROWS):
        encoder = encoder and encoder.format(run)
        for probe in ("token", "ridge"):
            r2 = [
                0.1123 * i + 0.01 * j + shift - (probe == "ridge") / 20 for j in range(len(names))
            ]
            low, high = [v - 0.031 for v in r2], [v + 0.0272 for v in r2]
            error = [22.19 - i - j for j in range(len(names))]
            row = {**row_of(encoder, features, is_baseline), "probe": probe, "r2": r2, "low": low}
            mean = {"mean": sum(r2) / len(r2), "mean_low": low[0], "mean_high": high[-1]}
            mean["pooled"] = mean["mean"] - 0.003
            rows.append({**row, "high": high, "error": error, **mean, "seeds": [0.1, 0.2]})
    figures = {"r2": [0.0712] * len(names), "low": [-0.0312] * len(names)}
    figures |= {"high": [0.1149] * len(names), "mean": 0.0712, "mean_low": 0.01, "mean_high": 0.13}
    row = {"label": f"{run}, z_equi", "probe": "token", "against": "raw pair"}
    return {
        "names": names, "train_pairs": 24000, "test_pairs": 2000, "scores": rows,
        "differences": [{**row, "against_probe": "mlp", **figures}],
    }  # fmt: skip


def equivariance(run, tasks, zero_fill=False, **others):
    document = {"budget": {"zero_fill": zero_fill}, "tasks": tasks, "seconds": 71.0, **others}
    return of_kind("equivariance", run, document)


def class_row(row, probe, share, labels_per_class=0):
    low, high = share - 0.02, share + 0.02
    accuracy = {"accuracy": share, "low": low, "high": high, "seeds": [share], "penalties": []}
    return {**row_of(*row), "probe": probe, "labels_per_class": labels_per_class, **accuracy}


def knn(run, **others):
    rows = [
        class_row(row, f"knn, k={k}", share + k / 1e3)
        for k in (5, 20)
        for row, share in (((None, "raw pixels", True), 0.862), ((run, "patch", False), 0.8714))
    ]
    document = {
        "classes": 10,
        "published": "published knn top-1 (a set): DINO 0.840",
        "train_images": 60000,
        "test_images": 10000,
        "split": {"train": "images in train", "test": "images in val"},
        "scores": rows,
        **others,
    }
    return of_kind("knn", run, document)


def make_run(folder, steps=60, config=None, machine=MACHINE):
    """A folder as training, the demo and the evaluations leave it, figures made up."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((config or RECIPES["demo"]()).to_json())
    if machine:
        (folder / "machine.json").write_text(json.dumps(machine))
    g = np.random.default_rng(steps)
    rows = []
    for step in range(10, steps + 1, 10):
        loss = 3 * math.exp(-step / 30) + 0.1 * g.random()
        row = {"step": step, "epoch": step // 20, "seconds": step / 7, "lr": 1e-3, "loss": loss}
        rows.append({**row, "recon": loss / 2, "images_per_s": 700.0, "data_wait": 0.05})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def of_geometry(kind, encoder, titles=("se2",), photographs=8):
    """Tables of two figures, of two baselines and of the encoder's features."""
    rows = [
        ((None, "raw patches", True), (0.4, 3.5)),
        (("random init", "patch", True), (0.25, 4.0)),
        ((encoder, "z_equi", False), (0.5, 3.0)),
        ((encoder, "patch", False), (0.6, 2.0)),
    ]
    figures = [
        {"name": "recall, 1 patch", "better": "higher", "digits": 3},
        {"name": "corner error, px", "better": "lower", "digits": 1},
    ]
    scores = [
        {**row_of(*row), "values": values, "low": [v - 0.1 for v in values],
         "high": [v + 0.1 for v in values]}
        for row, values in rows
    ]  # fmt: skip
    found = {"figures": figures, "images": 40, "photographs": photographs, "scores": scores}
    tables = {title: {**found, "differences": []} for title in titles}
    return of_kind(kind, encoder, {"tables": tables})


def of_layers(encoder):
    """Cosines of an embedding and two blocks, of the encoder and of its random init."""
    names = ("equivariance", "invariance", "pooled invariance")
    figures = [{"name": name, "better": "", "digits": 3} for name in names]
    scores = [
        {**row_of(who, features, who != encoder), "values": [0.1 * i, 0.9 - 0.2 * i, math.nan],
         "low": [0.0] * 3, "high": [1.0] * 3}
        for who in ("random init", encoder)
        for i, features in enumerate(("embedding", "block1", "block2"))
    ]  # fmt: skip
    found = {"figures": figures, "images": 9, "photographs": 3, "scores": scores}
    return of_kind("layers", encoder, {"tables": {"turns": found, "flips": found}})


def evaluated(folder):
    """With every result there is."""
    name = folder.name
    tasks = {"rotation": scores(["angle"], name, 0.02), "se2": scores(["angle", "tx", "ty"], name)}
    found = {
        "eval_equivariance": equivariance(name, tasks),
        "eval_knn": knn(name),
        "eval_reconstruct": of_kind("reconstruct", name, RECONSTRUCT),
        "figures": {"figure": {"of_merit": 0.91237}},
    }
    for file, document in found.items():
        (folder / f"{file}.json").write_text(json.dumps(document))
    return folder


def sheets():
    tiles = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), dtype=np.uint8)
    large = np.random.default_rng(0).integers(0, 256, (2, 2, 96, 96, 3), dtype=np.uint8)
    rows, wide = (tuple(tuple(row) for row in part) for part in (tiles, large))
    return {
        "sweep": Sheet(
            title="Rotations",
            note="Predicted.",
            columns=("−45°", "+45°"),
            rows=rows,
            captions=(("−40°", "+41°"),) * 2,
        ),
        "pca": Sheet(
            title="Colours",
            note="PCA.",
            columns=("image", "patch"),
            rows=wide,
            smooth=True,
            wrap=True,
        ),
    }
