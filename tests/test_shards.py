"""Tar shards: the same images as a folder of the same files, in the same order, bit for bit."""

import json
import logging
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali")


from fastequi.cli import commands
from fastequi.data.loader import make_loader
from fastequi.data.scan import scan
from fastequi.data.sources import index
from fastequi.data.sources.image_sets import (
    Source,
    image_folder,
    open_source,
    scanned_listing,
    tar_shards,
)
from fastequi.data.sources.shards import is_shards, shard_listing
from fastequi.paths import SE2
from tests.support import shards
from tests.support.batches import assert_same
from tests.support.batches import batches as loaded
from tests.support.corpus import CORPUS
from tests.support.shards import VIEWS, picture


def tar(path, members):
    Path(path).write_bytes(shards.tar(members))
    return path


@pytest.fixture
def data(tmp_path):
    """Three shards of six images with labels beside them, and the same unpacked."""
    (tmp_path / "shards").mkdir()
    for k in range(3):
        members = {}
        for i in range(6 * k, 6 * k + 6):
            image = picture(i, (20 + i, 30))
            members[f"{i:03}.{'jpg' if i % 2 else 'png'}"] = image
            members[f"{i:03}.json"] = json.dumps({"label": i}).encode()
        shard = tar(tmp_path / "shards" / f"train-{k:03}.tar", members)
        with tarfile.open(shard) as archive:
            archive.extractall(tmp_path / "files" / shard.name)
    return tmp_path


def batches(source, n=6, **options):
    return loaded(n, source, VIEWS, **options)


def test_the_same_batches_as_of_the_files(data):
    files = image_folder(data / "files")
    first = tar_shards(data / "shards" / "train-{000..002}.tar")
    again = tar_shards(data / "shards" / "train-{000..002}.tar")  # by the list that was kept
    for source in (first, again):
        assert source.names == files.names
        np.testing.assert_array_equal(source.sizes, files.sizes)
        for i, path in enumerate(files.paths):
            assert source.encoded(i).tobytes() == Path(path).read_bytes()
    np.testing.assert_array_equal(first.spans, again.spans)
    expected = batches(files, 10)
    assert {b.epoch for b in expected} == {0, 1}
    assert_same(batches(first, 10), expected)


@pytest.mark.parametrize("done", [1, 4, 9])
def test_a_resumed_run_goes_on_with_the_same_batches(data, done):
    source = tar_shards(data / "shards" / "*.tar")
    expected = batches(source, 12)
    with make_loader(source, VIEWS, SE2(), seed=0) as loader:
        for _ in range(done):
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
    assert_same(batches(source, 12 - done, state=state), expected[done:])


def test_ranks_take_parts_that_make_up_the_whole(data):
    source = tar_shards(data / "shards" / "*.tar")
    whole = batches(source, len(make_loader(source, VIEWS, SE2(), seed=0)))
    ranks = [batches(source, len(whole), rank=rank, world_size=2) for rank in range(2)]
    seen = [{i for b in rank for i in b.sample_ids.tolist()} for rank in ranks]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(18 * 4))
    for step, batch in enumerate(whole):
        for name in ("v1", "u", "sample_ids"):
            both = torch.cat([getattr(rank[step], name) for rank in ranks])
            assert torch.equal(both, getattr(batch, name))


def test_what_a_pattern_names(data, monkeypatch):
    monkeypatch.chdir(data)
    for pattern, count in (
        ("shards/*.tar", 18),
        ("shards/train-00[01].tar", 12),
        ("shards/train-{000..002}.tar", 18),
        ("sh*/train-{001..002}.tar", 12),
        ("shards/train-001.tar", 6),
        (data / "shards" / "train-{002..002}.tar", 6),
    ):
        assert is_shards(Path(pattern))
        assert len(open_source(pattern)) == count
        assert len(open_source(pattern)) == count
    assert not is_shards(data / "files")
    os.rename("files", "a{0..1}*")
    assert len(open_source("a{0..1}*")) == 18  # a folder of that very name


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("shards/train-{000..004}.tar", FileNotFoundError, r"train-003.tar does not exist"),
        ("shards/*.tra", FileNotFoundError, r"\*.tra does not exist"),
        ("shards/train-{2..1}.tar", ValueError, r"a range that rises, got \{2..1\}"),
        ("shards", ValueError, r"only 3 × .tar; tar shards are named by a pattern: shards/\*.tar"),
        ("files/train-000.tar/*.json", ValueError, "no .tar file; expected plain .tar"),
    ],
)
def test_patterns_that_name_nothing_of_use(data, monkeypatch, pattern, error, message):
    monkeypatch.chdir(data)
    with pytest.raises(error, match=message):
        open_source(pattern)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_shards_are_refused(tmp_path, kind):
    for name in (f"a.tar.{kind}", "b.tar"):
        with tarfile.open(tmp_path / name, f"w:{kind}") as archive:
            archive.addfile(tarfile.TarInfo("a.jpg"))
        with pytest.raises(ValueError, match=r"is compressed with .*; expected plain .tar"):
            open_source(tmp_path / name)


def test_truncated_shards_give_what_is_whole(data, caplog):
    shard = data / "shards" / "train-001.tar"
    with tarfile.open(shard) as archive:
        cut = archive.getmember("009.jpg").offset_data + 100
    os.truncate(shard, cut)
    with caplog.at_level(logging.WARNING):
        source = open_source(data / "shards" / "*.tar", tolerate=0.2)
    assert [n for n in source.names if "001.tar" in n] == [
        f"train-001.tar/{name}" for name in ("006.png", "007.jpg", "008.png")
    ]
    assert len(source) == 15
    assert "train-001.tar/009.jpg (the archive ends inside it" in caplog.text
    said = (
        "train-001.tar (damaged archive (unexpected end of data); of images before that 3 are used"
    )
    assert said in caplog.text  # not the one that it ends inside
    batches(source)


def test_headers_in_ruins(data):
    shard = data / "shards" / "train-001.tar"
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as archive:
        at = archive.getmember("008.png").offset
    content[at : at + 512] = b"\xaa" * 512
    shard.write_bytes(content)
    found = shard_listing(data / "shards" / "*.tar")
    assert len(found) == 14
    assert "; of images before that 2 are used" in found.left_out["train-001.tar"]
    shard.write_bytes(bytes(content[:at]))  # between two members
    found = shard_listing(data / "shards" / "*.tar")
    assert "no mark at its end" in found.left_out["train-001.tar"]
    (data / "noise.tar").write_bytes(b"\xaa" * 20_000)
    with pytest.raises(ValueError, match=r"no member at all \(noise.tar: damaged archive"):
        shard_listing(data / "noise.tar")
    (data / "empty.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="no member at all"):
        shard_listing(data / "empty.tar")


def test_members_that_are_not_what_they_seem(tmp_path):
    odd = [(name, content) for name, (content, _) in CORPUS.items()]
    good = [(f"a/{i:03}.png", picture(i)) for i in range(40)]
    long = [("deep/" * 40 + "ü 写真.jpg", picture(1)), (".hidden.png", b""), ("README", b"text")]
    twice = [("twice.png", picture(2)), ("twice.jpg", picture(3)), ("twice.png", picture(4))]
    shard = tar(tmp_path / "a.tar", odd + good + long + twice)
    with tarfile.open(shard, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        archive.addfile(link)
    found = scan(scanned_listing(shard), 1)
    rows = {row.name: row for row in found.index.rows}
    for name, (_, expected) in CORPUS.items():
        if isinstance(expected, str):
            assert f"a.tar/{name}" in found.index.left_out
        else:
            assert rows[f"a.tar/{name}"][2:4] == expected
    assert found.index.left_out["a.tar/link.jpg"] == "a link or a sparse file in the archive"
    assert "a.tar/twice.jpg" in rows
    source = tar_shards(shard, tolerate=0.5)
    assert source.encoded(source.names.index("a.tar/twice.png")).tobytes() == picture(4)
    assert long[0][0] in {name.removeprefix("a.tar/") for name in source.names}
    with make_loader(source, replace(VIEWS, tolerate=0.5), SE2(), seed=0, steps=20) as loader:
        expected = [batch.u for batch in loader]
        bad = set(loader.quarantined)
    assert bad
    assert bad <= set(found.index.left_out)
    with make_loader(source, replace(VIEWS, tolerate=0.5), SE2(), seed=0, steps=20) as loader:
        assert all(torch.equal(a.u, b) for a, b in zip(loader, expected, strict=True))


def test_a_scanned_set_of_shards_is_not_changed_behind_its_back(data, monkeypatch, caplog):
    monkeypatch.chdir(data)
    commands.data(["scan", "shards/*.tar"])
    expected = open_source("shards/*.tar")
    known = index.read(shard_listing(Path("shards/*.tar")).index)
    assert known.decoded
    assert [row.sha256 for row in known.rows if not row.sha256] == []
    caplog.clear()
    tar("shards/train-003.tar", {"a.png": picture(0)})
    assert open_source("shards/*.tar") == expected
    assert "not used: 1 new shards (train-003.tar)" in caplog.text
    os.utime("shards/train-000.tar", ns=(0, 0))
    with pytest.raises(ValueError, match=r"changed: 1 shards of 3 \(train-000.tar\)"):
        open_source("shards/*.tar")
    os.remove("shards/train-002.tar")
    with pytest.raises(ValueError, match=r"gone: 1 shards of 3 \(train-002.tar\)"):
        open_source("shards/*.tar")


def test_a_list_made_on_the_way_follows_the_shards(data, caplog):
    pattern = data / "shards" / "*.tar"
    assert len(open_source(pattern)) == 18
    tar(data / "shards" / "train-003.tar", {"a.png": picture(0)})
    with caplog.at_level(logging.INFO):
        assert len(open_source(pattern)) == 19
    assert "new: 1 shards of 3 (train-003.tar); the shards are listed again" in caplog.text
    tar(data / "shards" / "train-003.tar", {"a.png": picture(0), "b.png": picture(2)})
    assert len(open_source(pattern)) == 20


def test_a_folder_that_cannot_be_written_needs_no_list(data, monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(index, "write", refuse)
    with caplog.at_level(logging.INFO):
        assert len(open_source(data / "shards" / "*.tar")) == 18
    assert "the list of members is not kept: read-only" in caplog.text
    assert not (data / "shards" / ".fastequi").exists()


def test_a_shard_cut_while_training_is_noticed(data):
    source = tar_shards(data / "shards" / "*.tar")
    with make_loader(source, VIEWS, SE2(), seed=0, steps=18) as loader:
        next(loader)
        with tarfile.open(data / "shards" / "train-002.tar") as archive:
            os.truncate(data / "shards" / "train-002.tar", archive.getmember("017.jpg").offset_data)
        list(loader)
        assert list(loader.quarantined) == ["train-002.tar/017.jpg"]
        assert "train-002.tar ends inside it" in loader.quarantined["train-002.tar/017.jpg"]
    with make_loader(source, VIEWS, SE2(), seed=0, steps=18) as loader:
        os.remove(data / "shards" / "train-001.tar")
        with pytest.raises(RuntimeError, match=r"cannot be decoded, more than 10 % of them"):
            list(loader)
        assert "No such file or directory" in loader.quarantined.values()


def test_a_member_that_cannot_be_read_for_a_moment_ends_nothing(data, monkeypatch, caplog):
    source = tar_shards(data / "shards" / "*.tar")
    expected = batches(source)
    read, failures = Source.encoded, []

    def sometimes(self, i):
        if i == 7 and not failures:
            failures.append(i)
            raise OSError("stale file handle")
        return read(self, i)

    monkeypatch.setattr(Source, "encoded", sometimes)
    with make_loader(source, VIEWS, SE2(), seed=0, steps=6) as loader:
        assert_same(list(loader), expected)
        assert failures
        assert not loader.quarantined
    assert "a batch failed, but all its images decode; trying once more" in caplog.text


@pytest.mark.parametrize("size", [-512, -1024, 1 << 62, 1 << 80])
def test_a_member_of_no_possible_size_ends_the_shard(tmp_path, size):
    """Sizes below 0 would be read for ever."""
    good = shards.tar({"a.jpg": shards.picture(1)})[:-1024].rstrip(b"\0")
    good += bytes(-len(good) % 512)
    header = bytearray(tarfile.TarInfo("b.jpg").tobuf(tarfile.USTAR_FORMAT)[:512])
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(good + bytes(header) + bytes(4096))
    source = tar_shards(tmp_path / "a.tar", tolerate=0.9)
    assert list(source.names) == ["a.tar/a.jpg"]
