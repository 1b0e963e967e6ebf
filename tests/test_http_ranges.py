"""Answers of web servers that are not what was asked for, and servers that never answer."""

import os
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("nvidia.dali")
pytest.importorskip("aiohttp", reason="fastequi[remote] is not installed")

from fastequi.cli import commands
from fastequi.data.sources import remote, remote_listing
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.remote import Patience
from fastequi.data.sources.trouble import Unreadable
from tests.support.objects import serving
from tests.support.shards import picture, shards, tar

DATA = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def hurried(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_listing, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(remote, "PATIENCE", Patience(2, 0.01, 0.02, 5.0, 2.0))
    monkeypatch.setattr(remote, "GREETING", Patience(1, 0.01, 0.02, 5.0, 2.0))


@pytest.fixture
def web():
    with serving({"a.tar": DATA}) as objects:
        yield objects


def test_the_bytes_that_were_asked_for(web):
    url = f"{web.url}/a.tar"
    for first, count in ((0, 1), (5, 300), (len(DATA) - 7, 7), (0, len(DATA))):
        assert remote.read(url, first, count) == DATA[first : first + count]
    version = remote.state(url).etag
    assert remote.read(url, 3, 4, version=version) == DATA[3:7]


def test_another_version_is_never_returned(web):
    url = f"{web.url}/a.tar"
    version = remote.state(url).etag
    web.files["a.tar"] = DATA[::-1]
    with pytest.raises(Unreadable, match=rf"a.tar: .* its version is .*, {version} was listed"):
        remote.read(url, 3, 4, version=version)


def test_another_range_is_refused(web):
    web.shifted = 100
    with pytest.raises(Unreadable, match=r"the range 'bytes 105-.*' came where byte 5 was asked"):
        remote.read(f"{web.url}/a.tar", 5, 10)


def test_a_server_without_ranges_sends_no_body(web):
    """Whole objects are let through only where they are what was asked for."""
    web.without_ranges = True
    url = f"{web.url}/a.tar"
    assert remote.read(url, 0, len(DATA)) == DATA
    for first, count in ((0, 10), (10, len(DATA))):
        with pytest.raises(Unreadable, match=rf"{len(DATA)} bytes came where {count} were asked"):
            remote.read(url, first, count)


def test_where_nothing_answers_is_said_soon(monkeypatch, capsys):
    monkeypatch.setattr(remote, "PATIENCE", Patience(50, 1.0, 9.0, 600.0, 30.0))
    with socket.socket() as taken:  # a port that is bound and does not listen
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/{{000..004}}.tar"
        before = time.monotonic()
        for call in (lambda: open_source(url), lambda: commands.data(["scan", url])):
            with pytest.raises(Unreadable, match="nothing answers there; is the URL right"):
                call()
        assert time.monotonic() - before < 20


_ENDS = """
import sys, time
from fastequi.data.sources import remote_listing
from fastequi.data.sources.remote_reader import RemoteShards
from fastequi.data.sources import remote
found = remote_listing.found(sys.argv[1])
reader = RemoteShards(found.root, found.known.archives)
rows = found.known.columns
places = [
    (f"{found.root}/{found.known.archives[rows.of[i]].name}", tuple(rows.spans[i].tolist()))
    for i in range(len(found.known.rows))
]
reader.read(*places[0])
print("ready", flush=True)
sys.stdin.readline()
reader.ahead(places[1:])
print("asked", flush=True)
"""


@pytest.mark.slow
def test_a_run_that_ends_does_not_wait_for_what_it_asked_for_ahead(tmp_path):
    with serving(shards()) as web:
        command = [sys.executable, "-c", _ENDS, f"{web.url}/{{000..004}}.tar"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "ready\n"
            web.faults[""] = ["hang"] * 1000
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "asked\n"
            assert process.wait(timeout=15) == 0  # a hanging request alone takes 30


def test_all_shards_that_were_compared_are_gone(web):
    web.files.update(shards())
    url = f"{web.url}/{{000..004}}.tar"
    open_source(url)
    for name in shards():
        del web.files[name]
    with pytest.raises(FileNotFoundError, match=r"none of the 5 that were compared can be read"):
        open_source(url, tolerate=1.0)


def test_an_index_that_was_made_on_the_way_is_made_again(web, caplog):
    web.files["a.tar"] = tar({"1.jpg": picture(1), "2.png": picture(2)})
    url = f"{web.url}/a.tar"
    names = list(open_source(url).names)
    place = remote_listing.place_of(url)

    def cut():
        start = place.read_bytes()[:100]
        place.unlink()  # another file: the one of before is mapped
        place.write_bytes(start)

    cut()
    assert list(open_source(url).names) == names
    assert "the shards are listed again" in caplog.text
    cut()
    with pytest.raises(ValueError, match=r"index: .*a.tar.* cannot be used .it is truncated"):
        open_source(url, index=place)
