"""The mapped index: what was written, opened without being read, and refused when damaged."""

import hashlib
import json
import os
import struct
import time
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench import large_index
from fastequi.data.sources import index
from fastequi.data.sources.image_sets import image_folder
from fastequi.data.sources.images import Source
from fastequi.data.sources.index import Index, Row
from fastequi.data.sources.listing import Archive, folder_listing

NAMES = sorted(
    ("\udcff.png", "a b/c.png", "a/b.png", "a.png", "e\u0301.png", "é.png", "写真.jpg", "😀.png")
)


def rows(shard=""):
    """Names that are no UTF-8, and in the order of code points, which is not that of bytes."""
    every = enumerate(NAMES)
    made = [Row(f"{shard}{n}", 2**40 + i, 3 + i, 2**20, f"{i + 1:016x}") for i, n in every]
    return [row._replace(offset=512 * i if shard else None) for i, row in enumerate(made)]


@pytest.mark.parametrize("left_out", [{}, {"z": "why", "\udcfe": "é"}])
@pytest.mark.parametrize("decoded", [True, False])
def test_it_comes_back_as_written(tmp_path, left_out, decoded):
    files = rows() if decoded else [row._replace(sha256="") for row in rows()]
    about = {"passed_over": {".md": 2}, "formats": ("JPEG", "PNG")}
    whole = Index(files, left_out, decoded, **about)
    written = index.write(tmp_path / "a.fei", whole)
    found = index.read(tmp_path / "a.fei")
    assert found == written
    assert list(found.rows) == files
    assert found.left_out == left_out
    assert found.rows[-1] == files[-1]
    assert found.rows[1:3] == files[1:3]
    lines = index.read(index_of(tmp_path / "a.jsonl", whole))
    assert replace(lines, when=found.when) == found
    quarantine = [json.loads(line) for line in index.quarantine_of(tmp_path / "a.fei").open()]
    assert dict(quarantine) == left_out


def index_of(file, whole):
    index.write(file, whole)
    return file


def test_members_come_back_as_written(tmp_path):
    archives = tuple(Archive(f"{k}.tar", 9 + k, 8) for k in range(3))  # the second has no image
    members = [*rows("0.tar/"), *rows("2.tar/")]
    written = index.write(tmp_path / "s.fei", Index(members, {}, True, archives=archives))
    found = index.read(tmp_path / "s.fei")
    assert found == written
    assert found.columns.of.tolist() == [0] * len(NAMES) + [2] * len(NAMES)
    assert found.columns.spans[1].tolist() == [512, 2**40 + 1]
    stray = Index([*rows("2.tar/"), *rows("0.tar/")], {}, True, archives=archives)
    with pytest.raises(
        ValueError, match=r"0.tar/.* is in none of the shards, or not in their order"
    ):
        index.write(tmp_path / "s.fei", stray)
    assert index.read(tmp_path / "s.fei") == written


def test_the_digest_is_that_of_a_source_of_tuples(tmp_path):
    index.write(tmp_path / "a.fei", Index(rows(), {}, True))
    found = index.read(tmp_path / "a.fei")
    sizes = np.array([row[2:4] for row in rows()], np.int32)
    names = tuple(NAMES)
    plain = Source(names, names, sizes)
    said = hashlib.sha256("\0".join(names).encode(errors="surrogateescape") + sizes.tobytes())
    assert found.fingerprint == plain.fingerprint() == said.hexdigest()[:16]  # as it always was
    lazy = large_index.opened(tmp_path / "a.fei")
    assert lazy.whole_index is not None
    assert lazy.fingerprint() == plain.fingerprint()
    for places in ([0, 2, 5], [], range(len(NAMES))):
        assert lazy.pick(places).whole_index is None
        assert lazy.pick(places).fingerprint() == plain.pick(places).fingerprint()
    assert replace(lazy, names=names[::-1]).fingerprint() != plain.fingerprint()
    index.write(tmp_path / "none.fei", Index([], {"a": "b"}, True))
    assert index.read(tmp_path / "none.fei").fingerprint == Source((), (), sizes[:0]).fingerprint()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    file = tmp_path_factory.mktemp("whole") / "i.fei"
    index.write(file, Index(rows(), {"z": "why"}, True))
    return file.read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 20, 63, 64, 65, 200, 0.5, 0.9, -1])
def test_a_truncated_file_is_refused(tmp_path, written, kept):
    count = kept if isinstance(kept, int) else int(kept * len(written))
    part = written[:count]
    (tmp_path / "i.fei").write_bytes(part)
    how = r"truncated: \d+ bytes, expected" if len(part) >= 8 else "begins with .* expected"
    with pytest.raises(ValueError, match=rf"i.fei cannot be used \(.*{how}.*fastequi data scan"):
        index.read(tmp_path / "i.fei")


def test_flipped_bytes_of_prefix_and_header_are_noticed(tmp_path, written):
    at = struct.unpack_from("<Q", written, 16)[0]
    for place in [*range(64), *range(at, len(written), 7)]:
        damaged = bytearray(written)
        damaged[place] ^= 0x55
        (tmp_path / "i.fei").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"i.fei cannot be used \(.*expected|damaged"):
            index.read(tmp_path / "i.fei")
    (tmp_path / "i.fei").write_bytes(written + b"more")
    with pytest.raises(ValueError, match="it is damaged: "):
        index.read(tmp_path / "i.fei")


def test_another_version_is_refused(tmp_path, written):
    other = bytearray(written)
    struct.pack_into("<I", other, 8, 2)
    struct.pack_into("<I", other, 60, zlib.crc32(other[:60]))
    (tmp_path / "i.fei").write_bytes(other)
    with pytest.raises(ValueError, match=r"\(version 2, expected 1\); make it again with"):
        index.read(tmp_path / "i.fei")


def test_a_write_that_fails_leaves_the_file_of_before(tmp_path, written):
    (tmp_path / "i.fei").write_bytes(written)
    about = Index([], {}, True)
    for count in ((9, 1000), (3, 10), (200_000, 10**9)):
        with pytest.raises(ValueError, match="was to have"):
            index.write_parts(tmp_path / "i.fei", about, large_index.parts(5), count)
        assert (tmp_path / "i.fei").read_bytes() == written
        assert len(list(tmp_path.iterdir())) == 1


def test_of_two_forms_the_newer_is_used_and_said(tmp_path, caplog):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 5)).save(tmp_path / name)
    size = (tmp_path / "a.png").stat().st_size
    place = folder_listing(tmp_path).index
    older = place.with_name("index.jsonl")
    index.write(older, Index([Row("a.png", size, 5, 4, "1" * 16)], {}, True))
    assert image_folder(tmp_path).names == ("a.png",)  # as an index of before alone
    index.write(place, Index([Row("b.png", size, 5, 4, "1" * 16)], {}, True))
    os.utime(older, ns=(0, 0))
    caplog.set_level("INFO")
    assert image_folder(tmp_path).names == ("b.png",)
    assert f"of the indices {place} and index.jsonl the newer is used, index.fei" in caplog.text
    os.utime(place, ns=(0, 0))
    os.utime(older)
    assert image_folder(tmp_path).names == ("a.png",)


def test_a_walk_is_sorted_as_names_are(tmp_path):
    for name in ("a b/x.png", "a/x.png", "a.png", "a/b/c.png", "a-/é.png", "写/a.jpg", "a/.h.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "a b")
    names = list(folder_listing(tmp_path).names)
    assert names == sorted(names)
    assert set(names) == {
        *("a b/x.png", "a/x.png", "a.png", "a/b/c.png", "a-/é.png", "写/a.jpg", "\udcff.png")
    }


def test_two_hundred_thousand_images_open_without_being_read(tmp_path):
    file, count = tmp_path / "large.fei", 200_000
    large_index.make(file, count)
    assert os.path.getsize(file) / count <= 64 + len(large_index.name(0))
    times = []
    tracemalloc.start()
    for _ in range(3):
        start = time.perf_counter()
        source = large_index.opened(file)
        digest = source.fingerprint()
        times.append(time.perf_counter() - start)
    picked = source.pick(np.arange(0, count, 1000))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20
    assert min(times) < 0.1
    names = tuple(map(large_index.name, range(count)))
    assert source.names == names
    assert picked.names == names[::1000]
    assert picked.paths[7] == f"photos/{names[7000]}"
    assert Source(names, names, np.array(source.sizes)).fingerprint() == digest


@pytest.mark.slow  # 900 MB and half a minute; bench/large_index.py makes any number
def test_fourteen_million_images_in_eight_processes(tmp_path, record_property):
    file = tmp_path / "large.fei"
    try:
        large_index.make(file, 14_000_000)
        alone, together = large_index.use(file), large_index.share(file, 8)
        size = os.path.getsize(file) / 1e6
    finally:
        file.unlink(missing_ok=True)
    print(alone, together)
    record_property("found", {**alone, **together})
    assert alone["open s"] < 0.1
    assert together["sum of pss"] < 1.2 * size
    assert together["sum of dirty"] < 8 * 20
