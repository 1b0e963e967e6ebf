"""`fastequi eval all`: every evaluation that the given data allows, as one page of figures."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from fastequi.cli import evaluations
from fastequi.cli.hints import meant
from fastequi.cli.image_options import Several, flat
from fastequi.cli.parsing import is_given, parse
from fastequi.cli.vit_options import VitOptions

_OPTION = {
    "photographs": "data",
    "labelled": "labelled",
    "masks": "masks",
    "depth": "depth",
    "clips": "clips",
}
_OF_RUNS = ("reconstruct", "rotnet")  # of a run alone, without options of a file's ViT
_REFUSALS = (ValueError, OSError, RuntimeError, FloatingPointError, ImportError)


@dataclass(frozen=True)
class AllOptions(VitOptions):
    """Each evaluation that the given data allows, with its defaults: one page of figures.

    One that refuses is named with its reason, and the next one runs. Their whole tables are in
    files of their own beside this one's, as text in eval_all.txt.
    """

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run's folder, a checkpoint's, a file or folder of weights, or module:function."""
    data: Several = ()
    """Photographs, as --data of pretrain; embedded ones by default."""
    labelled: Several = ()
    """Labelled images, as --data of eval knn."""
    masks: Several = ()
    """Images with masks of classes, as --data of the evaluations that take them."""
    depth: Several = ()
    """Images with depth, as --data of the evaluations that take them."""
    clips: Several = ()
    """Clips with masks of objects, as --data of the evaluations that take them."""
    against: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further encoder for the tables, such as the base without TIR."""
    kinds: tuple[str, ...] = ()
    """These evaluations alone."""
    device: str = "auto"
    """Where they run: auto, cpu, cuda or cuda:1."""
    out: Path | None = None
    """JSON file; eval_all.json in the CHECKPOINT folder by default, of a file eval_all_FILE.json.
    Those of the evaluations are written beside it."""


def every(argv: list[str]) -> None:
    options = parse(AllOptions, "fastequi eval all", argv)
    if is_given("--kinds", argv) and not options.kinds:
        raise ValueError("--kinds: expected one evaluation or more, got none")
    kinds = _chosen(options)
    _expect_places(options)

    from fastequi.evaluate.encoders import load_encoder, load_other
    from fastequi.evaluate.results import name_of, place, save, writable, write

    stated = options.stated()
    encoder = load_encoder(options.checkpoint, options.device, stated)
    for other in options.against:
        load_other(other, options.device, stated)
    file = place("all", options.checkpoint, options.out)
    own_files = {
        kind: file.with_name(name_of(kind, options.checkpoint))
        for kind in evaluations.KINDS
        if kind != "all"
    }
    _expect_own(file, own_files)
    for each in (file.with_suffix(".txt"), *(own_files[kind] for kind in kinds)):
        writable(each)
    start = time.monotonic()
    figures: list[dict[str, str]] = []
    refused: dict[str, str] = {}
    without: dict[str, str] = {}
    said = []
    for kind in kinds:
        option = _OPTION[evaluations.DATA[kind]]
        if option != "data" and not flat(getattr(options, option)):
            without[kind] = f"--{option}"
    here = [kind for kind in kinds if kind not in without]
    with _told(kinds, figures, file):
        for number, kind in enumerate(here, 1):
            print(f"eval {kind} ({number} of {len(here)})", file=sys.stderr, flush=True)
            own, text, begun = own_files[kind], io.StringIO(), time.monotonic()
            try:
                with redirect_stdout(text):
                    getattr(evaluations, kind)(_words(kind, options, own))
                figures.append(_headline(kind, own))
                took = f"{time.monotonic() - begun:.0f} s"
                print(f"eval {kind}: {took}, {own}", file=sys.stderr, flush=True)
            except _REFUSALS as error:
                refused[kind] = str(error)
                print(f"eval {kind}: {error}", file=sys.stderr, flush=True)
            said.append(f"eval {kind}\n\n{text.getvalue()}")
            write(file.with_suffix(".txt"), "\n".join(said))
    if not figures:
        reasons = [f"{kind}: {why}" for kind, why in refused.items()]
        reasons += [f"{kind} needs {option}" for kind, option in without.items()]
        raise ValueError(f"eval all: no evaluation ran; {'; '.join(reasons)}")
    document: dict[str, Any] = {
        "figures": figures,
        "refused": refused,
        "without_data": without,
        "seconds": time.monotonic() - start,
    }
    save(file, kind="all", spec=options.checkpoint, encoder=encoder, document=document)
    _print_page(encoder.name, figures, refused, without)
    print(f"{document['seconds']:.0f} s; {file}; whole tables in {file.with_suffix('.txt')}")


@contextmanager
def _told(kinds: Sequence[str], figures: Sequence[Mapping[str, str]], page: Path) -> Iterator[None]:
    """Says of a run that is stopped what is there, and how the rest is made."""
    try:
        yield
    except KeyboardInterrupt:
        done = [figure["kind"] for figure in figures]
        if done:
            left = " ".join(kind for kind in kinds if kind not in done)
            print(
                f"finished: {', '.join(done)}; their files are in {page.parent}, their tables in "
                f"{page.with_suffix('.txt')}. The others: --kinds {left}",
                file=sys.stderr,
            )
        raise


def _chosen(options: AllOptions) -> Sequence[str]:
    """The evaluations that are asked for.

    Raises:
        ValueError: there is no such evaluation, or none of those takes some of the data.
    """
    known = [kind for kind in evaluations.KINDS if kind != "all"]
    for kind in options.kinds:
        if kind not in known:
            raise ValueError(
                f"--kinds: expected some of {', '.join(known)}, got {kind}{meant(kind, known)}"
            )
    if len(set(options.kinds)) < len(options.kinds):
        raise ValueError(f"--kinds: expected each once, got {' '.join(options.kinds)}")
    kinds = options.kinds or known
    taken = {_OPTION[evaluations.DATA[kind]] for kind in kinds}
    for option in _OPTION.values():
        if flat(getattr(options, option)) and option not in taken:
            raise ValueError(f"--{option}: none of {', '.join(kinds)} takes it")
    return kinds


def _expect_places(options: AllOptions) -> None:
    """Raises ValueError for a place of data that does not exist; `digits` is none."""
    from fastequi.data.labelled import DIGITS
    from fastequi.data.sources.shards import is_shards, shard_archives

    for option in _OPTION.values():
        for given in flat(getattr(options, option)):
            place = Path(given).expanduser()
            if option == "labelled" and given == DIGITS:
                continue
            if is_shards(place):
                try:
                    shard_archives(place)
                except (OSError, ValueError) as error:
                    raise ValueError(f"--{option}: {error}") from error
            elif not given.strip() or not place.exists():
                raise ValueError(f"--{option}: expected a path that exists, got {given!r}")


def _expect_own(page: Path, others: Mapping[str, Path]) -> None:
    """Raises ValueError for a page in whose place another file of this command is written.

    Args:
        page: where the page is written.
        others: where each evaluation leaves its own figures.
    """
    for kind, file in others.items():
        if page == file:
            raise ValueError(
                f"--out: expected a file for the page, got {page}, in which eval {kind} leaves its "
                f"own figures"
            )
    if page == page.with_suffix(".txt"):
        raise ValueError(
            f"--out: expected a JSON file, got {page}, in which the text of the tables is left"
        )


def _words(kind: str, options: AllOptions, out: Path) -> list[str]:
    """The command line of one evaluation."""
    words = [options.checkpoint, "--device", options.device, "--out", str(out)]
    if places := flat(getattr(options, _OPTION[evaluations.DATA[kind]])):
        words += ["--data", *places]
    if kind in _OF_RUNS:
        return words
    for other in options.against:
        words += ["--against", other]
    for field in fields(VitOptions):
        value = getattr(options, field.name)
        if value not in (None, ()):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return words


def _headline(kind: str, file: Path) -> dict[str, str]:
    from fastequi.evaluate.results import read
    from fastequi.report.findings import headline_of

    found = headline_of(read(json.loads(file.read_text())))
    what, figure, beside = found[1] if found else ("see its file", "–", "")
    return {"kind": kind, "what": what, "figure": figure, "beside": beside, "file": file.name}


def _print_page(
    encoder: str,
    figures: Sequence[dict[str, str]],
    refused: dict[str, str],
    without: dict[str, str],
) -> None:
    drawn = Table(title=f"{encoder}, headline figures", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("eval", no_wrap=True)
    drawn.add_column("what")
    drawn.add_column("figure", justify="right", no_wrap=True)
    drawn.add_column("of")
    for row in figures:
        drawn.add_row(row["kind"], row["what"], row["figure"], row["beside"])
    Console().print(drawn)
    for kind, why in refused.items():
        print(f"{kind} refused: {why}")
    for kind, option in without.items():
        print(f"{kind} did not run: it needs {option}")
