"""Images in order, and what is trained on and tested on: real JPEGs and PNGs through DALI."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")

from fastequi.data.labelled import labelled_sets, spread
from fastequi.data.reader import read
from fastequi.data.sources.image_sets import embedded_photos, image_folder
from fastequi.data.sources.splits import TEST_REGION, held_out, photographs
from fastequi.export.transform import ImageTransform

CPU = torch.device("cpu")


def pictures(folder, n, size=(40, 30), start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + n):
        rng = np.random.default_rng(i)
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:03d}.jpg", quality=95)


def whole(source, size=16, **options):
    parts = list(read(source, size, device=CPU, num_threads=1, **options))
    return torch.cat([images for images, _ in parts]), np.concatenate([at for _, at in parts])


def test_every_image_once_in_order_whatever_the_batch(tmp_path):
    pictures(tmp_path, 7)
    source = image_folder(tmp_path)
    images, places = whole(source, batch=3)
    assert places.tolist() == list(range(7))
    assert images.shape == (7, 3, 16, 16)
    assert images.dtype == torch.uint8
    again, _ = whole(source, batch=7)
    assert torch.equal(images, again)


def test_the_centred_square_is_resized(tmp_path):
    pictures(tmp_path, 2, (60, 40))
    source = image_folder(tmp_path)
    for share, box in ((1.0, (10, 0, 50, 40)), (0.8, (14, 4, 46, 36))):
        images, _ = whole(source, 20, share=share)
        for image, path in zip(images, source.paths, strict=True):
            ours = Image.open(path).crop(box).resize((20, 20), Image.Resampling.BILINEAR)
            expected = torch.from_numpy(np.array(ours)).permute(2, 0, 1).float()
            difference = (image.float() - expected).abs()
            assert difference.mean() < 3  # another antialiasing filter, another JPEG decoder
    with pytest.raises(ValueError, match=r"share: expected 0 < share <= 1, got 1\.5"):
        whole(source, share=1.5)
    region, _ = whole(embedded_photos(TEST_REGION), 16)
    assert len(region) == 9


@pytest.mark.parametrize("size", [32, (32, 64), (64, 32)])
def test_what_is_read_is_what_an_encoders_transform_makes(tmp_path, size):
    """Sides that leave an odd rest to cut off, or half a pixel; edges of images apart."""
    sides = [(512, 342), (518, 342), (519, 342), (300, 500), (342, 512), (256, 256), (750, 375)]
    paths = embedded_photos().paths
    for i, side in enumerate(sides):
        Image.open(paths[i % len(paths)]).convert("RGB").resize(side).save(tmp_path / f"{i}.png")
    frame = (size, size) if isinstance(size, int) else size
    transform = ImageTransform(frame, (0.0,) * 3, (1.0,) * 3)
    images, _ = whole(image_folder(tmp_path), size)
    for i, image in enumerate(images):
        made = 255 * transform(Image.open(tmp_path / f"{i}.png"))
        inside = (image.float() - made)[:, 2:-2, 2:-2].abs()
        assert inside.max() < 1.5, sides[i]


def test_a_damaged_file_is_named_and_left_out(tmp_path, caplog):
    pictures(tmp_path, 12)
    damaged = tmp_path / "004.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200] + b"\0" * 300)
    source = image_folder(tmp_path)
    images, places = whole(source, batch=4)
    assert places.tolist() == [i for i in range(12) if source.names[i] != "004.jpg"]
    assert len(images) == 11
    assert "004.jpg cannot be decoded" in caplog.text
    for name in ("007.jpg", "009.jpg"):
        (tmp_path / name).write_bytes(damaged.read_bytes())
    with pytest.raises(RuntimeError, match="images cannot be decoded, more than 10 %"):
        whole(image_folder(tmp_path), batch=4)


def test_photographs_are_split_by_a_rule(tmp_path):
    assert held_out(11).nonzero()[0].tolist() == [4, 9]
    assert held_out(3).nonzero()[0].tolist() == [2]
    pictures(tmp_path / "flat", 6)
    train, test = photographs(tmp_path / "flat")
    assert (train.names, test.names) == (
        ("000.jpg", "001.jpg", "002.jpg", "003.jpg", "005.jpg"),
        ("004.jpg",),
    )
    pictures(tmp_path / "split" / "train", 2)
    pictures(tmp_path / "split" / "val", 1, start=8)
    train, test = photographs(tmp_path / "split")
    assert (len(train), test.names) == (2, ("val/008.jpg",))
    train, test = photographs(tmp_path / "flat", tmp_path / "split" / "val")
    assert (len(train), test.names) == (6, ("008.jpg",))
    train, test = photographs()
    assert train.region[2] <= test.region[0]
    with pytest.raises(ValueError, match="--data: expected at least 2 images to split"):
        photographs(tmp_path / "split" / "val")
    with pytest.raises(ValueError, match="--test-data: expected --data"):
        photographs(None, tmp_path)


def test_classes_are_the_first_subfolders(tmp_path):
    pictures(tmp_path / "cat", 6)
    pictures(tmp_path / "dog" / "big", 5, start=10)
    train, test = labelled_sets(tmp_path)
    assert train.classes == ("cat", "dog")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0] * 5 + [1] * 4, [0, 1])
    assert test.source.names == ("cat/004.jpg", "dog/big/014.jpg")
    ((images, pixels, labels),) = train.batches(16, CPU)
    assert images.shape == (9, 3, 16, 16)
    torch.testing.assert_close(pixels, images.flatten(1) / 255)
    assert labels.tolist() == train.labels.tolist()
    some, _ = labelled_sets(tmp_path, train_images=3)
    assert some.labels.tolist() == [0, 0, 1]  # evenly spread, not the first three
    pictures(tmp_path / "split" / "train" / "a", 1)
    pictures(tmp_path / "split" / "train" / "b", 1)
    pictures(tmp_path / "split" / "test" / "b", 2)
    train, test = labelled_sets(tmp_path / "split")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1, 1])
    pictures(tmp_path / "split" / "test" / "c", 1)
    with pytest.raises(ValueError, match=r"has classes \['c'\]"):
        labelled_sets(tmp_path / "split")
    pictures(tmp_path / "cat2", 1)
    with pytest.raises(ValueError, match=r"class 'cat2' of .* has one image"):
        labelled_sets(tmp_path)
    with pytest.raises(ValueError, match="at least 2 classes"):
        labelled_sets(tmp_path / "dog")
    with pytest.raises(ValueError, match=r"a subfolder for each class .* 000\.jpg lies in none"):
        labelled_sets(tmp_path / "cat")


def test_mnist_like_sets_and_digits(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 30), ("t10k", 10)):
        for what, shape in (("images-idx3", (n, 8, 8)), ("labels-idx1", (n,))):
            head = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            values = rng.integers(0, 3 if len(shape) == 1 else 255, shape, np.uint8)
            values[:3] = np.arange(3).reshape(-1, *[1] * (len(shape) - 1))
            with gzip.open(tmp_path / f"{prefix}-{what}-ubyte.gz", "wb") as file:
                file.write(head + values.tobytes())
    train, test = labelled_sets(tmp_path, train_images=20)
    assert (len(train), len(test), train.classes) == (20, 10, ("0", "1", "2"))
    ((images, pixels, _),) = train.batches(16, CPU)
    assert images.shape == (20, 3, 16, 16)
    torch.testing.assert_close(pixels, torch.tensor(train.pixels).flatten(1) / 255)
    pytest.importorskip("sklearn")
    train, test = labelled_sets("digits")
    assert (len(train), len(test), len(train.classes)) == (1438, 359, 10)
    assert train.pixels.max() == 255


def test_spread_is_even():
    assert spread(10, 0).tolist() == spread(10, 12).tolist() == list(range(10))
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
