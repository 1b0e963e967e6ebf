"""Runs whose images cannot be read any more: they save what they have done, and go on later."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.support.runs import FSDP, PHOTOS, changed, rows, run, run_once, same

STEPS = ["--max-steps", 12, "--train.checkpoint-every", 0]
_TIMES = {"seconds", "images_per_s", "data_wait"}

AFTER_6 = """
import resource, signal
from fastequi import loop
plain, taken = loop.take_step, []
def take_step(*arguments):
    taken.append(1)
    if len(taken) == 6:
        lose()
    return plain(*arguments)
loop.take_step = take_step
"""
OF_RANK = """
def lose():
    if os.environ.get("RANK", "0") in {ranks}:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
"""


def program(folder, lose):
    """The command, whose images are lost in its sixth step."""
    return changed(folder, AFTER_6 + lose)


def newest(folder):
    file = folder / "checkpoints" / "latest"
    return int(file.read_text().removeprefix("step_")) if file.exists() else None


def untimed(folder):
    return [{k: v for k, v in row.items() if k not in _TIMES} for row in rows(folder)]


@pytest.mark.parametrize(
    "signalled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "signalled"]
)
def test_a_run_whose_images_are_gone_goes_on_from_its_last_step(tmp_path, signalled):
    """As when a network file system is not there for a while; a probe is due in that step."""
    photos, gone = tmp_path / "photos", tmp_path / "gone"
    shutil.copytree(PHOTOS, photos)
    probed = ["--train.knn-every", 3, "--train.knn-data", "digits"]
    options = ["--data", photos, *STEPS, *probed]
    done = run("--run-dir", tmp_path / "whole", *options)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    lose = f"def lose():\n    os.rename({str(photos)!r}, {str(gone)!r})\n"
    if signalled:  # while it looks for what can be read
        lose += """
from fastequi.data.loader import Loader
looks = Loader._quarantine
def look(self, error):
    os.kill(os.getpid(), signal.SIGTERM)
    return looks(self, error)
Loader._quarantine = look
"""
    done = run("--run-dir", folder, *options, program=program(tmp_path, lose))
    step = newest(folder)
    assert 6 <= step < 12
    assert f"saved after step {step}; --resume goes on from there" in done.stderr
    if signalled:
        assert done.returncode == 75
        assert f"received SIGTERM: saved after step {step}" in done.stderr
    else:
        assert done.returncode == 2
        assert "images cannot be decoded, more than" in done.stderr
    gone.rename(photos)
    done = run("--run-dir", folder, *options, "--resume")
    assert done.returncode == 0, done.stderr
    assert same(folder, tmp_path / "whole")
    assert untimed(folder) == untimed(tmp_path / "whole")
    assert any("knn_k20" in row for row in rows(folder))


@pytest.mark.slow
def test_all_processes_stop_and_save_where_one_cannot_read(tmp_path, tmp_path_factory):
    whole = run_once(tmp_path_factory, "read_by_two", *STEPS, processes=2)
    folder = tmp_path / "run"
    how = {"processes": 2, "program": program(tmp_path, OF_RANK.format(ranks="'1'"))}
    done = run("--run-dir", folder, *STEPS, **how)
    assert done.returncode != 0, done.stderr  # who ends first has the others ended
    assert "Too many open files" in done.stderr
    assert "another process cannot go on" in done.stderr
    step = newest(folder)
    assert step >= 6
    assert f"saved after step {step}" in done.stderr
    done = run("--run-dir", folder, *STEPS, "--resume", processes=2)
    assert done.returncode == 0, done.stderr
    assert same(folder, whole)


@pytest.mark.slow
def test_damage_that_is_too_much_for_all_together_is_saved_before(tmp_path):
    """Each of two processes finds less than the run tolerates."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(40):
        values = np.random.default_rng(i).integers(0, 255, (48, 48, 3), np.uint8)
        Image.fromarray(values).save(photos / f"{i:02}.png")
    lose = f"""
def lose():
    for i in range(0, 40, 8):
        if os.environ["RANK"] == "0":
            os.remove({str(photos)!r} + f"/{{i:02}}.png")
"""
    options = ["--data", photos, "--max-steps", 60, *STEPS[2:], "--train.log-every", 20]
    how = {"processes": 2, "program": program(tmp_path, lose)}
    done = run("--run-dir", tmp_path / "run", *options, **how)
    assert done.returncode != 0, done.stderr
    assert "5 of 40 images cannot be decoded, more than 0.1" in done.stderr
    step = newest(tmp_path / "run")
    assert step in (20, 40)
    assert f"saved after step {step}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "ranks", "options"), [(0, "'0'", []), (2, "'0'", []), (2, "'1'", FSDP)]
)
def test_a_fault_is_named_where_saving_fails_too(tmp_path, processes, ranks, options):
    how = {"processes": processes, "program": program(tmp_path, OF_RANK.format(ranks=ranks))}
    done = run("--run-dir", tmp_path / "run", *STEPS, *options, **how)
    assert done.returncode != 0
    assert "could not be saved" in done.stderr
    assert "Too many open files: '/" in done.stderr  # an image
    assert "Traceback" not in done.stderr
    assert newest(tmp_path / "run") is None
