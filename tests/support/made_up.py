"""Folders of runs and sheets of tiles with figures that no training gave."""

import json
import math

import numpy as np

from fastequi.recipes import RECIPES
from fastequi.report.sheets import Sheet

FEATURES = (
    *("mean predictor", "raw pair", "pixel statistics", "random init, z_equi"),
    *("{}, z_equi", "{}, patch", "{}_base, patch"),
)
MACHINE = {"cpu": "Some <CPU> & co, 2 cores", "device": "cpu", "torch": "2.13.0"}
RECONSTRUCT = {
    "images": 512,
    "psnr": {"predicted": [29.123, 31.456], "nearer_view": [28.777, 30.888], "gain": 0.457,
             "low": 0.2, "high": 0.7},
    "ssim": {"predicted": [0.8123, 0.9], "nearer_view": [0.8, 0.91], "gain": -0.0012,
             "low": -0.01, "high": 0.007},
    "spectra": {"z_equi, tokens": {"channels": 192, "rank": 118, "variance": 0.298,
                                   "participation": 2.64, "entropy": 4.05}},
}  # fmt: skip


def scores(names, run, shift=0.0):
    rows = []
    for i, features in enumerate(FEATURES):
        for probe in ("token", "ridge"):
            r2 = [
                0.1123 * i + 0.01 * j + shift - (probe == "ridge") / 20 for j in range(len(names))
            ]
            low, high = [v - 0.031 for v in r2], [v + 0.0272 for v in r2]
            error = [22.19 - i - j for j in range(len(names))]
            row = {"features": features.format(run), "probe": probe, "r2": r2, "low": low}
            mean = {"mean_low": low[0], "mean_high": high[-1], "pooled": sum(r2) / len(r2) - 0.003}
            rows.append({**row, "high": high, "error": error, **mean, "seeds": [0.1, 0.2]})
    return {"names": names, "train_pairs": 24000, "test_pairs": 2000, "scores": rows}


def knn(run):
    rows = [
        {"features": f, "probe": f"knn, k={k}", "accuracy": a + k / 1e3, "low": a - 0.02,
         "high": a + 0.02, "seeds": [a]}
        for k in (5, 20) for f, a in (("raw pixels", 0.862), (f"{run}, patch", 0.8714))
    ]  # fmt: skip
    return {
        "encoder": run,
        "classes": 10,
        "published": "published knn top-1 (a set): DINO 0.840",
        "train_images": 60000,
        "test_images": 10000,
        "scores": rows,
    }


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


def judged(folder):
    """With every result there is."""
    name = folder.name
    demo = {"psnr": {"predicted": 31.0211, "nearer_view": 30.6982}, "machine": MACHINE}
    se2 = ["angle", "tx", "ty"]
    (folder / "equivariance.json").write_text(json.dumps(demo | scores(se2, "TIR")))
    tasks = {"rotation": scores(["angle"], name, 0.02), "se2": scores(se2, name)}
    document = {"encoder": name, "machine": MACHINE, "tasks": tasks, "seconds": 71.0}
    (folder / "eval_equivariance.json").write_text(json.dumps(document))
    (folder / "eval_knn.json").write_text(json.dumps(knn(name)))
    (folder / "eval_reconstruct.json").write_text(json.dumps(RECONSTRUCT))
    (folder / "eval_new.json").write_text(json.dumps({"figure": {"of_merit": 0.91237}}))
    return folder


def sheets():
    tiles = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), dtype=np.uint8)
    large = np.random.default_rng(0).integers(0, 256, (2, 2, 96, 96, 3), dtype=np.uint8)
    rows, wide = (tuple(tuple(row) for row in part) for part in (tiles, large))
    return {
        "sweep": Sheet("Turns", "Read as.", ("−45°", "+45°"), rows, (("−40°", "+41°"),) * 2),
        "pca": Sheet("Colours", "PCA.", ("image", "patch"), wide, smooth=True, wrap=True),
    }
