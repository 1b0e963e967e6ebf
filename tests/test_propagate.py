"""`fastequi eval propagate`: DAVIS 2017's layout, masks carried through videos, J and F."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fastequi.cli.main import main
from fastequi.data.sources.patterns import Patterns
from fastequi.evaluate.geometry.davis import ids_of, open_clips
from fastequi.evaluate.geometry.propagate import (
    frame_size,
    judged,
    over_objects,
    resized_ids,
    winners,
)
from fastequi.evaluate.geometry.published_figures import DAVIS_VALIDATION, of_davis
from fastequi.evaluate.geometry.region_contour import contour_accuracy, region_similarity
from tests.support.clips import put_clip, squares
from tests.support.painted import cut_off, save_grey
from tests.support.science import made_two_bands, plain_tiff, values

ENCODER = "tests.support.clips:colours"


@pytest.fixture
def davis(tmp_path):
    put_clip(tmp_path, "right", squares())
    put_clip(tmp_path, "left", squares(6)[:, :, ::-1])
    return tmp_path


def test_clips_are_read_in_the_order_of_the_list(davis):
    right, left = open_clips(davis)
    assert (right.name, left.name) == ("right", "left")
    assert right.size == (64, 128)
    assert right.objects == left.objects == 2
    assert [file.name for file in right.frames] == [f"{i:05d}.jpg" for i in range(5)]
    np.testing.assert_array_equal(ids_of(left.masks[3]), squares(6)[3, :, ::-1])
    assert [clip.name for clip in open_clips(davis, Patterns(include=("l*",)))] == ["left"]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_ids_are_those_in_the_file_whatever_its_bits(tmp_path, bits):
    truth = np.arange(64).reshape(4, 16) % 2**bits
    file = save_grey(truth, tmp_path / "0.png", bits)
    np.testing.assert_array_equal(ids_of(file), truth)


def test_a_clip_of_four_bits_has_the_objects_of_its_ids(davis):
    for file, ids in zip(open_clips(davis)[0].masks, squares(), strict=True):
        save_grey(ids, file, 4)
    assert open_clips(davis)[0].objects == 2


def test_names_of_clips_are_lines_and_suffixes_of_any_case(davis):
    for kind in ("JPEGImages", "Annotations"):
        (davis / kind / "480p" / "left").rename(davis / kind / "480p" / "to the left")
    listing = davis / "ImageSets/2017/val.txt"
    listing.write_bytes(b"\xef\xbb\xbfright\r\nto the left \r\n\r\n")
    for file in sorted(davis.glob("*/480p/right/*")):
        file.rename(file.with_suffix(file.suffix.upper()))
    right, left = open_clips(davis)
    assert (right.name, left.name) == ("right", "to the left")
    assert [file.name for file in right.masks] == [f"{i:05d}.PNG" for i in range(5)]


def test_frames_that_an_encoder_of_rgb_does_not_read_are_named(davis):
    made_two_bands(davis.glob("JPEGImages/480p/right/*.jpg"))
    said = r"right: expected frames 00000\.jpg, \.\.\., found none but 00000\.tif, whose format enc"
    with pytest.raises(FileNotFoundError, match=said):
        open_clips(davis)


def test_frames_come_by_their_numbers(davis):
    """Also where these are not filled up with zeros."""
    put_clip(davis, "long", squares(12))
    for file in sorted(davis.glob("*/480p/long/*")):
        file.rename(file.with_stem(str(int(file.stem))))
    clip = open_clips(davis, Patterns(include=("long",)))[0]
    assert [file.stem for file in clip.frames] == [str(i) for i in range(12)]
    (davis / "JPEGImages/480p/long/10.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"long/10\.jpg: expected a file for each of the"):
        open_clips(davis)
    frame = davis / "JPEGImages/480p/long/9.jpg"
    frame.with_stem("09").write_bytes(frame.read_bytes())
    with pytest.raises(ValueError, match=r"long: expected one file of number 9, got 09 and 9"):
        open_clips(davis)


def test_void_pixels_are_behind(davis):
    file = davis / "Annotations/480p/right/00000.png"
    ids = ids_of(file)
    ids[0] = 255
    Image.fromarray(ids).save(file)
    assert ids_of(file)[0].max() == 0
    assert open_clips(davis)[0].objects == 2


def test_frames_become_480_px_by_a_multiple_of_64():
    assert frame_size((480, 854), 480, 16) == (480, 832)
    assert frame_size((854, 480), 480, 8) == (832, 480)
    assert frame_size((480, 910), 480, 16) == (480, 896)
    assert frame_size((300, 300), 480, 16) == (480, 480)
    assert frame_size((480, 854), 480, 14) == (476, 840)
    assert frame_size((64, 114), 64, 8) == (64, 64)
    assert frame_size((64, 96), 64, 32) == (64, 64)


def test_ids_are_resized_by_nearest_neighbour():
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(resized_ids(ids, (2, 3)), ids[1::2, 1::2])
    np.testing.assert_array_equal(resized_ids(ids, (8, 12)), ids.repeat(2, 0).repeat(2, 1))


def test_each_label_is_stretched_before_the_largest_wins():
    labels = torch.tensor([[0.6, 0.9, 0.9, 0.9], [0.4, 0.1, 0.1, 0.1], [0.0] * 4])[:, None]
    # behind is largest everywhere, but 0.4 is the most that the first object has
    np.testing.assert_array_equal(winners(labels, 1), [[1, 0, 0, 0]])
    np.testing.assert_array_equal(winners(torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]]), 1), [[1, 1]])
    np.testing.assert_array_equal(winners(torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]]), 1), [[0, 0]])
    step = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_array_equal(winners(step, 4), [[0] * 4 + [1] * 4] * 4)


def test_objects_are_judged_alone_and_count_alike():
    truth, found = squares(6), squares(6).copy()
    found[3:][found[3:] == 2] = 0
    values = judged(truth, found, 2)
    lost = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    # quarters of six frames: 1 to 2 and 5 to 6
    assert values[0].tolist() == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    assert values[1].tolist() == [0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 1.0]
    each = region_similarity(torch.from_numpy(truth == 2), torch.from_numpy(found == 2))
    assert each.tolist() == lost
    assert over_objects(values).tolist() == [*(values[0] + values[1]).tolist(), *[2.0] * 7]


def evaluated(tmp_path, data, *words, encoder=ENCODER):
    out = tmp_path / "found.json"
    cache = ["--cache-gb", "0", "--device", "cpu", "--out", str(out)]
    main(["eval", "propagate", encoder, "--data", str(data), *cache, *words])
    return json.loads(out.read_text())


def test_colours_carry_squares_and_places_alone_do_not(davis, capsys):
    document = evaluated(davis, davis, "--side", "64")
    said = capsys.readouterr().out
    assert "propagate, 2 clips" in said
    assert "4 objects, 11 frames; the first and the last frame of each clip are not judged" in said
    assert document["kind"] == "propagate"
    assert document["clips"] == ["right", "left"]
    assert document["propagation"] == {
        "frames": 7, "radius": 12, "neighbours": 5, "temperature": 0.1,
    }  # fmt: skip
    table = document["tables"]["propagate"]
    names = [figure["name"] for figure in table["figures"]]
    assert names == ["J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay"]
    rows = {
        row["encoder"] or row["features"]: dict(zip(names, row["values"], strict=True))
        for row in table["scores"]
    }
    assert set(rows) == {"raw patches", "position only", "colours"}
    colours, places = rows["colours"], rows["position only"]
    assert colours["J mean"] > 0.9  # corners of squares are rounded by upsampling
    assert colours["F mean"] > 0.95
    assert colours["J recall"] == 1
    assert colours["J&F"] == pytest.approx((colours["J mean"] + colours["F mean"]) / 2)
    # what stays where it was: squares of 16 px that moved by 8, 16, ... px
    stay = [8 / 24, 0, 0], [8 / 24, 0, 0, 0]
    assert places["J mean"] == pytest.approx(np.mean([np.mean(each) for each in stay]), abs=0.05)


def test_frames_of_two_bands_are_read_as_their_encoder_takes_them(davis, capsys):
    made_two_bands(davis.glob("JPEGImages/480p/*/*.jpg"))
    two_bands = "tests.support.clips:two_bands"
    document = evaluated(davis, davis, "--side", "64", encoder=two_bands)
    scores = document["tables"]["propagate"]["scores"]
    [found] = [row["values"] for row in scores if row["encoder"] == "colours"]
    assert found[0] > 0.9  # the squares are red and green
    frame = davis / "JPEGImages/480p/left/00002.tif"
    frame.write_bytes(plain_tiff(values(1, "uint16", size=(64, 128))))
    with pytest.raises(SystemExit):
        evaluated(davis, davis, "--side", "64", encoder=two_bands)
    said = r"left/00002\.tif: expected an image that the encoder takes"
    assert re.search(said, capsys.readouterr().err)
    frame.unlink()
    with pytest.raises(SystemExit):
        evaluated(davis, davis, "--side", "64", encoder=two_bands)
    said = r"left/00002\.tif: expected a file for each of the 6 frames"
    assert re.search(said, capsys.readouterr().err)


def test_figures_of_a_clip_do_not_hang_on_other_clips(davis):
    whole = evaluated(davis, davis, "--side", "64")
    alone = [evaluated(davis, davis, "--side", "64", "--include", n) for n in ("right", "left")]
    values = [
        [row["values"] for row in document["tables"]["propagate"]["scores"]]
        for document in (whole, *alone)
    ]
    # as many objects in each
    np.testing.assert_allclose(values[0], (np.array(values[1]) + values[2]) / 2)


def test_published_figures_stand_beside_the_whole_validation_set_alone():
    assert len(DAVIS_VALIDATION) == 30
    dino, tir = of_davis(sorted(DAVIS_VALIDATION))
    assert "DINO ViT-S/16 0.618 0.602 0.634" in dino
    assert "iBOT 0.634 0.623 0.646, TIR on iBOT 0.654 0.639 0.670, DINOv2 0.298" in tir
    assert of_davis(sorted(DAVIS_VALIDATION)[1:]) == []
    assert of_davis(["scene-000"]) == []


def test_objects_that_come_later_are_named(davis, capsys):
    ids = squares()
    ids[2, :4, :4] = 3
    put_clip(davis, "late", ids)
    evaluated(davis, davis, "--side", "64", "--include", "late")
    assert "objects that are not in the first frame are not judged: late (1)" in (
        capsys.readouterr().out
    )


def _missing(root):
    (root / "JPEGImages/480p/left/00002.jpg").unlink()


def _missing_both(root):
    for name in ("JPEGImages/480p/left/00002.jpg", "Annotations/480p/left/00002.png"):
        (root / name).unlink()


def _missing_mask(root):
    (root / "Annotations/480p/left/00005.png").unlink()


def _no_clip(root):
    (root / "JPEGImages/480p/left").rename(root / "elsewhere")


def _rgb(root):
    file = root / "Annotations/480p/left/00003.png"
    Image.open(file).convert("RGB").save(file)


def _rgb_first(root):
    file = root / "Annotations/480p/left/00000.png"
    Image.open(file).convert("RGB").save(file)


def _small(root):
    file = root / "Annotations/480p/left/00001.png"
    Image.open(file).resize((48, 32)).save(file)


def _one(root):
    for folder in (root / "JPEGImages/480p/left", root / "Annotations/480p/left"):
        for file in sorted(folder.iterdir())[1:]:
            file.unlink()


def _empty(root):
    Image.new("L", (128, 64)).save(root / "Annotations/480p/left/00000.png")


def _damaged(root):
    (root / "Annotations/480p/left/00004.png").write_bytes(b"\x89PNG\r\n")


def _no_list(root):
    (root / "ImageSets/2017/val.txt").unlink()


def _empty_list(root):
    (root / "ImageSets/2017/val.txt").write_text("\n")


def _gaps(root):
    file = root / "Annotations/480p/left/00000.png"
    Image.fromarray(ids_of(file) * 50).save(file)


def _named_twice(root):
    (root / "ImageSets/2017/val.txt").write_text("right\nleft\n\nright\n")


def _utf16(root):
    (root / "ImageSets/2017/val.txt").write_text("right\nleft\n", encoding="utf-16")


def _cut_frame(root):
    cut_off(root / "JPEGImages/480p/left/00005.jpg")


def _cut_mask(root):
    cut_off(root / "Annotations/480p/left/00005.png")


def _two_frames(root):
    file = root / "JPEGImages/480p/left/00005.jpg"
    file.with_suffix(".JPG").write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_missing, r"JPEGImages/480p/left/00002\.jpg: .* of the 6 frames of left, this one is"),
        (_missing_both, r"JPEGImages/480p/left/00002\.jpg: .* this one is missing"),
        (_missing_mask, r"Annotations/480p/left/00005\.png: .* this one is missing"),
        (_no_clip, r"JPEGImages/480p/left: expected frames 00000\.jpg, \.\.\., found none"),
        (_rgb, r"left/00003\.png: expected a PNG of object ids, palette or grey .* mode RGB"),
        (_rgb_first, r"left/00000\.png: expected a PNG of object ids, .* mode RGB"),
        (_small, r"left/00001\.png: expected 64x128 px as 00000\.jpg has, got 32x48"),
        (_one, r"left: expected at least 3 frames, .* got 1: 00000\.jpg"),
        (_empty, r"left/00000\.png: expected the ids of objects, got 0 everywhere"),
        (_damaged, r"left/00004\.png: expected a PNG of object ids"),
        (_no_list, r"val\.txt does not exist"),
        (_gaps, r"left/00000\.png: expected the ids of objects to be 1 to 2, .* got 50, 100"),
        (_named_twice, r"val\.txt, line 4: expected each name once, got right again, as in line 1"),
        (_utf16, r"val\.txt: expected text in UTF-8"),
        (_cut_frame, r"left/00005\.jpg: expected an image"),
        (_cut_mask, r"left/00005\.png: expected a PNG of object ids"),
        (_two_frames, r"left/00005\.jpg: expected one file of this name, got 00005\.JPG too"),
        (_empty_list, r"val\.txt: expected the name of a clip, got 0 names"),
    ],
)
def test_what_is_wrong_with_a_clip_is_said_by_its_file(davis, capsys, monkeypatch, spoil, said):
    spoil(davis)

    def encoded(*_):
        raise AssertionError("an image was encoded before the folder was checked")

    monkeypatch.setattr("fastequi.evaluate.geometry.video_frames.frame_of", encoded)
    with pytest.raises(SystemExit):
        main(["eval", "propagate", ENCODER, "--data", str(davis), "--side", "64"])
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--data: expected a folder of clips in DAVIS 2017's or JHMDB's layout"),
        (["--data", "DAVIS", "--side", "-1"], "--side: expected 0 (480, of JHMDB 320) or more"),
        (["--data", "DAVIS", "--side", str(10**7)], "--side: expected at most"),
        (["--data", "a", "b"], "--data: expected one folder, got a b"),
        (["--data", "nowhere"], "ImageSets/2017/val.txt does not exist"),
        (["--data", "DAVIS", "--side", "4"], "--side: expected at least 8, the patch size"),
        (["--data", "DAVIS", "--seed", "1"], "--seed: nothing is drawn here"),
        (["--data", "DAVIS", "--include", "up"], "expected the name of a clip that matches"),
    ],
)
def test_wrong_options_are_refused(davis, capsys, words, said):
    words = [str(davis) if word == "DAVIS" else word for word in words]
    with pytest.raises(SystemExit):
        main(["eval", "propagate", ENCODER, *words])
    assert said in capsys.readouterr().err


def test_scenes_that_are_made_can_be_propagated(tmp_path):
    scenes = ["--kinds", "clips", "--clips", "1", "--frames", "4", "--size", "64"]
    main(["data", "scenes", str(tmp_path / "scenes"), *scenes])
    document = evaluated(tmp_path, tmp_path / "scenes" / "clips", "--side", "128")
    values = np.array([row["values"] for row in document["tables"]["propagate"]["scores"]])
    assert ((values[:, [0, 1, 2, 4, 5]] >= 0) & (values[:, [0, 1, 2, 4, 5]] <= 1)).all()
    assert values[-1, 1] > 0.2


def test_contours_of_a_clip_are_those_of_its_frames():
    truth = torch.from_numpy(squares(4) == 1)
    found = truth.roll(1, -1)
    together = contour_accuracy(truth, found)
    alone = [contour_accuracy(a, b).item() for a, b in zip(truth, found, strict=True)]
    assert together.tolist() == alone
