"""Faults of the machine and of networks make no image a damaged one: they pass, or end the work."""

import errno
import io
import os
import re
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fastequi.cli import main as cli
from fastequi.data import scan
from fastequi.data.config import DataConfig
from fastequi.data.loader import make_loader
from fastequi.data.sources import encoded, pages, trouble
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.measured import Counts
from fastequi.data.sources.parts import FilePart
from fastequi.data.sources.ranged_file import RangedFile
from fastequi.data.sources.shards import members
from fastequi.data.sources.trouble import Unreadable, is_trouble, patiently
from fastequi.paths import SE2
from tests.support import science

COUNT = 6


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(trouble, "_WAITS", (0.001,) * 3)


def written(folder, form="png"):
    for i in range(COUNT):
        values = science.values(3, "uint8", i, (40, 40))
        if form == "npz":
            (folder / f"{i}.npz").write_bytes(science.npz(values))
        else:
            Image.fromarray(values).save(folder / f"{i}.{form}")
    return folder


def failing(monkeypatch, error, times, end=".png"):
    """Opening files that end so fails, so many times; returns how often it did."""
    plain, failed = os.open, []

    def opened(path, *arguments, **options):
        if str(path).endswith(end) and len(failed) < times:
            failed.append(path)
            raise error
        return plain(path, *arguments, **options)

    monkeypatch.setattr(os, "open", opened)
    return failed


def fault(number):
    return OSError(number, os.strerror(number))


def run(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "scan", *map(str, words)])
    return ended.value.code


@pytest.mark.parametrize(
    "error", [fault(errno.EMFILE), fault(errno.ENOMEM), fault(errno.ESTALE), MemoryError()], ids=str
)
def test_what_passes_leaves_no_image_out(tmp_path, monkeypatch, error, capsys):
    failed = failing(monkeypatch, error, 3)
    cli.main(["data", "scan", str(written(tmp_path))])
    assert len(failed) == 3
    assert f"{COUNT} images" in capsys.readouterr().out
    assert len(open_source(tmp_path)) == COUNT


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (fault(errno.EMFILE), "[Errno 24] Too many open files"),
        (MemoryError("64 MiB"), "0.png: 64 MiB"),
        (MemoryError(), "0.png: MemoryError"),
    ],
    ids=str,
)
def test_what_stays_ends_a_scan_that_goes_on_later(tmp_path, monkeypatch, error, said, capsys):
    folder = written(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, error, 10**6)
        assert run(folder) == 2
    err = capsys.readouterr().err
    assert re.search(rf"^fastequi: .*{re.escape(said)}", err, re.MULTILINE), err
    assert not (folder / ".fastequi" / "index.fei").exists()
    cli.main(["data", "scan", str(folder)])
    assert f"{COUNT} images" in capsys.readouterr().out


def test_a_file_of_its_own_fault_is_left_out(tmp_path, monkeypatch, capsys):
    """A bad sector is a fact about the file."""
    failing(monkeypatch, fault(errno.EIO), 1)
    cli.main(["data", "scan", str(written(tmp_path))])
    said = capsys.readouterr().out
    assert f"{COUNT - 1} images" in said
    assert "Input/output error" in said


def test_pages_are_counted_again(tmp_path, monkeypatch, capsys):
    page = Image.fromarray(science.values(1, "uint8")[..., 0])
    for i in range(COUNT):
        page.save(tmp_path / f"{i}.tif", save_all=True, append_images=[page] * 3)
    failed = failing(monkeypatch, fault(errno.EMFILE), 2, ".tif")
    cli.main(["data", "scan", str(tmp_path), "--pages", "images"])
    assert len(failed) == 2
    assert f"{4 * COUNT} images" in capsys.readouterr().out
    failing(monkeypatch, fault(errno.EMFILE), 10**6, ".tif")
    assert run(tmp_path, "--pages", "images") == 2


def test_headers_of_a_shard_are_read_again(tmp_path, monkeypatch):
    written(tmp_path)
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for i in range(COUNT):
            shard.add(tmp_path / f"{i}.png", f"{i}.png")
    plain, failed = encoded.read, []

    def read(path, *arguments):
        if len(failed) < 2:
            failed.append(path)
            raise fault(errno.EMFILE)
        return plain(path, *arguments)

    monkeypatch.setattr("fastequi.data.sources.listing.read", read)
    assert len(open_source(tmp_path / "a.tar")) == COUNT
    assert len(failed) == 2


class Stale(io.BytesIO):
    """A file whose handle is lost after some reads."""

    left = 0

    def read(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise fault(self.number)
        return super().read(*arguments)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_shard_whose_handle_is_lost_is_not_damaged(number):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as shard:
        for i in range(COUNT):
            data = science.png(science.values(3, "uint8", i))
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    file = Stale(content.getvalue())
    file.left, file.number = 3, number
    if number == errno.EIO:  # a bad sector
        found, damage = members(file, Counter())
        assert 0 < len(found) < COUNT
        assert "damaged archive ([Errno 5] Input/output error)" in damage
    else:
        with pytest.raises(OSError, match="Stale file handle"):
            members(file, Counter())


def test_a_run_reads_an_image_again(tmp_path, monkeypatch):
    cfg = DataConfig(batch_size=2, image_size=16, source_size=16, num_threads=1)
    source = open_source(written(tmp_path, "webp"))
    failed = failing(monkeypatch, fault(errno.EMFILE), 2, ".webp")
    with make_loader(source, cfg, SE2(), seed=0) as loader:
        for _ in range(COUNT):
            next(loader)
        assert loader.state_dict()["quarantined"] == {}
    assert len(failed) == 2


PAGES = 4


def stack():
    file = io.BytesIO()
    page = Image.fromarray(science.values(3, "uint8", size=(200, 300)))
    page.save(file, "TIFF", save_all=True, append_images=[page] * (PAGES - 1))
    return file.getvalue()


@pytest.mark.parametrize(
    ("ask", "known"),
    [
        (pages.count_in, PAGES),
        (lambda file: encoded.marks_of(file, FilePart(2)), ["RGB", "TIFF page"]),
        (
            lambda file: encoded.marks_of(file, FilePart(nodata="file")),
            ["RGB", "filled TIFF", "TIFF of several pages"],
        ),
    ],
    ids=["pages", "marks of a page", "marks"],
)
def test_a_networks_fault_is_no_cut_off_file(ask, known):
    data = stack()

    def asked(failing):
        requests = []

        def fetch(first, count):
            requests.append(first)
            if len(requests) > failing:
                raise Unreadable("http://h/a.tar: HTTP 503, after 8 tries in 180 s")
            return data[first : first + count]

        return ask(RangedFile(fetch, len(data))), len(requests)

    found, needed = asked(10**6)
    assert found == known
    assert needed > 1
    for failing in range(needed):
        with pytest.raises(Unreadable, match="HTTP 503"):
            asked(failing)


def test_a_fault_while_values_are_counted_is_not_the_images(monkeypatch):
    def of(_):
        raise MemoryError("of counts")

    monkeypatch.setattr(Counts, "of", of)
    content = np.frombuffer(science.npz(science.values(4, "uint16")), np.uint8)
    with pytest.raises(MemoryError, match="of counts"):
        scan.examined([content] * 3, encoded.header(content).kind, 1)


def test_a_lack_of_memory_while_images_are_decoded_says_which(tmp_path, monkeypatch, capsys):
    def decoded_sizes(*_, **__):
        raise MemoryError

    monkeypatch.setitem(scan.examined.__globals__, "decoded_sizes", decoded_sizes)
    assert run(written(tmp_path)) == 2
    said = "fastequi: not enough memory: one of 0.png to 5.png: while it was decoded"
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_file_that_asks_for_more_memory_than_there_is_is_left_out(monkeypatch):
    """As damaged tags make a library do; it ends no scan."""
    content = [np.frombuffer(science.npz(science.values(8, "uint16")), np.uint8)] * 2
    code = encoded.header(content[0]).kind
    asked = []

    def checked(*_):
        asked.append(1)
        raise MemoryError("of its tags")

    monkeypatch.setattr("fastequi.data.given.checked", checked)
    sizes, counts = scan.examined(content, code, 1)
    assert sizes == ["of its tags"] * 2
    assert counts is None
    assert len(asked) == 8


def test_patience_is_for_trouble_alone():
    calls = []

    def call(error):
        calls.append(error)
        raise error

    for error, times in (
        (fault(errno.ENOENT), 1),
        (fault(errno.EIO), 1),
        (Unreadable("asked before"), 1),
        (fault(errno.ENFILE), 4),
        (MemoryError(), 4),
    ):
        calls.clear()
        with pytest.raises(type(error)):
            patiently(call, error)
        assert len(calls) == times
        assert is_trouble(error) == (times > 1 or isinstance(error, Unreadable))
