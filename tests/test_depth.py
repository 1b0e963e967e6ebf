"""`fastequi eval depth`: readers, bins, loss and figures; and features that tell the depth."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastequi.cli.main import main
from fastequi.evaluate.geometry.depth import (
    MEASURE,
    depth_figures,
    predicted,
    scale_invariant,
    weighed,
)
from fastequi.evaluate.geometry.depth_sets import open_depths
from fastequi.evaluate.geometry.figures import sums_of_values
from tests.support.painted import PATCH, save

BLACK = np.zeros((6, 8, 3), np.uint8)


def depth_folder(root, n=5, value=2000, size=(6, 8)):
    for i in range(n):
        save(np.zeros((*size, 3), np.uint8), root / "images" / f"{i}.jpg")
        save(np.full(size, value, np.uint16), root / "depth" / f"{i}.png")
    return root


def test_values_are_metres_and_what_does_not_count_is_nan(tmp_path):
    depth_folder(tmp_path)
    values = np.array([[0, 1, 2, 1500, 9999, 10_000, 10_001, 65_535]] * 6, np.uint16)
    save(values, tmp_path / "depth" / "4.png")
    found = open_depths(tmp_path)
    metres = found.depth(found.pairs.test[0])[0]
    assert metres.isnan().tolist() == [True, True, False, False, False, True, True, True]
    assert metres[2:5].tolist() == pytest.approx([0.002, 1.5, 9.999])
    kitti = open_depths(tmp_path, metres=1 / 256, farthest=80.0)
    assert kitti.depth(kitti.pairs.test[0])[0, 3] == pytest.approx(1500 / 256)
    for scale in (1e-3, 1.0):  # in TIFF: of 16 bits, and floats in metres
        for file in (tmp_path / "depth").iterdir():
            deep = np.array(Image.open(file)) if scale < 1 else np.array(Image.open(file)) * 0.001
            file.unlink()
            deep = deep.astype(np.uint16 if scale < 1 else np.float32)
            Image.fromarray(deep).save(file.with_suffix(".tif"))
        found = open_depths(tmp_path, metres=scale)
        again = found.depth(found.pairs.test[0])[0]
        torch.testing.assert_close(again, metres, equal_nan=True)


def test_crops_are_those_of_the_benchmarks(tmp_path):
    nyu = depth_folder(tmp_path / "nyu", 2, size=(480, 640))
    found = open_depths(nyu, crop="eigen")
    inside = ~found.judged(found.pairs.test[0]).isnan()
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (45, 470, 41, 600)
    assert inside.sum() == (471 - 45) * (601 - 41)
    assert not found.depth(found.pairs.test[0]).isnan().any()
    kitti = depth_folder(tmp_path / "kitti", 2, size=(375, 1242))
    found = open_depths(kitti, crop="garg")
    inside = ~found.judged(found.pairs.test[0]).isnan()
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (153, 370, 44, 1196)  # Garg et al.
    with pytest.raises(ValueError, match=r"--crop: eigen is for 480x640 px, .*0.png has 375x1242"):
        open_depths(kitti, crop="eigen")


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("depth/3.png", np.ones((6, 7), np.uint16), "depth/3.png of 6x8 px as 3.jpg, got 6x7"),
        (
            "depth/3.png",
            np.ones((6, 8), np.uint8),
            "PNG of depths, .*, got mode L",
        ),
        (
            "depth/3.png",
            BLACK,
            "depth/3.png to be a PNG of depths, .*, got mode RGB",
        ),
        ("images/7.jpg", BLACK, "depth/7.png for images/7.jpg, found none"),
        ("depth/7.png", np.ones((6, 8), np.uint16), "an image in .* for .*depth/7.png, found none"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, file, values, said):
    depth_folder(tmp_path)
    save(values, tmp_path / file)
    with pytest.raises(ValueError, match=said):
        open_depths(tmp_path)


def test_depths_out_of_range_are_refused_as_a_whole(tmp_path):
    depth_folder(tmp_path, value=20_000)
    with pytest.raises(ValueError, match=r"depths of 0.001 to 10 m in .* for fitting, no value"):
        open_depths(tmp_path)
    (tmp_path / "other" / "images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"expected a folder .*/depth, found none"):
        open_depths(tmp_path / "other")
    with pytest.raises(ValueError, match="at least 2 images"):
        open_depths(depth_folder(tmp_path / "one", 1))


def test_bins_are_weighed_linearly():
    bins = torch.tensor([1.0, 2.0, 4.0])
    logits = torch.tensor([[-5.0, 0.4, 1.9], [-1.0, -1.0, -1.0]])
    first = (0.1 * 1 + 0.5 * 2 + 2.0 * 4) / 2.6
    assert weighed(logits, bins).tolist() == pytest.approx([first, 7 / 3])


def test_the_loss_is_the_scale_invariant_one():
    """√(var + .15 mean²) of the difference of logarithms, by numpy."""
    rng = np.random.default_rng(0)
    found, truth = rng.uniform(0.5, 9, 40), rng.uniform(0.5, 9, 40)
    g = np.log(found + 1e-3) - np.log(truth + 1e-3)
    expected = np.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2)
    given = torch.from_numpy(found), torch.from_numpy(truth)
    assert scale_invariant(*given).item() == pytest.approx(expected)


def test_figures_are_means_over_images():
    """Pixel by pixel, and an image without a depth counts nowhere."""
    rng = np.random.default_rng(1)
    founds, truths = rng.uniform(1, 3, (3, 4, 5)), rng.uniform(1, 3, (3, 4, 5))
    truths[0, :2], truths[2] = np.nan, np.nan
    pairs = zip(torch.from_numpy(founds), torch.from_numpy(truths), strict=True)
    values = torch.stack([depth_figures(f, t) for f, t in pairs])
    found = MEASURE.of_sums(sums_of_values(values).sum(0)).tolist()
    images = []
    for f, t in zip(founds[:2], truths[:2], strict=True):
        known = [(a, b) for a, b in zip(f.flat, t.flat, strict=True) if b == b]
        n = len(known)
        ratios = [max(a / b, b / a) for a, b in known]
        rmse = (sum((a - b) ** 2 for a, b in known) / n) ** 0.5
        rel = sum(abs(a - b) / b for a, b in known) / n
        images.append([rmse, rel, *(sum(r < 1.25**i for r in ratios) / n for i in (1, 2, 3))])
    assert found == pytest.approx(np.mean(images, 0).tolist())


def test_the_truth_itself_is_perfect():
    truth = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    assert depth_figures(truth, truth).tolist() == [0, 0, 1, 1, 1]


def test_predictions_are_weighed_before_they_are_resized():
    """A map of one token: the same everywhere, at any size."""
    logits = torch.tensor([3.0, 0.0]).view(1, 1, 2)
    found = predicted(logits, torch.tensor([1.0, 2.0]), torch.Size((3, 7)))
    assert torch.allclose(found, torch.full((3, 7), (3.1 * 1 + 0.1 * 2) / 3.2))


@pytest.mark.slow
def test_features_that_tell_the_depth_are_nearly_perfect(tmp_path):
    """Depth rises with red and falls with blue, in stripes of a patch."""
    rng = np.random.default_rng(0)
    for i in range(25):
        level = np.repeat(rng.integers(1, 10, 4), PATCH)
        shown = np.zeros((32, 32, 3), np.uint8)
        shown[..., 0], shown[..., 2] = 25 * level, 255 - 25 * level
        save(shown, tmp_path / "images" / f"{i:02d}.png")
        values = np.broadcast_to(level * 1000, (32, 32)).astype(np.uint16).copy()
        values[:, ::5] = 0
        save(values, tmp_path / "depth" / f"{i:02d}.png")
    out = tmp_path / "found.json"
    main(["eval", "depth", "tests.support.painted:colours", "--data", str(tmp_path), "--steps",
          "100", "--lr", "0.02", "--bins", "32", "--out", str(out),
          "--cache", str(tmp_path / "maps")])  # fmt: skip
    saved = json.loads(out.read_text())
    (rows,) = (each["scores"] for each in saved["tables"].values())
    scores = {row["features"]: row["values"] for row in rows}
    assert list(scores) == ["mean depth", "raw patches", "position only", "patch"]
    assert scores["patch"][0] < 0.5 * scores["mean depth"][0]
    assert scores["patch"][2] > scores["position only"][2] + 0.3
    assert (saved["metres_per_unit"], saved["train_images"], saved["test_images"]) == (0.001, 20, 5)


def test_images_without_a_depth_are_counted_and_left_out(tmp_path, capsys):
    depth_folder(tmp_path / "data", 10, size=(32, 32))
    for name in ("0", "4"):  # 4 and 9 test
        save(np.zeros((32, 32), np.uint16), tmp_path / "data" / "depth" / f"{name}.png")
    out = tmp_path / "found.json"
    main(["eval", "depth", "tests.support.painted:colours", "--data", str(tmp_path / "data"),
          "--steps", "2", "--out", str(out), "--cache", str(tmp_path)])  # fmt: skip
    saved, said = json.loads(out.read_text()), " ".join(capsys.readouterr().out.split())
    assert (saved["train_images_without_depth"], saved["test_images_without_depth"]) == (1, 1)
    assert "1 of 8 images for fitting have no known depth" in said
    assert "1 of 2 images for testing have no known depth" in said
    assert "2 images, 1 of them with nothing to judge" in said


def test_a_head_that_diverges_names_its_rate(tmp_path, capsys):
    for i in range(5):
        save(np.full((32, 32, 3), 50 * i, np.uint8), tmp_path / "images" / f"{i}.png")
        save(np.full((32, 32), 1000 * (i + 1), np.uint16), tmp_path / "depth" / f"{i}.png")
    with pytest.raises(SystemExit):
        main(["eval", "depth", "tests.support.painted:colours", "--data", str(tmp_path), "--steps",
              "20", "--lr", "1e9", "--out", str(tmp_path / "f.json"), "--cache",
              str(tmp_path / "c")])  # fmt: skip
    assert (
        "--lr: expected a rate at which the linear head converges, got 1e+09: after 20 steps"
        in (capsys.readouterr().err)
    )
    assert not (tmp_path / "f.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metres", "0"], "--metres: expected > 0, got 0.0"),
        (["--nearest", "5", "--farthest", "2"], "--farthest: expected > --nearest 5, got 2.0"),
        (["--farthest", "inf"], "--farthest: expected a finite number, got inf"),
        (["--farthest", "1e40"], "--farthest: expected at most 1e+09 m, got 1e+40"),
        (["--metres", "1e40"], "--metres: expected at most 1e+09, got 1e+40"),
        (["--metres", "nan"], "--metres: expected a finite number, got nan"),
        (["--lr", "inf"], "--lr: expected a finite number, got inf"),
        (["--bins", "1"], "--bins: expected >= 2, got 1"),
        (["--bins", str(10**15), "--data", "."], "--bins: expected at most"),
        ([], "--data: expected a folder"),
    ],
)
def test_wrong_options_are_named(capsys, options, said):
    with pytest.raises(SystemExit):
        main(["eval", "depth", "tests.support.painted:colours", *options])
    assert said in capsys.readouterr().err
