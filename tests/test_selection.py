"""Which images --data, --include and --exclude mean: folders, lists, shards, several of them."""

import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastequi.cli import commands
from fastequi.cli.main import main
from fastequi.data.sources import index, kept
from fastequi.data.sources.image_sets import image_folder, open_source
from fastequi.data.sources.local import expect_local
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.selection import Selection


def put(root, *names, size=(8, 8)):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (i, 0, 0)).save(path)


@pytest.fixture
def data(tmp_path):
    put(tmp_path / "photos", "a.png", "cat/b.JPG", "cat/ü 1.png", "thumbs/a.png")
    put(tmp_path / "scans", "a.png", "z.tif", size=(9, 9))
    (tmp_path / "scans" / "notes.md").write_text("x")
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        tar.add(tmp_path / "photos" / "a.png", "cat/m.png")
        tar.add(tmp_path / "scans" / "notes.md", "cat/m.md")
    return tmp_path


def test_several_places_are_one_source_in_any_order(data, caplog):
    places = [data / "photos", data / "scans", data / "one.tar"]
    with caplog.at_level(logging.INFO):
        source = open_source(places)
    assert source.names == (
        *("one.tar/cat/m.png", "photos/a.png", "photos/cat/b.JPG", "photos/cat/ü 1.png"),
        *("photos/thumbs/a.png", "scans/a.png", "scans/z.tif"),
    )
    assert f"image folder: {data / 'scans'}: passed over 1 × .md" in caplog.text
    assert f"shards: {data / 'one.tar'}: passed over 1 × .md" in caplog.text
    assert source == open_source(places[::-1])
    assert source.fingerprint() == open_source(places[::-1]).fingerprint()
    for i, path in enumerate(source.paths):
        expected = data / "photos" / "a.png" if path.endswith(".tar") else Path(path)
        assert source.encoded(i).tobytes() == expected.read_bytes()
    kept.keep(data / "images.jsonl", source)
    (data / "photos" / "cat" / "b.JPG").unlink()
    again = kept.as_begun(data / "images.jsonl", open_source(places), 0.2)
    assert again.names == source.names
    np.testing.assert_array_equal(np.delete(again.spans, 2, 0), np.delete(source.spans, 2, 0))


def test_what_is_named_twice_is_taken_once(data, caplog):
    (data / "linked").symlink_to(data / "photos")
    places = [data / "photos", data / "photos" / "cat", data / "linked"]
    assert len(open_source(places)) == 4
    assert "6 images are named more than once and taken once" in caplog.text
    assert open_source([data / "photos"]) == image_folder(data / "photos")


def test_a_list_names_images_folders_and_shards(data, caplog):
    (data / "lists").mkdir()
    file = data / "lists" / "some.txt"
    file.write_text(
        "\ufeff# a comment\n\n../photos/a.png\r\n  ../photos/cat/ü 1.png\t a class\n"
        f"{data}/scans/z.tif\n../photos/a.png\n../scans/notes.md\n"
    )
    with caplog.at_level(logging.INFO):
        source = open_source(file)
    assert source.names == ("../photos/a.png", "../photos/cat/ü 1.png", "../scans/z.tif")
    assert "passed over 1 × .md" in caplog.text
    file.write_text("../scans\n../one.tar\n../photos/a.png\n")
    assert open_source(file).names == (
        *("one.tar/cat/m.png", "photos/a.png", "scans/a.png", "scans/z.tif"),
    )
    file.write_text("../photos/a.png\n../photos/gone.png\n")
    assert open_source(file).names == ("../photos/a.png",)
    assert "gone.png (No such file or directory); left out" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no image in .*some.txt: expected a path a line.* found no line at all"),
        ("a.csv\nb\n", "found only 1 × .csv, 1 × without extension"),
        ("s3://bucket/a.png\n", "line 1: s3://bucket/a.png is a URL"),
        ("a.png\tcat\na.png\tdog\n", "line 2: a.png has class 'dog' here, and 'cat' in a line bef"),
        ("a\0b", "is no text file"),
        ("gone.png\n", "1 of 1 images .* cannot be read: gone.png"),
    ],
)
def test_lists_that_are_wrong(tmp_path, text, message):
    (tmp_path / "some.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "some.txt")
    with pytest.raises(FileNotFoundError, match=r"list: .*nowhere.txt does not exist"):
        open_source(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ((), ("thumbs",), "abü"),
        (("*.png",), (), "atü"),
        (("*.JPG", "*.jpg"), (), "b"),
        (("cat/*",), (), "bü"),
        (("cat",), ("b.*",), "ü"),
        (("/cat/",), (), "bü"),
        (("**/a.png",), (), "at"),
        (("*/a.png",), (), "t"),
        (("c?t/[!b]*",), (), "ü"),
        (("cat/**",), (), "bü"),
        (("*",), ("**/*.png",), "b"),
        (("at/*", "a"), (), ""),
    ],
)
def test_patterns(include, exclude, left):
    names = {"a": "a.png", "b": "cat/b.JPG", "ü": "cat/ü 1.png", "t": "thumbs/a.png"}
    chosen = Patterns(include, exclude).chosen(list(names.values()))
    assert {n for n, wanted in zip(names, chosen, strict=True) if wanted} == set(left)


def test_patterns_choose_in_folders_lists_and_shards_alike(data, caplog):
    places = tuple(str(data / name) for name in ("photos", "scans", "one.tar"))
    for _ in range(2):  # the shard by the list that was kept, then
        with caplog.at_level(logging.INFO):
            source = open_source(Selection(places, Patterns(("cat/*", "*.tif"), ("b.*",))))
        assert source.names == ("one.tar/cat/m.png", "photos/cat/ü 1.png", "scans/z.tif")
    assert "1 of 4 images by --include 'cat/*' --include '*.tif' --exclude 'b.*'" in caplog.text
    with pytest.raises(ValueError, match=r"--data: --include 'dog' chooses no image in"):
        open_source(Selection(places, Patterns(("dog",))))
    for bad, why in (("", "expected a pattern"), ("[b-a]", "is no pattern")):
        with pytest.raises(ValueError, match=why):
            Patterns((bad,))


def test_every_place_has_its_index(data, caplog, capsys):
    pytest.importorskip("nvidia.dali")
    photos, scans = str(data / "photos"), str(data / "scans")
    commands.data(["scan", photos, scans, "--exclude", "thumbs"])
    told = capsys.readouterr().out
    assert "3 images, " in told
    assert "passed over 1 × .md" in told
    known = index.read(data / "scans" / ".fastequi" / "index.fei")
    assert (known.passed_over, known.formats) == ({".md": 1}, ("PNG", "TIFF"))
    assert len(open_source([photos, scans])) == 5
    assert "not used: 1 new images (thumbs/a.png)" in caplog.text
    assert len(open_source(Selection((photos,), Patterns(("cat",))))) == 2
    ours = [data / "i.jsonl", data / "j.jsonl"]
    commands.data(["scan", photos, scans, "--index", str(ours[0]), "--index", str(ours[1])])
    assert len(open_source([photos, scans], index=ours)) == 6
    with pytest.raises(ValueError, match="--index: expected one for each of the 2 places"):
        open_source([photos, scans], index=ours[:1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "demo", "--data", "s3://b/x"], "--data: s3://b/x is a URL"),
        (["pretrain", "demo", "--data=gs://b/x"], "--data: gs://b/x is a URL"),
        (["pretrain", "demo", "--data", ".", "hdfs://b/x"], "--data: hdfs://b/x is a URL"),
        (["pretrain", "demo", "--data", ".", "--run-dir", "s3://b"], "--run-dir: s3://b is a URL"),
        (["data", "scan", "https://host/a.zip"], "argument: https://host/a.zip is a URL of no tar"),
        (["data", "scenes", "https://h/a.tar"], "argument: https://h/a.tar is a URL; only paths"),
        (
            ["pretrain", "demo", "--data", "https://me:pw@host/a.tar"],
            "--data: https://host/a.tar c",
        ),
        (
            ["pretrain", "demo", "--data", "https://host/a.tar?sig=pw"],
            "--data: https://host/a.tar h",
        ),
        (
            ["pretrain", "demo", "--data", "https:/me:p/w@host/a.tar"],
            "--data: https://host/a.tar i",
        ),
        (
            ["pretrain", "demo", "--data", "https://me:p/w@h/a.tar"],
            "--data: https://h/a.tar carries",
        ),
        (["pretrain", "demo", "--data", "https://h/a.tar#pw"], "--data: https://h/a.tar has a"),
        (["pretrain", "demo", "--run-dir", "s3://k:pw@b/a?sig=pw"], "--run-dir: s3://b/a is a URL"),
        (
            ["pretrain", "demo", "--data", "s3://b/a.tar", "p"],
            "expected the URL s3://b/a.tar alone",
        ),
        (
            ["pretrain", "demo", "--data", "s3://{0..1}/a.tar"],
            "or bucket without a pattern",
        ),
        (["pretrain", "demo", "--data", "http://h/*.tar"], "a web server lists nothing"),
        (["embed", "s3://b/vit.safetensors"], "argument: s3://b/vit.safetensors is a URL"),
        (["eval", "knn", "x", "--data", "file:///tmp/x"], "name the path itself, /tmp/x"),
        (["pretrain", "demo", "--data", ""], "--data: expected a path, got ''"),
        (["pretrain", "demo", "--data"], "--data: expected a folder of images or tar shards"),
        (["eval", "knn", "x"], "--data: expected folders of classes"),
        (["embed", "x", "--data", "."], "--out: expected FILE.safetensors"),
        (["embed", "x", "--data", ".", "--out", "o", "--size", "8x8x8"], "--size: expected a side"),
        (["embed", "x", "--data", ".", "--out", "o", "--include", ""], "--include: expected a pat"),
    ],
)
def test_what_names_no_images_is_refused_before_any_work(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_paths_that_look_a_little_like_urls():
    for path in ("a:b", "c:1/x", "cuda:1", "./s3:/x", "module:function"):
        assert expect_local("--data", path) == path
