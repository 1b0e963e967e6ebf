"""What the benches of loaders share: streams that take turns, and a table of images a second."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from bench.report import made_by

ROUNDS = 7
Key = TypeVar("Key")


def rates(
    streams: Mapping[Key, Iterator[Any]], rounds: int, batch: int, drained: int, timed: int
) -> dict[Key, dict[str, Any]]:
    """Images a second of each stream of batches: {"images/s": median, "each": of every round}.

    Args:
        streams: endless, of batches of `batch` images.
        rounds: in which every stream has its turn.
        batch: images of one.
        drained, timed: batches of a turn that use up what was made ahead, and those measured.
    """
    found: dict[Key, list[float]] = {key: [] for key in streams}
    for _ in range(rounds):
        for key, stream in streams.items():
            for _ in islice(stream, drained):
                pass
            start = time.perf_counter()
            for _ in islice(stream, timed):
                pass
            found[key].append(round(batch * timed / (time.perf_counter() - start), 1))
    return {
        key: {"images/s": round(statistics.median(each), 1), "each": each}
        for key, each in found.items()
    }


def run(
    program: str,
    measured: Callable[[Path, int], list[dict[str, Any]]],
    table: Callable[[Mapping[str, Any]], str],
) -> None:
    """The command line of a bench: measures, prints the table, and writes --json.

    Args:
        program: "python -m bench.channel_loading", say.
        measured: (a folder that is removed, rounds) to the rows of the results.
        table: of the results, in Markdown.
    """
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    about = made_by(program)
    with tempfile.TemporaryDirectory() as folder:
        document = {**about, "rows": measured(Path(folder), options.rounds)}
    print(table(document))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")
