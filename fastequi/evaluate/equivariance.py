"""`fastequi eval equivariance`: the five tasks' tables of a frozen encoder beside their floors."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastequi.config import TrainConfig
from fastequi.data.sources.image_sets import Data
from fastequi.data.sources.splits import photographs
from fastequi.evaluate.encoders import load_all
from fastequi.evaluate.pair_scores import Report, summary
from fastequi.evaluate.results import documented, place, save, seen_in_training
from fastequi.evaluate.tasks import Budget, Task, score_tasks
from fastequi.methods.tir import TIR
from fastequi.models.timm_names import UNSTATED, Stated

_TABLE_WIDTH = 140  # of colour's, which has four parameters


def judge(
    spec: str,
    data: Data | None,
    test_data: Data | None,
    against: Sequence[str],
    chosen: Mapping[str, Task],
    budget: Budget,
    device: str,
    out: Path | None = None,
    stated: Stated = UNSTATED,
) -> dict[str, Report]:
    """Prints a table for every task and writes them, each as soon as it is known.

    Args:
        spec: of the encoder; see `fastequi.evaluate.encoders`.
        data, test_data: see `fastequi.data.sources.splits.photographs`.
        against: further encoders for the same tables: the base without reconstruction.
        chosen: the tasks.
        budget: of the probes; MLPs are fitted in bfloat16 where that is fast.
        device: "auto", "cpu", "cuda" or "cuda:1".
        out: the JSON file; see `fastequi.evaluate.results`.
        stated: what a file does not tell; see `fastequi.evaluate.encoders.load_all`.
    """
    encoder, encoders = load_all(spec, against, device, stated)
    train, test = photographs(data, test_data)
    dtype = TrainConfig().fit_dtype(encoder.device)
    budget = dataclasses.replace(budget, fit=dataclasses.replace(budget.fit, dtype=dtype))
    console, start = Console(), time.monotonic()
    console.width = max(console.width, _TABLE_WIDTH)
    file = place("equivariance" + "_zero_fill" * budget.zero_fill, spec, out)
    seen = seen_in_training((spec, *against), test if data else None)
    of = "held-out photographs" if data else "held-out parts of the photographs"
    if most := max((n or 0 for n in seen.values()), default=0):
        of = f"photographs, {most} of {len(test)} NAMED AND SIZED AS ONE SEEN IN TRAINING"
    if budget.zero_fill:
        of += ", zero-filled borders (only to compare)"
    fit = {**dataclasses.asdict(budget.fit), "dtype": str(budget.fit.dtype)}
    document: dict[str, Any] = {
        **documented(data),
        "photographs": {"train": len(train), "test": len(test)},
        "test_seen_in_training": seen,
        "against": list(against),
        "budget": {**dataclasses.asdict(budget), "fit": fit},
        "tasks": {},
    }
    if isinstance(encoder.method, TIR) and encoder.method.decoder is not None and not against:
        print(f"no base without reconstruction beside {spec}: --against its run adds the rows")
    if encoder.fresh is None:
        print(f"{spec} cannot be made again, so there are no rows of its random init")

    def on_report(name: str, report: Report) -> None:
        console.print(report.table(f"{name}: R² on {of}"))
        document["tasks"][name] = report.to_json()
        save(file, spec, encoder, {**document, "seconds": time.monotonic() - start})

    with console.status("") as status:
        found_reports = score_tasks(encoders, train, test, chosen, budget, status.update, on_report)
    console.print(summary(found_reports))
    print(f"{time.monotonic() - start:.0f} s; {file}")
    return found_reports
