"""The command line: `fastequi COMMAND ...`, the commands as listed below."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module

from fastequi.cli.hints import unknown
from fastequi.data.sources.local import expect_local
from fastequi.data.sources.urls import READ, expect_shards, scheme
from fastequi.runtime import interrupts, streams
from fastequi.runtime.heap import keep_heap
from fastequi.runtime.preempt import Preempted, leave_with_launcher

# By default OpenMP's threads spin for milliseconds at every barrier. Beside other threads on the
# same cores (DALI's) training was six times slower; with a short spin they share the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

_COMMANDS = {
    "demo": "pretrain a small ViT on nine photographs and evaluate its features",
    "pretrain": "pretrain on a folder of images or tar shards: pretrain RECIPE --data PATH",
    "submit": "pretrain as a SLURM job, requeued until it is done: submit -- RECIPE ...",
    "data": "write an index of images, or make scenes: data scan PATH, data scenes OUT",
    "eval": "evaluate an encoder: eval KIND CHECKPOINT --data PATH",
    "embed": "write features of images: embed CHECKPOINT --data PATH --out FILE",
    "export": "write an encoder for timm, HF, ONNX, ...: export CHECKPOINT --to FORMAT",
    "visualize": "draw pictures of an encoder's features: visualize CHECKPOINT",
    "report": "write an HTML page about runs: report RUN [RUN ...]",
    "doctor": "show what is installed and which backend each part would use",
}

_OF_IMAGES = ("--data", "--test-data", "--photos")


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
    """Runs a command with its arguments; returns the exit code."""
    try:
        if name in ("-h", "--help"):
            print(_usage(), flush=True)
            return 0
        leave_with_launcher()
        if name not in _COMMANDS:
            raise unknown("command", name, _COMMANDS, "fastequi --help")
        _expect_local(words)
        getattr(import_module("fastequi.cli.commands"), name)(words)
        sys.stdout.flush()
        return 0
    except MemoryError as error:
        print(f"fastequi: not enough memory: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        print(f"fastequi: {error}", file=sys.stderr)
        return 2
    except Preempted as preempted:
        interrupts.last_word(str(preempted))
        return preempted.exit_code
    except KeyboardInterrupt:
        interrupts.stop("stopped at once")


def _expect_local(words: list[str]) -> None:
    """Refuses URLs before they become paths; the error names the option before the word.

    Those of images are left to `fastequi.data.sources`, which reads tar shards by URL.
    """
    option = "argument"
    for word in words:
        if word.startswith("--"):
            option, _, word = word.partition("=")
        of_images = option in _OF_IMAGES or (option == "argument" and words[0] in ("scan", "merge"))
        if of_images and scheme(word) in READ:
            expect_shards(option, word)
        elif option != "--model.name":  # hf:/FOLDER
            expect_local(option, word)


def _usage() -> str:
    lines = "\n".join(f"  {name:10s}{what}" for name, what in _COMMANDS.items())
    return f"usage: fastequi COMMAND ...\n\n{lines}\n\n'fastequi COMMAND --help' lists its options."
