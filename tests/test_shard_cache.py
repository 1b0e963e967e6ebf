"""The folder of whole shards: bounded, for many processes, none of which can leave it broken."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from fastequi.data.sources import shard_cache
from fastequi.data.sources.listing import Archive
from fastequi.data.sources.shard_cache import ShardCache

SIZE = 1000
SPAWN = multiprocessing.get_context("spawn")  # a fork has DALI's pipelines, which may end it


def shard(i, size=SIZE):
    return f"http://host/{i}.tar", Archive(f"{i}.tar", size, 0, f"v{i}")


def content(i, size=SIZE):
    return bytes([i]) * size


def writes(i, size=SIZE):
    return lambda file: file.write(content(i, size))


def held(cache):
    return {path.name for path in cache.folder.glob("*.tar")}


def test_a_shard_is_written_once_and_found(tmp_path):
    cache = ShardCache(tmp_path, 10 * SIZE)
    assert cache.find(*shard(1)) is None
    assert cache.fetch(*shard(1), writes(1))
    assert cache.find(*shard(1)).read_bytes() == content(1)

    def refuse(file):
        raise AssertionError("it is here")

    assert cache.fetch(*shard(1), refuse)
    assert ShardCache(tmp_path, 10 * SIZE).fetch(*shard(1), refuse)
    url, archive = shard(1)
    assert cache.find(url, Archive(archive.name, SIZE, 0, "another version")) is None


def test_what_was_used_longest_ago_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "_USED_EVERY", 0.0)
    cache = ShardCache(tmp_path, 3 * SIZE + 10)
    for i in range(3):
        cache.fetch(*shard(i), writes(i))
        time.sleep(0.01)
    cache.find(*shard(0))
    time.sleep(0.01)
    with cache.find(*shard(1)).open("rb") as reading:
        time.sleep(0.01)
        cache.find(*shard(0))
        for i in (3, 4):
            time.sleep(0.01)
            assert cache.fetch(*shard(i), writes(i))
        assert cache.find(*shard(1)) is None
        assert reading.read() == content(1)  # who reads it has it to the end
    assert [i for i in range(5) if cache.find(*shard(i))] == [0, 3, 4]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.tar")) <= cache.capacity


def test_what_fails_leaves_nothing(tmp_path):
    cache = ShardCache(tmp_path, 10 * SIZE)

    def half(file):
        file.write(content(1, SIZE // 2))

    def fail(file):
        half(file)
        raise ConnectionError("reset")

    for fill, said in ((half, "500 bytes were written of 1000"), (fail, "reset")):
        with pytest.raises(OSError, match=said):
            cache.fetch(*shard(1), fill)
        assert list(tmp_path.iterdir()) == [tmp_path / "locks"]
    assert cache.fetch(*shard(1), writes(1))
    path = cache.find(*shard(1))
    os.truncate(path, 10)  # another hand
    assert cache.find(*shard(1)) is None
    assert cache.fetch(*shard(1), writes(1))
    assert cache.find(*shard(1)).read_bytes() == content(1)


def test_a_full_disk_is_said_once(tmp_path, caplog, monkeypatch):
    cache = ShardCache(tmp_path, 10 * SIZE)

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert cache.fetch(*shard(1), full) is False
    assert cache.fetch(*shard(1), writes(1)) is False  # not tried again for a while
    assert caplog.text.count("no space is left on the disk") == 1
    monkeypatch.setattr(shard_cache, "_PAUSE", 0.0)
    assert cache.fetch(*shard(1), writes(1))
    assert cache.fetch(*shard(2, 11 * SIZE), writes(2, 11 * SIZE)) is False
    assert len(caplog.records) == 1


def _fetch(folder, together):
    together.wait(60)
    cache = ShardCache(Path(folder), 100 * SIZE)
    for i in range(10):

        def fill(file, i=i):
            with (Path(folder) / "log").open("a") as log:
                log.write(f"{i}\n")
            time.sleep(0.01)
            file.write(content(i))

        while cache.fetch(*shard(i), fill) is None:
            time.sleep(0.005)


def test_processes_fetch_every_shard_once(tmp_path):
    together = SPAWN.Barrier(4)
    each = [SPAWN.Process(target=_fetch, args=(tmp_path, together)) for _ in range(4)]
    for process in each:
        process.start()
    for process in each:
        process.join(120)
        assert process.exitcode == 0
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(10))
    cache = ShardCache(tmp_path, 100 * SIZE)
    for i in range(10):
        assert cache.find(*shard(i)).read_bytes() == content(i)


def _hang(folder, ready):
    def fill(file):
        file.write(content(1, SIZE // 2))
        file.flush()
        ready.release()
        time.sleep(60)

    ShardCache(Path(folder), 2 * SIZE).fetch(*shard(1), fill)


def test_a_killed_process_leaves_neither_a_lock_nor_a_file(tmp_path):
    ready = SPAWN.Semaphore(0)
    process = SPAWN.Process(target=_hang, args=(tmp_path, ready))
    process.start()
    assert ready.acquire(timeout=120)
    cache = ShardCache(tmp_path, 2 * SIZE)
    assert cache.fetch(*shard(1), writes(1)) is None  # it is being fetched
    assert cache.fetch(*shard(2), writes(2))  # beside it is room for one
    assert cache.fetch(*shard(3), writes(3))
    assert held(cache) == {cache.find(*shard(3)).name}
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert len(list(tmp_path.glob("*.part"))) == 1
    assert cache.fetch(*shard(1), writes(1))
    assert cache.find(*shard(1)).read_bytes() == content(1)
    assert not list(tmp_path.glob("*.part"))
    assert cache.find(*shard(3)) is not None


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"data.cache_dir: .*file cannot be used"):
        ShardCache(tmp_path / "file", SIZE)
