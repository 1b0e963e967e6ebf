"""Faults of the machine and of networks make no image a damaged one: they pass, or end the work."""

import errno
import io
import math
import os
import re
import struct
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from fastequi.cli import main as cli
from fastequi.data import read_image, scan
from fastequi.data.config import DataConfig
from fastequi.data.given import decoded_sizes
from fastequi.data.loader import make_loader
from fastequi.data.sources import encoded, pages, trouble
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.listing import folder_listing
from fastequi.data.sources.measured import Counts
from fastequi.data.sources.parts import FilePart
from fastequi.data.sources.ranged_file import RangedFile
from fastequi.data.sources.shards import members
from fastequi.data.sources.trouble import Unreadable, is_trouble, patiently, raise_trouble
from fastequi.paths import SE2
from tests.support import science

COUNT = 6


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(trouble, "_WAITS", (0.001,) * 3)
    monkeypatch.setattr(trouble, "_tired_until", -math.inf)


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
        patch.setattr(trouble, "lacks_memory", lambda _: True)
        failing(patch, error, 10**6)
        assert run(folder) == 2
    err = capsys.readouterr().err
    assert re.search(rf"^fastequi: .*{re.escape(said)}", err, re.MULTILINE), err
    assert not (folder / ".fastequi" / "index.fei").exists()
    cli.main(["data", "scan", str(folder)])
    assert f"{COUNT} images" in capsys.readouterr().out


def test_a_file_of_its_own_fault_is_left_out(tmp_path, monkeypatch, capsys):
    """A bad sector is a fact about the file; what comes once may have been a network's."""
    folder = written(tmp_path)
    failed = failing(monkeypatch, fault(errno.EIO), 1)
    cli.main(["data", "scan", str(folder)])
    assert f"{COUNT} images" in capsys.readouterr().out
    assert len(failed) == 1
    failing(monkeypatch, fault(errno.EIO), 10**6, "3.png")
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


def test_dicom_without_an_extension_is_looked_at_again(tmp_path, monkeypatch):
    for i in range(3):
        (tmp_path / f"IM{i}").write_bytes(bytes(128) + b"DICM" + bytes(400))
    failed = failing(monkeypatch, fault(errno.EMFILE), 1, "IM1")
    assert list(folder_listing(tmp_path).names) == ["IM0", "IM1", "IM2"]
    assert len(failed) == 1
    failing(monkeypatch, fault(errno.EMFILE), 10**6, "IM1")
    with pytest.raises(OSError, match="Too many open files"):
        folder_listing(tmp_path)


def stats_failing(monkeypatch, error, times, end):
    plain, failed = os.stat, []

    def stat(path, *arguments, **options):
        if str(path).endswith(end) and len(failed) < times:
            failed.append(path)
            raise error
        return plain(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    return failed


def test_the_state_of_a_file_is_asked_for_again(tmp_path, monkeypatch):
    listing = folder_listing(written(tmp_path))
    failed = stats_failing(monkeypatch, fault(errno.ESTALE), 2, "1.png")
    assert listing.state(1).bytes == (tmp_path / "1.png").stat().st_size
    assert len(failed) == 2
    stats_failing(monkeypatch, fault(errno.ESTALE), 10**6, "1.png")
    with pytest.raises(OSError, match="Stale file handle"):
        listing.state(1)


def test_an_index_is_not_out_of_date_for_a_fault(tmp_path, monkeypatch):
    cli.main(["data", "scan", str(written(tmp_path))])
    failed = stats_failing(monkeypatch, fault(errno.ESTALE), 2, "1.png")
    assert len(open_source(tmp_path)) == COUNT
    assert len(failed) == 2


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


def test_dalis_lack_of_memory_is_no_reason_to_decode_otherwise(monkeypatch):
    """Pixels of a JPEG would depend on the moment."""

    def by_dali(files, *_):
        return ["Insufficient memory: Failed to allocate 243000000 bytes"] * len(files)

    content = [np.frombuffer(science.png(science.values(3, "uint8")), np.uint8)]
    monkeypatch.setattr("fastequi.data.decode.decoded_sizes", by_dali)
    assert decoded_sizes(content, torch.device("cpu"), 1) == [(20, 26)]  # there is memory for it
    plain = np.empty

    def empty(shape, *arguments, **options):
        if shape == 4 * 4 * 20 * 26 * 3:
            raise MemoryError
        return plain(shape, *arguments, **options)

    monkeypatch.setattr(np, "empty", empty)
    with pytest.raises(MemoryError, match="243000000"):
        decoded_sizes(content, torch.device("cpu"), 1)


def test_tiles_that_claim_too_much_are_the_files_own_fault(tmp_path, capsys):
    """Libraries take memory for a tile before they read it."""
    folder = written(tmp_path, "tif")
    for file in folder.iterdir():
        file.unlink()
    for i in range(3):
        content = science.tiff_of(science.values(5, "uint16", i, (64, 64)), tile=(16, 16))
        (folder / f"{i}.tif").write_bytes(content)
    damaged = bytearray((folder / "1.tif").read_bytes())
    for tag, value in ((322, 0x20000000), (323, 0x10000)):
        at = damaged.index(struct.pack("<HH", tag, 4))
        damaged[at : at + 12] = struct.pack("<HHII", tag, 4, 1, value)
    (folder / "1.tif").write_bytes(damaged)
    for options in ([], ["--pages", "images"]):
        cli.main(["data", "scan", str(folder), *options])
        said = capsys.readouterr().out
        assert "2 images" in said
        assert "1.tif" in said.partition("left out    1")[2]
    with pytest.raises(ValueError, match="pixels, more than"):
        read_image(folder / "1.tif")


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
    monkeypatch.setattr(trouble, "lacks_memory", lambda _: True)
    with pytest.raises(MemoryError, match="of its tags"):
        scan.examined(content, code, 1)


def test_patience_is_for_trouble_alone(monkeypatch):
    calls = []

    def call(error):
        calls.append(error)
        raise error

    for error, times in (
        (fault(errno.ENOENT), 1),
        (fault(errno.EIO), 2),
        (Unreadable("asked before"), 1),
        (fault(errno.ENFILE), 4),
        (MemoryError(), 4),
    ):
        calls.clear()
        monkeypatch.setattr(trouble, "_tired_until", -math.inf)
        with pytest.raises(type(error)):
            patiently(call, error)
        assert len(calls) == times
        own = isinstance(error, MemoryError) or error.errno in (errno.ENOENT, errno.EIO)
        assert is_trouble(error) != own
    monkeypatch.setattr(trouble, "_tired_until", -math.inf)
    for error, times in (  # a bad sector, or a file that asks for too much, tires nobody
        (fault(errno.EIO), 2),
        (MemoryError(), 4),
        (fault(errno.EMFILE), 4),
        (fault(errno.ENFILE), 1),
        (MemoryError(), 1),
        (fault(errno.EIO), 2),
    ):
        calls.clear()
        with pytest.raises(type(error)):
            patiently(call, error)
        assert len(calls) == times


def test_memory_is_lacking_where_there_is_none():
    assert not is_trouble(MemoryError())
    assert is_trouble(MemoryError(), needed=1 << 60)
    with pytest.raises(MemoryError, match=r"^a\.tif: MemoryError$"):
        raise_trouble(MemoryError(), "a.tif", 1 << 60)
    raise_trouble(MemoryError(), "a.tif")
