"""Scans that are killed and go on, and scans in parts that are merged: the index of one scan."""

import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nvidia.dali")

from fastequi.cli import commands
from fastequi.data.scan import scan
from fastequi.data.sources import index
from fastequi.data.sources.image_sets import image_folder, tar_shards
from fastequi.data.sources.listing import folder_listing
from tests.support.runs import ROOT, environment

COUNT = 23
ODD = os.fsdecode(b"d/caf\xe9 \xff.jpg")


def photographs(folder, count=COUNT):
    """JPEG files of several sizes, two of the same bytes, one that is none, and an odd name."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i % 3}" / f"写 {i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "d").mkdir()
    shutil.copy(path, folder / ODD)
    (folder / "1" / "bad.jpg").write_text("no image")
    (folder / "note.md").write_text("x")
    return folder


def tars(folder):
    """Five shards of the same."""
    (folder / "shards").mkdir()
    files = sorted((folder / "photos").rglob("*.jpg"))
    for k in range(5):
        with tarfile.open(folder / "shards" / f"{k}.tar", "w") as tar:
            for file in files[k::5]:
                tar.add(file, str(file.relative_to(folder / "photos")))
    return folder / "shards" / "*.tar"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_now", lambda: "2030-01-01T00:00:00+00:00")
    return photographs(tmp_path / "photos")


@pytest.mark.parametrize("kind", ["files", "shards"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_parts_merged_are_the_whole_bit_for_bit(photos, tmp_path, capsys, kind, count):
    place = photos if kind == "files" else tars(tmp_path)
    whole, merged = tmp_path / "whole.fei", tmp_path / "merged.fei"
    commands.data(["scan", str(place), "--index", str(whole), "--threads", "1"])
    said = capsys.readouterr().out
    for k in range(count, 0, -1):  # in any order, on any machine
        part = ["--part", f"{k}/{count}", "--index", str(merged), "--threads", "1"]
        commands.data(["scan", str(place), *part])
        out = capsys.readouterr().out
        assert out.startswith(f"part {k}/{count} of {merged}: ")
    assert not merged.exists()
    commands.data(["merge", str(place), "--index", str(merged)])
    assert capsys.readouterr().out == said.replace("whole", "merged")
    assert merged.read_bytes() == whole.read_bytes()
    quarantine = index.quarantine_of(merged)
    assert quarantine.read_bytes() == index.quarantine_of(whole).read_bytes()
    assert "bad.jpg" in quarantine.read_text()
    assert sorted(p.name for p in tmp_path.glob("merged*")) == [merged.name, quarantine.name]
    opened = image_folder if kind == "files" else tar_shards
    source = opened(place, index=merged)
    assert len(source) == COUNT + 1
    assert any(name.endswith(ODD) for name in source.names)
    assert source.encoded(5).tobytes() in {path.read_bytes() for path in photos.rglob("*.jpg")}


def scanned(place, *parts):
    for part in parts:
        commands.data(["scan", str(place), "--part", part, "--threads", "1"])


def test_parts_that_do_not_make_up_the_set_are_named(photos):
    beside = photos / ".fastequi"
    with pytest.raises(FileNotFoundError, match=r"no part lies beside .*index.fei; .* --part K/N"):
        commands.data(["merge", str(photos)])
    scanned(photos, "1/4", "3/4")
    with pytest.raises(ValueError, match=r"merge: missing part 2/4, part 4/4; fastequi data scan"):
        commands.data(["merge", str(photos)])
    scanned(photos, "2/2")
    with pytest.raises(ValueError, match=r"part 3/4 and part 2/2 overlap; remove one of them"):
        commands.data(["merge", str(photos)])
    (beside / "index.part-3-of-4.jsonl").unlink()
    with pytest.raises(ValueError, match=r"missing images 6 to 11"):
        commands.data(["merge", str(photos)])
    scanned(photos, "2/4")  # parts of different sizes, but all images once
    file = beside / "index.part-2-of-4.jsonl"
    text = file.read_text()
    file.write_text("".join(text.splitlines(True)[:-1]))
    with pytest.raises(ValueError, match=r"not finished: index.part-2-of-4.jsonl; scan that part"):
        commands.data(["merge", str(photos)])
    lines = text.splitlines(True)
    file.write_text("".join([lines[0], "torn\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"part-2-of-4.jsonl is damaged: b'torn"):
        commands.data(["merge", str(photos)])
    file.write_text(text)
    (photos / "new.jpg").write_bytes((photos / ODD).read_bytes())
    (beside / "index.part-2-of-2.jsonl").unlink()
    scanned(photos, "2/2")
    with pytest.raises(ValueError, match=r"part 2/2 not of the set of part 1/4 \(25 images\)"):
        commands.data(["merge", str(photos)])
    (photos / "new.jpg").unlink()
    scanned(photos, "2/2")
    commands.data(["merge", str(photos)])
    assert len(image_folder(photos)) == COUNT + 1
    assert len(list(beside.iterdir())) == 2


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2"])
def test_what_is_no_part_is_refused(photos, part):
    with pytest.raises(
        ValueError, match=r"--part: expected K/N with 1 <= K <= N, such as 3/8, got"
    ):
        commands.data(["scan", str(photos), f"--part={part}"])
    assert not (photos / ".fastequi").exists()


@pytest.fixture
def one_by_one(monkeypatch):
    """The counts of its values follow every image, behind which a scan may go on."""
    monkeypatch.setitem(scan.__globals__, "_FILES", 1)


def test_a_scan_goes_on_where_images_are_as_they_were(photos, caplog, capsys, one_by_one):
    caplog.set_level(logging.INFO)
    scanned(photos, "1/1")
    journal = photos / ".fastequi" / "index.part-1-of-1.jsonl"
    each = journal.read_bytes().splitlines(True)
    assert len(each) == 2 * (COUNT + 2) + 1
    lines = [b"".join(each[i : i + 2]) for i in range(0, len(each), 2)]  # an image and its values

    def continued(content):
        journal.write_bytes(content)
        caplog.clear()
        scanned(photos, "1/1")
        assert journal.read_bytes() == b"".join(lines)
        said = [r.getMessage() for r in caplog.records if "continuing" in r.getMessage()]
        return int(said[0].split()[1]) if said else 0

    assert continued(b"".join(lines)) == COUNT + 2  # nothing is left to do
    assert continued(b"".join(lines[:7])) == 7
    assert continued(b"".join(lines[:7]) + lines[7][:-9]) == 7  # torn
    assert continued(b"".join(lines[:7]) + lines[7][:-1]) == 7
    assert continued(b"".join(lines[:7]) + each[14]) == 7  # without its values
    assert continued(b"".join([*lines[:7], b"\0" * 100])) == 7
    assert continued(b"") == 0
    assert continued(b"noise") == 0
    assert continued(b"".join([*lines[:3], *lines[4:]])) == 3
    name = json.loads(each[10])[0]
    os.utime(photos / name, ns=(5, 5))  # written again
    journal.write_bytes(b"".join(lines[:9]))
    caplog.clear()
    scanned(photos, "1/1")
    assert "continuing: 5 images were scanned before" in caplog.text
    changed = [i for i, new in enumerate(journal.read_bytes().splitlines(True)) if new != each[i]]
    assert changed == [10]


def test_shards_written_again_are_scanned_again(photos, tmp_path, caplog, one_by_one):
    caplog.set_level(logging.INFO)
    place = tars(tmp_path)
    commands.data(["scan", str(place), "--part", "1/1"])
    (journal,) = (tmp_path / "shards" / ".fastequi").glob("*.part-1-of-1.jsonl")
    os.utime(tmp_path / "shards" / "2.tar", ns=(5, 5))
    commands.data(["scan", str(place)])
    assert "continuing: 10 images were scanned before" in caplog.text
    assert not journal.exists()
    assert len(tar_shards(place)) == COUNT + 1


def test_one_process_at_a_time_scans_a_part(photos):
    from fastequi.data.sources.journal import Journal

    file = photos / ".fastequi" / "index.part-1-of-2.jsonl"
    with (
        Journal(file),
        pytest.raises(BlockingIOError, match=r"another process is scanning it into"),
    ):
        scanned(photos, "1/2")
    scanned(photos, "1/2")


@pytest.mark.slow  # tests/test_index.py kills one too, which kills itself
def test_a_scan_that_is_killed_goes_on_and_gives_the_same(tmp_path):
    """kill -9 from outside, as soon as there is something to lose: images are kept once the counts
    of their values follow them."""
    photos = photographs(tmp_path / "photos", 600)
    journal = photos / ".fastequi" / "index.part-1-of-1.jsonl"
    command = [sys.executable, "-m", "fastequi.cli", "data", "scan", str(photos), "--threads", "1"]
    options = {"env": environment(), "cwd": ROOT, "text": True}
    running = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, **options
    )
    deadline = time.monotonic() + 60
    while (
        not (journal.is_file() and b"\n{" in journal.read_bytes()) and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    known = len(journal.read_bytes().splitlines())
    assert 0 < known < 602
    assert not folder_listing(photos).index.exists()
    done = subprocess.run(command, capture_output=True, check=True, timeout=120, **options)
    assert "images were scanned before" in done.stderr
    assert "600 images" not in done.stdout
    assert done.stdout.startswith("601 images, ")
    found = index.read(folder_listing(photos).index)
    commands.data(["scan", str(photos), "--index", str(tmp_path / "again.fei")])
    assert found.rows == index.read(tmp_path / "again.fei").rows
    assert len(list((photos / ".fastequi").iterdir())) == 2


def test_what_a_killed_merge_left_behind_goes(photos):
    beside = photos / ".fastequi"
    beside.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = [beside / f".index.fei.{platform.node()}.{pid}.tmp" for pid in (ended.pid, os.getppid())]
    for file in left:
        file.write_bytes(b"x")
    commands.data(["scan", str(photos)])
    assert [file.exists() for file in left] == [False, True]


def test_a_name_that_asks_for_lines_gets_them(photos, tmp_path):
    commands.data(["scan", str(photos), "--index", str(tmp_path / "i.jsonl")])
    commands.data(["scan", str(photos)])
    assert json.loads((tmp_path / "i.jsonl").open().readline())["images"] == COUNT + 1
    lines, mapped = (index.read(p) for p in (tmp_path / "i.jsonl", folder_listing(photos).index))
    assert lines == mapped
