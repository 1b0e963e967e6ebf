"""Runs that are stopped: killed, asked to go, resumed; by themselves and under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastequi.data.sources import embedded_photos

PHOTOS = str(Path(embedded_photos().paths[0]).parent)
ROOT = Path(__file__).parent.parent
TINY = [
    *("--data", PHOTOS, "--train.minutes", "0", "--train.epochs", "1", "--train.no-tensorboard"),
    *("--data.batch-size", "12", "--data.samples-per-decode", "2", "--data.num-threads", "1"),
    *("--model.embed-dim", "32", "--model.depth", "1", "--model.num-heads", "1"),
    *("--method.dim", "24", "--method.equi-dim", "16", "--method.expander", "16", "16"),
    *("--train.log-every", "1", "--train.checkpoint-every", "2"),
]


def command(*options, processes=0):
    program = [sys.executable, "-m"]
    if processes:
        program += ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
    return [*program, "fastequi.cli", "pretrain", "demo", *TINY, *map(str, options)]


def environment():
    keep = {"PATH", "HOME", "LD_LIBRARY_PATH", "FASTEQUI_CACHE", "TMPDIR"}
    found = {name: value for name, value in os.environ.items() if name in keep}
    return {**found, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(*options, processes=0, timeout=200):
    return subprocess.run(
        command(*options, processes=processes),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def start(*options, processes=0):
    return subprocess.Popen(
        command(*options, processes=processes),
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


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untouched") / "run"
    done = run("--run-dir", folder, "--max-steps", 40)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, untouched, number):
    folder = tmp_path / "run"
    process = start("--run-dir", folder, "--max-steps", 40)
    wait_for(folder, 5, process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:  # asked: it saved the step it was in, and says so
        assert process.returncode == 75, out
        assert f"{signal.Signals(number).name} came: saved after step" in out
        newest = (folder / "checkpoints" / "latest").read_text()
        assert int(newest.removeprefix("step_")) == rows(folder)[-1]["step"]
    assert not (folder / "model.safetensors").exists()
    # another number of loader threads decodes the same bytes
    done = run("--run-dir", folder, "--resume", "--max-steps", 40, "--data.num-threads", 2)
    assert done.returncode == 0, done.stderr
    assert same(folder, untouched)
    assert [row["step"] for row in rows(folder)] == list(range(1, 41))
    assert [row["loss"] for row in rows(folder)] == [row["loss"] for row in rows(untouched)]


def test_several_processes_give_the_curve_of_one(tmp_path):
    """Same global batch, BatchNorm and VICReg over all rows: equal to rounding."""
    # SGD: Adam's first steps would blow rounding up to the size of the rate
    options = ["--max-steps", 8, "--optim.kind", "sgd", "--optim.lr", 0.05, "--optim.warmup", 0]
    options += ["--train.precision", "fp32"]
    curves, ends = [], []
    for processes in (0, 2, 3):
        folder = tmp_path / f"of{processes}"
        done = run("--run-dir", folder, *options, processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(folder)]  # said once
        curves.append(torch.tensor([[r[k] for k in ("loss", "recon", "ssl", "grad_norm")]
                                    for r in rows(folder)]))  # fmt: skip
        ends.append(load_file(folder / "model.safetensors"))
    assert curves[0].shape == (8, 4)
    for curve, end in zip(curves[1:], ends[1:], strict=True):
        torch.testing.assert_close(curve, curves[0], rtol=1e-4, atol=1e-5)
        for name, value in ends[0].items():
            torch.testing.assert_close(end[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_killed_rank_ends_the_job_and_it_resumes(tmp_path):
    folder = tmp_path / "run"
    whole = tmp_path / "whole"
    assert run("--run-dir", whole, "--max-steps", 30, processes=2).returncode == 0
    process = start("--run-dir", folder, "--max-steps", 30, processes=2)
    wait_for(folder, 5, process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGKILL)
    before = time.monotonic()
    out, _ = process.communicate(timeout=90)
    assert time.monotonic() - before < 60
    assert process.returncode != 0
    assert "SIGKILL" in out or "Signal 9" in out  # who ended it, in torchrun's words
    for pid in ranks:
        assert not Path(f"/proc/{pid}").exists()
    done = run("--run-dir", folder, "--resume", "--max-steps", 30, processes=2)
    assert done.returncode == 0, done.stderr
    assert same(folder, whole)


def test_all_ranks_stop_together_when_one_is_asked(tmp_path):
    folder = tmp_path / "run"
    process = start("--run-dir", folder, "--max-steps", 500, processes=2)
    wait_for(folder, 3, process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGUSR1)
    out, _ = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "SIGUSR1 came: saved after step" in out
    newest = (folder / "checkpoints" / "latest").read_text()
    assert int(newest.removeprefix("step_")) == rows(folder)[-1]["step"]


def test_torchrun_needs_a_folder_that_all_know(tmp_path):
    done = run("--max-steps", 1, processes=2)
    assert done.returncode != 0
    assert "--run-dir: expected one under torchrun" in done.stderr
