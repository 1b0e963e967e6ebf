"""Training runs as processes of their own, and under torchrun: started, stopped, compared."""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
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


def words(*options):
    """What follows `fastequi`: a tiny run of the demo's recipe, changed by options."""
    small = TINY[2:] if "--data" in options else TINY  # a second --data would be added to it
    return ["pretrain", "demo", *small, *map(str, options)]


def command(*options, processes=0, launcher=(), program=("-m", "fastequi.cli")):
    """The command line of a run, under torchrun where it has several processes."""
    python = [sys.executable]
    if processes:
        count = "--nproc-per-node", str(processes)
        python += ["-m", "torch.distributed.run", *count, *launcher]
    return [*python, *map(str, program), *words(*options)]


def environment():
    keep = {"PATH", "HOME", "LD_LIBRARY_PATH", "FASTEQUI_CACHE", "TMPDIR"}
    found = {name: value for name, value in os.environ.items() if name in keep}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**found, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class _Zygote:
    """The process that forks runs; one for each worker of the tests, started when first needed."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.zygote"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that its runs can be ended with it
        )
        atexit.register(self.end)

    def end(self):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def run(self, asked, timeout):
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.end()
            _zygote.cache_clear()
            raise subprocess.TimeoutExpired(asked["argv"], timeout)
        answer = self.process.stdout.readline()
        assert answer, "the zygote ended; what it said is above"
        return json.loads(answer)


@cache
def _zygote():
    return _Zygote()


def run(*options, processes=0, timeout=200, program=None):
    """A run from begin to end, by fork (zygote.py); with `processes` as torchrun would start it.

    Where a run is started and ended by a launcher or a signal, use `command` or `start`.
    """
    ranks = [environment()]
    if processes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        group = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none"}
        ranks = [
            {**environment(), **group, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            for rank in range(processes)
        ]
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        asked = {"argv": words(*options), "program": str(program[0]) if program else None}
        codes = _zygote().run({**asked, "out": str(out), "err": str(err), "ranks": ranks}, timeout)
        code = next((code for code in codes if code), 0)
        return subprocess.CompletedProcess(asked["argv"], code, out.read_text(), err.read_text())


def whole_and_parts(folder, *options, stops=(3, 8)):
    """Folders of a run of two processes at once, and of the same stopped and resumed."""
    for name, ends in (("whole", stops[-1:]), ("parts", stops)):
        for end in ends:
            again = ["--resume"] if end != ends[0] else []
            where = ["--run-dir", folder / name, "--max-steps", end, *again]
            done = run(*where, *options, processes=2)
            assert done.returncode == 0, done.stderr
    return folder / "whole", folder / "parts"


def run_once(factory, name, *options, **how):
    """The folder of a run that several tests compare with; all workers share it."""

    def make(folder):
        done = run("--run-dir", folder / "run", *options, **how)
        assert done.returncode == 0, done.stderr

    return once(factory, name, make) / "run"


def listening():
    """A shell's background jobs ignore Ctrl-C, and under nohup SIGHUP; tests may be among them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
_SLOWLY = ["--optim.lr", 1e-3, *SGD[4:]]
_ADAMW, _MUON = (["--optim.kind", kind, *_SLOWLY] for kind in ("adamw", "muon"))
_MUON[2:2] = ["--optim.muon-encoder"]
# FSDP takes no SGD
FSDP, MUON = (["--train.parallel", "fsdp", *kind] for kind in (_ADAMW, _MUON))
ALONE, MUON_ALONE = (["--train.parallel", "ddp", *kind] for kind in (_ADAMW, _MUON))


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
