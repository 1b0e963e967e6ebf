"""Runs as jobs, by submitit's executor for one machine: real processes, a real pickup."""

import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("submitit")

from fastequi.cli.main import main
from fastequi.cli.pretraining import pretrain
from fastequi.runtime import slurm
from tests.support.runs import SGD, TINY, expect_close, rows

LOCAL = {"nodes": 1, "minutes": 5, "partition": "", "notice": 60, "cluster": "local"}


def words(folder, *more):
    return ["demo", *TINY, "--run-dir", str(folder), *map(str, more)]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))


@pytest.mark.slow
def test_two_tasks_are_two_processes_of_one_run(tmp_path, curves_of_one):
    folder = tmp_path / "run"
    job = slurm.submit(pretrain, words(folder, *SGD, "--max-steps", 8), folder, gpus=2, **LOCAL)
    assert job.results() == ["done", "done"]
    expect_close(folder, curves_of_one["sgd"])


@pytest.mark.slow
def test_a_job_that_is_asked_to_go_saves_and_the_next_start_goes_on(tmp_path):
    folder = tmp_path / "run"
    job = slurm.submit(pretrain, words(folder, "--max-steps", 3000), folder, gpus=0, **LOCAL)
    end = time.monotonic() + 90
    while len(rows(folder)) < 4:
        assert time.monotonic() < end, job.stderr()
        time.sleep(0.1)
    task = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _submits(entry, folder)
    ]
    os.kill(max(task), signal.SIGUSR2)
    (told,) = job.results()
    assert told.startswith("received SIGUSR2: saved after step")
    steps = rows(folder)[-1]["step"]
    job = slurm.submit(pretrain, words(folder, "--max-steps", steps + 2), folder, gpus=0, **LOCAL)
    assert job.results() == ["done"]
    assert rows(folder)[-1]["step"] == steps + 2
    assert (folder / "model.safetensors").is_file()


def _submits(entry, folder):
    try:
        command = (entry / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return "submitit" in command and str(folder) in command


def test_the_command_checks_the_runs_words_first(tmp_path, capsys):
    run = ["--data", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    for argv, message in (
        (["--nodes", "0", "--", "demo", *run], "--nodes: expected >= 1, got 0"),
        (["--", "demoo", *run], "did you mean 'demo'?"),
        (["--", "demo", "--train.epoch", "3", *run], "did you mean --train.epochs?"),
        (["--", "demo", "--data", str(tmp_path)], "expected --data and --run-dir after --"),
        (["--gpus", "1"], "expected -- and then the arguments of pretrain"),
    ):
        with pytest.raises(SystemExit):
            main(["submit", *argv])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
