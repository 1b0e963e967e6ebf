"""`fastequi eval equivariance`: R² of five transformations, predicted from frozen features."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from fastequi.config import TrainConfig
from fastequi.data.sources.selection import Data, Selection
from fastequi.data.sources.splits import photographs
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import expect_the_same_images, load_all
from fastequi.evaluate.pair_reports import Report, summary
from fastequi.evaluate.photo_windows import images_for
from fastequi.evaluate.results import documented, not_held_out, place, save
from fastequi.evaluate.tasks import Budget, Task, for_encoder, score_tasks, tasks
from fastequi.methods.tir import TIR
from fastequi.runtime.progress import Status, remaining
from fastequi.weights.architecture import UNSTATED, Stated

_TABLE_WIDTH = 140  # of colour's, which has four parameters


def evaluate_equivariance(
    spec: str,
    *,
    data: Data | None = None,
    test_data: Data | None = None,
    against: Sequence[str] = (),
    chosen: Mapping[str, Task] | None = None,
    budget: Budget = Budget(),  # noqa: B008
    device: str = "auto",
    out: Path | None = None,
    stated: Stated = UNSTATED,
) -> dict[str, Report]:
    """Prints a table for every task and writes them, each as soon as it is known.

    Args:
        spec: of the encoder; see `fastequi.evaluate.encoders`.
        data, test_data: see `fastequi.data.sources.splits.photographs`.
        against: further encoders for the same tables: the base without reconstruction.
        chosen: the tasks; None: all.
        budget: of the probes; MLPs are fitted in bfloat16 where that is fast.
        device: "auto", "cpu", "cuda" or "cuda:1".
        out: the JSON file; by default see `fastequi.evaluate.results.place`.
        stated: what a file does not say; see `fastequi.evaluate.encoders.load_all`.
    """
    encoder, encoders = load_all(spec, against, device, stated)
    expect_the_same_images(encoder, encoders)
    if data is None:
        encoder.expect_photographs()
    train, test = photographs(data, test_data, images_for(encoder))
    dtype = TrainConfig().fit_dtype(encoder.device)
    budget = dataclasses.replace(budget, fit=dataclasses.replace(budget.fit, dtype=dtype))
    console, start = Console(), time.monotonic()
    console.width = max(console.width, _TABLE_WIDTH)
    file = place("equivariance" + "_zero_fill" * budget.zero_fill, spec, out)
    used = not_held_out((spec, *against), *((train, test) if data else (None, None)))
    seen, fitted = used["test_seen_in_training"], used["test_used_for_fitting"]
    of = "held-out photographs" if data else "held-out parts of the embedded photographs"
    if fitted:
        of = f"photographs, {fitted} of {len(test)} AMONG THOSE THAT PROBES ARE FITTED ON"
    elif most := max((n or 0 for n in seen.values()), default=0):
        of = f"photographs, {most} of {len(test)} NAMED AND SIZED AS ONE SEEN IN TRAINING"
    if budget.zero_fill:
        of += ", zero-filled borders (only to compare)"
    if isinstance(encoder.method, TIR) and encoder.method.decoder is not None and not against:
        print(f"no base without reconstruction beside {spec}: --against its run adds the rows")
    if encoder.fresh is None:
        print(f"{spec} cannot be made again, so there are no rows of its random init")
    chosen = for_encoder(tasks() if chosen is None else chosen, encoder)
    where = "the left and right parts of the embedded photographs"
    if data is not None:
        where = " and ".join(str(Selection.of(each)) for each in (data, test_data) if each)
    print(
        f"{'; '.join(chosen)}: for each {budget.train_pairs:,} pairs of {len(train)} photographs "
        f"to fit probes on, {budget.test_pairs:,} pairs of {len(test)} to test them: {where}",
        flush=True,
    )
    about = {
        **documented(data),
        "photographs": {"train": len(train), "test": len(test)},
        **used,
        "against": list(against),
    }
    results = EquivarianceFile(file=file, spec=spec, encoder=encoder, budget=budget, about=about)

    def on_report(name: str, report: Report) -> None:
        console.print(report.table(f"{name}: R² on {of}"))
        results.add(name, report)

    with Status(console) as status:

        def on_row(row: str, share: float) -> None:
            status.update(f"{row}, {share:.0%}, ETA {remaining(time.monotonic() - start, share)}")

        reports = score_tasks(
            encoders,
            train,
            test,
            chosen,
            budget=budget,
            on_row=on_row,
            on_report=on_report,
        )
    console.print(summary(reports))
    print(f"{time.monotonic() - start:.0f} s; {file}")
    return reports


@dataclass(kw_only=True)
class EquivarianceFile:
    """The result file of kind "equivariance", which grows task by task.

    Attributes:
        file: where it is.
        spec: of the encoder, as it was named.
        encoder: that is evaluated.
        budget: of the probes.
        about: the images, and what else the file says of the whole.
    """

    file: Path
    spec: str
    encoder: Encoder
    budget: Budget
    about: Mapping[str, Any]
    tasks: dict[str, Report] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def add(self, task: str, report: Report) -> None:
        """Writes the file with one more task."""
        self.tasks[task] = report
        document = {
            **self.about,
            "budget": self.budget,
            "tasks": self.tasks,
            "seconds": time.monotonic() - self.begun,
        }
        save(
            self.file,
            kind="equivariance",
            spec=self.spec,
            encoder=self.encoder,
            document=document,
        )
