"""Images that DALI refuses and Pillow decodes: the same batches as of plain copies, resumed too."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")


from fastequi.data.config import Augment
from fastequi.data.decode import decoded_sizes
from fastequi.data.given import Given, decoded_values
from fastequi.data.loader import make_loader
from fastequi.data.pillow import as_ppm, decoded, is_for_pillow
from fastequi.data.reader import read
from fastequi.data.sources.image_sets import image_folder
from fastequi.data.sources.images import Source
from fastequi.paths import SE2
from tests.support.batches import CFG, assert_same, batches
from tests.support.corpus import CORPUS, saved

CPU = torch.device("cpu")
VIEWS = replace(CFG, a2=Augment(), batch_size=4, samples_per_decode=1, repeat=1)
REFUSED = ("animated.gif", "exif behind padding.webp", "bilevel.tiff", "headless.dib")


def as_array(data):
    return np.frombuffer(data, np.uint8)


@pytest.mark.parametrize("name", [n for n, (_, e) in CORPUS.items() if not isinstance(e, str)])
def test_pillow_decodes_what_dali_does_and_what_it_refuses(name):
    image = as_array(CORPUS[name][0])
    assert decoded(image).shape[:2] == CORPUS[name][1]
    (size,) = decoded_sizes([image], CPU, 1)
    assert isinstance(size, str) == is_for_pillow(image)
    assert decoded_sizes([as_ppm(decoded(image))], CPU, 1) == [CORPUS[name][1]]


@pytest.mark.parametrize("lossless", [True, False])
def test_which_webp_dali_refuses_is_known(lossless):
    """Alpha, colour profiles and text come in chunks before the EXIF, of any length."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for side in range(8, 20):
        pixels = np.random.default_rng(side).integers(0, 255, (side, 9, 4), np.uint8)
        for image in (Image.fromarray(pixels), Image.fromarray(pixels[..., :3])):
            for more in ({}, {"icc_profile": b"x" * side}, {"xmp": b"y" * side}):
                for data in ({}, {"exif": exif.tobytes()}):
                    webp = as_array(saved(image, "WEBP", lossless=lossless, **more, **data))
                    (size,) = decoded_sizes([webp], CPU, 1)
                    assert isinstance(size, str) == is_for_pillow(webp)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_colours_beside_an_alpha_channel_are_those_of_the_file(orientation, turns, big):
    """DALI multiplies them by alpha where a TIFF is to be turned."""
    values = np.random.default_rng(0).integers(0, 255, (20, 12, 4), np.uint8)
    for count in (3, 4):
        image = Image.fromarray(np.ascontiguousarray(values[..., :count]))
        tiff = as_array(saved(image, "TIFF", tiffinfo={274: orientation}, big_tiff=big))
        assert is_for_pillow(tiff) == (count == 4 and orientation != 1)
        np.testing.assert_array_equal(decoded_values(tiff, None), np.rot90(values[..., :3], turns))


@pytest.mark.parametrize("start", [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"])
def test_a_tiff_that_is_cut_off_is_left_to_dali(start):
    for length in range(20):
        assert not is_for_pillow(as_array(start + bytes(length)))
        assert not is_for_pillow(as_array(start + b"\xff" * length))


def files(folder, refused=True):
    """Twelve images; every third is one that DALI refuses, or the same pixels as a PNG."""
    folder.mkdir()
    for i in range(12):
        data, name = saved(Image.new("RGB", (30, 20), (20 * i, 0, 0))), f"{i:02}.png"
        if i % 3 == 0:
            kind = REFUSED[i // 3 % len(REFUSED)]
            data = CORPUS[kind][0] if refused else saved(Image.fromarray(decoded_of(kind)))
            name = f"{i:02}.{kind.rpartition('.')[2] if refused else 'png'}"
        (folder / name).write_bytes(data)
    return image_folder(folder)


def decoded_of(name):
    return decoded(as_array(CORPUS[name][0]))


def test_batches_are_those_of_plain_copies(tmp_path):
    refused, plain = files(tmp_path / "refused"), files(tmp_path / "plain", refused=False)
    np.testing.assert_array_equal(refused.sizes, plain.sizes)
    expected = batches(9, plain, VIEWS)
    assert_same(batches(9, refused, VIEWS), expected)
    for done in (1, 4):
        with make_loader(refused, VIEWS, SE2(), seed=0) as loader:
            for _ in range(done):
                next(loader)
            state = {**json.loads(json.dumps(loader.state_dict()))}
            assert not loader.quarantined
        assert_same(batches(9 - done, refused, VIEWS, state=state), expected[done:])
    ranks = [batches(3, refused, VIEWS, rank=r, world_size=2) for r in range(2)]
    for step in range(3):
        assert torch.equal(torch.cat([rank[step].v1 for rank in ranks]), expected[step].v1)
    for a, b in zip(*(read(s, 16, device=CPU, batch=5) for s in (refused, plain)), strict=True):
        assert torch.equal(a[0], b[0])


def test_what_is_not_known_to_be_refused_is_found_out(tmp_path, monkeypatch, caplog):
    """Without the rules: the first batch that fails tells; what both refuse is damaged."""
    monkeypatch.setattr("fastequi.data.given.is_for_pillow", lambda image: False)
    data, _ = CORPUS["exif behind padding.webp"]
    plain = saved(Image.fromarray(decoded(as_array(data))))
    for folder, content in (("one", data), ("two", plain)):
        (tmp_path / folder).mkdir()
        for i in range(8):
            image = Image.new("RGB", (30, 20), (20 * i, 0, 0))
            (tmp_path / folder / f"{i}.png").write_bytes(saved(image) if i != 3 else content)
    one, two = (replace(image_folder(tmp_path / f), formats=("PNG",)) for f in ("one", "two"))
    assert not Given(one, 1).as_bytes
    with caplog.at_level(logging.INFO):
        assert_same(batches(6, one, VIEWS), batches(6, two, VIEWS))
    assert "3.png and the like are decoded by Pillow, as DALI refuses them" in caplog.text


def test_files_are_read_by_dali_itself_where_it_decodes_all(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    assert not Given(image_folder(tmp_path), 1).as_bytes
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg", "GIF")  # whatever its name says
    assert Given(image_folder(tmp_path), 1).as_bytes
    assert Given(Source(("a.tar",), ("a.tar/a.png",), np.ones((1, 2), np.int32),
                        spans=np.ones((1, 2), np.int64)), 1).as_bytes  # fmt: skip


def test_a_run_of_gifs_alone(tmp_path):
    for i in range(8):
        Image.new("RGB", (30, 20), (30 * i, 0, 0)).save(tmp_path / f"{i}.gif")
    plain = replace(VIEWS.plain(), a1=Augment.none(), a2=Augment.none())
    for batch in batches(4, image_folder(tmp_path), plain):
        for image, i in zip(batch.u, batch.sample_ids.tolist(), strict=True):
            assert image[0].float().mean().item() == 30 * i
