"""The index: whole or not there, used without opening a file, and out of date when it is."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fastequi.cli import commands
from fastequi.data.sources import index
from fastequi.data.sources.image_sets import image_folder
from fastequi.data.sources.index import Index, Row, quarantine_of
from fastequi.data.sources.listing import Archive, folder_listing

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path):
    """Six images, the index that a scan would write of them, and one that it left out."""
    rows = []
    for i in range(6):
        path = tmp_path / f"part {i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (10 + i, 20)).save(path)
        name = str(path.relative_to(tmp_path))
        rows.append(Row(name, path.stat().st_size, 20, 10 + i, f"{i:016x}"))
    (tmp_path / "bad.jpg").write_text("no image")
    index.write(place(tmp_path), Index(sorted(rows), {"bad.jpg": "no image"}, decoded=True))
    return tmp_path


def place(folder):
    return folder / ".fastequi" / "index.jsonl"


def test_it_comes_back_as_written_and_is_json_lines(tmp_path):
    rows = [Row("é ü.png", 5, 2, 3, "ab"), Row("\udcff.png", 2**40, 1, 9, "")]
    written = index.write(tmp_path / "i.jsonl", Index(rows, {"b": "why"}, decoded=False))
    assert index.read(tmp_path / "i.jsonl") == written
    members = [Row("s.tar/a.png", 5, 2, 3, "", 512)]
    whole = Index(members, {}, decoded=True, archives=(Archive("s.tar", 9, 8),))
    assert index.write(tmp_path / "s.jsonl", whole) == index.read(tmp_path / "s.jsonl")
    first, *rest = map(json.loads, (tmp_path / "i.jsonl").read_text().splitlines())
    assert first["images"] == 2
    assert first["columns"] == ["name", "bytes", "height", "width", "sha256"]
    assert rest == [["b", "why"], ["é ü.png", 5, 2, 3, "ab"], ["\udcff.png", 2**40, 1, 9, ""]]
    assert quarantine_of(tmp_path / "i.jsonl").read_text() == '["b", "why"]\n'
    assert len(list(tmp_path.iterdir())) == 4


def test_training_opens_no_header(folder, caplog, monkeypatch):
    expected = image_folder(folder)
    monkeypatch.setattr(Image, "open", None)
    for name in expected.names:
        (folder / name).write_bytes(bytes((folder / name).stat().st_size))
    with caplog.at_level(logging.INFO):
        source = image_folder(folder)
    assert source == expected
    assert source.sizes.tolist() == [[20, 10 + int(name[-5])] for name in source.names]
    (record,) = [r.getMessage() for r in caplog.records]
    assert record.startswith("6 images by the index")
    assert index.read(place(folder)).when in record
    assert record.endswith("1 left out")


def test_a_file_gone_or_changed_stops_the_run(folder):
    (folder / "part 0" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"out of date \(gone: 1 images of 6 \(part 0/2.png\)\)"):
        image_folder(folder)
    (folder / "part 1" / "3.png").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"0/2.png\); changed: 1 images of 6 \(part 1/3.png\)"):
        image_folder(folder)
    place(folder).unlink()
    with pytest.raises(ValueError, match="2 of 6 images"):  # headers are opened again
        image_folder(folder)
    assert len(image_folder(folder, tolerate=0.4)) == 4


def test_new_files_are_said_and_not_used(folder, caplog):
    Image.new("RGB", (5, 5)).save(folder / "new.png")
    with caplog.at_level(logging.WARNING):
        assert len(image_folder(folder)) == 6
    assert "not used: 1 new images (new.png)" in caplog.text
    assert "bad.jpg" not in caplog.text


def test_what_a_scan_left_out_counts_against_the_share(folder):
    assert len(image_folder(folder)) == 6
    with pytest.raises(ValueError, match=r"1 of 7 images .* cannot be read: bad.jpg \(no image\)"):
        image_folder(folder, tolerate=0.0)


def test_an_index_elsewhere(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("other") / "set.jsonl"
    with pytest.raises(FileNotFoundError, match=r"index: .* does not exist"):
        image_folder(folder, index=elsewhere)
    place(folder).rename(elsewhere)
    (folder / "part 0" / "2.png").unlink()
    with pytest.raises(ValueError, match="out of date"):
        image_folder(folder, index=elsewhere)
    members = Index([], {}, decoded=True, archives=(Archive("s.tar", 9, 8),))
    index.write(elsewhere, members)
    with pytest.raises(ValueError, match="is one of tar shards"):
        image_folder(folder, index=elsewhere)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "\n".join(text.splitlines()[:-1]) + "\n",
        lambda text: text.replace('"fastequi index": 1', '"fastequi index": 99'),
        lambda text: "[]\n",
        lambda text: "",
    ],
)
def test_a_damaged_index_is_refused(folder, damage):
    file = place(folder)
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=r"index.jsonl cannot be used .*; make it again with"):
        image_folder(folder)


def test_a_write_that_fails_leaves_the_old_index(folder):
    before = place(folder).read_bytes()

    def rows():
        yield Row("a.png", 1, 1, 1)
        raise KeyboardInterrupt

    class Endless(list):
        def __iter__(self):
            return rows()

    with pytest.raises(KeyboardInterrupt):
        index.write(place(folder), Index(Endless([1]), {}, decoded=True, archives=(1,)[:0]))
    assert place(folder).read_bytes() == before
    assert len(list(place(folder).parent.iterdir())) == 2


def test_the_command_scans_and_says_what_is_there(folder, tmp_path_factory, capsys):
    pytest.importorskip("nvidia.dali")
    (folder / "part 1" / "copy.png").write_bytes((folder / "part 0" / "0.png").read_bytes())
    elsewhere = tmp_path_factory.mktemp("other") / "set.jsonl"
    before = place(folder).read_bytes()
    commands.data(["scan", str(folder), "--index", str(elsewhere), "--threads", "1"])
    done = capsys.readouterr()
    for line in (
        "7 images, ",
        "formats     7 PNG",
        "smallest    10 × 20  part 0/0.png",
        "largest     15 × 20  part 1/5.png",
        "duplicates  1\n  part 1/copy.png = part 0/0.png",
        "left out    1\n  bad.jpg (no image in a format that is read)",
        f"index       {elsewhere}",
    ):
        assert line in done.out
    assert "scanning 100%  8 of 8 images" in done.err
    assert place(folder).read_bytes() == before
    assert len(image_folder(folder, index=elsewhere)) == 7
    commands.data(["scan", str(folder)])
    mapped = place(folder).with_name("index.fei")
    assert index.read(mapped).rows == index.read(elsewhere).rows


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (["scann", "."], ValueError, "did you mean 'scan'"),
        (["scan", "nowhere"], FileNotFoundError, "nowhere is no folder, .tar file or pattern"),
        (["scan", ".", "--threads", "-1"], ValueError, "--threads: expected 0"),
        (["scan", "."], ValueError, "found no file at all"),
    ],
)
def test_bad_arguments_of_the_command(tmp_path, monkeypatch, args, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        commands.data(args)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said_before_the_scan(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written; name another place"):
        commands.data(["scan", str(folder), "--index", str(folder / "new" / "deep" / "i.jsonl")])
    assert not (folder / "new").exists()


def test_a_file_that_is_no_index_is_not_written_over(folder, tmp_path):
    photo = folder / "part 0" / "0.png"
    before = photo.read_bytes()
    for other, kind in ((photo, "no index"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=f"index: {other} is there and is {kind}; name anoth"):
            commands.data(["scan", str(folder), "--index", str(other)])
        with pytest.raises(ValueError, match=f"is there and is {kind}"):
            commands.data(["merge", str(folder), "--index", str(other)])
    assert photo.read_bytes() == before
    for name in ("a.jsonl", "a.fei"):  # an index is
        for _ in range(2):
            commands.data(["scan", str(folder), "--index", str(tmp_path / name)])


def test_the_command_says_how_it_is_used(capsys):
    commands.data([])
    assert "usage: fastequi data COMMAND PATH" in capsys.readouterr().out


def test_a_scan_killed_half_way_leaves_the_index_and_goes_on_where_it_was(folder, caplog):
    pytest.importorskip("nvidia.dali")
    before = sorted(p for p in folder.rglob("*"))
    old = place(folder).read_bytes()
    script = (
        "import os, signal, sys\n"
        "from fastequi.cli import main; from fastequi.runtime import progress\n"
        "from fastequi.data import scan\n"
        "how = getattr(signal, sys.argv.pop())\n"
        # a job in the background has no handler
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "scan._FILES = 3\n"
        "progress.Progress.say = lambda *_: os.kill(os.getpid(), how)\n"
        "main.main(sys.argv[1:])\n"
    )
    part = place(folder).with_name("index.part-1-of-1.jsonl")
    for how, code, known in (("SIGKILL", -9, 4), ("SIGINT", 130, 4)):
        done = subprocess.run(
            [sys.executable, "-c", script, "data", "scan", str(folder), how],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        assert sorted(p for p in folder.rglob("*")) == sorted([*before, part])
        assert place(folder).read_bytes() == old
        assert len(part.read_text().splitlines()) == known
    assert done.stderr.endswith("fastequi: stopped\n")
    assert len(folder_listing(folder)) == 7
    with caplog.at_level(logging.INFO):
        commands.data(["scan", str(folder)])
    assert "continuing: 3 images were scanned before" in caplog.text
    assert not part.exists()
    found = index.read(place(folder).with_name("index.fei"))
    assert [row.name for row in found.rows] == [row.name for row in index.read(place(folder)).rows]
    assert found.left_out == {"bad.jpg": "no image in a format that is read"}
