"""PCK of keypoints in SPair-71k's layout: reading, transfer and figures, against loops."""

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastequi.cli.main import main
from fastequi.evaluate.geometry.figures import Measured, table
from fastequi.evaluate.geometry.keypoints import MEASURE, found_points, sampled, sums_of_pairs
from fastequi.evaluate.geometry.spair import is_spair, keypoint_pairs
from fastequi.evaluate.results import Row
from tests.support.painted import cut_off
from tests.support.places import painted, through
from tests.support.science import made_two_bands, plain_tiff, values

SPEC = "tests.support.places:encoder"
SOURCE, TARGET = (120, 168), (136, 176)  # height, width
MOVE = [[0.9, -0.1, 12.0], [0.1, 0.95, -4.0], [0.0, 0.0, 1.0]]
POINTS = [[40, 40], [100, 60], [80, 90]]


def add_pair(folder, number, category, changes=()):
    """A pair whose second image shows each place of the first where MOVE takes it."""
    images = folder / "JPEGImages" / category
    images.mkdir(parents=True, exist_ok=True)
    (folder / "PairAnnotation" / "test").mkdir(parents=True, exist_ok=True)
    (height, width), back = SOURCE, np.linalg.inv(MOVE)
    painted(height, width, lambda x, y: (x / width, y / height)).save(
        images / f"a{number}.jpg", quality=98, subsampling=0
    )

    def place(x, y):
        u, v = through(back, x, y)
        return u / width, v / height

    painted(*TARGET, place).save(images / f"b{number}.jpg", quality=98, subsampling=0)
    truth = np.stack(through(MOVE, *np.array(POINTS, float).T), 1)
    said = {
        "category": category,
        "src_imname": f"a{number}.jpg",
        "trg_imname": f"b{number}.jpg",
        "src_imsize": [SOURCE[1], SOURCE[0], 3],
        "trg_imsize": [TARGET[1], TARGET[0], 3],
        "src_kps": POINTS,
        "trg_kps": truth.round().astype(int).tolist(),
        "src_bndbox": [20, 20, 140, 110],
        "trg_bndbox": [10, 10, 170, 120],
    }
    file = folder / "PairAnnotation" / "test" / f"{number:06d}-a{number}-b{number}:{category}.json"
    file.write_text(json.dumps({**said, **dict(changes)}))
    return file


@pytest.fixture
def spair(tmp_path):
    folder = tmp_path / "SPair-71k"
    add_pair(folder, 0, "cat")
    add_pair(folder, 1, "cat", {"trg_kps": [[44, 38], [0, 0], [0, 0]]})  # the first alone is right
    add_pair(folder, 2, "dog", {"src_kps": POINTS[:1], "trg_kps": [[170, 130]]})
    return folder


def test_pairs_are_read_as_annotated(spair):
    assert is_spair(spair)
    assert not is_spair(spair / "JPEGImages")
    pairs = keypoint_pairs(spair)
    assert [pair.category for pair in pairs] == ["cat", "cat", "dog"]
    first = pairs[0]
    assert first.source == spair / "JPEGImages" / "cat" / "a0.jpg"
    assert first.points.tolist() == POINTS
    assert first.box == 160
    assert first.truth.tolist() == [[44, 38], [96, 63], [75, 90]]


def test_a_token_is_sampled_bilinearly():
    """Against the four tokens around a place, weighed by hand; beyond the outermost as there."""
    tokens = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    size = 60, 50  # tokens 20 high and 10 wide
    places = [(23.0, 31.0), (5.0, 10.0), (49.5, 59.0), (0.0, 0.0)]
    found = sampled(tokens, torch.tensor(places).double(), size)
    for (x, y), each in zip(places, found, strict=True):
        column, row = min(max(x / 10 - 0.5, 0), 4), min(max(y / 20 - 0.5, 0), 2)
        c, r = min(int(column), 3), min(int(row), 1)
        a, b = column - c, row - r
        above = (1 - a) * tokens[r, c] + a * tokens[r, c + 1]
        below = (1 - a) * tokens[r + 1, c] + a * tokens[r + 1, c + 1]
        torch.testing.assert_close(each, (1 - b) * above + b * below, rtol=1e-4, atol=1e-5)


def test_a_keypoint_is_found_at_the_centre_of_the_nearest_token():
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randn(4, 4, 8, generator=generator) for _ in range(2))
    points = torch.tensor([[3.0, 5.0], [30.0, 17.0], [39.0, 0.0]]).double()
    found = found_points(source, target, points, ((20, 40), (36, 60)))
    tokens = sampled(source, points + 0.5, (20, 40))
    for token, at in zip(tokens, found.tolist(), strict=True):
        best = max(
            range(16), key=lambda k: float(F.cosine_similarity(token, target[k // 4, k % 4], dim=0))
        )
        # tokens of the target are 9 high and 15 wide; its pixels are counted from 0
        assert at == [(best % 4 + 0.5) * 15 - 0.5, (best // 4 + 0.5) * 9 - 0.5]


def test_averages_over_images_and_over_points_are_those_by_hand():
    """Two pairs: 1 of 1 keypoint within .1, and 1 of 4, none of them within .05."""
    correct = [torch.tensor([[True, True]]), torch.tensor([[True, False], *[[False, False]] * 3])]
    row = Row(encoder=None, features="x", is_baseline=False)
    [score] = table(MEASURE, [Measured(row, sums_of_pairs(correct))]).scores
    assert [figure.name for figure in MEASURE.figures] == [
        *("PCK@0.1 per image", "PCK@0.05 per image"),
        *("PCK@0.1 per point", "PCK@0.05 per point"),
    ]
    assert score.values == pytest.approx(((1 + 1 / 4) / 2, 1 / 2, 2 / 5, 1 / 5))


def test_the_command_finds_keypoints_that_tokens_know(spair, tmp_path):
    """Tokens are 14x15 px of the target's file, .1 of the box are 16 px."""
    out = tmp_path / "found.json"
    main(["eval", "match", SPEC, "--data", str(spair), "--out", str(out), "--cache-gb", "0"])
    found = json.loads(out.read_text())
    assert (found["pairs"], found["keypoints"], found["kind"]) == (3, 7, "match")
    whole, by_category = found["tables"].values()
    assert list(found["tables"]) == ["keypoints", "PCK@0.1 per image"]
    [patch] = [s["values"] for s in whole["scores"] if s["features"] == "patch"]
    assert patch[0] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert patch[2] == pytest.approx(4 / 7)
    assert [figure["name"] for figure in by_category["figures"]] == ["cat", "dog"]
    [patch] = [s["values"] for s in by_category["scores"] if s["features"] == "patch"]
    assert patch == pytest.approx([2 / 3, 0])
    assert whole["photographs"] == 3


def test_images_of_two_bands_are_read_as_their_encoder_takes_them(spair, tmp_path, capsys):
    """The same as of RGB, whose first two channels they are."""
    made_two_bands(spair.glob("JPEGImages/*/*.jpg"))
    for file in spair.glob("PairAnnotation/test/*.json"):
        file.write_text(file.read_text().replace(".jpg", ".tif"))
    out = tmp_path / "found.json"
    words = ["--data", str(spair), "--out", str(out), "--cache-gb", "0"]
    main(["eval", "match", "tests.support.places:of_two_bands", *words])
    scores = json.loads(out.read_text())["tables"]["keypoints"]["scores"]
    [patch] = [s["values"] for s in scores if s["features"] == "patch"]
    assert patch[2] == pytest.approx(4 / 7)
    (spair / "JPEGImages/dog/a2.tif").write_bytes(plain_tiff(values(1, "uint16", size=SOURCE)))
    with pytest.raises(SystemExit):
        main(["eval", "match", "tests.support.places:of_two_bands", *words])
    assert re.search(
        r"dog/a2\.tif: expected an image that the encoder takes", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"category": None}, "expected category, a text, got None"),
        ({"src_imname": "c.jpg"}, "c.jpg: expected an image, there is no such file"),
        ({"src_imsize": [10, 20, 3]}, r"expected src_imsize \[168, 120\] as of .*a9.jpg, got"),
        ({"src_kps": [[1, 2, 3]]}, r"expected src_kps of Kx2 numbers, got \[1, 3\]"),
        ({"src_kps": "none"}, "expected src_kps, numbers, got 'none'"),
        ({"trg_kps": [[1, 2]]}, "expected as many trg_kps as src_kps, 1 or more, got 1 and 3"),
        ({"trg_bndbox": [5, 5, 5, 9]}, r"expected trg_bndbox \[left, top, right, bottom\]"),
        ({"trg_bndbox": None}, "expected trg_bndbox, numbers, got None"),
    ],
)
def test_wrong_annotations_are_named(tmp_path, changes, said):
    file = add_pair(tmp_path, 9, "cow", changes)
    with pytest.raises(ValueError, match=said) as error:
        keypoint_pairs(tmp_path)
    assert str(file) in str(error.value) or "c.jpg" in str(error.value)


def test_wrong_files_end_the_command_at_once(spair, capsys):
    file = add_pair(spair, 3, "dog")
    for text, said in (("{", "expected JSON"), ("[1]", "expected an object of one pair, got list")):
        file.write_text(text)
        with pytest.raises(SystemExit):
            main(["eval", "match", SPEC, "--data", str(spair)])
        printed = capsys.readouterr().err
        assert f"{file}: {said}" in printed
    for left in (spair / "PairAnnotation" / "test").iterdir():
        left.unlink()
    with pytest.raises(SystemExit):
        main(["eval", "match", SPEC, "--data", str(spair)])
    assert "expected *.json, SPair-71k's pairs, found none" in capsys.readouterr().err


def test_an_image_that_was_cut_off_is_found_before_a_feature_is_computed(spair):
    cut_off(spair / "JPEGImages" / "dog" / "b2.jpg")
    with pytest.raises(ValueError, match=r"dog/b2\.jpg: expected an image"):
        keypoint_pairs(spair)


def test_a_side_that_memory_does_not_hold_is_refused(spair, capsys):
    with pytest.raises(SystemExit):
        main(["eval", "match", SPEC, "--data", str(spair), "--side", "16000000"])
    assert "--side: expected at most" in capsys.readouterr().err


def test_a_side_is_a_multiple_of_the_patch(spair, capsys):
    with pytest.raises(SystemExit):
        main(["eval", "match", SPEC, "--data", str(spair), "--side", "100"])
    assert "--side: expected a multiple of the patch size 8, got 100" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", "match", SPEC, "--data", str(spair), "--pairs", "5"])
    assert "--pairs: for photographs" in capsys.readouterr().err


def test_keypoints_move_as_the_annotation_says():
    """The fixture's truth, so that the test above tests something."""
    x, y = through(MOVE, *np.array(POINTS, float).T)
    assert math.dist((x[0], y[0]), (44, 38)) < 0.01
