"""What shards behind any service have to do: the same batches as local ones, and faults told."""

import pytest

from fastequi.data.config import DataConfig
from fastequi.data.sources import remote, remote_listing
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.remote import Patience
from fastequi.data.sources.shard_cache import ShardCache
from tests.support.batches import assert_same, batches
from tests.support.shards import shards

CFG = DataConfig(
    image_size=16, source_size=24, batch_size=4, num_threads=1, shuffle="window", window=2
)


def impatient(monkeypatch, folder):
    """Few and short retries, connections and a cache folder of the test's own."""
    monkeypatch.setattr(remote_listing, "cache_folder", lambda: folder / "user")
    monkeypatch.setattr(remote, "PATIENCE", Patience(2, 0.01, 0.02, 5.0, 5.0))
    monkeypatch.setattr(remote, "_filesystems", {})


def expect_the_same_batches(place, pattern, folder):
    """Of `place`, a URL whose objects are :func:`shards`, as of files; of a glob cached ones."""
    for name, data in shards().items():
        (folder / name).write_bytes(data)
    local = open_source(folder / "*.tar")
    source = open_source(f"{place}/{pattern}")
    assert source.names == local.names
    assert source.paths[0] == f"{place}/000.tar"
    if pattern == "*.tar":
        cached = open_source(f"{place}/{pattern}", cache=ShardCache(folder / "cache", 10**9))
        expected = batches(7, local, CFG)
        for found in (source, cached):
            assert_same(batches(7, found, CFG), expected)


def expect_faults_told(place, delete, put):
    """A shard that is not there, one that is gone later, and one that is another then."""
    with pytest.raises(FileNotFoundError, match=rf"{place}/005.tar does not exist"):
        open_source(f"{place}/{{000..005}}.tar")
    other = place.replace("train", "other")
    with pytest.raises(FileNotFoundError, match=rf"{other}/\*.tar names nothing"):
        open_source(f"{other}/*.tar")
    source = open_source(f"{place}/*.tar")
    delete("001.tar")
    with pytest.raises(OSError, match=rf"{place}/001.tar: not found"):
        source.encoded(7)
    put("002.tar", shards()["002.tar"][::-1])
    with pytest.raises(OSError, match="it changed since it was listed"):
        source.encoded(10)
    assert len(source.remote.lost) == 2
