"""The frame of every evaluation of geometry: encoders in, tables and a file out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastequi.data.sources.images import Source
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import load_all
from fastequi.evaluate.geometry.figures import Table
from fastequi.evaluate.geometry.grids import Grids, all_grids
from fastequi.evaluate.geometry.kept_maps import KeptMaps
from fastequi.evaluate.results import not_held_out, place, save
from fastequi.kernels.toolchain import cache_folder
from fastequi.runtime.progress import Status
from fastequi.weights.architecture import UNSTATED, Stated

Say = Callable[[str], None]
_SHOWN = 10  # names


@dataclass(frozen=True)
class Found:
    """What an evaluation leaves.

    Attributes:
        tables: by title, in the order in which they are printed.
        document: what the file says beside: the data, the protocol's settings, what was left out.
        remarks: printed below the tables.
        tested: the images that were judged, if a run can have been trained on them.
        fitted: those that something was fitted on, if so.
    """

    tables: Mapping[str, Table]
    document: Mapping[str, Any]
    remarks: Sequence[str] = ()
    tested: Source | None = None
    fitted: Source | None = None


def named(places: Set[int], source: Source) -> list[str]:
    """The names of photographs by their places in a source."""
    return [source.names[i] for i in sorted(places)]


def without(left_out: Set[int], source: Source, use: str = "test") -> list[str]:
    """The remark on photographs that cannot be decoded.

    Args:
        left_out: their places in the source.
        source: all photographs.
        use: of them, for people.
    """
    names = named(left_out, source)
    if not names:
        return []
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return [
        f"{len(names)} of {len(source)} {use} photographs cannot be decoded and are left out: "
        f"{shown}"
    ]


def about(label: str, say: Say) -> Say:
    """Says how far it is with a row of the table."""
    return lambda text: say(f"{label}: {text}")


Evaluation = Callable[[list[Grids], Mapping[str, Encoder], Say], Found]
"""Of maps (baselines first) and of the encoders that they are from, by name."""


def evaluate(
    kind: str,
    spec: str,
    run: Evaluation,
    *,
    against: Sequence[str] = (),
    device: str = "auto",
    out: Path | None = None,
    cache: Path | None = None,
    cache_gb: float = 20.0,
    stated: Stated = UNSTATED,
) -> Found:
    """Loads encoders, runs an evaluation, prints its tables and writes its file.

    Args:
        kind: one of `fastequi.evaluate.geometry.kinds.KINDS`.
        spec: of the encoder; see `fastequi.evaluate.encoders`.
        run: the evaluation; it checks its data before the first image is encoded.
        against: further encoders, such as the base without TIR.
        device: "auto", "cpu", "cuda" or "cuda:1".
        out: the JSON file; by default see `fastequi.evaluate.results.place`.
        cache: folder for maps of tokens; by default in fastequi's cache folder.
        cache_gb: what they may take there; 0: none are kept.
        stated: what a file does not say; see `fastequi.evaluate.encoders.load_all`.
    """
    kept = KeptMaps(cache or cache_folder() / "maps", cache_gb)
    encoder, encoders = load_all(spec, against, device, stated)
    file = place(kind, spec, out)
    grids = [
        kept.around(each, encoders[each.encoder]) if each.encoder else each
        for each in all_grids(encoders, encoder.name)
    ]
    console, start = Console(), time.monotonic()
    with torch.no_grad(), Status(console) as status:
        found = run(grids, encoders, status.update)
    kept.trim()
    for title, each in found.tables.items():
        drawn = each.drawn(title)
        free = console.options.update(max_width=10_000)  # else a table is as narrow as the console
        console.width = max(console.width, console.measure(drawn, options=free).maximum)
        console.print(drawn)
        for line in each.sentences():
            print(line)
    for line in (*found.remarks, kept.sentence()):
        if line:
            print(line)
    seconds = time.monotonic() - start
    held = not_held_out((spec, *against), found.fitted, found.tested)
    tables = {title: each.to_json() for title, each in found.tables.items()}
    document = {**found.document, **held, "tables": tables, "seconds": seconds}
    save(file, kind=kind, spec=spec, encoder=encoder, document=document)
    print(f"{seconds:.0f} s; {file}")
    return found
