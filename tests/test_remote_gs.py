"""Shards in a bucket of Google's, by an emulator on this machine: pip install -e '.[gs-tests]'."""

import socket
import urllib.request

import pytest

pytest.importorskip("nvidia.dali")
pytest.importorskip("gcsfs", reason="fastequi[gs-tests] is not installed")
pytest.importorskip("gcp_storage_emulator", reason="fastequi[gs-tests] is not installed")

from gcp_storage_emulator.server import create_server

from fastequi.data.sources import remote
from fastequi.data.sources.remote import Gone
from fastequi.data.sources.trouble import Unreadable
from tests.support.remote_shards import expect_faults_told, expect_the_same_batches, impatient
from tests.support.shards import shards

PLACE = "gs://photos/train"


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
    impatient(monkeypatch, tmp_path)
    made = Bucket(api)
    for name, data in shards().items():
        made.put(name, data)
    return made


@pytest.mark.parametrize("pattern", ["{000..004}.tar", "*.tar"])
def test_the_same_batches_as_of_local_shards(bucket, tmp_path, pattern):
    expect_the_same_batches(PLACE, pattern, tmp_path)


def test_a_shard_that_is_gone_or_another(bucket):
    with pytest.raises(Gone, match=r"gs://photos/train/009.tar: not found"):
        remote.state(f"{PLACE}/009.tar")
    expect_faults_told(PLACE, bucket.delete, bucket.put)


@pytest.mark.slow  # gcsfs itself tries six times, half a minute in all
def test_a_server_that_is_away_is_tried_again(bucket, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:1")
    monkeypatch.setattr(remote, "_filesystems", {})
    with pytest.raises(Unreadable, match=r"gs://photos/train/000.tar: (?s:.*), after 1 try in"):
        remote.state("gs://photos/train/000.tar")
