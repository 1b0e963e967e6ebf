"""Runs whose images cannot be read any more: they save what they have done, and go on later."""

import shutil

import pytest

from tests.support.runs import PHOTOS, changed, rows, run, run_once, same, start, wait_for

STEPS = ["--max-steps", 12, "--train.checkpoint-every", 0]

SLOW_FROM_5 = """
from fastequi import loop
plain, taken = loop.take_step, []
def take_step(*arguments):
    taken.append(1)
    if len(taken) > 5:
        time.sleep(0.5)
    return plain(*arguments)
loop.take_step = take_step
"""

NO_DESCRIPTORS_FROM_5 = """
import resource
from fastequi import loop
plain, taken = loop.take_step, []
def take_step(*arguments):
    taken.append(1)
    if len(taken) == 5 and os.environ["RANK"] == "1":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    return plain(*arguments)
loop.take_step = take_step
"""


def newest(folder):
    return int((folder / "checkpoints" / "latest").read_text().removeprefix("step_"))


def test_a_run_whose_images_are_gone_goes_on_from_its_last_step(tmp_path):
    """As when a network file system is not there for a while."""
    photos, gone = tmp_path / "photos", tmp_path / "gone"
    shutil.copytree(PHOTOS, photos)
    options = ["--data", photos, *STEPS]
    done = run("--run-dir", tmp_path / "whole", *options)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    process = start("--run-dir", folder, *options, program=changed(tmp_path, SLOW_FROM_5))
    wait_for(folder, 5, process)
    photos.rename(gone)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2, out
    assert "images cannot be decoded, more than" in out
    step = rows(folder)[-1]["step"]
    assert 5 <= step < 12
    assert f"saved after step {step}; --resume goes on from there" in out
    assert newest(folder) == step
    gone.rename(photos)
    done = run("--run-dir", folder, *options, "--resume")
    assert done.returncode == 0, done.stderr
    assert same(folder, tmp_path / "whole")
    assert [row["quarantined"] for row in rows(folder)] == [0] * 12
    losses = ([row["loss"] for row in rows(tmp_path / name)] for name in ("run", "whole"))
    assert next(losses) == next(losses)


@pytest.mark.slow
def test_all_processes_stop_and_save_where_one_cannot_read(tmp_path, tmp_path_factory):
    whole = run_once(tmp_path_factory, "read_by_two", *STEPS, processes=2)
    folder = tmp_path / "run"
    how = {"processes": 2, "program": changed(tmp_path, NO_DESCRIPTORS_FROM_5)}
    done = run("--run-dir", folder, *STEPS, **how)
    assert done.returncode != 0, done.stderr  # who ends first has the others ended
    assert "Too many open files" in done.stderr
    assert "another process cannot go on" in done.stderr
    step = rows(folder)[-1]["step"]
    assert f"saved after step {step}" in done.stderr
    assert newest(folder) == step >= 5
    done = run("--run-dir", folder, *STEPS, "--resume", processes=2)
    assert done.returncode == 0, done.stderr
    assert same(folder, whole)
