"""Whole shards in a cache, a window ahead of their use: faster, and never another bit."""

import shutil
import time
from dataclasses import replace

import pytest

pytest.importorskip("nvidia.dali")
pytest.importorskip("aiohttp", reason="fastequi[remote] is not installed")

from fastequi.data import read_ahead
from fastequi.data.config import DataConfig
from fastequi.data.loader import make_loader
from fastequi.data.sources import remote, remote_listing, remote_reader, shard_cache
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.remote import Patience
from fastequi.data.sources.shard_cache import ShardCache
from fastequi.paths import SE2
from tests.support.batches import assert_same
from tests.support.batches import batches as loaded
from tests.support.objects import serving
from tests.support.shards import shards

CFG = DataConfig(
    image_size=16, source_size=24, batch_size=4, num_threads=1, shuffle="window", window=2
)
SIZES = (6, 3, 7, 4, 4, 6, 5, 1)


@pytest.fixture(autouse=True)
def hurried(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_listing, "cache_folder", lambda: tmp_path / "user")
    monkeypatch.setattr(remote, "PATIENCE", Patience(4, 0.01, 0.02, 5.0, 2.0))
    monkeypatch.setattr(remote_reader, "_BUSY", 0.01)


@pytest.fixture
def local(tmp_path):
    (tmp_path / "shards").mkdir()
    for name, data in shards(SIZES).items():
        (tmp_path / "shards" / name).write_bytes(data)
    return open_source(tmp_path / "shards" / "{000..007}.tar")


@pytest.fixture
def web():
    with serving(shards(SIZES)) as objects:
        yield objects


def opened(web, cache):
    return open_source(f"{web.url}/{{000..007}}.tar", cache=cache)


def batches(source, n=6, cfg=CFG, **options):
    return loaded(n, source, cfg, **options)


def settle(cache, count, seconds=10):
    end = time.monotonic() + seconds
    while len(list(cache.folder.glob("*.tar"))) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_windows_through_a_cache_of_two_of_them(tmp_path):
    """Of an epoch little more than the first window's images are asked for one by one."""
    files = shards((18, 14, 24, 20, 16, 20, 12, 10))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    cache = ShardCache(tmp_path / "cache", sum(sorted(map(len, files.values()))[-4:]))
    sizes, got = [], []
    with serving(files) as web:
        source = opened(web, cache)
        web.latency = 0.002
        with make_loader(source, CFG, SE2(), seed=0, steps=40) as loader:
            for batch in loader:
                got.append(batch)
                sizes.append(sum(path.stat().st_size for path in cache.folder.glob("*.tar")))
                time.sleep(0.02)
    assert_same(got, batches(open_source(tmp_path / "{000..007}.tar"), 40))
    assert max(sizes) <= cache.capacity
    assert source.remote.requests < 40  # of 160 images


@pytest.mark.parametrize("shuffle", ["global", "window"])
def test_a_set_that_fits_is_fetched_once(local, web, tmp_path, shuffle):
    cfg = replace(CFG, shuffle=shuffle)
    cache = ShardCache(tmp_path / "cache", 10**9)
    source = opened(web, cache)
    assert_same(batches(source, 10, cfg), batches(local, 10, cfg))
    for start in range(len(source)):
        source.encoded(start)
    settle(cache, 8)
    end = time.monotonic() + 30
    while web.now:  # of what was asked for ahead
        assert time.monotonic() < end
        time.sleep(0.01)
    web.sent = 0
    before = source.remote.requests
    assert_same(batches(source, 10, cfg), batches(local, 10, cfg))
    assert (web.sent, source.remote.requests) == (0, before)
    again = opened(web, ShardCache(tmp_path / "cache", 10**9))  # the next run
    assert_same(batches(again, 9, cfg), batches(local, 9, cfg))
    assert again.remote.requests == 0
    shutil.rmtree(tmp_path / "cache")  # by someone who needs the disk
    (tmp_path / "cache" / "locks").mkdir(parents=True)
    assert_same(batches(again, 9, cfg), batches(local, 9, cfg))


def test_two_ranks_share_what_either_fetches(local, web, tmp_path):
    sources = [opened(web, ShardCache(tmp_path / "cache", 10**9)) for _ in range(2)]
    sent = web.sent
    whole = batches(local, 16)
    loaders = [
        make_loader(source, CFG, SE2(), seed=0, steps=16, rank=rank, world_size=2)
        for rank, source in enumerate(sources)
    ]
    for step, parts in enumerate(zip(*loaders, strict=True)):
        for rank, part in enumerate(parts):
            assert (part.u == whole[step].u[2 * rank : 2 * rank + 2]).all()
        time.sleep(0.02)
    for loader in loaders:
        loader.close()
    settle(ShardCache(tmp_path / "cache", 10**9), 8)
    ranges = sum(source.remote.requests for source in sources)
    images = sum(len(data) for data in web.files.values())
    assert web.sent - sent <= images + ranges * 4000  # whole shards once, and single images


def test_a_cache_of_less_than_two_windows_is_refused(web, tmp_path):
    needed = sum(sorted(map(len, web.files.values()))[-4:])
    source = opened(web, ShardCache(tmp_path / "cache", needed - 1))
    said = rf"data.cache_gb: expected at least .*, the {needed} bytes of the largest 4 shards"
    with pytest.raises(ValueError, match=said):
        make_loader(source, CFG, SE2(), seed=0)
    make_loader(source, replace(CFG, shuffle="global"), SE2(), seed=0).close()


def test_a_disk_without_room_changes_only_the_speed(local, web, tmp_path, monkeypatch, caplog):
    cache = ShardCache(tmp_path / "cache", 10**9)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_cache.os, "fdatasync", full)
    assert_same(batches(opened(web, cache), 10), batches(local, 10))
    assert caplog.text.count("no space is left on the disk") == 1
    assert not list((tmp_path / "cache").glob("*.tar*"))


def test_a_shard_that_changes_is_not_taken_from_the_cache(web, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10**9)
    source = opened(web, cache)
    web.files["002.tar"] = web.files["002.tar"][::-1]
    source.remote.want([f"{web.url}/002.tar", f"{web.url}/001.tar"])
    settle(cache, 1)
    end = time.monotonic() + 10
    while f"{web.url}/002.tar" not in source.remote.lost:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert len(list(cache.folder.glob("*.tar"))) == 1
    with pytest.raises(OSError, match="it changed since it was listed"):
        source.encoded(10)


def test_a_damaged_shard_of_the_cache_is_fetched_again(local, web, tmp_path, caplog):
    """A disk that fails is not the set's damage; an image that is damaged stays so."""
    cache = ShardCache(tmp_path / "cache", 10**9)
    source = opened(web, cache)
    expected = batches(local, 12)
    assert_same(batches(source, 12), expected)
    settle(cache, 8)
    for path in cache.folder.glob("*.tar"):
        data = bytearray(path.read_bytes())
        for start, size in source.spans.tolist():
            data[start + size // 3 : start + size] = bytes(size - size // 3)
        path.write_bytes(data[: path.stat().st_size])
    assert_same(batches(source, 12), expected)
    assert "is removed from data.cache_dir: an image in it is damaged" in caplog.text
    urls = [f"{web.url}/{name}" for name in shards(SIZES)]
    settle(cache, 1)
    source.remote.drop(urls)
    assert not source.remote.drop(urls)  # each once


def test_settings_name_the_cache(tmp_path):
    assert read_ahead.cache_of(DataConfig()) is None
    cache = read_ahead.cache_of(DataConfig(cache_dir=str(tmp_path / "a"), cache_gb=1.5))
    assert (cache.folder, cache.capacity) == (tmp_path / "a", 1_500_000_000)
    with pytest.raises(ValueError, match=r"data.cache_dir: s3://b/x is a URL"):
        read_ahead.cache_of(DataConfig(cache_dir="s3://b/x"))
