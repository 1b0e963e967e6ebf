"""The command line: `fastequi COMMAND ...`, the commands as listed below."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from importlib import import_module

from fastequi.data.sources.local import expect_local
from fastequi.runtime import interrupts, streams
from fastequi.runtime.heap import keep_heap
from fastequi.runtime.preempt import Preempted, leave_with_launcher

# OpenMP's threads otherwise spin for milliseconds at every barrier, and where anything else runs on
# the same cores (DALI does), training was seen to slow down sixfold; with a short spin it shares.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

_COMMANDS = {
    "demo": "pretrain a small ViT on nine photographs and evaluate its features",
    "pretrain": "pretrain on a folder of images or tar shards: pretrain RECIPE --data PATH",
    "submit": "pretrain as a SLURM job, requeued until it is done: submit -- RECIPE ...",
    "data": "decode a set once and write its index: data scan PATH",
    "eval": "evaluate frozen features: eval KIND CHECKPOINT --data PATH",
    "embed": "features of images: embed CHECKPOINT --data PATH --out FILE",
    "visualize": "pictures of an encoder's features: visualize CHECKPOINT",
    "report": "one HTML page of runs: report RUN [RUN ...]",
    "doctor": "what is installed, and which backend each part would use",
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script; ends with exit code 2 on bad input."""
    with interrupts.heard(whole=argv is None):
        streams.outlast()
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
        keep_heap()
        code = _run(name, rest)
    if code:
        sys.exit(code)


def _run(name: str, words: list[str]) -> int:
    """Does what a command's words say; its exit code."""
    try:
        if name in ("-h", "--help"):
            print(_usage(), flush=True)
            return 0
        leave_with_launcher()
        if name not in _COMMANDS:
            near = difflib.get_close_matches(name, _COMMANDS, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown command {name!r}{hint}\n\n{_usage()}")
        _expect_local(words)
        getattr(import_module("fastequi.cli.commands"), name)(words)
        sys.stdout.flush()
        return 0
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        print(f"fastequi: {error}", file=sys.stderr)
        return 2
    except Preempted as notice:
        interrupts.last_word(str(notice))
        return notice.exit_code
    except KeyboardInterrupt:
        interrupts.stop("stopped at once")


def _expect_local(words: list[str]) -> None:
    """Refuses URLs before they become paths; the option of a word is the last one before it."""
    option = "argument"
    for word in words:
        if word.startswith("--"):
            option, _, word = word.partition("=")
        expect_local(option, word)


def _usage() -> str:
    lines = "\n".join(f"  {name:10s}{what}" for name, what in _COMMANDS.items())
    return f"usage: fastequi COMMAND ...\n\n{lines}\n\n'fastequi COMMAND --help' lists its options."
