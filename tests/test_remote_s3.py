"""Shards in an S3 bucket, by an S3 API on this machine (moto): pip install -e '.[s3-tests]'."""

import os

import pytest

pytest.importorskip("nvidia.dali")
pytest.importorskip("s3fs", reason="fastequi[s3-tests] is not installed")
pytest.importorskip("moto.server", reason="fastequi[s3-tests] is not installed")

import boto3
from moto.server import ThreadedMotoServer

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
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def bucket(api, monkeypatch, tmp_path):
    """A bucket of shards; credentials and endpoint come as a user would give them."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", api)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(remote_listing, "cache_folder", lambda: tmp_path / "user")
    monkeypatch.setattr(remote, "PATIENCE", Patience(2, 0.01, 0.02, 5.0, 5.0))
    monkeypatch.setattr(remote, "_filesystems", {})
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    for name, data in shards().items():
        client.put_object(Bucket="photos", Key=f"train/{name}", Body=data)
    return client


@pytest.mark.parametrize("pattern", ["{000..004}.tar", "*.tar", "00[0-4].tar"])
def test_the_same_batches_as_of_local_shards(bucket, tmp_path, pattern):
    for name, data in shards().items():
        (tmp_path / name).write_bytes(data)
    local = open_source(tmp_path / "*.tar")
    source = open_source(f"s3://photos/train/{pattern}")
    assert source.names == local.names
    assert source.paths[0] == "s3://photos/train/000.tar"
    if pattern == "*.tar":
        cached = open_source(
            f"s3://photos/train/{pattern}", cache=ShardCache(tmp_path / "cache", 10**9)
        )
        expected = batches(7, local, CFG)
        for found in (source, cached):
            assert_same(batches(7, found, CFG), expected)


def test_a_shard_that_is_gone_or_another(bucket):
    with pytest.raises(FileNotFoundError, match=r"s3://photos/train/005.tar does not exist"):
        open_source("s3://photos/train/{000..005}.tar")
    with pytest.raises(FileNotFoundError, match=r"s3://photos/other/\*.tar names nothing"):
        open_source("s3://photos/other/*.tar")
    with pytest.raises(Gone, match=r"s3://none/a\.tar: not found"):
        remote.state("s3://none/a.tar")
    source = open_source("s3://photos/train/*.tar")
    bucket.delete_object(Bucket="photos", Key="train/001.tar")
    with pytest.raises(OSError, match=r"s3://photos/train/001.tar: not found"):
        source.encoded(7)
    data = shards()["002.tar"]
    bucket.put_object(Bucket="photos", Key="train/002.tar", Body=data[::-1])
    with pytest.raises(OSError, match="it changed since it was listed"):
        source.encoded(10)
    assert len(source.remote.lost) == 2


def test_a_server_that_is_away_is_tried_again_and_no_secret_is_told(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Unreadable, match="after 3 tries") as error:
        remote.state("s3://photos/train/000.tar")
    assert "hidden" not in str(error.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setattr(remote, "_filesystems", {})
    with pytest.raises(Unreadable, match=r"train/000.tar: .*[Cc]redentials") as error:
        remote.state("s3://photos/train/000.tar")
    assert "tries" not in str(error.value)
