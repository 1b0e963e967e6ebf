"""Shards in a bucket of Google's, by an emulator on this machine: pip install -e '.[gs-tests]'."""

import socket
import urllib.request

import pytest

pytest.importorskip("nvidia.dali")
pytest.importorskip("gcsfs", reason="fastequi[gs-tests] is not installed")
pytest.importorskip("gcp_storage_emulator", reason="fastequi[gs-tests] is not installed")

from gcp_storage_emulator.server import create_server

from fastequi.data.config import DataConfig
from fastequi.data.sources import remote, remote_listing
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.remote import Gone, Patience, Unreadable
from fastequi.data.sources.shard_cache import ShardCache
from tests.support.batches import assert_same, batches
from tests.support.shards import shards

CFG = DataConfig(
    image_size=16, source_size=24, batch_size=4, num_threads=1, shuffle="window", window=2
)


@pytest.fixture(scope="module")
def api():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("localhost", port, in_memory=True, default_bucket="photos")
    server.start()
    yield f"http://localhost:{port}"
    server.stop()


class Bucket:
    def __init__(self, api):
        self.api = api

    def put(self, name, data):
        query = f"uploadType=media&name=train/{name}"
        url = f"{self.api}/upload/storage/v1/b/photos/o?{query}"
        head = {"Content-Type": "application/octet-stream"}
        urllib.request.urlopen(urllib.request.Request(url, data, head)).read()

    def delete(self, name):
        url = f"{self.api}/storage/v1/b/photos/o/train%2F{name}"
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE")).read()


@pytest.fixture
def bucket(api, monkeypatch, tmp_path):
    """A bucket of shards, where gcsfs is told to look for it as a user would."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", api)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    monkeypatch.setattr(remote_listing, "cache_folder", lambda: tmp_path / "user")
    monkeypatch.setattr(remote, "PATIENCE", Patience(2, 0.01, 0.02, 5.0, 5.0))
    monkeypatch.setattr(remote, "_filesystems", {})
    made = Bucket(api)
    for name, data in shards().items():
        made.put(name, data)
    return made


@pytest.mark.parametrize("pattern", ["{000..004}.tar", "*.tar"])
def test_the_same_batches_as_of_local_shards(bucket, tmp_path, pattern):
    for name, data in shards().items():
        (tmp_path / name).write_bytes(data)
    local = open_source(tmp_path / "*.tar")
    source = open_source(f"gs://photos/train/{pattern}")
    assert source.names == local.names
    assert source.paths[0] == "gs://photos/train/000.tar"
    if pattern == "*.tar":
        cached = open_source(
            f"gs://photos/train/{pattern}", cache=ShardCache(tmp_path / "cache", 10**9)
        )
        expected = batches(7, local, CFG)
        for found in (source, cached):
            assert_same(batches(7, found, CFG), expected)


def test_a_shard_that_is_gone_or_another(bucket):
    with pytest.raises(FileNotFoundError, match=r"gs://photos/train/005.tar does not exist"):
        open_source("gs://photos/train/{000..005}.tar")
    with pytest.raises(FileNotFoundError, match=r"gs://photos/other/\*.tar names nothing"):
        open_source("gs://photos/other/*.tar")
    with pytest.raises(Gone, match=r"gs://photos/train/009.tar: not found"):
        remote.state("gs://photos/train/009.tar")
    source = open_source("gs://photos/train/*.tar")
    bucket.delete("001.tar")
    with pytest.raises(OSError, match=r"gs://photos/train/001.tar: not found"):
        source.encoded(7)
    bucket.put("002.tar", shards()["002.tar"][::-1])
    with pytest.raises(OSError, match="it changed since it was listed"):
        source.encoded(10)
    assert len(source.remote.lost) == 2


@pytest.mark.slow  # gcsfs itself tries six times, half a minute in all
def test_a_server_that_is_away_is_tried_again(bucket, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:1")
    monkeypatch.setattr(remote, "_filesystems", {})
    with pytest.raises(Unreadable, match=r"gs://photos/train/000.tar: (?s:.*), after 1 try in"):
        remote.state("gs://photos/train/000.tar")
