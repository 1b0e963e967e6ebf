"""Sources: what is found, in which order, and every way a folder can be wrong."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastequi.data.sources.image_sets import embedded_photos, image_folder


def save(path, size=(20, 10), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path, **options)


def test_licences_beside_the_embedded_photographs_are_not_told_of(caplog):
    with caplog.at_level(logging.INFO):
        photos = embedded_photos()
        assert "passed over" not in caplog.text
        image_folder(Path(photos.paths[0]).parent)
    assert "passed over 1 × .md" in caplog.text


def test_embedded_photos():
    source = embedded_photos((0, 0, 0.7, 1))
    assert len(source) == 9
    assert source.region == (0, 0, 0.7, 1)
    assert source.names[0] == "astronaut.jpg"
    for path, (height, width) in zip(source.paths, source.sizes, strict=True):
        with Image.open(path) as image:
            assert image.size == (width, height)
    assert source.with_region((0.7, 0, 1, 1)) == embedded_photos((0.7, 0, 1, 1))


def test_nested_folders_any_case_sorted(tmp_path):
    for name in ("b.JPG", "a/z.png", "a/c/y.WebP", "x.jpeg", "w.BMP"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    save(tmp_path / ".hidden.jpg")
    save(tmp_path / ".thumbnails" / "t.jpg")
    source = image_folder(str(tmp_path))
    assert source.names == ("a/c/y.WebP", "a/z.png", "b.JPG", "w.BMP", "x.jpeg")
    assert source.paths == tuple(str(tmp_path / name) for name in source.names)
    assert (source.sizes == [10, 20]).all()


def test_of_two_ways_to_a_folder_the_first_by_name_is_taken(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "x.png")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    plain, found = os.walk, []
    for backwards in (False, True):  # the order of a folder's names is the disk's

        def walk(*args, backwards=backwards, **how):
            for parent, folders, files in plain(*args, **how):
                folders.sort(reverse=backwards)
                yield parent, folders, files

        monkeypatch.setattr(os, "walk", walk)
        found.append(image_folder(tmp_path).names)
    assert found == [("a/x.png",)] * 2


def test_links_are_followed_but_not_in_circles(tmp_path):
    save(tmp_path / "real" / "a.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    assert image_folder(tmp_path / "set").names == ("linked/a.jpg",)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_sizes_are_upright(tmp_path, extension):
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(tmp_path / f"{orientation}.{extension}", exif=exif.tobytes())
    save(tmp_path / f"9.{extension}", exif=b"Exif\0\0 damaged")
    assert image_folder(tmp_path).sizes.tolist() == [[10, 20]] * 2 + [[20, 10]] * 2 + [[10, 20]]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        image_folder(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder(tmp_path):
    save(tmp_path / "a.jpg")
    with pytest.raises(
        NotADirectoryError, match=r"a.jpg is a file; expected a folder of .*\.tar.*\.txt"
    ):
        image_folder(tmp_path / "a.jpg")


def test_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="no file at all") as error:
        image_folder(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_folder_without_images_says_what_it_found(tmp_path):
    for name in ("a.txt", "b.txt", "c.tfrecord"):
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"\.jpg \.png .*only 2 × \.txt, 1 × \.tfrecord"):
        image_folder(tmp_path)


def damaged(folder):
    (folder / "text.jpg").write_text("this is no image")
    (folder / "zero.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((folder / "000.jpg").read_bytes()[:40])


def test_unreadable_files_are_named_and_left_out(tmp_path, caplog):
    for i in range(30):
        save(tmp_path / f"{i:03}.jpg")
    damaged(tmp_path)
    with caplog.at_level(logging.WARNING):
        source = image_folder(tmp_path)
    assert len(source) == len(source.sizes) == 30
    assert "3 of 33 images" in caplog.text
    assert "left out" in caplog.text
    for name in ("text.jpg", "zero.png (empty file)", "cut.jpg"):
        assert name in caplog.text


def test_one_unreadable_file_never_stops_a_small_set(tmp_path):
    save(tmp_path / "a.jpg")
    save(tmp_path / "b.jpg")
    (tmp_path / "zero.jpg").write_bytes(b"")
    assert len(image_folder(tmp_path)) == 2


def test_too_many_unreadable_files_are_refused(tmp_path):
    for i in range(20):
        save(tmp_path / f"{i:03}.jpg")
    damaged(tmp_path)
    with pytest.raises(ValueError, match=r"3 of 23 images in .* cannot be read: cut.jpg"):
        image_folder(tmp_path)
    for i in range(20):
        (tmp_path / f"bad{i}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"23 of 43 .* bad0.jpg and 20 more \(empty file\), cut"):
        image_folder(tmp_path)


def test_only_unreadable_files(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(ValueError, match="1 of 1 images"):
        image_folder(tmp_path)


def test_other_formats_under_an_image_name(tmp_path):
    save(tmp_path / "a.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", "GIF")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png", "ICO")  # none of those that are read
    assert image_folder(tmp_path).names == ("a.jpg", "b.png")


@pytest.mark.parametrize(
    "region", [(0, 0, 0, 1), (0.5, 0, 0.2, 1), (0, 0, 1.2, 1), (-0.1, 0, 1, 1)]
)
def test_region_is_checked(region):
    with pytest.raises(ValueError, match="region: expected"):
        embedded_photos(region)


def test_sources_are_plain_values():
    source = embedded_photos()
    assert replace(source, names=source.names[:1]) != source
    assert isinstance(source.sizes, np.ndarray)
