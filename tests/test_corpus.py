"""Every kind of file that a folder may hold: scanned, and met in training."""

import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")

from fastequi.data.config import Augment, DataConfig
from fastequi.data.loader import make_loader
from fastequi.data.scan import Scan, scan
from fastequi.data.sources import index
from fastequi.data.sources.image_sets import image_folder
from fastequi.data.sources.listing import folder_listing
from fastequi.data.sources.parts import FilePart
from fastequi.paths import SE2
from tests.support.corpus import CORPUS, PIXELS, saved

ROOT = Path(__file__).parent.parent
PLAIN = Augment.none()
CFG = DataConfig(
    image_size=16,
    source_size=16,
    a1=PLAIN,
    a2=Augment(area=(0.2, 1)),
    batch_size=4,
    num_threads=1,
)


@pytest.fixture(params=CORPUS, ids=lambda name: re.sub(r"[^\w .]+", "", name))
def case(request, tmp_path):
    """A folder of eleven good files and one of the corpus, its name, and what is expected of it."""
    data, expected = CORPUS[request.param]
    for i in range(11):
        Image.fromarray(np.full((20, 24, 3), 20 * i, np.uint8)).save(tmp_path / f"{i:02}.png")
    (tmp_path / request.param).write_bytes(data)
    return tmp_path, request.param, expected


def test_a_scan_says_what_each_file_is(case, monkeypatch):
    folder, name, expected = case
    decoded = []
    original = scan.__globals__["decoded_sizes"]

    def watched(files, *rest, **more):
        decoded.extend(bytes(file) for file in files)
        return original(files, *rest, **more)

    monkeypatch.setitem(scan.__globals__, "decoded_sizes", watched)
    found = scan(folder_listing(folder), 1)
    rows = {row.name: row for row in found.index.rows}
    assert len(rows) + len(found.index.left_out) == 12
    if isinstance(expected, str):
        assert re.match(expected, found.index.left_out[name])
        assert len(rows) == 11
        if name.startswith("bomb"):
            assert CORPUS[name][0] not in decoded
    else:
        assert rows[name][1:4] == (len(CORPUS[name][0]), *expected)
        assert not found.index.left_out
    assert f"{len(rows)} images" in found.summary()


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (491, "0.491 kB"),
        (490_900, "491 kB"),
        (999_900, "1 MB"),
        (12_340_000, "12.3 MB"),
        (150_000_000_000, "150 GB"),
        (2_000_000_000_000_000, "2e+03 TB"),
    ],
)
def test_a_scan_says_its_size_in_a_unit_that_fits(count, said):
    rows = [index.Row("a.png", count, 10, 20)]
    assert f"1 images, {said}; 0 left out" in Scan(index.Index(rows, {}, True), {}).summary()


def test_training_takes_or_replaces_each_file(case):
    """With an index or without one; a replaced file shows the next one that decodes."""
    folder, name, expected = case
    source = image_folder(folder)
    runs = []
    for _ in range(2):
        with make_loader(source, CFG, SE2(), seed=0, steps=6) as loader:
            batches = list(loader)
            runs.append(torch.cat([torch.cat([b.v1, b.u.float()], 1) for b in batches]))
            ids = torch.cat([b.sample_ids for b in batches])
            quarantined = set(loader.quarantined)
    assert torch.equal(*runs)
    if isinstance(expected, str):
        assert name not in source.names or quarantined == {name}
    else:
        assert name in source.names
        assert not quarantined
        assert tuple(source.sizes[source.names.index(name)]) == expected
    if quarantined:
        bad = source.names.index(name)
        shown = dict(zip(ids.tolist(), runs[0][:, :3], strict=True))
        if (after := (bad + 1) % len(source)) in shown:
            assert torch.equal(shown[bad], shown[after])
    found = scan(folder_listing(folder), 1)
    index.write(folder_listing(folder).index, found.index)
    indexed = image_folder(folder)
    assert set(indexed.names) == set(source.names) - quarantined
    with make_loader(indexed, CFG, SE2(), seed=0, steps=6) as loader:
        after = list(loader)
        assert not loader.quarantined
    if not quarantined:
        assert torch.equal(torch.cat([b.v1 for b in after]), runs[0][:, :3])


def test_links_pipes_and_folders_with_an_images_name(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    (tmp_path / "a.jpg" / "inside.png").write_bytes(saved())
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "up").symlink_to(tmp_path)
    for i in range(40):
        os.link(tmp_path / "a.jpg" / "inside.png", tmp_path / f"{i}.png")
    found = scan(folder_listing(tmp_path), 1).index
    assert found.left_out == {
        "broken.jpg": "No such file or directory",
        "loop.jpg": "Too many levels of symbolic links",
        "pipe.jpg": "not a regular file",
    }
    assert "a.jpg/inside.png" in {row.name for row in found.rows}
    assert set(image_folder(tmp_path).names) == {row.name for row in found.rows}


def test_a_name_that_is_no_utf8_is_trained_on_and_kept_in_the_index(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xff.png")
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(saved())
    (tmp_path / name).write_bytes(saved())
    found = scan(folder_listing(tmp_path), 1)
    index.write(folder_listing(tmp_path).index, found.index)
    assert name in image_folder(tmp_path).names
    assert "caf\\udce9 \\udcff.png" in found.summary()  # as it can be printed
    with make_loader(image_folder(tmp_path), CFG, SE2(), seed=0, steps=2) as loader:
        list(loader)
        assert not loader.quarantined
    (tmp_path / name).write_bytes(saved()[:-50])
    with pytest.raises(ValueError, match="changed: 1 images of 5") as error:
        image_folder(tmp_path)
    assert name in str(error.value)


UNREADABLE = """
import os, sys
from pathlib import Path
from fastequi.data.sources.listing import folder_listing
from fastequi.data.scan import Scan, scan
from fastequi.data.sources.image_sets import image_folder
folder = Path(sys.argv[1])
scan(folder_listing(folder), 1)  # loads all that is imported late, while it can be read
if os.getuid() == 0:
    os.setuid(65534)
print(scan(folder_listing(folder), 1).index.left_out)
print(len(image_folder(folder)))
try:
    folder_listing(folder / ".locked")
except PermissionError as error:
    print(type(error).__name__)
"""


def test_files_and_folders_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as place:  # pytest's own may not be entered by others
        folder = Path(place)
        folder.chmod(0o755)
        for i in range(12):
            (folder / f"{i:02}.png").write_bytes(saved())
        (folder / "05.png").chmod(0)
        (folder / ".locked").mkdir(mode=0)
        done = subprocess.run(
            [sys.executable, "-c", UNREADABLE, place],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
        (folder / ".locked").chmod(0o755)
    assert done.stdout.splitlines() == [
        "{'05.png': 'Permission denied'}",
        "11",
        "PermissionError",
    ], done.stderr


def many(folder, count=100_000):
    """Names of ten files; a file may have no more than 65,000."""
    for i in range(count):
        path = folder / f"{i:06}.png"
        if i % 10_000 == 0:
            first = path
            Image.new("RGB", (8, 8), (i // 1000, 0, 0)).save(first)
        else:
            os.link(first, path)


@pytest.mark.slow
def test_a_hundred_thousand_names_are_listed_and_indexed_in_seconds(tmp_path, record_property):
    many(tmp_path)
    times = {}

    def timed(what, work):
        start = time.perf_counter()
        result = work()
        times[what] = round(time.perf_counter() - start, 2)
        return result

    listing = timed("list", lambda: folder_listing(tmp_path))
    source = timed("headers", lambda: image_folder(tmp_path))
    assert len(listing) == len(source) == 100_000
    size = (tmp_path / "000000.png").stat().st_size
    rows = [
        index.Row(name, os.stat(tmp_path / name).st_size, 8, 8, "0" * 16) for name in source.names
    ]
    assert rows[0].bytes == size
    timed("write", lambda: index.write(listing.index, index.Index(rows, {}, decoded=True)))
    assert timed("train by the index", lambda: image_folder(tmp_path)) == source
    print(f"100,000 names, seconds: {times}")
    record_property("seconds", times)
    assert times["list"] < 10
    assert times["headers"] < 60
    assert times["train by the index"] < 20


@pytest.mark.slow  # 100,000 files; other tests scan a few
def test_a_hundred_thousand_files_are_scanned(tmp_path):
    many(tmp_path)
    start = time.perf_counter()
    found = scan(folder_listing(tmp_path))
    print(f"100,000 files scanned in {time.perf_counter() - start:.1f} s")
    assert len(found.index.rows) == 100_000
    assert len(found.duplicates) == 99_990


def test_decoding_takes_a_bounded_number_of_pixels_at_a_time(tmp_path, monkeypatch):
    for i in range(12):
        Image.fromarray(PIXELS).save(tmp_path / f"{i:02}.png")
    groups = []
    original = scan.__globals__["decoded_sizes"]

    def watched(files, *rest, **more):
        groups.append(len(files))
        return original(files, *rest, **more)

    monkeypatch.setitem(scan.__globals__, "decoded_sizes", watched)
    monkeypatch.setitem(scan.__globals__, "_PIXELS", 5 * 40 * 60)
    expected = scan(folder_listing(tmp_path), 1).index
    assert groups == [5, 5, 2]
    groups.clear()
    monkeypatch.setitem(scan.__globals__, "_BYTES", 3 * len(saved()))
    assert scan(folder_listing(tmp_path), 2).index == expected
    assert groups == [3, 3, 3, 3]
    monkeypatch.setitem(scan.__globals__, "_BYTES", 1)  # each is more than that
    shown = []
    assert scan(folder_listing(tmp_path), 1, lambda *at: shown.append(at)).index == expected
    assert shown == [(i, 12) for i in range(1, 13)]


def test_few_arrays_are_read_at_a_time_however_small_their_files_are(tmp_path, monkeypatch):
    for i in range(6):
        np.savez_compressed(tmp_path / f"{i}.npz", image=np.zeros((4, 60, 60), "f4"))
    monkeypatch.setitem(scan.__globals__, "_BYTES", 3 * 4 * 60 * 60 * 4)
    shown = []
    listing = folder_listing(tmp_path).of_part(FilePart(planes=True))
    scan(listing, 1, lambda *at: shown.append(at))
    assert shown == [(3, 6), (6, 6)]


def test_one_in_ten_is_a_setting(tmp_path, caplog):
    for i in range(20):
        (tmp_path / f"{i:02}.png").write_bytes(saved() if i > 2 else b"")
    with pytest.raises(ValueError, match="3 of 20 images"):
        image_folder(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(image_folder(tmp_path, tolerate=0.15)) == 17
    assert "3 of 20 images" in caplog.text
    (tmp_path / "01.png").unlink()
    (tmp_path / "02.png").unlink()
    with pytest.raises(ValueError, match="1 of 18 images"):
        image_folder(tmp_path, tolerate=0.0)
    with pytest.raises(ValueError, match="tolerate: expected a share"):
        DataConfig(tolerate=1.0)
