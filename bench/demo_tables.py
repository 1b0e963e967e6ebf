"""The demo's result files as the tables that the READMEs show.

python -m bench.demo_tables bench/results/demo-cpu
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastequi.evaluate.results import label

Found = Mapping[str, Any]
CLEAN, PHOTOMETRIC = "se2", "se2, photometric"
_SHORT = (
    *(("raw pair", "token"), ("raw pair", "cosines")),
    *(("base alone, patch", "token"), ("base alone, patch", "cosines")),
    *(("TIR, z_equi", "token"), ("TIR, z_equi", "cosines")),
)


def short(found: Found) -> str:
    """Six rows: R² on clean and on photometric pairs, all training pairs."""
    both = [_by_row(found["tasks"][task]) for task in (CLEAN, PHOTOMETRIC)]
    rows = [[*key, *(f"{v:.2f}" for each in both for v in each[key]["r2"])] for key in _SHORT]
    names = [*("angle", "tx", "ty"), *(f"{n}, changed light" for n in ("angle", "tx", "ty"))]
    return _markdown(["features of the pair", "probe", *names], rows)


def full(report: Found) -> str:
    """All rows of one task."""
    rows = []
    for (features, probe), row in _by_row(report).items():
        angle, tx, ty = (f"{v:.2f}" for v in row["r2"])
        interval = f"{row['low'][0]:.2f}..{row['high'][0]:.2f}"
        error = f"{row['error'][0]:.1f}°"
        rows.append([features, probe, angle, interval, tx, ty, f"{row['mean']:.2f}", error])
    head = ["features of the pair", "probe", "angle", "95 %", "tx", "ty", "mean", "median error"]
    return _markdown(head, rows)


def differences(found: Found) -> str:
    """z_equi less the best baseline and less the base alone, for every task: by their best probes,
    and less the base alone by the token probe too."""
    rows = []
    for task, report in found["tasks"].items():
        best = max((s for s in report["scores"] if s["is_baseline"]), key=lambda s: s["mean"])
        base = "base alone, patch"
        for other, probe, among in (
            (label(best["encoder"], best["features"]), None, report["differences"]),
            (base, None, report["differences"]),
            (base, "token", report["differences_by_probe"]),
        ):
            (row,) = (
                d
                for d in among
                if (d["label"], d["against"]) == ("TIR, z_equi", other)
                and probe in (None, d["probe"])
            )
            kind = "changed light" if "photometric" in task else "clean"
            figures = zip(
                (*row["r2"], row["mean"]),
                (*row["low"], row["mean_low"]),
                (*row["high"], row["mean_high"]),
                strict=True,
            )
            cells = [f"{v:+.2f} [{low:.2f}, {high:.2f}]" for v, low, high in figures]
            probes = ", ".join(dict.fromkeys((row["probe"], row["against_probe"])))
            rows.append([f"{report['train_pairs']:,} {kind}", other, probes, *cells])
    return _markdown(["pairs", "less", "probes", "angle", "tx", "ty", "mean"], rows)


def gains(quality: Found) -> str:
    """The gain over the nearer view in dB, by texture and angle."""
    rows = [
        [p["name"], str(p["images"]), f"{p['nearer_view']:.1f}", f"{p['pooled']:+.1f}",
         f"{p['gain']:+.1f}"]
        for p in (*quality["by_texture"], *quality["by_angle"])
    ]  # fmt: skip
    head = ["images", "number", "nearer view, dB", "pooled gain, dB", "mean of gains, dB"]
    return _markdown(head, rows)


def _by_row(report: Found) -> dict[tuple[str, str], Found]:
    return {(label(s["encoder"], s["features"]), s["probe"]): s for s in report["scores"]}


def growth(found: Mapping[str, Any]) -> str:
    """R² of angle, tx, ty and their mean over the steps of one run, by the token probe, beside the
    raw pair's best probe; clean and with changed light."""
    head = [
        "after steps",
        *(
            f"{what}, {light}"
            for light in ("clean", "changed light")
            for what in ("z_equi", "z_inv")
        ),
    ]

    def cell(step: int | None, task: str, features: str) -> str:
        rows = [
            row
            for row in found["rows"]
            if (row["step"], row["task"], row["features"]) == (step, task, features)
            and (step is None or row["probe"] == "token")
        ]
        best = max(rows, key=lambda row: row["mean"])
        return " ".join(f"{value:.2f}" for value in (*best["r2"], best["mean"]))

    steps = sorted({row["step"] for row in found["rows"]} - {None})
    columns = [
        (task, features) for task in (CLEAN, PHOTOMETRIC) for features in ("z_equi", "z_inv")
    ]
    rows = [[f"{step:,}", *(cell(step, *column) for column in columns)] for step in steps]
    raw = ["raw pair, its best probe"]
    for task in (CLEAN, PHOTOMETRIC):
        raw += [cell(None, task, "raw pair"), ""]
    return _markdown(head, [*rows, raw])


def _markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    folder = Path(sys.argv[1])
    found = json.loads((folder / "eval_equivariance.json").read_text())
    quality = json.loads((folder / "eval_reconstruct.json").read_text())
    print(short(found))
    for task in (CLEAN, PHOTOMETRIC):
        print(f"{task}\n{full(found['tasks'][task])}")
    print(differences(found))
    print(gains(quality))


if __name__ == "__main__":
    main()
