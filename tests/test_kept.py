"""Runs of many images refer to their index, with the guarantees of a list of them."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from fastequi.data.sources import index, kept
from fastequi.data.sources.image_sets import image_folder, open_source
from fastequi.data.sources.index import Index, Row
from fastequi.data.sources.listing import folder_listing


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twenty images, of which there are many here, with an index."""
    monkeypatch.setattr(index, "MANY", 10)
    (tmp_path / "run").mkdir()
    for i in range(20):
        photo(tmp_path / "data" / f"{i % 3}" / f"é {i:02}.png", (10 + i, 20))
    indexed(tmp_path / "data")
    return tmp_path / "data"


def photo(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def indexed(folder):
    """The index that a scan would write of what is there."""
    names = list(folder_listing(folder).names)
    sizes = [Image.open(folder / name).size for name in names]
    found = [
        Row(name, (folder / name).stat().st_size, height, width, "1" * 16)
        for name, (width, height) in zip(names, sizes, strict=True)
    ]
    index.write(folder_listing(folder).index, Index(found, {}, True, formats=("PNG",)))


def test_a_reference_is_kept_and_the_same_images_go_on(folder, tmp_path):
    source, file = image_folder(folder), tmp_path / "run" / kept.NAME
    kept.keep(file, source)
    (reference,) = file.parent.iterdir()
    place = folder_listing(folder).index
    assert json.loads(reference.read_text()) == {
        "images": 20,
        "fingerprint": source.fingerprint(),
        "index": str(place),
    }
    assert kept.count(file.parent) == 20
    assert kept.as_begun(file, source, 0.1) is source
    again = image_folder(folder)
    assert kept.as_begun(file, again, 0.1) is again
    indexed(folder)  # a scan that finds the same
    assert len(list(place.parent.iterdir())) == 2
    assert kept.as_begun(file, image_folder(folder), 0.1) == source
    assert kept.seen(file.parent, source.pick(range(3, 9))) == 6
    kept.keep(file, source.pick(range(12)))  # nothing is written twice
    assert json.loads(reference.read_text())["images"] == 20


def test_images_of_before_keep_their_numbers_after_another_scan(folder, tmp_path, caplog):
    source, file = image_folder(folder), tmp_path / "run" / kept.NAME
    names, sizes = tuple(source.names), np.array(source.sizes)
    kept.keep(file, source)
    (folder / source.names[4]).unlink()
    photo(folder / "0" / "a new one.png", (7, 7))
    with pytest.raises(ValueError, match="out of date"):
        image_folder(folder)
    indexed(folder)
    assert "is the index of before; remove it once no run goes on with it" in caplog.text
    with caplog.at_level(logging.INFO):
        again = kept.as_begun(file, image_folder(folder), 0.1)
    assert again.names == names
    np.testing.assert_array_equal(again.sizes, sizes)
    assert again.paths == tuple(f"{folder}/{name}" for name in names)
    assert f"that are gone, and will be replaced: {names[4]}" in caplog.text
    assert "1 images were added after the run began and are not used" in caplog.text
    for i in (5, 6):
        (folder / names[i]).unlink()
    indexed(folder)
    with pytest.raises(
        ValueError, match=rf"of the 20 images of the run 3 \({names[4]}, .*are gone"
    ):
        kept.as_begun(file, image_folder(folder), 0.1)
    photo(folder / names[8], (5, 5))
    indexed(folder)
    with pytest.raises(ValueError, match=rf"1 \({names[8]}\) is of another size"):
        kept.as_begun(file, image_folder(folder), 0.2)


def test_an_index_that_is_gone_is_said(folder, tmp_path):
    file, place = tmp_path / "run" / kept.NAME, folder_listing(folder).index
    kept.keep(file, image_folder(folder))
    place.unlink()
    assert len(kept.as_begun(file, image_folder(folder), 0.1)) == 20  # headers say the same
    photo(folder / "new.png", (5, 5))
    expected = r"began with 20 images; now there are 21, and what changed cannot be said.*index.fei"
    with pytest.raises(ValueError, match=expected):
        kept.as_begun(file, image_folder(folder), 0.1)
    indexed(folder)
    with pytest.raises(ValueError, match=r"index.fei has digest \w{16}, expected \w{16}"):
        kept.as_begun(file, image_folder(folder), 0.1)
    assert kept.seen(file.parent, image_folder(folder)) is None


def test_many_images_that_are_of_no_one_index_are_kept_in_a_table(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "more" / "x", ignore=lambda *_: [".fastequi"])
    places, file = [folder, tmp_path / "more"], tmp_path / "run" / kept.NAME
    source = open_source(places)
    assert len(source) == 40
    kept.keep(file, source)
    assert sorted(os.listdir(file.parent)) == ["images.fei", "images.json"]
    assert kept.as_begun(file, open_source(places), 0.1) == source
    (tmp_path / "more" / "x" / source.names[35].removeprefix("more/x/")).unlink()
    again = kept.as_begun(file, open_source(places), 0.1)
    assert (again.names, again.paths) == (source.names, source.paths)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert kept.seen(moved, source) == 40


def test_few_images_are_kept_as_lines(folder, tmp_path):
    file = tmp_path / "run" / kept.NAME
    kept.keep(file, image_folder(folder).pick(range(9)))
    assert os.listdir(file.parent) == [kept.NAME]
    assert kept.count(file.parent) == 9


def test_a_run_of_many_images_goes_on_by_the_command(folder, tmp_path):
    pytest.importorskip("nvidia.dali")
    from fastequi.cli import commands
    from fastequi.runtime.checkpoint import latest
    from tests.support.runs import words

    commands.data(["scan", str(folder)])
    run = tmp_path / "runs" / "a"
    options = words("--data", folder, "--run-dir", run)[1:]
    commands.pretrain([*options, "--max-steps", "1"])
    assert not (run / kept.NAME).exists()
    assert json.loads((run / kept.REFERENCE).read_text())["images"] == 20
    (folder / "0" / "é 00.png").unlink()
    with pytest.raises(ValueError, match=r"out of date \(gone: 1 images of 20 \(0/é 00.png\)\)"):
        commands.pretrain([*options, "--resume", "--max-steps", "2"])
    commands.data(["scan", str(folder)])
    commands.pretrain([*options, "--resume", "--max-steps", "2"])
    assert latest(run / "checkpoints").name.endswith("2")
