"""What is for training and testing, and which classes there are, as names of folders say it."""

import io
import json
import logging
import tarfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nvidia.dali")

from fastequi.data.labelled import described, labelled_sets
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.splits import photographs, role, shared


def put(root, *names):
    """Small images of random pixels by these names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(abs(hash(name)) % 1000).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(path)


def classes(root, *folders, images=2, of="abc"):
    put(root, *(f"{top}/{c}/{i}.png" for top in folders for c in of for i in range(images)))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *[("train", "val"), ("train", "valid"), ("Train", "Test"), ("training", "testing")],
        *[("TRAIN", "dev"), ("trn", "tst"), ("tr", "te"), ("train2017", "val2017")],
        *[("Training Set", "Test Set"), ("train_images", "eval"), ("trainval", "test")],
    ],
)
def test_usual_names_of_splits_in_any_case(tmp_path, train, test):
    classes(tmp_path, train, images=3)
    classes(tmp_path, test)
    parts = labelled_sets(tmp_path)
    assert [part.classes for part in parts] == [("a", "b", "c")] * 2
    assert [len(part) for part in parts] == [9, 6]
    assert [part.what for part in parts] == [f"{train}/", f"{test}/"]
    assert described(*parts) == (
        f"3 classes (a, b, c), 9 training images ({train}/) and 6 test images ({test}/)"
    )
    assert [len(part) for part in photographs(tmp_path)] == [9, 6]


@pytest.mark.parametrize("name", ["trains", "testament", "bullet train", "cat", "eval1uate", "12"])
def test_names_that_are_no_splits(name):
    assert not role(name)


def test_what_is_tested_on_is_said_where_there_is_more(tmp_path, caplog):
    classes(tmp_path, "train", "val", "test", "extra")
    with caplog.at_level(logging.INFO):
        parts = labelled_sets(tmp_path)
    assert [part.what for part in parts] == ["train/", "val/"]
    assert "test images: val/ (6); not used: extra (6), test (6)" in caplog.text


def test_a_folder_around_the_splits_and_one_that_stands_alone(tmp_path):
    classes(tmp_path / "archive" / "set", "train", "val")
    assert labelled_sets(tmp_path)[0].classes == ("a", "b", "c")
    classes(tmp_path / "lone", "train")
    assert labelled_sets(tmp_path / "lone")[0].classes == ("a", "b", "c")


def test_what_looks_like_splits_is_not_taken_for_classes(tmp_path):
    classes(tmp_path / "two", "part1", "part2")
    with pytest.raises(ValueError, match=r"part1, part2 hold the same folders \(a, b, c\), as spl"):
        labelled_sets(tmp_path / "two")
    classes(tmp_path / "lacks", "here")
    classes(tmp_path / "lacks", "there", of="ab")
    with pytest.raises(ValueError, match="here, there hold the same folders"):
        labelled_sets(tmp_path / "lacks")
    classes(tmp_path / "one", "train", "wild", of="ab")
    with pytest.raises(ValueError, match="train, wild hold the same folders"):
        labelled_sets(tmp_path / "one")
    classes(tmp_path / "beside", "train")
    put(tmp_path / "beside", "samples/1.png")
    with pytest.raises(ValueError, match=r"train is named as a split .* only samples"):
        labelled_sets(tmp_path / "beside")
    classes(tmp_path / "no train", "val", "test")
    with pytest.raises(ValueError, match="test, val hold the same folders"):
        labelled_sets(tmp_path / "no train")
    flat = [f"{top}/{i}.png" for top in ("train", "val") for i in range(3)]
    put(tmp_path / "flat", *flat)
    with pytest.raises(ValueError, match="a subfolder for each class"):
        labelled_sets(tmp_path / "flat")


def test_classes_that_are_called_as_splits_are(tmp_path):
    names = [f"{top}/{i}.png" for top in ("de", "te", "tr") for i in range(3)]  # languages
    put(tmp_path / "languages", *names)
    assert labelled_sets(tmp_path / "languages")[0].classes == ("de", "te", "tr")
    put(tmp_path / "vehicles", *(f"{top}/{i}.png" for top in ("car", "train") for i in range(3)))
    assert labelled_sets(tmp_path / "vehicles")[0].classes == ("car", "train")
    # what holds the same folders can be a class all the same: a list says so
    classes(tmp_path / "years", "cat", "dog", of=("2019", "2020"))
    names = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "years").rglob("*.png"))
    listed = tmp_path / "years.txt"
    listed.write_text("# path, class\n\n" + "".join(f"{n}\t{n.split('/')[1]}\n" for n in names))
    assert labelled_sets(listed)[0].classes == ("cat", "dog")


def test_classes_that_vanish_are_named(tmp_path, caplog):
    classes(tmp_path, "train", images=5)
    classes(tmp_path, "val", of="ab")
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / "damaged").mkdir()
    (tmp_path / "train" / "damaged" / "x.jpg").write_bytes(b"no image")
    (tmp_path / "train" / ".hidden").mkdir()
    parts = labelled_sets(tmp_path)
    assert parts[0].classes == ("a", "b", "c")
    assert "class folders without an image that can be read: damaged, empty" in caplog.text
    assert "no test image of class c" in caplog.text


def test_several_folders_and_a_test_set_of_its_own(tmp_path):
    classes(tmp_path, "set/train", "set/val")
    given = labelled_sets([tmp_path / "set" / "val", tmp_path / "set" / "train"])
    whole = labelled_sets(tmp_path / "set")
    assert [len(p) for p in given] == [len(p) for p in whole]
    assert given[1].source.names == ("val/a/0.png", "val/a/1.png", "val/b/0.png", "val/b/1.png",
                                     "val/c/0.png", "val/c/1.png")  # fmt: skip
    classes(tmp_path, "one", "two", images=3)
    both = labelled_sets([tmp_path / "one", tmp_path / "two"])  # of the same classes
    assert both[0].classes == ("a", "b", "c")
    assert sum(map(len, both)) == 18
    apart = labelled_sets(tmp_path / "one", test_data=tmp_path / "two")
    assert [len(p) for p in apart] == [9, 9]
    assert [len(p) for p in labelled_sets(tmp_path / "set", test_data=tmp_path / "two")] == [6, 9]


def shard(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def png(i):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_classes_of_members_of_shards(tmp_path):
    """By .cls, by .json, by folders; shards named as splits are splits."""
    for split, count in (("train", 6), ("val", 2)):
        named = {f"{i:03}.cls": f"{i % 2}\n".encode() for i in range(count)}
        pictures = {f"{i:03}.png": png(i) for i in range(count)}
        shard(tmp_path / "cls" / f"set-{split}-000.tar", pictures | named)
        told = {f"{i:03}.json": json.dumps({"label": i % 3}).encode() for i in range(count)}
        shard(tmp_path / "json" / f"{split}-0.tar", pictures | told)
    train, test = labelled_sets(tmp_path / "cls" / "*.tar")
    assert (train.classes, train.labels.tolist()) == (("0", "1"), [0, 1, 0, 1, 0, 1])
    assert (test.what, test.labels.tolist()) == ("set-val-000.tar", [0, 1])
    both = [tmp_path / "json" / "val-0.tar", tmp_path / "json" / "train-{0..0}.tar"]
    train, test = labelled_sets(both)
    assert (train.classes, len(train), len(test)) == (("0", "1", "2"), 6, 2)
    folders = {f"{c}/{i}.png": png(i) for c in ("cat", "dog") for i in range(5)}
    shard(tmp_path / "folders.tar", folders)
    train, test = labelled_sets(tmp_path / "folders.tar")
    assert (train.classes, len(train), len(test)) == (("cat", "dog"), 8, 2)
    inside = {f"set/{s}/{name}": data for s in ("train", "val") for name, data in folders.items()}
    shard(tmp_path / "inside.tar", inside)
    train, test = labelled_sets(tmp_path / "inside.tar")
    assert (train.classes, len(train), len(test)) == (("cat", "dog"), 10, 10)
    shard(tmp_path / "flat.tar", {f"{i}.png": png(i) for i in range(4)})
    with pytest.raises(ValueError, match=r"0.png lies in none and no .cls or .json names one"):
        labelled_sets(tmp_path / "flat.tar")


def test_images_in_both_sets_are_those_of_the_same_bytes(tmp_path):
    """In files or in shards; images of the same size in pixels and bytes are still others."""
    folder, other = tmp_path / "one", tmp_path / "two"
    folder.mkdir()
    other.mkdir()
    for i in range(6):
        pixels = np.full((8, 8, 3), 10 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.bmp")  # all as long
        Image.fromarray(pixels + (i % 2)).save(other / f"{i}.bmp")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for i in (1, 4):
            archive.add(folder / f"{i}.bmp", f"{i + 50}.bmp")
    files, others, shard = map(open_source, (folder, other, tmp_path / "set.tar"))
    assert shared(files, files) == 6
    assert shared(files.pick([0, 1, 2]), files.pick([2, 3])) == 1
    assert shared(files, others) == 3
    assert shared(files, shard) == shared(shard, files) == shared(shard, shard) == 2
    assert shared(shard.pick([0]), shard.pick([1])) == 0
    (folder / "0.bmp").unlink()
    assert shared(files, others) == 2
