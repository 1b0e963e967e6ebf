"""How many pairs do the probes need? R² of one task over the number of pairs they are fitted on.

    python -m bench.probe_pairs RUN --against BASE --data FOLDER --json FILE

With too few pairs R² says more of the probe than of the features: a row counts where its curve is
flat, or where it stays above the raw pair's. Smaller numbers of pairs are the first of the larger
ones; the test pairs are the same for all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.equivariance import DTYPES, FAMILIES, add_probe_options, base_of, brief, described
from bench.report import made_by
from fastequi.data.sources.splits import photographs
from fastequi.evaluate.encoders import load_all
from fastequi.evaluate.pair_reports import Report
from fastequi.evaluate.probes import Fit
from fastequi.evaluate.results import label
from fastequi.evaluate.tasks import Budget, score_tasks, tasks

PAIRS = (1_500, 3_000, 6_000, 12_000, 24_000, 48_000)


def curve(document: Mapping[str, Any]) -> str:
    """Markdown: the mean R² of every row and probe over the number of pairs."""
    reports = document["pairs"]
    counts = sorted(reports, key=int)
    head = " | ".join(f"{int(n):,}" for n in counts)
    lines = [f"| features | probe | {head} |", "| --- | --- |" + " --- |" * len(counts)]
    for i, score in enumerate(reports[counts[0]]["scores"]):
        means = " | ".join(f"{reports[n]['scores'][i]['mean']:.2f}" for n in counts)
        encoder, features, _ = described(score)
        lines.append(f"| {label(encoder, features)} | {score['probe']} | {means} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run's folder, or any other encoder that eval takes")
    parser.add_argument("--against", action="append", default=[], help="a further encoder")
    parser.add_argument("--data", type=Path, help="folder of photographs; the embedded ones else")
    parser.add_argument("--task", default="se2", choices=FAMILIES)
    parser.add_argument("--features", nargs="+", default=("patch", "z_equi"))
    parser.add_argument("--pairs", nargs="+", type=int, default=PAIRS)
    add_probe_options(parser)
    parser.add_argument("--json", type=Path, help="where the results go")
    options, made = parser.parse_args(), made_by("python -m bench.probe_pairs")
    _, loaded = load_all(options.run, options.against)
    encoders = {
        label: dataclasses.replace(e, names=tuple(n for n in e.names if n in options.features))
        for label, e in loaded.items()
    }
    train, test = photographs(options.data)
    fit = Fit(epochs=options.epochs, width=options.width, seeds=1, dtype=DTYPES[options.dtype])
    reports: dict[int, Report] = {}
    for n in options.pairs:
        budget = Budget(
            train_pairs=n,
            test_pairs=options.test_pairs,
            probes=tuple(options.probes),
            fit=fit,
        )
        chosen = tasks([options.task], base_of().path)
        reports[n] = score_tasks(encoders, train, test, chosen, budget=budget)[options.task]
        print(f"{n:,} pairs evaluated", flush=True)
    document: dict[str, Any] = {
        **made,
        "photographs": {"train": len(train), "test": len(test)},
        "task": options.task,
        "fit": {**dataclasses.asdict(fit), "dtype": options.dtype},
        "pairs": {str(n): report.to_json() for n, report in reports.items()},
    }
    text = brief(document)
    print(curve(json.loads(text)))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text)


if __name__ == "__main__":
    main()
