"""One run at a time in a folder: real processes, one of them killed."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastequi.runtime import lock

HOLD = """
import select, sys
from pathlib import Path
from fastequi.runtime import lock
with lock.alone(Path(sys.argv[1])):
    print("in", flush=True)
    select.select([sys.stdin], [], [], 300)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that is in the folder until its input is closed, or the test ends."""
    begun = []

    def hold():
        root = str(Path(__file__).parent.parent)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": root},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        assert process.stdout.readline() == "in\n"
        return process

    yield hold
    for process in begun:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_another_process_is_named(tmp_path, holder):
    process = holder()
    told = rf"--run-dir: {re.escape(str(tmp_path))} is in use by process {process.pid} on \S+, "
    begun = time.monotonic()
    refused = pytest.raises(BlockingIOError, match=told + r".*waited 0\.5 s")
    with refused, lock.alone(tmp_path, patience=0.5):
        pytest.fail("two in one folder")
    assert time.monotonic() - begun >= 0.5


def test_it_is_waited_for(tmp_path, holder, caplog, monkeypatch):
    process, sleep = holder(), time.sleep

    def let_go(seconds):
        process.stdin.close()
        sleep(seconds)

    monkeypatch.setattr(lock.time, "sleep", let_go)
    with caplog.at_level(logging.WARNING), lock.alone(tmp_path, patience=60):
        # while it slept it was in: whoever holds it wrote its number into the file
        assert (tmp_path / lock.NAME).read_text().startswith(f"process {os.getpid()} on ")
    assert [f"is in use by process {process.pid}" in r.getMessage() for r in caplog.records] == [
        True
    ]


def test_it_goes_with_a_killed_process(tmp_path, holder):
    process = holder()
    with pytest.raises(BlockingIOError), lock.alone(tmp_path, patience=0):
        pytest.fail("two in one folder")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock.alone(tmp_path, patience=0):
        assert (tmp_path / lock.NAME).read_text().startswith(f"process {os.getpid()} on ")


def test_it_ends_with_the_block_however_that_ends(tmp_path):
    with pytest.raises(KeyError), lock.alone(tmp_path, patience=0):
        raise KeyError
    with lock.alone(tmp_path, patience=0):
        with pytest.raises(BlockingIOError), lock.alone(tmp_path, patience=0):
            pytest.fail("two in one folder")
        with lock.alone(tmp_path / "other", patience=0):
            pass


def test_a_file_system_without_locks_is_said_so(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with caplog.at_level(logging.WARNING), lock.alone(tmp_path):
        pass
    assert "cannot be locked" in caplog.text
