"""Shards in an S3 bucket, by an S3 API on this machine (moto): pip install -e '.[s3-tests]'."""

import os

import pytest

pytest.importorskip("nvidia.dali")
pytest.importorskip("s3fs", reason="fastequi[s3-tests] is not installed")
pytest.importorskip("moto.server", reason="fastequi[s3-tests] is not installed")

import boto3
from moto.server import ThreadedMotoServer

from fastequi.data.sources import remote
from fastequi.data.sources.remote import Gone
from fastequi.data.sources.trouble import Unreadable
from tests.support.remote_shards import expect_faults_told, expect_the_same_batches, impatient
from tests.support.shards import shards

PLACE = "s3://photos/train"


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
    impatient(monkeypatch, tmp_path)
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    for name, data in shards().items():
        client.put_object(Bucket="photos", Key=f"train/{name}", Body=data)
    return client


@pytest.mark.parametrize("pattern", ["{000..004}.tar", "*.tar", "00[0-4].tar"])
def test_the_same_batches_as_of_local_shards(bucket, tmp_path, pattern):
    expect_the_same_batches(PLACE, pattern, tmp_path)


def test_a_shard_that_is_gone_or_another(bucket):
    with pytest.raises(Gone, match=r"s3://none/a\.tar: not found"):
        remote.state("s3://none/a.tar")

    def delete(name):
        bucket.delete_object(Bucket="photos", Key=f"train/{name}")

    def put(name, data):
        bucket.put_object(Bucket="photos", Key=f"train/{name}", Body=data)

    expect_faults_told(PLACE, delete, put)


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
