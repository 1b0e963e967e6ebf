"""Whole runs on shards behind URLs: the bits of a local run, killed or not; two processes."""

import os
import signal

import pytest

pytest.importorskip("nvidia.dali")
pytest.importorskip("aiohttp", reason="fastequi[remote] is not installed")

from fastequi.data.sources import remote_listing
from tests.support.objects import serving
from tests.support.runs import changed, rows, run, run_once, same, start, wait_for
from tests.support.shards import picture, tar

pytestmark = pytest.mark.slow

FILES = {
    f"{k:03}.tar": tar({f"{i:03}.jpg": picture(2 * i + 1, (70, 90)) for i in range(k, 30, 6)})
    for k in range(6)
}
WINDOW = "--data.shuffle", "window", "--data.window", 2, "--data.tolerate", 0.3
RANGE = "{000..005}.tar"


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """The folder of a run of 12 steps on the shards as files."""
    folder = tmp_path_factory.mktemp("shards")
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    data = "--data", folder / RANGE
    return run_once(tmp_path_factory, "on_shards", *TINY, *data, *WINDOW, "--max-steps", 12)


TINY = ["--train.epochs", 4]


@pytest.fixture
def web(tmp_path, monkeypatch):
    """The shards on a server; their index is not kept in the user's own folder."""
    monkeypatch.setattr(remote_listing, "cache_folder", lambda: tmp_path / "user")
    with serving(FILES) as objects:
        found = remote_listing.found(f"{objects.url}/{RANGE}")
        objects.options = [
            *TINY,
            "--data",
            f"{objects.url}/{RANGE}",
            "--index",
            found.file,
            *WINDOW,
        ]
        yield objects


def test_a_run_on_urls_gives_the_bits_of_a_local_run(tmp_path, web, local):
    done = run("--run-dir", tmp_path / "run", *web.options, "--max-steps", 12)
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "run", local)
    assert [r["loss"] for r in rows(tmp_path / "run")] == [r["loss"] for r in rows(local)]
    kept = (tmp_path / "run" / "images.jsonl").read_text()
    assert kept == (local / "images.jsonl").read_text()
    assert web.url not in kept


def test_a_killed_run_with_a_cache_goes_on_to_the_same_bits(tmp_path, web, local):
    cache = tmp_path / "cache"
    folder = tmp_path / "run"
    options = "--run-dir", folder, *web.options, "--data.cache-dir", cache, "--data.cache-gb", 0.1
    web.latency = 0.02
    process = start(*options, "--max-steps", 12)
    wait_for(folder, 5, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    # another size of the cache is no other run
    done = run(*options, "--resume", "--max-steps", 12, "--data.cache-gb", 0.2)
    assert done.returncode == 0, done.stderr
    assert same(folder, local)
    assert not list(cache.glob("*.part"))
    assert list(cache.glob("*.tar"))


def test_two_processes_leave_a_lost_shard_out_alike(tmp_path, web):
    """They give the curve of one process that does, and so they do where it vanishes meanwhile."""
    options = *web.options, "--max-steps", 12
    folder = tmp_path / "vanishes"
    web.latency = 0.02
    process = start("--run-dir", folder, *options, processes=2)
    wait_for(folder, 2, process)
    del web.files["003.tar"]
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert rows(folder)[-1]["quarantined"] in (0, 5)  # its images may all have come before
    ends = []
    for processes in (0, 2):
        folder = tmp_path / str(processes)
        done = run("--run-dir", folder, *options, processes=processes)
        assert done.returncode == 0, done.stderr
        assert rows(folder)[-1]["quarantined"] == 5
        ends.append(rows(folder)[-1]["loss"])
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)


def test_processes_with_different_images_are_refused(tmp_path):
    """Each machine lists by itself, and one may miss a shard."""
    for name in ("000.tar", "001.tar"):
        (tmp_path / name).write_bytes(FILES[name])
    fewer = f"sys.argv[sys.argv.index('--data') + 1] = {str(tmp_path / '000.tar')!r}"
    program = changed(tmp_path, f"if os.environ['RANK'] == '1': {fewer}")
    options = "--run-dir", tmp_path / "run", "--data", tmp_path / "{000..001}.tar"
    sizes = "--data.batch-size", 4, "--data.samples-per-decode", 1
    done = run(*options, *sizes, processes=2, program=program)
    assert done.returncode != 0
    assert "--data: expected the same images for all processes" in done.stderr
