"""Runs that are stopped: killed, asked to go, resumed; by themselves and under torchrun."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastequi.evaluate.encoders import load_encoder
from tests.support.runs import (
    ALONE,
    FSDP,
    MUON,
    PHOTOS,
    SGD,
    changed,
    expect_close,
    ranks_of,
    rows,
    run,
    run_once,
    same,
    start,
    wait_for,
)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The folder of a run of one process and 40 steps."""
    return run_once(tmp_path_factory, "uninterrupted", "--max-steps", 40)


_SLOW = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]  # test_interrupts stops runs by them
STOPS = [
    signal.SIGKILL,
    *(pytest.param(number, marks=pytest.mark.slow) for number in _SLOW),
]


SLOW_FROM_5 = """
from fastequi import loop
plain, taken = loop.take_step, []
def take_step(*arguments):
    taken.append(1)
    if len(taken) > 5:
        time.sleep(1)
    return plain(*arguments)
loop.take_step = take_step
"""


@pytest.mark.parametrize("number", STOPS)
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, uninterrupted, number):
    folder = tmp_path / "run"
    slow = changed(tmp_path, SLOW_FROM_5)
    process = start("--run-dir", folder, "--max-steps", 40, program=slow)
    wait_for(folder, 5, process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:  # asked: it saved the step it was in, and says so
        assert process.returncode == (130 if number == signal.SIGINT else 75), out
        assert f"received {signal.Signals(number).name}: saved after step" in out
        newest = (folder / "checkpoints" / "latest").read_text()
        assert int(newest.removeprefix("step_")) == rows(folder)[-1]["step"]
    assert not (folder / "model.safetensors").exists()
    # another number of loader threads decodes the same bytes
    done = run("--run-dir", folder, "--resume", "--max-steps", 40, "--data.num-threads", 2)
    assert done.returncode == 0, done.stderr
    assert same(folder, uninterrupted)
    assert [row["step"] for row in rows(folder)] == list(range(1, 41))
    assert [row["loss"] for row in rows(folder)] == [row["loss"] for row in rows(uninterrupted)]


@pytest.mark.slow
def test_a_second_run_in_the_folder_waits_for_the_first(tmp_path):
    """As when a scheduler starts a job again that still saves: it goes on from what was saved."""
    folder = tmp_path / "run"
    options = "--run-dir", folder, "--train.epochs", 500
    first = start(*options)
    wait_for(folder, 3, first)
    second = start(*options, "--resume", "--max-steps", 5)
    said = ""
    while "waiting" not in said:
        line = second.stdout.readline()
        assert line, said
        said += line
    assert f"in use by process {first.pid}" in said.replace("\n", " ")
    seen = rows(folder)[-1]["step"]
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 75, out
    saved = int(re.search(r"saved after step (\d+)", out)[1])
    assert saved >= seen
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 0, out
    done = run(*options, "--resume", "--max-steps", saved + 5)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(folder)] == list(range(1, saved + 6))


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        pytest.param(2, SGD, marks=pytest.mark.slow),
        pytest.param(3, SGD, marks=pytest.mark.slow),
        (2, FSDP),
        pytest.param(3, [*FSDP, "--model.checkpoint-activations"], marks=pytest.mark.slow),
        pytest.param(2, MUON, marks=pytest.mark.slow),
        # compilation takes a minute; test_train compiles in one process
        pytest.param(2, [*FSDP, "--train.compile"], marks=pytest.mark.slow),
        pytest.param(2, [*SGD, "--train.compile"], marks=pytest.mark.slow),
    ],
)
def test_several_processes_give_the_curve_of_one(tmp_path, curves_of_one, processes, options):
    """Same global batch, BatchNorm and VICReg over all rows: equal to rounding."""
    folder = tmp_path / "run"
    done = run("--run-dir", folder, *options, "--max-steps", 8, processes=processes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(folder)]  # said once
    kind = next((kind for kind in ("sgd", "muon") if kind in options), "adamw")
    expect_close(folder, curves_of_one[kind])


@pytest.mark.slow("options2-fp16")
@pytest.mark.parametrize(
    ("options", "precision"),
    [
        pytest.param(ALONE, "bf16", marks=pytest.mark.slow),
        pytest.param(FSDP, "bf16", marks=pytest.mark.slow),
        (FSDP, "fp16"),
    ],
)
def test_half_precision_follows_the_curve(tmp_path, curves_of_one, options, precision):
    """To its own rounding; float16 with the loss scaled, the same on both."""
    folder = tmp_path / "run"
    half = [*options[:-1], precision]
    done = run("--run-dir", folder, *half, "--max-steps", 8, processes=2)
    assert done.returncode == 0, done.stderr
    ours, exact = (
        torch.tensor([[row["loss"], row["recon"]] for row in rows(path)])
        for path in (folder, curves_of_one["adamw"])
    )
    torch.testing.assert_close(ours, exact, rtol=2e-2, atol=0)
    assert not torch.equal(ours, exact)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, curves_of_one):
    """In parts on three, whole on two, alone: the same samples, equal to rounding."""
    folder = tmp_path / "run"
    for steps, processes, options in ((2, 3, FSDP), (4, 2, FSDP), (6, 2, ALONE), (8, 0, ALONE)):
        again = ["--resume"] if steps > 2 else []
        stop = ["--max-steps", steps, *again, *options]
        done = run("--run-dir", folder, *stop, processes=processes)
        assert done.returncode == 0, done.stderr
        newest = folder / "checkpoints" / f"step_{steps:08d}"
        kinds = {path.suffix for path in newest.rglob("*") if path.is_file()}
        assert kinds == {".json", ".safetensors"}  # no pickle in parts either
        assert (newest / "model").is_dir() == (options is FSDP)
        assert load_encoder(str(newest), "cpu").names  # what evaluation reads
    expect_close(folder, curves_of_one["adamw"])


@pytest.mark.slow
@pytest.mark.parametrize("options", [SGD, FSDP])
def test_two_processes_go_on_to_the_same_bits(tmp_path, options):
    """On as many processes as before; with an average, and from the middle of an epoch."""
    ema = [*options, "--train.ema-momentum", 0.9]
    for name, stops in (("whole", (6,)), ("parts", (3, 6))):
        for stop in stops:
            again = ["--resume"] if stop != stops[0] else []
            where = ["--run-dir", tmp_path / name, "--max-steps", stop, *again]
            done = run(*where, *ema, processes=2)
            assert done.returncode == 0, done.stderr
    assert same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_flipped_bit_in_a_part_is_noticed(tmp_path):
    folder = tmp_path / "run"
    done = run("--run-dir", folder, *FSDP, "--max-steps", 4, processes=2)
    assert done.returncode == 0, done.stderr
    part = sorted((folder / "checkpoints" / "step_00000004" / "model").iterdir())[-1]
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    done = run("--run-dir", folder, *FSDP, "--max-steps", 5, "--resume", processes=2)
    assert done.returncode == 0, done.stderr
    assert "going back to step_00000002" in done.stderr


@pytest.mark.slow
def test_accumulated_batches_are_one_step_of_all(tmp_path):
    """no_sync on all but the last: two batches of 12 on two processes as on one."""
    ends = []
    for processes, options in ((0, ALONE), (2, ALONE), (2, FSDP)):
        folder = tmp_path / f"run{len(ends)}"
        stop = ["--max-steps", 3, "--train.accumulate", 2, *options]
        done = run("--run-dir", folder, *stop, processes=processes)
        assert done.returncode == 0, done.stderr
        ends.append(load_file(folder / "model.safetensors"))
    for end in ends[1:]:
        for name, value in ends[0].items():
            torch.testing.assert_close(end[name], value, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_it_resumes(tmp_path, uninterrupted_by_two):
    folder = tmp_path / "run"
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
    assert same(folder, uninterrupted_by_two)


@pytest.mark.slow  # as when a thread writes the checkpoint, below
def test_all_ranks_stop_together_when_one_is_asked(tmp_path):
    folder = tmp_path / "run"
    process = start("--run-dir", folder, "--max-steps", 500, processes=2)
    wait_for(folder, 3, process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGUSR1)
    out, _ = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "received SIGUSR1: saved after step" in out
    newest = (folder / "checkpoints" / "latest").read_text()
    assert int(newest.removeprefix("step_")) == rows(folder)[-1]["step"]


@pytest.mark.slow
def test_a_signal_to_torchrun_reaches_all_and_is_waited_for(tmp_path):
    """What the README's recipe for a scheduler relies on."""
    folder = tmp_path / "run"
    launcher = "--signals-to-handle", "SIGTERM,SIGUSR1", "--shutdown-timeout", "60"
    process = start("--run-dir", folder, "--max-steps", 500, processes=2, launcher=launcher)
    wait_for(folder, 3, process)
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=90)
    assert re.search(r"received SIG\w+: saved after step", out)
    newest = (folder / "checkpoints" / "latest").read_text()
    assert int(newest.removeprefix("step_")) == rows(folder)[-1]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("early", [False, True])
def test_without_torchrun_its_processes_leave_too(tmp_path, early):
    folder = tmp_path / "run"
    process = start("--run-dir", folder, "--max-steps", 5000, processes=2)
    if early:  # they have just begun to import
        while len(ranks := ranks_of(process)) < 2:
            time.sleep(0.005)
    else:
        wait_for(folder, 3, process)
        ranks = ranks_of(process)
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < end, "processes outlived torchrun"
        time.sleep(0.1)


def test_torchrun_needs_a_folder_that_all_know(tmp_path):
    done = run("--max-steps", 1, processes=2)
    assert done.returncode != 0
    assert "--run-dir: expected one under torchrun" in done.stderr


@pytest.mark.slow
def test_looks_at_steps_without_a_log_hold_no_process_up(tmp_path):
    """Only the first process looks; all of them come to where they meet."""
    folder = tmp_path / "run"
    looks = ["--train.knn-every", 3, "--train.knn-data", "digits", "--train.log-every", 5]
    done = run("--run-dir", folder, *looks, "--max-steps", 7, processes=2, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(folder)] == [0, 1, 3, 5, 6, 7]
    assert [row["step"] for row in rows(folder) if "knn_k20" in row] == [0, 3, 6, 7]


@pytest.mark.slow
def test_a_checkpoint_by_a_thread_is_waited_for_by_all(tmp_path):
    """The first process still writes when the others are done; torchrun would end it with them."""
    slow = """
from fastequi.runtime import checkpoint
plain = checkpoint.write
def write(*args):
    time.sleep(8)
    return plain(*args)
checkpoint.write = write
"""
    folder = tmp_path / "run"
    options = ["--run-dir", folder, "--train.async-save", "--train.checkpoint-every", 0]
    launcher = ["--shutdown-timeout", "2"]
    how = {"processes": 2, "launcher": launcher, "program": changed(tmp_path, slow)}
    process = start(*options, **how)
    wait_for(folder, 5, process)
    os.kill(ranks_of(process)[1], signal.SIGUSR1)
    out, _ = process.communicate(timeout=120)
    assert "saved after step" in out
    assert len(list((folder / "checkpoints").glob("step_*"))) == 1
    done = run(*options, "--resume", "--max-steps", rows(folder)[-1]["step"] + 1, processes=2)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("options", [pytest.param(ALONE, marks=pytest.mark.slow), FSDP])
def test_a_loss_that_is_not_finite_on_one_process_is_skipped_by_all(tmp_path, options):
    spoil = """
from fastequi import loop
plain, calls = loop.Loop._forward, []
def forward(self, batch):
    out = plain(self, batch)
    calls.append(batch)
    bad = os.environ["RANK"] == "1" and len(calls) == 3
    return {**out, "loss": out["loss"] * (float("nan") if bad else 1.0)}
loop.Loop._forward = forward
"""
    folder = tmp_path / "run"
    every = ["--train.checkpoint-every", 1, "--train.keep-checkpoints", 9, "--max-steps", 4]
    how = {"processes": 2, "program": changed(tmp_path, spoil)}
    done = run("--run-dir", folder, *options, *every, **how)
    assert done.returncode == 0, done.stderr
    assert [row["skipped"] for row in rows(folder)] == [0, 0, 1, 1]
    named = [line for line in done.stderr.splitlines() if "step 3 is skipped: its loss" in line]
    assert len(named) == 1  # by the process whose it is
    assert len(named[0].split("samples ")[1].split(", ")) == 6
    saved = [folder / "checkpoints" / f"step_{step:08d}" for step in (2, 3, 4)]
    for kind in ("model", "optimizer"):
        before, skipped, after = (tensors_of(step, kind) for step in saved)
        assert before.keys() == skipped.keys()
        same = [torch.equal(value, skipped[key]) for key, value in before.items()]
        assert all(same)
        assert not all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.slow
def test_an_overflow_on_one_process_lowers_the_scale_of_all(tmp_path):
    overflow = """
from fastequi import loop
plain, calls = loop.Loop._backward, []
def backward(self, loss):
    calls.append(loss)
    bad = os.environ["RANK"] == "1" and len(calls) in (2, 3)
    plain(self, loss * (float("inf") if bad else 1.0))
loop.Loop._backward = backward
"""
    folder = tmp_path / "run"
    fp16 = ["--train.precision", "fp16", "--run-dir", folder]
    how = {"processes": 2, "program": changed(tmp_path, overflow)}
    done = run(*fp16, "--max-steps", 4, **how)
    assert done.returncode == 0, done.stderr
    assert [row["loss_scale"] for row in rows(folder)] == [2.0**16, 2.0**15, 2.0**14, 2.0**14]
    assert [row["overflowed"] for row in rows(folder)] == [0, 1, 2, 2]
    assert rows(folder)[-1]["skipped"] == 0


@pytest.mark.slow
def test_an_average_of_parts_is_that_of_one_process(tmp_path):
    """Buffers lie whole beside the weights' parts."""
    ends = []
    for processes, options in ((0, ALONE), (2, FSDP)):
        folder = tmp_path / f"run{len(ends)}"
        ema = ["--train.ema-momentum", 0.9, "--max-steps", 3]
        done = run("--run-dir", folder, *options, *ema, processes=processes)
        assert done.returncode == 0, done.stderr
        ends.append(load_file(folder / "model.safetensors"))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=2e-4, msg=name)


def tensors_of(step, kind):
    """Of a checkpoint's file or parts, but for counters and generators."""
    files = [f for f in sorted(step.rglob("*.safetensors")) if kind in str(f.relative_to(step))]
    assert files
    return {
        (file.name, name): value
        for file in files
        for name, value in load_file(file).items()
        if not name.startswith("rng_state") and "num_batches_tracked" not in name
    }


def test_a_run_resumes_though_a_file_was_lost(tmp_path, uninterrupted):
    photos = tmp_path / "photos"
    shutil.copytree(PHOTOS, photos)
    folder = tmp_path / "run"
    data = ["--data", photos, "--run-dir", folder, "--data.tolerate", 0.2]
    assert run(*data, "--max-steps", 2).returncode == 0
    sorted(photos.glob("*.jpg"))[0].unlink()
    done = run(*data, "--resume", "--max-steps", 6)
    assert done.returncode == 0, done.stderr
    assert "images of the run that are gone, and will be replaced: " in done.stderr
    assert rows(folder)[-1]["quarantined"] == 1
    shown, lost = (rows(path) for path in (uninterrupted, folder))
    assert len(lost) == 6
    assert shown[1]["loss"] == lost[1]["loss"]


@pytest.mark.slow  # 2,000 steps
def test_memory_does_not_grow(tmp_path):
    """Resident memory over 2,000 steps with 40 checkpoints: the second half's like the first's."""
    folder = tmp_path / "run"
    often = ["--train.checkpoint-every", 50, "--train.log-every", 20, "--train.epochs", 100]
    process = start("--run-dir", folder, *often, "--max-steps", 2000)
    found = {}
    while process.poll() is None:
        pages = Path(f"/proc/{process.pid}/statm").read_text().split()
        step = rows(folder)[-1]["step"] if rows(folder) else 0
        found[step] = int(pages[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if len(pages) > 1 else 0
        time.sleep(0.5)
    assert process.returncode == 0, process.stdout.read()
    early, late = (
        max(rss for step, rss in found.items() if first <= step < last)
        for first, last in ((200, 1000), (1000, 2000))
    )
    print(f"MiB up to step 1,000: {early:.1f}, beyond: {late:.1f}")
    assert late < early + 10
