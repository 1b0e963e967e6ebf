"""What an unknown word on the command line was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# names of other libraries for the last part of an option, and ours in order of preference
_ALIASES = {
    "learning-rate": ("lr",),
    "base-lr": ("lr",),
    "batch": ("batch-size",),
    "batch-size": ("batch",),
    "bs": ("batch-size", "batch"),
    "wd": ("weight-decay",),
    "workers": ("num-threads", "threads"),
    "num-workers": ("num-threads", "threads"),
    "max-epochs": ("epochs",),
    "num-epochs": ("epochs",),
    "warmup-epochs": ("warmup",),
    "max-iters": ("steps",),
    "iterations": ("steps",),
    "total-steps": ("steps",),
    "num-steps": ("steps",),
    "arch": ("name",),
    "model": ("name",),
    "backbone": ("name",),
    "img-size": ("image-size", "size"),
    "image-size": ("img-size", "size"),
    "resolution": ("image-size", "img-size", "size"),
    "optimizer": ("kind",),
    "amp": ("precision",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "grad-clip": ("clip",),
    "clip-grad": ("clip",),
    "accum-iter": ("accumulate",),
    "gpu": ("device",),
    "output-dir": ("run-dir", "out"),
    "output": ("out", "run-dir"),
    "data-path": ("data",),
    "dataset": ("data",),
    "images": ("pictures", "data"),
    "format": ("to",),
}

OF_SCANS = ("--axes", "--array", "--nodata", "--pages")  # options of no other command


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that begins like this one, in any case, else the most similar, if one is."""
    words = list(known)
    begun = [other for other in words if word and other.lower().startswith(word.lower())]
    return next(iter(begun or difflib.get_close_matches(word, words, n=1)), None)


def meant(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'pretrain'?`, or nothing."""
    near = nearest(word, known)
    return f", did you mean {near!r}?" if near else ""


def nearest_option(flag: str, known: Iterable[str]) -> str | None:
    """The option that is most like an unknown one; its last part counts first.

    Args:
        flag: "--optim.learning-rate".
        known: all options, "--optim.lr" among them.

    Returns:
        None if none is similar, or if it is another library's name of what there is no option for.
    """
    for one in (known := list(known)):
        if one.replace(".", "-") == flag.replace(".", "-"):
            return one
    by_last: dict[str, list[str]] = {}
    for one in known:
        by_last.setdefault(_last(one), []).append(one)
    last = _last(flag)
    meanings = _ALIASES.get(last) or difflib.get_close_matches(last, by_last, n=1)
    for name in (last, *meanings):
        if name in by_last:
            return max(
                by_last[name], key=lambda one: (_likeness(flag, one), one.startswith("--data."))
            )
    return None


def _likeness(flag: str, option: str) -> float:
    return difflib.SequenceMatcher(None, option, flag).ratio()


def _last(flag: str) -> str:
    return flag.removeprefix("--").rpartition(".")[2]


def unknown(what: str, name: str, known: Iterable[str], listed_by: str) -> ValueError:
    """The error of a word that is none of those known: with the nearest one, else with all.

    Args:
        what: it should be.
        name: the word.
        known: those that are.
        listed_by: the command that says more of them.
    """
    hint = meant(name, known) or f", expected one of {', '.join(known)}"
    return ValueError(f"unknown {what} {name!r}{hint} ({listed_by} lists all)")
