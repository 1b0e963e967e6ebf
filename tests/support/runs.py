"""Training runs as processes of their own, and under torchrun: started, stopped, compared."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastequi.data.sources.image_sets import embedded_photos
from tests.support.once import once

PHOTOS = str(Path(embedded_photos().paths[0]).parent)
ROOT = Path(__file__).parents[2]
TINY = [
    *("--data", PHOTOS, "--train.minutes", "0", "--train.epochs", "1", "--train.no-tensorboard"),
    *("--data.batch-size", "12", "--data.samples-per-decode", "2", "--data.num-threads", "1"),
    *("--model.embed-dim", "32", "--model.depth", "1", "--model.num-heads", "1"),
    *("--tir.dim", "24", "--tir.equi-dim", "16", "--tir.expander", "16", "16"),
    *("--train.log-every", "1", "--train.checkpoint-every", "2"),
]


def command(*options, processes=0, launcher=(), program=("-m", "fastequi.cli")):
    python = [sys.executable]
    if processes:
        count = "--nproc-per-node", str(processes)
        python += ["-m", "torch.distributed.run", *count, *launcher]
    small = TINY[2:] if "--data" in options else TINY  # a second --data would be added to it
    return [*python, *map(str, program), "pretrain", "demo", *small, *map(str, options)]


def environment():
    keep = {"PATH", "HOME", "LD_LIBRARY_PATH", "FASTEQUI_CACHE", "TMPDIR"}
    found = {name: value for name, value in os.environ.items() if name in keep}
    return {**found, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(*options, processes=0, timeout=200, **how):
    return subprocess.run(
        command(*options, processes=processes, **how),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_once(factory, name, *options, **how):
    """The folder of a run that several tests compare with; all workers share it."""

    def make(folder):
        done = run("--run-dir", folder / "run", *options, **how)
        assert done.returncode == 0, done.stderr

    return once(factory, name, make) / "run"


def listening():
    """A shell's background jobs, and what they start, ignore Ctrl-C; tests may be among them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(*options, **how):
    return subprocess.Popen(
        command(*options, **how),
        preexec_fn=listening,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rows(run_dir):
    file = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(run_dir, step, process, seconds=120):
    end = time.monotonic() + seconds
    while not any(row["step"] >= step for row in rows(run_dir)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "the run did not come so far"
        time.sleep(0.02)


def ranks_of(torchrun):
    """Process ids of what torchrun started, by rank."""
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    found = {}
    for pid in children:
        for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if word.startswith(b"RANK="):
                found[int(word[5:])] = int(pid)
    return [found[rank] for rank in sorted(found)]


def same(first, second):
    ours, theirs = (load_file(path / "model.safetensors") for path in (first, second))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


SGD = [  # Adam's first steps blow rounding up to the size of the rate
    *("--optim.kind", "sgd", "--optim.lr", 0.05, "--optim.warmup", 0),
    *("--train.precision", "fp32"),
]
FSDP = ["--train.parallel", "fsdp", "--optim.lr", 1e-3, *SGD[4:]]  # which takes AdamW alone
ALONE = ["--train.parallel", "ddp", *FSDP[2:]]


def expect_close(folder, other):
    names = "loss", "recon", "ssl", "grad_norm"
    curves = [torch.tensor([[r[k] for k in names] for r in rows(f)]) for f in (folder, other)]
    assert curves[0].shape == (8, 4)
    torch.testing.assert_close(*curves, rtol=2e-4, atol=1e-5)
    ends = [load_file(f / "model.safetensors") for f in (folder, other)]
    for name, value in ends[1].items():
        torch.testing.assert_close(ends[0][name], value, rtol=1e-3, atol=2e-4, msg=name)


def changed(folder, change):
    """The command with something in it changed, as a program that torchrun can start."""
    file = folder / "changed.py"
    head, tail = "import os, sys, time", "from fastequi.cli.main import main; main(sys.argv[1:])"
    file.write_text(f"{head}\n{change}\n{tail}\n")
    return [file]
