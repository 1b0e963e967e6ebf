"""`fastequi report`: one HTML page of runs, with pictures made from their checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from fastequi import __version__
from fastequi.data.channels import RGB
from fastequi.data.sources.selection import Data
from fastequi.evaluate.results import writable, write
from fastequi.report.page import page
from fastequi.report.runs import Run, read_runs
from fastequi.report.sheets import Sheet
from fastequi.runtime.progress import Status


def report(
    runs: Sequence[Path],
    out: Path,
    *,
    pictures: bool = True,
    data: Data | None = None,
    shown: str = "",
) -> Path:
    """Writes the page and prints where it is, behind what it lacks.

    Args:
        runs: folders of runs.
        out: the page; its folder is made if need be.
        pictures: draw some from every run's newest checkpoint.
        data: images for them (`fastequi.data.sources.image_sets.open_source`); None: the embedded
            ones.
        shown: channels of the files that they show, as of `fastequi.report.visualize.visualize`;
            not of runs of RGB.

    Raises:
        FileNotFoundError, ValueError: a folder is no run's.
    """
    found = read_runs(runs)
    writable(out)
    notes: list[str] = []
    drawn = _pictures(found, data, notes, shown) if pictures else {}
    stamp = f"Written {datetime.now():%Y-%m-%d %H:%M} by fastequi {__version__}."
    write(out, page(found, drawn, notes, stamp))
    for note in notes:
        print(note)
    print(out)
    return out


def _pictures(
    runs: Sequence[Run], data: Data | None, notes: list[str], channels: str
) -> dict[str, dict[str, Sheet]]:
    """Sheets by run; why a run has none becomes a note on the page."""
    from fastequi.evaluate.encoders import load_encoder
    from fastequi.report.visualize import photographs, sheets

    drawn = {}
    with Status(Console(stderr=True), "drawing") as status:
        for run in runs:
            status.update(f"drawing {run.name}")
            try:
                encoder = load_encoder(str(run.folder))
                shown = "" if encoder.channels == RGB else channels
                drawn[run.name], why_not = sheets(encoder, photographs(data, encoder), shown=shown)
                notes += [f"{run.name}: no {why}." for why in why_not]
            except (OSError, ValueError, ArithmeticError, RuntimeError, KeyError) as error:
                why = str(error).removeprefix("CHECKPOINT: ").replace(f"{run.folder}", run.name)
                notes.append(f"{run.name}: no pictures of its features ({why}).")
    return drawn
