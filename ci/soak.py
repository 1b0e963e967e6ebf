"""Kills a training run many times at random moments and compares its final weights.

Two processes under torchrun; each time one of them, or torchrun itself, receives SIGKILL or SIGTERM
after a random time, during start-up, steps or saves. Then the run is started again with --resume,
half of the times at once, while processes of the previous start may still exist. At the end the
weights must equal those of an uninterrupted run, bit for bit, and nothing may be left over: no
process, no shared memory, no temporary file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.report import made_by
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.runtime import lock

MARK, START = "FASTEQUI_SOAK", "FASTEQUI_SOAK_START"
TMP = "tmp"  # the run's folder of temporary files, beside it
TINY = [
    *("--train.minutes", "0", "--train.epochs", "100", "--train.no-tensorboard"),
    *("--data.batch-size", "8", "--data.samples-per-decode", "2", "--data.num-threads", "1"),
    *("--model.embed-dim", "32", "--model.depth", "1", "--model.num-heads", "1"),
    *("--tir.dim", "24", "--tir.equi-dim", "16", "--tir.expander", "16", "16"),
    *("--train.log-every", "5", "--train.checkpoint-every", "4"),
]


def start(run: Path, steps: int, log: Path, count: int = 0) -> subprocess.Popen[bytes]:
    """Starts or resumes two processes; environment variables mark their run and start."""
    photos = str(Path(embedded_photos().paths[0]).parent)
    again = ["--resume"] if (run / "config.json").exists() else []
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("-m", "fastequi.cli", "pretrain", "demo", "--data", photos, "--run-dir", str(run)),
        *("--max-steps", str(steps), *TINY, *again),
    ]
    own = {MARK: str(run), START: str(count), "TMPDIR": str(run.parent / TMP)}
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **own})


def members(run: Path, count: int | None = None) -> dict[int, str]:
    """Running processes of a run, or of one start, by id: "torchrun", "rank 0", "rank 1"."""
    marks = {f"{MARK}={run}"} | ({f"{START}={count}"} if count is not None else set())
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            if not marks <= set(words):  # a zombie has none
                continue
        except OSError:
            continue
        rank = next((word[5:] for word in words if word.startswith("RANK=")), None)
        found[int(entry.name)] = "torchrun" if rank is None else f"rank {rank}"
    return found


def gone(run: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while members(run):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def newest(run: Path) -> int:
    pointer = run / "checkpoints" / "latest"
    return int(pointer.read_text().removeprefix("step_")) if pointer.exists() else 0


def soak(
    run: Path, steps: int, kills: int, longest: float, draw: random.Random
) -> tuple[Counter[str], int]:
    """Kills `kills` times, then lets the run finish.

    Returns:
        The kills by signal and process; and the starts made while an earlier one still existed.
    """
    log, hit, beside, count = run.parent / "log.txt", Counter[str](), 0, 0
    while sum(hit.values()) < kills:
        beside += bool(members(run))
        count += 1
        process = start(run, steps, log, count)
        time.sleep(draw.uniform(0, longest))
        alive = members(run, count)
        if process.poll() is not None or not alive:
            code = process.wait()
            what = "ended: use more --steps" if code == 0 else f"failed with {code}; see {log}"
            raise SystemExit(f"after {sum(hit.values())} kills the run {what}")
        victim = draw.choice(sorted(alive))
        number = draw.choice([signal.SIGKILL, signal.SIGTERM])
        name = alive[victim]
        try:
            os.kill(victim, number)
        except ProcessLookupError:  # it has just ended by itself
            continue
        hit[f"{number.name} to {name}"] += 1
        process.wait(timeout=120)
        if draw.random() < 0.5 and not gone(run, 60):
            raise SystemExit(f"left behind after {number.name} to {name}: {members(run)}")
        done = sum(hit.values())
        print(f"{done} of {kills}: {number.name} to {name}, step {newest(run)}", flush=True)
    process = start(run, steps, log)
    if process.wait(timeout=3600) != 0:
        raise SystemExit(f"the last start failed; see {log}")
    if not gone(run, 60):
        raise SystemExit(f"left behind at the end: {members(run)}")
    return hit, beside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--longest", type=float, default=7.0, help="seconds up to a kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options, made = parser.parse_args(), made_by("bash ci/soak.sh")
    shared = set(os.listdir("/dev/shm"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / TMP).mkdir()
        began = time.monotonic()
        hit, beside = soak(
            folder / "killed", options.steps, options.kills, options.longest,
            random.Random(options.seed),
        )  # fmt: skip
        seconds = time.monotonic() - began
        whole = start(folder / "whole", options.steps, folder / "whole.txt")
        if whole.wait(timeout=3600) != 0:
            raise SystemExit("the uninterrupted run failed: " + (folder / "whole.txt").read_text())
        ours, theirs = (
            load_file(folder / which / "model.safetensors") for which in ("killed", "whole")
        )
        equal = all(torch.equal(ours[key], theirs[key]) for key in theirs)
        found = [*(folder / "killed").rglob(".*"), *(folder / TMP).rglob("*")]
        # torch and torchrun leave folders without a file at every start
        left = [str(p.relative_to(folder)) for p in found if p.is_file() and p.name != lock.NAME]
    leaked = sorted(set(os.listdir("/dev/shm")) - shared)
    document = {
        **made,
        "steps": options.steps,
        "kills": dict(hit),
        "starts_beside_an_earlier_one": beside,
        "seconds": seconds,
        "weights_equal": equal,
        "temporary_files": left,
        "shared_memory": leaked,
    }
    print(json.dumps(document, indent=1))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if not equal or left or leaked:
        raise SystemExit("weights differ, or files or shared memory were left over")


if __name__ == "__main__":
    main()
