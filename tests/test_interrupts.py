"""Ctrl-C, lost terminals and closed streams: real signals to commands in processes of their own."""

import fcntl
import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.runs import (
    PHOTOS,
    changed,
    command,
    environment,
    listening,
    ranks_of,
    rows,
    run,
    same,
    wait_for,
)

pytest.importorskip("nvidia.dali")

SLOW_WRITE = """
from fastequi.runtime import checkpoint
plain = checkpoint.write
def write(folder, taken, keep):
    if taken.step > 4:
        print("writing", file=sys.stderr, flush=True)
        time.sleep(60)
    return plain(folder, taken, keep)
checkpoint.write = write
"""


def start(words, **how):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **how}
    return subprocess.Popen(
        words, env=environment(), start_new_session=True, preexec_fn=listening, **options
    )


def heard(process, text):
    """Reads what a process says until it says so."""
    said = ""
    while not re.search(text, said):
        line = process.stdout.readline()
        assert line, said
        said += line
    return said


def ended(process):
    """What it said until its end, which came at once and was that of Ctrl-C."""
    before = time.monotonic()
    said, _ = process.communicate(timeout=30)
    assert time.monotonic() - before < 20
    assert process.returncode == 130
    return said


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "later",  # the second waits for a thread; test_survival stops a run that does
    ["", pytest.param("--train.async-save", marks=pytest.mark.slow)],
)
def test_a_second_press_stops_at_once_and_harms_nothing(tmp_path, later):
    """While the save that the first one asked for is being written, by this thread or another."""
    folder = tmp_path / "run"
    options = ["--run-dir", folder, "--train.checkpoint-every", 4, *filter(None, [later])]
    stop = ["--max-steps", 5] if later else []  # the last save is waited for
    process = start(command(*options, *stop, program=changed(tmp_path, SLOW_WRITE)))
    if not later:
        wait_for(folder, 5, process)
        os.killpg(process.pid, signal.SIGINT)
    said = heard(process, "writing")
    for _ in range(2 if later else 1):
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
    said += ended(process)
    assert said.count("saving after this step; Ctrl-C again stops at once") == 1
    assert said.splitlines()[-1] == "fastequi: stopped at once; --resume continues after step 4"
    assert "Traceback" not in said
    assert (folder / "checkpoints" / "latest").read_text() == "step_00000004"
    done = run("--run-dir", folder, "--resume", "--max-steps", 6)
    assert done.returncode == 0, done.stderr


def test_before_the_first_step_it_says_that_nothing_is_saved(tmp_path):
    """Here it waits inside the library for a second process, where Python looks at no signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = command("--run-dir", tmp_path / "run")
    rank = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    rank |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    process = start(["env", *(f"{name}={value}" for name, value in rank.items()), *words])
    end = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    said = ended(process)
    told = f"fastequi: stopped; nothing is saved, and there is no run in {tmp_path / 'run'}"
    assert said.splitlines()[-1] == told


@pytest.mark.slow
def test_under_torchrun_one_press_saves_however_often_it_comes(tmp_path):
    """A terminal tells torchrun, which tells its processes; some tell these as well."""
    folder = tmp_path / "run"
    words = command("--run-dir", folder, "--train.epochs", 50, processes=2)
    process = start(words)
    wait_for(folder, 3, process)
    ranks = ranks_of(process)
    os.kill(process.pid, signal.SIGINT)
    for rank in ranks:
        os.kill(rank, signal.SIGINT)
    said, _ = process.communicate(timeout=90)
    assert "received SIGINT: saved after step" in said
    assert said.count("saving after this step") == 1
    newest = (folder / "checkpoints" / "latest").read_text()
    assert int(newest.removeprefix("step_")) == rows(folder)[-1]["step"]
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.slow
def test_under_torchrun_a_second_press_stops_all_at_once(tmp_path):
    folder = tmp_path / "run"
    how = {"processes": 2, "program": changed(tmp_path, SLOW_WRITE)}
    process = start(command("--run-dir", folder, "--train.checkpoint-every", 4, **how))
    wait_for(folder, 5, process)
    ranks = ranks_of(process)
    os.killpg(process.pid, signal.SIGINT)
    said = heard(process, "writing")
    time.sleep(0.6)
    os.killpg(process.pid, signal.SIGINT)
    before = time.monotonic()
    more, _ = process.communicate(timeout=60)
    assert time.monotonic() - before < 10
    assert "stopped at once; --resume continues after step 4" in said + more
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert (folder / "checkpoints" / "latest").read_text() == "step_00000004"


@pytest.mark.slow
def test_a_terminal_that_goes_away_does_not_take_the_run_along(tmp_path):
    """Writing to it fails from then on; the kernel sends SIGHUP, and the run saves."""
    folder = tmp_path / "run"
    ours, theirs = pty.openpty()

    def owned():
        listening()
        fcntl.ioctl(theirs, 0x540E, 0)  # TIOCSCTTY: the controlling terminal

    process = subprocess.Popen(
        command("--run-dir", folder, "--train.epochs", 500, "--train.checkpoint-every", 0),
        env={**environment(), "TERM": "xterm"},
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        start_new_session=True,
        preexec_fn=owned,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    try:
        end = time.monotonic() + 60
        while len(rows(folder)) < 3:
            assert time.monotonic() < end
            time.sleep(0.05)
            with suppress(BlockingIOError):
                os.read(ours, 1 << 16)
        os.close(ours)
        assert process.wait(timeout=60) == 75
    finally:
        process.kill()
    newest = (folder / "checkpoints" / "latest").read_text()
    assert int(newest.removeprefix("step_")) == rows(folder)[-1]["step"]


@pytest.mark.slow
def test_a_run_in_the_background_of_a_script_is_stopped_by_sigterm(tmp_path):
    """bash lets it ignore SIGINT; what is saved then is the step it was in."""
    folder = tmp_path / "run"
    options = ["--run-dir", folder, "--train.epochs", 500, "--train.checkpoint-every", 0]
    run = shlex.join(command(*options))
    process = subprocess.Popen(
        ["bash", "-c", f"{run} & echo $!; wait $!"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    wait_for(folder, 2, process)
    os.kill(pid, signal.SIGINT)
    steps = len(rows(folder))
    wait_for(folder, steps + 2, process)
    os.kill(pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    newest = (folder / "checkpoints" / "latest").read_text()
    assert int(newest.removeprefix("step_")) == rows(folder)[-1]["step"]


@pytest.mark.slow
def test_what_a_shell_lets_be_ignored_stays_ignored(tmp_path):
    """nohup, and jobs in the background of a script."""
    folder = tmp_path / "run"

    def deaf():
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    process = subprocess.Popen(
        command("--run-dir", folder, "--max-steps", 12),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=deaf,
    )
    wait_for(folder, 2, process)
    for number in (signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert rows(folder)[-1]["step"] == 12


@pytest.mark.slow(every=2)
@pytest.mark.parametrize(
    ("words", "seconds"),  # while it imports, and later
    [
        (["data", "scan", "photos"], 0.4),
        (["data", "scan", "photos"], 2.2),
        pytest.param(["demo"], 0.4, marks=pytest.mark.slow),  # imports the same
        (["demo"], 2.2),
        pytest.param(["eval", "knn", "resnet"], 0.4, marks=pytest.mark.slow),  # imports the same
        pytest.param(["eval", "knn", "resnet"], 2.2, marks=pytest.mark.slow),  # refused by then
    ],
)
def test_other_commands_end_with_one_line(tmp_path, words, seconds):
    photos = sorted(Path(PHOTOS).glob("*.jpg"))
    (tmp_path / "photos").mkdir()
    for number in range(3000):  # so many that no machine has scanned them by then
        photo = photos[number % len(photos)]
        (tmp_path / "photos" / f"{number}{photo.suffix}").symlink_to(photo)
    process = start([sys.executable, "-m", "fastequi.cli", *words], cwd=tmp_path)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=20)
    assert process.returncode in (130, -signal.SIGINT, 2), said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "closed",  # the second closes the first's stream too
    [pytest.param("2>&-", marks=pytest.mark.slow), "<&- >&- 2>&-"],
)
def test_a_run_without_streams_ends_well(tmp_path, closed):
    """As a daemon's or cron's; the next file to be opened does not become standard error."""
    folder = tmp_path / "run"
    words = [*command("--run-dir", folder, "--max-steps", 3)]
    shell = ["bash", "-c", f'"$@" {closed}', "bash", *words]
    done = subprocess.run(shell, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == (f"{folder}\n" if closed == "2>&-" else "")
    assert (folder / "model.safetensors").is_file()
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]
    for file in (*folder.glob("*.json"), *folder.rglob("step_*/*.json")):
        json.loads(file.read_text())


@pytest.mark.slow
def test_a_reader_that_leaves_in_the_middle_does_not_end_the_run(tmp_path):
    folder = tmp_path / "run"
    words = command("--run-dir", folder, "--max-steps", 30)
    shell = ["bash", "-c", 'set -o pipefail; "$@" 2>&1 | head -1', "bash", *words]
    done = subprocess.run(shell, env=environment(), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(folder)[-1]["step"] == 30
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_commands_that_only_print_end_well(closed):
    shell = ["bash", "-c", f'"$@" {closed}', "bash", sys.executable, "-m", "fastequi.cli", "--help"]
    done = subprocess.run(shell, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("usage" in done.stdout) == (closed != ">&-")


def test_a_full_disk_is_no_reader_that_left(tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastequi.cli", "--help"],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert "No space left" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",  # the clock is the same with FSDP
    [[], pytest.param(["--train.parallel", "fsdp"], marks=pytest.mark.slow)],
)
def test_checkpoints_by_time_are_the_first_ones_clocks(tmp_path, uninterrupted_by_two, options):
    """The other's clock runs wild; both save at the same steps, and the run keeps its bits."""
    wild = """
from fastequi.runtime import pace
plain = pace.Timer.due
pace.Timer.due = lambda self: os.environ["RANK"] == "1" or plain(self)
"""
    often = ["--train.checkpoint-minutes", 0.01, "--train.keep-checkpoints", 99]
    shared = ["--train.checkpoint-every", 0, "--max-steps", 30, *options]
    how = {"processes": 2, "program": changed(tmp_path, wild)}
    done = run("--run-dir", tmp_path / "timed", *often, *shared, **how)
    assert done.returncode == 0, done.stderr
    plain = uninterrupted_by_two
    if options:
        plain = tmp_path / "plain"
        done = run("--run-dir", plain, *shared, processes=2)
        assert done.returncode == 0, done.stderr
        assert checkpoints(plain) == ["latest", "step_00000030"]
    assert same(tmp_path / "timed", plain)
    assert 2 < len(checkpoints(tmp_path / "timed")) < 27
