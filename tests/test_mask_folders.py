"""Folders of images and masks: each layout as it is, and what is wrong in them by its file."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastequi.cli.main import main
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.selection import Selection
from fastequi.evaluate.geometry.masks import IGNORED, open_masks
from tests.support import painted
from tests.support.painted import cut_off, palette, save, save_grey, striped_folder

RGB = np.zeros((6, 8, 3), np.uint8)


def ids(*values):
    """A mask of 6x8 px, rows of the values in turn."""
    return np.broadcast_to(np.resize(np.array(values, np.uint8), 6)[:, None], (6, 8))


def names(pairs):
    return [pair.name for pair in pairs]


def test_every_fifth_of_images_and_masks_tests(tmp_path):
    for i in range(11):
        save(RGB, tmp_path / "images" / "a" / f"{i:02d}.jpg")
        save(ids(0, i % 3, 255), tmp_path / "masks" / "a" / f"{i:02d}.png")
    found = open_masks(tmp_path)
    assert (found.layout, found.classes) == ("folders", 3)
    assert names(found.pairs.test) == ["images/a/04.jpg", "images/a/09.jpg"]
    assert len(found.pairs.train) == 9
    assert found.test.names == ("images/a/04.jpg", "images/a/09.jpg")
    assert found.test.sizes.tolist() == [[6, 8], [6, 8]]
    mask = found.mask(found.pairs.test[0])
    assert mask.tolist() == ids(0, 1, 255).tolist()
    assert mask.dtype == torch.uint8


def test_a_lone_large_id_is_said_before_anything_is_computed(tmp_path, caplog):
    """A wrong pixel would make two hundred classes."""
    for i in range(10):
        save(RGB, tmp_path / "images" / f"{i:02d}.jpg")
        save(ids(0, 1, 2 if i != 7 else 200), tmp_path / "masks" / f"{i:02d}.png")
    found = open_masks(tmp_path)
    assert found.classes == 201
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert said.startswith("--classes: 201 by the largest id, 200, which is in 1 of 10 masks (")
    assert "07.png)" in said
    assert "197 are in none" in said
    caplog.clear()
    save(ids(0, 1, 2), tmp_path / "masks" / "07.png")
    assert open_masks(tmp_path).classes == 3
    assert not caplog.records


@pytest.mark.parametrize("above", [True, False], ids=["train/images", "images/train"])
def test_folders_named_as_splits_are_taken(tmp_path, above):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            for kind, values in (("images", RGB), ("masks", ids(0, 1))):
                folder = tmp_path / split / kind if above else tmp_path / kind / split
                save(values, folder / f"{i}.png")
    found = open_masks(tmp_path)
    assert (len(found.pairs.train), len(found.pairs.test)) == (3, 2)
    assert all("val" in name for name in found.test.names)


def test_some_images_are_chosen_by_name_and_evenly(tmp_path):
    for i in range(40):
        save(RGB, tmp_path / "images" / f"{'ab'[i % 2]}{i:02d}.png")
        save(ids(0, 1), tmp_path / "masks" / f"{'ab'[i % 2]}{i:02d}.png")
    chosen = Selection((str(tmp_path),), Patterns(include=("a*",)))
    found = open_masks(chosen, train_images=4, test_images=2)
    # of a: 00, 02, ..., 38 are 20 in front of b's; every fifth of all forty is for testing
    assert names(found.pairs.train) == [f"images/a{i:02d}.png" for i in (0, 10, 20, 30)]
    assert names(found.pairs.test) == [f"images/a{i:02d}.png" for i in (8, 28)]
    assert found.data.patterns.include == ("a*",)


@pytest.mark.parametrize("inside", ["", "VOCdevkit/VOC2012"])
def test_pascal_voc(tmp_path, inside):
    root = tmp_path / inside
    for i in range(4):
        save(RGB, root / "JPEGImages" / f"2007_{i:06d}.jpg")
        if i < 3:  # most photographs have no mask
            save(palette(ids(0, 20, 255)), root / "SegmentationClass" / f"2007_{i:06d}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000000\n2007_000002\n")
    (lists / "val.txt").write_text("2007_000001\n")
    found = open_masks(tmp_path)
    assert (found.layout, found.classes) == ("Pascal VOC", 21)
    assert names(found.pairs.train) == [f"JPEGImages/2007_00000{i}.jpg" for i in (0, 2)]
    assert names(found.pairs.test) == ["JPEGImages/2007_000001.jpg"]
    assert found.mask(found.pairs.test[0])[:3, 0].tolist() == [0, 20, IGNORED]


def test_ade20k_has_no_class_at_0(tmp_path):
    for split, count in (("training", 2), ("validation", 1)):
        for i in range(count):
            save(RGB, tmp_path / "images" / split / f"ADE_{i}.jpg")
            save(ids(0, 1, 150), tmp_path / "annotations" / split / f"ADE_{i}.png")
    found = open_masks(tmp_path)
    assert (found.layout, found.classes, len(found.train)) == ("ADE20K", 150, 2)
    assert found.mask(found.pairs.test[0])[:3, 0].tolist() == [IGNORED, 0, 149]


# of cityscapesScripts, helpers/labels.py: id of each of the 19 classes that are evaluated
CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path, kind):
    every = np.arange(34 if kind == "labelIds" else 19, dtype=np.uint8)[None].repeat(2, 0)
    image = np.zeros((*every.shape, 3), np.uint8)
    for split, city in (("train", "aachen"), ("val", "ulm"), ("test", "bonn")):
        stem = f"{city}_000000_000019"
        save(image, tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        save(every, tmp_path / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png")
        save(palette(every), tmp_path / "gtFine" / split / city / f"{stem}_gtFine_color.png")
    found = open_masks(tmp_path)
    assert (found.layout, found.classes) == ("Cityscapes", 19)
    stem = "ulm/ulm_000000_000019_leftImg8bit.png"
    assert names(found.pairs.test) == [f"leftImg8bit/val/{stem}"]
    row = found.mask(found.pairs.test[0])[0].tolist()
    if kind == "labelTrainIds":
        assert row == list(range(19))
    else:
        assert [row[i] for i in CITYSCAPES.values()] == list(range(19))
        assert sum(value == IGNORED for value in row) == 34 - 19


def _saved_over(name, values, **options):
    def change(root):
        save(values, root / name, **options)

    return change


def _removed(name):
    return lambda root: (root / name).unlink()


def _damaged(name):
    return lambda root: (root / name).write_bytes(b"no image")


def _cut_off(name):
    return lambda root: cut_off(root / name)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (
            _saved_over("masks/03.png", np.zeros((32, 30), np.uint8)),
            {},
            "masks/03.png of 32x32 px as 03.png, got 32x30",
        ),
        (_saved_over("masks/03.png", RGB), {}, "masks/03.png to be a PNG of class ids"),
        (
            _saved_over("masks/03.png", np.full((32, 32), 700, np.uint16)),
            {},
            "masks/03.png to be a PNG of class ids, at most 8 bits grey or palette, got mode I;16",
        ),
        (
            _saved_over("masks/03.png", np.full((32, 32), 9, np.uint8)),
            {"classes": 3},
            r"masks/03.png to hold class ids 0..2, 255, got 9",
        ),
        (_removed("masks/03.png"), {}, "masks/03.png for images/03.png, found none"),
        (
            _saved_over("masks/03.PNG", np.zeros((32, 32), np.uint8)),
            {},
            "one file for an image, got 03.PNG and 03.png in .*masks",
        ),
        (_removed("images/03.png"), {}, "an image in .*images for .*masks/03.png, found none"),
        (_saved_over("images/03.jpg", RGB), {}, "got 03.jpg and 03.png in .*images"),
        (_damaged("masks/03.png"), {}, "masks/03.png cannot be read as a PNG"),
        (_damaged("images/03.png"), {}, "images/03.png: expected an image"),
        (_cut_off("masks/04.png"), {}, "masks/04.png cannot be read as a PNG"),
        (_cut_off("images/04.png"), {}, "images/04.png: expected an image"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path, change, options, said):
    striped_folder(tmp_path, 5)
    change(tmp_path)
    with pytest.raises(ValueError, match=said):
        open_masks(tmp_path, **options)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif"])
def test_an_image_that_was_cut_off_is_found_by_more_than_its_header(tmp_path, suffix):
    striped_folder(tmp_path, 5, size=(64, 64))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (tmp_path / "images" / "04.png").unlink()
    file = save(noise, tmp_path / "images" / f"04.{suffix}")
    open_masks(tmp_path)
    cut_off(file)
    with pytest.raises(ValueError, match=rf"images/04\.{suffix}: expected an image"):
        open_masks(tmp_path)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_ids_are_those_in_the_file_whatever_its_bits(tmp_path, bits):
    truth = np.arange(64, dtype=np.uint8).reshape(4, 16) % min(2**bits, 254)
    for i in range(2):
        save(np.zeros((*truth.shape, 3), np.uint8), tmp_path / "images" / f"{i}.png")
        save_grey(truth, tmp_path / "masks" / f"{i}.png", bits)
    found = open_masks(tmp_path)
    assert found.classes == truth.max() + 1
    assert found.mask(found.pairs.test[0]).tolist() == truth.tolist()


def test_suffixes_are_found_in_any_case(tmp_path):
    striped_folder(tmp_path, 5)
    (tmp_path / "masks" / "03.png").rename(tmp_path / "masks" / "03.PNG")
    (tmp_path / "images" / "02.png").rename(tmp_path / "images" / "02.Png")
    found = open_masks(tmp_path)
    assert (len(found.train), len(found.test)) == (4, 1)
    assert found.pairs.train[3].target.name == "03.PNG"


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["val/images"], "expected train/ beside val/ in .*, found none"),
        (["val/images", "train"], "expected images in train/ of .*, found none"),
        (["val/images", "train/masks"], "expected images in train/ of .*, found none"),
        (["train/images"], "expected val/ or test/ beside train/ in .*, found none"),
        (["train/images", "val"], "expected images in val/ of .*, found none"),
        (["images/train"], "expected val/ or test/ beside train/ in .*, found none"),
        (["images/val", "images/training/."], "expected images in training/ of .*, found none"),
    ],
    ids=" ".join,
)
def test_half_a_split_is_refused(tmp_path, folders, said):
    """Images in the first of the folders; the others are there without one."""
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    for i in range(6):
        for kind, values in (("images", RGB), ("masks", ids(0, 1))):
            save(values, tmp_path / folders[0].replace("images", kind) / f"{i}.png")
    with pytest.raises(ValueError, match=said):
        open_masks(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        for i in range(5):
            save(RGB, tmp_path / "images" / name / f"{i}.png")
            save(ids(0, 1), tmp_path / "masks" / name / f"{i}.png")
    found = open_masks(tmp_path)
    assert (len(found.train), len(found.test)) == (8, 2)


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ([ids(1), ids(1, 255)], "masks of 2 classes or more in .*, got 1: id 1"),
        ([ids(255)] * 2, "masks of 2 classes or more in .*, got 0, all pixels are ignored"),
        ([ids(0, 1), ids(255)], "labelled pixels in masks for testing, all are ignored"),
    ],
)
def test_masks_that_tell_nothing_are_refused(tmp_path, masks, said):
    for i, values in enumerate(masks):
        save(RGB, tmp_path / "images" / f"{i}.png")
        save(values, tmp_path / "masks" / f"{i}.png")
    with pytest.raises(ValueError, match=said):
        open_masks(tmp_path)


def test_what_masks_lack_is_counted_aloud(tmp_path, capsys):
    root = striped_folder(tmp_path / "data", 15)  # 04, 09 and 14 test
    for name in ("00", "01", "04"):
        save(np.full((32, 32), 255, np.uint8), root / "masks" / f"{name}.png")
    save(np.full((32, 32), 7, np.uint8), root / "masks" / "02.png")
    save(np.resize(np.uint8([0, 1, 2]), (32, 32)), root / "masks" / "09.png")
    save(np.full((32, 32), 5, np.uint8), root / "masks" / "14.png")
    out = tmp_path / "found.json"
    for kind, options, is_fitted in (
        ("segment", ["--methods", "retrieval"], True),
        ("clusters", ["--clusters", "9"], False),
        ("clusters", ["--clusters", "9", "--fit-on", "train"], True),
    ):
        main(["eval", kind, "tests.support.painted:colours", "--data", str(root), *options,
              "--out", str(out), "--cache", str(tmp_path / "maps")])  # fmt: skip
        said = " ".join(capsys.readouterr().out.split())
        assert "1 of 3 test images have no labelled pixel" in said
        assert "3 images, 1 of them with nothing to judge" in said
        assert ("2 of 12 training images have no labelled pixel" in said) == is_fitted
        assert "4 of 8 classes are in no test mask: ids 3..4, 6..7" in said
        unseen = "1 of 8 classes are in test masks and in no training mask: ids 5"
        assert (unseen in said) == is_fitted
        saved = json.loads(out.read_text())
        assert (saved["train_images_unlabelled"], saved["test_images_unlabelled"]) == (2, 1)
        assert saved["ids_in_no_test_mask"] == [3, 4, 6, 7]


def test_a_set_that_cannot_be_used_is_refused(tmp_path):
    one = tmp_path / "one"
    save(RGB, one / "images" / "a.png")
    save(ids(0, 1), one / "masks" / "a.png")
    with pytest.raises(ValueError, match=r"at least 2 images, one to fit on .*, got 0 and 1"):
        open_masks(one)
    save(RGB, one / "images" / "b.png")
    save(ids(0), one / "masks" / "a.png")
    save(ids(0), one / "masks" / "b.png")
    with pytest.raises(ValueError, match="masks of 2 classes or more"):
        open_masks(one)
    save(ids(0, 1), tmp_path / "two" / "masks" / "a.png")
    with pytest.raises(FileNotFoundError, match="two/images beside masks/, found none"):
        open_masks(tmp_path / "two")
    with pytest.raises(FileNotFoundError, match="images/ and masks/, JPEGImages/"):
        open_masks(tmp_path / "one" / "images")
    with pytest.raises(FileNotFoundError, match=r"expected a folder, .*/none is none"):
        open_masks(tmp_path / "none")
    with pytest.raises(ValueError, match="expected one folder"):
        open_masks([one, one])


def test_voc_names_what_its_lists_lack(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Segmentation/train.txt, found none"):
        open_masks(tmp_path)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text(f"2007_{split}\n")
        save(RGB, tmp_path / "JPEGImages" / f"2007_{split}.jpg")
    with pytest.raises(ValueError, match=r"SegmentationClass/2007_train.png for JPEGImages/2007_t"):
        open_masks(tmp_path)
    for split in ("train", "val"):
        save(palette(ids(0, 21)), tmp_path / "SegmentationClass" / f"2007_{split}.png")
    with pytest.raises(ValueError, match=r"2007_train.png to hold class ids 0..20, 255, got 21"):
        open_masks(tmp_path)
    with pytest.raises(ValueError, match="--classes: only for images/ and masks/"):
        open_masks(tmp_path, classes=5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"2007_a\n2007_b\n2007_a\n", r"train\.txt, line 3: expected each name once, got 2007_a"),
        ("2007_a\n".encode("utf-16"), r"train\.txt: expected text in UTF-8"),
        (b"2007_\xe9\n", r"train\.txt: expected text in UTF-8"),
    ],
)
def test_a_list_that_is_not_as_expected_is_named(tmp_path, content, said):
    lists = _voc_of(tmp_path, ["2007_a", "2007_b"])
    (lists / "train.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        open_masks(tmp_path)


def test_a_list_has_a_name_a_line(tmp_path):
    lists = _voc_of(tmp_path, ["a photo", "b"])
    (lists / "train.txt").write_bytes(b"\xef\xbb\xbfa photo\r\n\r\n")
    (tmp_path / "JPEGImages" / "b.jpg").rename(tmp_path / "JPEGImages" / "b.JPG")
    found = open_masks(tmp_path)
    assert names(found.pairs.train) == ["JPEGImages/a photo.jpg"]
    assert found.pairs.test[0].image.name == "b.JPG"


def test_an_empty_list_is_refused(tmp_path):
    lists = _voc_of(tmp_path, ["a", "b"])
    (lists / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"names of images in .*train\.txt, found none"):
        open_masks(tmp_path)


def _voc_of(root, found):
    """The last name is for testing."""
    for name in found:
        save(RGB, root / "JPEGImages" / f"{name}.jpg")
        save(palette(ids(0, 1)), root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(found[:-1]))
    (lists / "val.txt").write_text(found[-1])
    return lists


def test_masks_may_be_tiff(tmp_path):
    """As of satellites; what Pillow would change of the ids is refused."""
    for i in range(4):
        save(RGB, tmp_path / "images" / f"{i}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(ids(0, i % 3, 255)).save(tmp_path / "masks" / f"{i}.tif")
    found = open_masks(tmp_path)
    assert found.classes == 3
    assert found.mask(found.pairs.all[1]).tolist() == ids(0, 1, 255).tolist()
    palette(ids(0, 2, 255)).save(tmp_path / "masks" / "2.tif")
    assert found.mask(found.pairs.all[2]).tolist() == ids(0, 2, 255).tolist()
    wrong = tmp_path / "masks" / "3.tif"
    for image, said in (
        (
            Image.fromarray(ids(0, 1).astype(np.uint16)),
            r"3\.tif to be a TIFF of class ids, .* mode I;16",
        ),
        (Image.fromarray(ids(0, 1) > 0), r"3\.tif: expected a TIFF of 8 bits .*, got 1 bits"),
    ):
        image.save(wrong)
        with pytest.raises(ValueError, match=said):
            open_masks(tmp_path)
    Image.fromarray(ids(0, 1)).save(wrong, tiffinfo={262: 0})
    with pytest.raises(ValueError, match=r"in which 0 is black, got 8 bits of photometric 0"):
        open_masks(tmp_path)
    wrong.write_bytes(wrong.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"3\.tif cannot be read as a TIFF"):
        open_masks(tmp_path)
    wrong.unlink()
    with pytest.raises(ValueError, match=r"expected .*masks/3\.png for images/3\.png, found none"):
        open_masks(tmp_path)


def test_an_image_is_decoded_upright_and_its_mask_has_that_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter when shown
    for i in range(2):
        save(np.zeros((8, 6, 3), np.uint8), tmp_path / "images" / f"{i}.jpg", exif=exif)
        save(ids(0, 1), tmp_path / "masks" / f"{i}.png")
    found = open_masks(tmp_path)
    assert found.read(found.pairs.train[0].image).shape == (3, 6, 8)


@pytest.mark.parametrize("kind", ["segment", "clusters"])
def test_a_wrong_mask_is_found_before_the_first_feature(tmp_path, capsys, kind):
    striped_folder(tmp_path / "data", 5)
    save(RGB, tmp_path / "data" / "masks" / "04.png")
    painted.seen.clear()
    out = tmp_path / "found.json"
    with pytest.raises(SystemExit):
        main(["eval", kind, "tests.support.painted:colours", "--data", str(tmp_path / "data"),
              "--out", str(out), "--cache", str(tmp_path / "maps")])  # fmt: skip
    assert "masks/04.png" in capsys.readouterr().err
    assert set(painted.seen) == {(1, 3, 32, 32)}  # noise, as every encoder is tried with
    assert not out.exists()


def test_the_set_is_documented(tmp_path):
    striped_folder(tmp_path / "data", 5)
    out = tmp_path / "found.json"
    main(["eval", "segment", "tests.support.painted:colours", "--data", str(tmp_path / "data"),
          "--exclude", "00.png", "--methods", "retrieval", "--out", str(out),
          "--cache", str(tmp_path / "maps")])  # fmt: skip
    saved = json.loads(out.read_text())
    assert (saved["data"], saved["exclude"]) == (str(tmp_path / "data"), ["00.png"])
    assert (saved["layout"], saved["classes"]) == ("folders", 3)
    assert (saved["train_images"], saved["test_images"]) == (3, 1)
    assert saved["test_used_for_fitting"] == 0
