"""A program that imports what a training run needs once, and forks the runs.

Most of the seconds of a short run are imports; a fork has them done. Started by `runs.run`, by
`python -m tests.support.zygote`: it reads a line of JSON for each run, {"argv", "program", "out",
"err", "ranks": [environment, ...]}, and prints the exit codes of the ranks when all have ended. If
one fails the others get SIGTERM, as under torchrun.
"""

import gc
import json
import os
import runpy
import signal
import sys

import nvidia.dali.plugin.pytorch  # noqa: F401
import torch.distributed.checkpoint
import torch.distributed.fsdp  # noqa: F401

import fastequi.cli.commands
import fastequi.train  # noqa: F401
from fastequi.cli.main import main


def serve() -> dict | None:
    """Forks until stdin ends. In a child: what it is to run."""
    gc.freeze()  # children need not look through what was imported
    while line := sys.stdin.readline():
        asked = json.loads(line)
        ranks = {}
        for place, environment in enumerate(asked["ranks"]):
            pid = os.fork()
            if pid == 0:
                _become(asked, environment)
                return asked
            ranks[pid] = place
        print(json.dumps(_ended(ranks)), flush=True)
    return None


def _become(asked: dict, environment: dict[str, str]) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for stream, file in enumerate(("/dev/null", asked["out"], asked["err"])):
        opened = os.open(file, flags if stream else os.O_RDONLY)
        os.dup2(opened, stream)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [asked["program"] or "fastequi", *asked["argv"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _ended(ranks: dict[int, int]) -> list[int]:
    """Exit codes by rank; minus the signal that ended one."""
    codes = {}
    while len(codes) < len(ranks):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid]:
            for other in ranks.keys() - codes.keys():
                os.kill(other, signal.SIGTERM)
    return [codes[pid] for pid in sorted(ranks, key=ranks.__getitem__)]


if __name__ == "__main__" and (asked := serve()):
    if asked["program"]:
        runpy.run_path(asked["program"], run_name="__main__")
    else:
        main()
