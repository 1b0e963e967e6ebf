"""The frame of evaluations of geometry: figures, maps of tokens, exact pairs, and `match`."""

import errno
import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastequi.cli.main import main
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.data.sources.splits import TEST_REGION
from fastequi.evaluate import results
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry import figures
from fastequi.evaluate.geometry.figures import Figure, Measure, Measured, means, table
from fastequi.evaluate.geometry.grids import Grids, grids_of, position_only, raw_patches
from fastequi.evaluate.geometry.kept_maps import KeptMaps, digest_of
from fastequi.evaluate.geometry.matching import nearest, recalls
from fastequi.evaluate.geometry.projective import (
    between_corners,
    corners,
    fitted,
    moved,
    ransac,
    token_centres,
    warped,
)
from fastequi.evaluate.geometry.warped_pairs import FAMILIES, corner_error, of_theta, warped_pairs
from fastequi.evaluate.geometry.windows import cut_windows
from fastequi.evaluate.results import Row
from fastequi.functional import warp
from fastequi.models import vit
from tests.support.painted import cut_off, save


def row(name, baseline=False):
    return Row(encoder=None if baseline else name, features=name, is_baseline=baseline)


def tiny(name="tiny", seed=0, size=32):
    torch.manual_seed(seed)
    network = vit.vit_tiny(img_size=size, patch_size=8, embed_dim=16, depth=1, num_heads=1).eval()

    @torch.no_grad()
    def features(images):
        tokens = network.forward_features(images)
        return {"patch": tokens.patch, "cls": tokens.cls}

    return Encoder(
        name=name,
        features=features,
        names=("patch", "cls"),
        image_size=size,
        patch_size=8,
        network=network,
    )


# figures


def test_means_leave_out_what_is_not_there():
    values = torch.tensor([[1.0, 2.0], [3.0, torch.nan], [5.0, 6.0]])
    measure = means(Figure("a"), Figure("b"))
    found = table(measure, [Measured(row("x"), figures.sums_of_values(values))])
    assert found.scores[0].values == (3.0, 4.0)
    nothing = torch.full((3, 2), torch.nan)
    found = table(measure, [Measured(row("x"), figures.sums_of_values(nothing))])
    assert all(map(math.isnan, found.scores[0].values + found.scores[0].low))


def test_a_figure_of_sums_is_no_mean_of_figures():
    """Mean IoU of two classes, from the confusion of both images together."""

    def of_sums(sums):
        confusion = sums.unflatten(-1, (2, 2))
        hit = confusion.diagonal(dim1=-2, dim2=-1)
        return (hit / (confusion.sum(-1) + confusion.sum(-2) - hit)).mean(-1, keepdim=True)

    sums = torch.tensor([[3.0, 1, 0, 0], [0, 0, 2, 2]]).double()
    found = table(Measure((Figure("mIoU"),), of_sums), [Measured(row("x"), sums)])
    assert found.scores[0].values == (pytest.approx((3 / 6 + 2 / 5) / 2),)


def test_differences_are_paired():
    """Images that differ much, encoders that differ by the same on each image."""
    values = torch.randn(40, 1, generator=torch.Generator().manual_seed(0)) * 10
    rows = [
        Measured(row("better"), figures.sums_of_values(values + 1)),
        Measured(row("pixels", baseline=True), figures.sums_of_values(values)),
    ]
    found = table(means(Figure("score")), rows)
    assert [s.is_baseline for s in found.scores] == [True, False]
    (difference,) = found.differences
    assert (difference.label, difference.against) == ("better, better", "pixels")
    for value in (difference.values, difference.low, difference.high):
        assert value == (pytest.approx(1, abs=1e-5),)
    assert found.score("pixels").high[0] - found.score("pixels").low[0] > 3
    (line,) = found.sentences()
    said = "better, better less the best baseline: score +1.000 [+1.000, +1.000] (pixels)"
    assert line == said
    drawn = found.drawn("title")
    assert drawn.row_count == 2


def test_what_an_encoder_adds_to_another_is_said_first():
    """By the best row of each, of figures of which less is better too."""
    base = torch.arange(20.0)[:, None].repeat(1, 2)
    measure = means(Figure("recall", digits=1), Figure("error", "lower", 1), Figure("area", ""))
    rows = {
        ("pixels", "pixels", True): (-3, 4),
        ("base", "patch", False): (-2, 1),
        ("ours", "patch", False): (-1, 3),
        ("ours", "z_equi", False): (1, -1),
    }
    found = table(
        measure,
        [
            Measured(
                Row(encoder=name, features=features, is_baseline=baseline),
                figures.sums_of_values(torch.cat([base + torch.tensor(by), base[:, :1]], 1)),
            )
            for (name, features, baseline), by in rows.items()
        ],
    )
    of = "(z_equi less patch)", "(z_equi less patch, lower is better)"
    first, *others = found.sentences()
    assert first == (
        f"ours less base: recall +3.0 [+3.0, +3.0] {of[0]}; error -2.0 [-2.0, -2.0] {of[1]}"
    )
    assert len(others) == 3
    assert others[0] == (
        "base, patch less the best baseline: recall +1.0 [+1.0, +1.0] (pixels, pixels); "
        "error -3.0 [-3.0, -3.0] (pixels, pixels, lower is better)"
    )


def test_photographs_are_drawn_whole():
    """Ten equal windows of each of two photographs say no more than two windows."""
    values = torch.tensor([[0.0], [1.0]]).repeat(10, 1)
    rows = [Measured(row("x"), figures.sums_of_values(values))]
    few = table(means(Figure("score")), rows, torch.tensor([0, 1]).repeat(10))
    many = table(means(Figure("score")), rows)
    assert (few.images, few.photographs, many.photographs) == (20, 2, 20)
    assert few.scores[0].low == (0.0,)
    assert few.scores[0].high == (1.0,)
    assert 0.2 < many.scores[0].low[0] < many.scores[0].high[0] < 0.8
    alone = table(means(Figure("score")), rows, torch.zeros(20, dtype=torch.int64))
    assert "no interval" in alone.drawn("t").title
    assert not alone.sentences()


def test_rows_of_other_images_are_refused():
    rows = [Measured(row(n), torch.zeros(k, 2)) for n, k in (("x", 3), ("y", 4))]
    with pytest.raises(ValueError, match=r"rows: expected sums \[3, 2\] as of x, x, got \[4, 2\]"):
        table(means(Figure("score")), rows)


# maps


def test_maps_are_the_tokens_row_by_row():
    encoder = tiny()
    grids = grids_of(encoder)
    images = torch.randint(256, (5, 3, 16, 40), dtype=torch.uint8)
    found = grids(images, batch=2)["patch"]
    assert found.shape == (5, 2, 5, 16)
    unit = (images[3:4].float() / 255 - torch.tensor(encoder.mean)[:, None, None]) / torch.tensor(
        encoder.std
    )[:, None, None]
    torch.testing.assert_close(found[3].flatten(0, 1), encoder.features(unit)["patch"][0])
    torch.testing.assert_close(grids(images.float() / 255)["patch"], found)


def test_features_that_are_no_grid_are_refused():
    with pytest.raises(
        ValueError, match=r"expected cls of 4x4 tokens, tiny gives patch \[16, 16\]"
    ):
        grids_of(tiny(), only=("cls",))
    with pytest.raises(ValueError, match="tiny says no patch_size"):
        grids_of(replace(tiny(), patch_size=None))


def test_baselines_are_pixels_and_places():
    grids = grids_of(tiny())
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    raw = raw_patches(grids)(images)["raw patches"]
    assert raw.shape == (2, 2, 3, 192)
    patch = images[1, :, 8:, 16:].float() / 127.5 - 1
    torch.testing.assert_close(raw[1, 1, 2], patch.flatten())
    place = position_only(grids)(images)["position only"]
    assert torch.equal(place[0], place[1])
    assert nearest(place[:1], place[1:]).tolist() == [list(range(6))]
    large = replace(grids, patch_size=16)
    assert raw_patches(large)(images[..., :16])["raw patches"].shape == (2, 1, 1, 192)


def test_maps_are_kept_by_content_and_made_once(tmp_path):
    encoder, made = tiny(), []
    plain = grids_of(encoder)

    def of(images):
        made.append(len(images))
        return plain.of(images)

    kept = KeptMaps(tmp_path, gigabytes=1)
    grids = kept.around(replace(plain, of=of), encoder)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    expected = plain(images)["patch"]
    grids(images[:2])  # stopped half way
    assert torch.equal(grids(images)["patch"], expected)
    assert torch.equal(kept.around(replace(plain, of=of), encoder)(images)["patch"], expected)
    assert made == [2, 2]
    other = tiny(seed=1)
    assert digest_of(other) != digest_of(encoder)
    again = kept.around(grids_of(other), other)(images)["patch"]
    assert not torch.equal(again, expected)
    assert (
        kept.around(plain, replace(encoder, network=None)) is plain
    )  # a function's code may change
    assert KeptMaps(tmp_path, 0).around(plain, encoder) is plain


def test_a_damaged_map_is_made_anew(tmp_path):
    encoder = tiny()
    kept = KeptMaps(tmp_path, gigabytes=1).around(grids_of(encoder), encoder)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    expected = kept(images)["patch"]
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3
    whole = files[1].read_bytes()
    files[0].write_bytes(b"")
    files[1].write_bytes(whole[: len(whole) // 2])
    torch.testing.assert_close(kept(images)["patch"], expected)
    assert files[1].read_bytes() == whole
    assert sorted(tmp_path.rglob("*.*")) == files  # nothing half written is left


def test_the_oldest_maps_go_first(tmp_path):
    encoder = tiny()
    kept = KeptMaps(tmp_path, gigabytes=1)
    kept.around(grids_of(encoder), encoder)(torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8))
    files = sorted(tmp_path.glob("*/*.safetensors"))
    assert len(files) == 4
    for age, file in enumerate(files):
        os.utime(file, (age, age))
    replace(kept, gigabytes=2.5 * files[0].stat().st_size / 1e9).trim()
    assert sorted(tmp_path.glob("*/*.safetensors")) == files[2:]


# homographies


def test_a_homography_is_found_from_its_corners_and_from_points():
    generator = torch.Generator().manual_seed(0)
    offsets = (torch.rand(5, 4, 2, generator=generator) - 0.5).double() * 30
    found = between_corners(offsets, (64, 96))
    start = corners(64, 96)
    torch.testing.assert_close(moved(start, found), start + offsets)
    points = torch.rand(5, 50, 2, generator=generator).double() * 64
    torch.testing.assert_close(fitted(points, moved(points, found)), found / _middle(found, points))
    weights = torch.ones(5, 50)
    wrong = moved(points, found)
    wrong[:, :10] += 40
    weights[:, :10] = 0
    again = fitted(points, wrong, weights)
    torch.testing.assert_close(moved(start, again), start + offsets)


def _middle(homography, points):
    middle = torch.nn.functional.pad(points.mean(-2), (0, 1), value=1.0)
    return (homography[..., 2, :] * middle).sum(-1)[..., None, None]


def test_points_beyond_the_horizon_are_nowhere():
    turned = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]])
    assert moved(torch.tensor([[5.0, 1], [20, 1]]), turned).isnan().all(-1).tolist() == [
        False,
        True,
    ]


def test_ransac_is_not_led_astray():
    generator = torch.Generator().manual_seed(1)
    homography = between_corners(
        (torch.rand(4, 2, generator=generator).double() - 0.5) * 20, (64, 64)
    )
    points = torch.rand(100, 2, generator=generator).double() * 64
    target = moved(points, homography)
    target += 0.2 * torch.randn(100, 2, generator=generator)
    target[:50] = torch.rand(50, 2, generator=generator).double() * 64
    found, agree = ransac(points, target, within=1.0)
    assert corner_error(found, homography, 64) < 1.0
    assert agree[50:].sum() > 45
    assert agree[:50].sum() < 5
    assert corner_error(fitted(points, target), homography, 64) > 3
    nothing, none = ransac(points[:3], target[:3], 1.0)
    assert nothing.isnan().all()
    assert not none.any()


def test_images_are_warped_as_affine_paths_warp_them():
    image = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    theta = torch.tensor([[[0.9, 0.1, 0.05], [-0.1, 0.9, -0.1]], [[1, 0, 0.25], [0, 1.0, 0]]])
    expected = warp(image, theta[:, None], size=(24, 24), padding_mode="reflection")[:, 0]
    found = warped(image, of_theta(theta.double(), 24), (24, 24))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    shift = torch.eye(3).double()
    shift[0, 2] = 4  # of pixels: result's place 0 shows the image's 4
    moved_by = warped(image[:1], shift[None], (24, 20))
    torch.testing.assert_close(moved_by, image[:1, :, :, 4:], atol=1e-6, rtol=0)


@pytest.mark.slow(every=2)
@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_show_the_same_where_they_say(family):
    pytest.importorskip("nvidia.dali")
    from fastequi.data.sources.image_sets import embedded_photos

    encoder = tiny(size=64)
    pairs = warped_pairs(embedded_photos(TEST_REGION), encoder, family, 6)
    assert len(pairs) == 6
    assert pairs.first.shape == (6, 3, 64, 64)
    shown = warped(pairs.first.float(), pairs.to_first, (64, 64))
    inside = moved(token_centres((64, 64), 1), pairs.to_first)
    there = ((inside > 1) & (inside < 63)).all(-1).view(6, 64, 64)
    assert there.double().mean() > 0.4
    gap = (shown - pairs.second.float()).abs().mean(1)[there]
    other = (pairs.first.float() - pairs.second.float()).abs().mean(1)[there]
    assert gap.mean() < 0.25 * other.mean()
    error = corner_error(torch.eye(3).double().expand(6, 3, 3), pairs.to_first, 64)
    assert (error > 0).all()
    assert error.max() < 90
    again = warped_pairs(embedded_photos(TEST_REGION), encoder, family, 6)
    assert torch.equal(again.second, pairs.second)


# match


def test_recall_counts_what_lies_near_enough():
    """By loops: tokens of a known place, of which some have no place in the other view."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, 4, 5, 7, generator=generator)
    second = torch.randn(3, 4, 5, 7, generator=generator)
    relation = torch.eye(3).double().repeat(3, 1, 1)
    relation[:, 0, 2] = torch.tensor([0.0, 9.0, 500.0])
    found = recalls(second, first, relation, patch=8)
    for b in range(3):
        hits, count = np.zeros(3), 0
        for y in range(4):
            for x in range(5):
                truth = (x + 0.5) * 8 + relation[b, 0, 2], (y + 0.5) * 8
                if not (0 <= truth[0] <= 40 and 0 <= truth[1] <= 32):
                    continue
                cosine = torch.cosine_similarity(second[b, y, x], first[b].flatten(0, 1), dim=-1)
                row_, column = divmod(int(cosine.argmax()), 5)
                away = math.hypot((column + 0.5) * 8 - truth[0], (row_ + 0.5) * 8 - truth[1]) / 8
                hits += [away <= w for w in (0.5, 1, 2)]
                count += 1
        expected = hits / count if count else np.full(3, np.nan)
        np.testing.assert_allclose(found[b].numpy(), expected)


def test_what_moves_with_the_image_is_found():
    """An encoder of one token that is the same wherever it goes, and one of places alone."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(1, 6, 6, 8, generator=generator)
    relation = torch.eye(3).double()[None].clone()
    relation[0, 0, 2] = relation[0, 1, 2] = 16  # two patches of eight pixels
    seen = recalls(whole[:, 2:, 2:], whole[:, :4, :4], relation, patch=8)
    assert seen.tolist() == [[1.0, 1.0, 1.0]]
    place = position_only(Grids("x", ("x",), 8, 32, False, torch.device("cpu"), lambda x: {}))
    code = place(torch.zeros(1, 3, 32, 32))["position only"]
    assert recalls(code, code, relation, patch=8)[0].tolist() == [0.0, 0.0, 0.0]
    assert recalls(code, code, torch.eye(3).double()[None], patch=8)[0].tolist() == [1.0] * 3


def encoder_for_tests(device):
    return tiny(size=32)


@pytest.mark.parametrize(("n", "expected"), [(9, 9), (20, 9), (5, 5), (80, 9)])
def test_windows_are_of_as_many_photographs_as_they_can_be(n, expected):
    """Eight windows are cut from one decoding where there are enough of them."""
    pytest.importorskip("nvidia.dali")
    source, encoder = embedded_photos(), encoder_for_tests(torch.device("cpu"))
    windows = cut_windows(source, encoder, n)
    assert len(windows.images) == n
    assert len(windows.photographs.unique()) == expected
    pairs = warped_pairs(source, encoder, "se2", n)
    assert len(pairs.photographs.unique()) == expected


def test_photographs_for_testing_need_no_others_where_nothing_is_fitted(tmp_path, capsys):
    pytest.importorskip("nvidia.dali")
    photos = embedded_photos().paths[0].rsplit("/", 1)[0]
    for kind, words in (
        ("match", ["--pairs", "18", "--families", "se2"]),
        ("layers", ["--windows", "18"]),
    ):
        file = tmp_path / f"{kind}.json"
        words += ["--device", "cpu", "--cache-gb", "0", "--out", str(file)]
        main(["eval", kind, f"{__name__}:encoder_for_tests", "--test-data", photos, *words])
        found = json.loads(file.read_text())
        assert found["data"] == photos
        assert found["photographs"] == 9
    assert "of 9 photographs" in capsys.readouterr().out


def test_a_disk_that_becomes_full_is_named_and_keeps_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    results.write(file, "before")

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(ValueError, match=r"--out: .*page.html cannot be written \(No space left"):
        results.write(file, "after")
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_plot_of_layers_has_a_place_of_its_own(tmp_path, capsys):
    file = tmp_path / "layers.svg"
    with pytest.raises(SystemExit):
        main(["eval", "layers", f"{__name__}:encoder_for_tests", "--out", str(file)])
    assert "--out: expected a JSON file, got" in capsys.readouterr().err
    assert not file.exists()


def test_the_command_prints_tables_and_leaves_a_file(tmp_path, capsys):
    pytest.importorskip("nvidia.dali")
    file = tmp_path / "match.json"
    words = ["eval", "match", f"{__name__}:encoder_for_tests", "--pairs", "24", "--out", str(file)]
    main([*words, "--families", "se2", "--device", "cpu", "--cache-gb", "0"])
    out = capsys.readouterr().out
    assert "se2, photometric, 24 pairs of" in out
    found = json.loads(file.read_text())
    assert (found["kind"], found["pairs"], found["photographs"]) == ("match", 24, 9)
    assert list(found["tables"]) == ["se2", "se2, photometric"]
    labels = [score["features"] for score in found["tables"]["se2"]["scores"]]
    assert labels == ["raw patches", "position only", "patch"]
    raw = found["tables"]["se2"]["scores"][0]["values"]
    assert raw == sorted(raw)
    assert raw[2] > 0.3
    changed = found["tables"]["se2, photometric"]["scores"][0]["values"]
    assert changed[1] < raw[1]


@pytest.mark.parametrize(
    ("words", "is_fitted"),
    [
        (["match", "--pairs", "8", "--families", "se2"], False),
        (["homography", "--pairs", "8", "--train-pairs", "64", "--epochs", "1"], True),
        (["layers", "--windows", "8"], False),
        (["position", "--windows", "64", "--test-windows", "8"], True),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_damaged_photographs_are_counted_once_below_the_tables(
    tmp_path, capsys, caplog, words, is_fitted
):
    pytest.importorskip("nvidia.dali")
    for i in range(10):  # 04 and 09 test
        values = np.random.default_rng(i).integers(0, 256, (100, 100, 3), np.uint8)
        save(values, tmp_path / "photos" / f"{i:02d}.jpg")
    for i in (1, 4):
        cut_off(tmp_path / "photos" / f"{i:02d}.jpg")
    out = tmp_path / "found.json"
    main(["eval", *words[:1], f"{__name__}:encoder_for_tests", "--data", str(tmp_path / "photos"),
          *words[1:], "--device", "cpu", "--cache-gb", "0", "--out", str(out)])  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    unit = "pairs" if "--pairs" in words else "windows"
    assert f"8 {unit} of 1 photograph, so no interval" in said
    assert said.count("1 of 2 test photographs cannot be decoded and are left out: 04.jpg") == 1
    assert sum("04.jpg cannot be decoded" in line for line in caplog.messages) == 1
    fitted = said.count("1 of 8 training photographs cannot be decoded and are left out: 01.jpg")
    assert fitted == is_fitted
    left_out = json.loads(out.read_text())["left_out"]
    assert left_out == ({"train": ["01.jpg"], "test": ["04.jpg"]} if is_fitted else ["04.jpg"])


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("match", ["--pairs", "1"], "--pairs: expected >= 2, got 1"),
        ("match", ["--pairs", str(10**12)], "--pairs: expected at most"),
        ("match", ["--families"], "--families: expected some of rotation, translation, se2, homo"),
        ("match", ["--families", "se2", "se2"], "--families: expected each once, got se2 se2"),
        ("match", ["--seed", "-1"], "--seed: expected 0 to 2^63 - 1, got -1"),
        ("homography", ["--seed", str(2**63)], "--seed: expected 0 to 2^63 - 1, got 9223372036854"),
        ("position", ["--windows", str(10**12)], "--windows: expected at most"),
        ("position", ["--test-windows", str(10**12)], "--test-windows: expected at most"),
        ("layers", ["--windows", str(10**12)], "--windows: expected at most"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, capsys, kind, words, said):
    spec = f"{__name__}:encoder_for_tests"
    with pytest.raises(SystemExit):
        main(["eval", kind, spec, *words, "--cache-gb", "0", "--out", str(tmp_path / "f.json")])
    assert said in capsys.readouterr().err
