import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.selection import Selection
from fastequi.data.views.batch import Batch, Views
from fastequi.evaluate.baselines import patches
from fastequi.evaluate.pair_scores import Probed, score_pairs
from fastequi.evaluate.pairs import collect_pairs
from fastequi.evaluate.photo_windows import window_loader
from fastequi.evaluate.photometric import Photometric
from fastequi.evaluate.probes import Fit
from fastequi.functional import gaussian_blur
from fastequi.paths import SE2, Blur
from fastequi.philox import Draws
from fastequi.report.sheets import path_grid, to_uint8
from tests.support.painted import cut_off

VIEWS = Views(16, 24, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "reflection")


def batches(path, n=64, seed=0):
    """Windows with one bright bar through the centre, whose direction is the image's angle."""
    epoch = 0
    while True:
        draws = Draws.of(seed, epoch, range(n))
        u = torch.full((n, 3, 24, 24), 30, dtype=torch.uint8)
        u[:, :, 10:14, 4:22] = 220
        u = u.contiguous(memory_format=torch.channels_last)
        yield Batch(torch.zeros(n, 3, 16, 16), u, path.sample(draws, 16), torch.arange(n), epoch)
        epoch += 1


def test_pairs_are_the_window_and_its_transform_with_labels_in_unit_range():
    path = SE2(45, 0)
    pairs = collect_pairs(batches(path), path, VIEWS, 100)
    assert len(pairs) == 100
    centre = torch.full((24, 24), 30.0)
    centre[10:14, 4:22] = 220
    expected = (centre[4:20, 4:20] / 255 - 0.5) / 0.25
    assert pairs.before.dtype == pairs.after.dtype == torch.float16
    torch.testing.assert_close(pairs.before[0, 0], expected.half())
    assert pairs.params[:, 0].abs().max() <= 1
    assert pairs.params[:, 0].std() > 0.4
    still = pairs.params[:, 0].abs().argmin()
    moved = pairs.params[:, 0].abs().argmax()
    error = (pairs.after - pairs.before).square().mean((1, 2, 3))
    assert error[moved] > 10 * error[still]
    with pytest.raises(ValueError, match="at least 100 images, got 64"):
        collect_pairs([next(batches(path))], path, VIEWS, 100)


def test_a_blurred_twin_is_cut_from_the_blurred_window():
    path = Blur(0.1, 2.0)
    batch = next(batches(path))
    pairs = collect_pairs([batch], path, VIEWS, 64)
    assert pairs.scales == pytest.approx((0.95,))
    sigma = pairs.params * 0.95 + 1.05
    torch.testing.assert_close(sigma, batch.path)
    whole = gaussian_blur(batch.u, sigma[:, 0], mean=VIEWS.mean, std=VIEWS.std)
    torch.testing.assert_close(pairs.after, whole[..., 4:20, 4:20].half())
    sharp = gaussian_blur(batch.u, torch.zeros(64), mean=VIEWS.mean, std=VIEWS.std)
    torch.testing.assert_close(pairs.before, sharp[..., 4:20, 4:20].half())
    wide = Blur(0.1, 5.3)
    batch = next(batches(wide))
    assert batch.path.max() > 5
    pairs = collect_pairs([batch], wide, VIEWS, 64)
    scale = {"mean": VIEWS.mean, "std": VIEWS.std, "max_sigma": 6.0}
    whole = gaussian_blur(batch.u, batch.path[:, 0], **scale)
    torch.testing.assert_close(pairs.after, whole[..., 4:20, 4:20].half())
    with pytest.raises(ValueError, match="even margin, got 9"):
        collect_pairs([batch], path, Views(15, 24, VIEWS.mean, VIEWS.std), 64)


@pytest.mark.slow  # trains all probes on 1,500 pairs; test_tasks and test_probes train fewer
def test_the_report_ranks_an_encoder_that_knows_above_one_that_does_not(tmp_path):
    path = SE2(45, 10)
    train = collect_pairs(batches(path, seed=1), path, VIEWS, 1500)
    test = collect_pairs(batches(path, seed=2), path, VIEWS, 300)
    first = collect_pairs(batches(path, seed=2), path, VIEWS, 40)

    def knows(images):
        tokens = images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).permute(0, 2, 3, 1, 4)
        return {"z_equi": tokens.flatten(1, 2).flatten(2)}

    def blind(images):
        return {"z_equi": torch.ones(len(images), 16, 2) + 1e-3 * images.mean()}

    seen = []
    ((report, beyond),) = score_pairs(
        {"knows": Probed(knows, ("z_equi",)), "blind": Probed(blind, ("z_equi",), True)},
        train,
        [test, first],
        patch_size=4,
        fit=Fit(epochs=8, batch=64),
        on_row=lambda label, share: seen.append((label, share)),
    ).values()
    best = report.best("knows, z_equi")
    assert best.probe == "token"
    assert best.r2[0] > 0.8
    assert best.low[0] < best.r2[0] < best.high[0]
    assert 0 < best.error[0] < 10  # degrees
    assert report.best("blind, z_equi").r2[0] < 0.05
    assert report.best("transformed image alone").r2[0] > 0.5  # here the window is always the same
    labels, shares = zip(*seen, strict=True)
    assert {"raw pair", "knows, z_equi"} <= set(labels)
    assert list(shares) == sorted(shares)
    first_row = [share for label, share in seen if label == "transformed image alone"]
    assert first_row == pytest.approx([0, *(i / 3 / 5 for i in (1, 2, 3))])  # of three probes
    assert shares[-1] == pytest.approx(1)
    constant = report.best("mean predictor")
    assert max(constant.r2) <= 0 < constant.error[0] < 45
    assert best.mean_low < best.mean < best.mean_high
    assert beyond.test_pairs == 40
    assert [s.label for s in beyond.scores] == [s.label for s in report.scores]
    ours = [s.is_baseline for s in report.scores if s.encoder == "knows"]
    assert ours == [False] * len(ours)
    assert all(s.is_baseline for s in report.scores if s.encoder in (None, "blind"))
    assert report.to_json()["scores"][-1]["mean"] == report.scores[-1].mean
    assert report.to_json()["names"] == ("angle", "tx", "ty")
    assert report.table().row_count == len(report.scores)
    with pytest.raises(KeyError, match="no row 'z_inv'"):
        report.best("z_inv")


def test_the_table_has_no_intervals_of_one_photograph():
    path = SE2(45, 10)
    pairs = collect_pairs(batches(path, seed=1), path, VIEWS, 40)
    for each, said in ((1, True), (0, False)):
        groups = pairs.photographs * 0 if each else torch.arange(40)
        test = replace(pairs, photographs=groups)
        ((report,),) = score_pairs({}, pairs, [test], patch_size=4, probes=("ridge",)).values()
        table = report.table()
        assert ("1 test image, so no interval" in table.title) == said
        assert all((cell == "–") == said for cell in table.columns[3].cells)


def test_pairs_know_their_photographs_and_intervals_are_over_them():
    path = SE2(45, 10)
    pairs = collect_pairs(batches(path), path, VIEWS, 100, lambda ids: ids // 16)
    assert pairs.photographs.tolist() == [i % 64 // 16 for i in range(100)]
    ridge = {"probes": ("ridge",), "patch_size": 4}
    features = lambda x: {"patch": x.flatten(2).transpose(1, 2)[:, :9]}  # noqa: E731
    images = {"mine": Probed(features, ("patch",))}
    ((by_photograph,),) = score_pairs(images, pairs, [pairs], **ridge).values()
    single = replace(pairs, photographs=torch.arange(100))
    ((by_pair,),) = score_pairs(images, pairs, [single], **ridge).values()
    assert (by_photograph.photographs, by_pair.photographs) == (4, 100)
    for ours, theirs in zip(by_photograph.scores, by_pair.scores, strict=True):
        assert ours.r2 == theirs.r2
    wide, narrow = (report.scores[-1] for report in (by_photograph, by_pair))
    assert wide.low != narrow.low


def test_a_photograph_that_cannot_be_decoded_is_none_of_their_own(tmp_path):
    """The next one is shown in its place: it would count as two."""
    pytest.importorskip("nvidia.dali")
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.jpg")
    cut_off(tmp_path / "1.jpg")
    source, path = open_source(Selection((str(tmp_path),), option="--data")), SE2(45, 10)
    with window_loader(source, path, VIEWS, seed=1, device=torch.device("cpu")) as loader:
        pairs = collect_pairs(loader, path, VIEWS, 40, loader.images_of)
    assert set(pairs.photographs.tolist()) == {0, 2}


def test_differences_are_paired_and_few_pairs_are_the_first_ones():
    path = SE2(45, 10)
    pairs = collect_pairs(batches(path), path, VIEWS, 120, lambda ids: ids // 16)
    images = {
        name: Probed(
            lambda x, n=n: {"patch": x.flatten(2).transpose(1, 2)[:, :n]}, ("patch",), base
        )
        for name, n, base in (("nine", 9, False), ("again", 9, False), ("two", 2, True))
    }
    how = {"probes": ("ridge",), "patch_size": 4}
    found = score_pairs(images, pairs, [pairs], fewer=(60,), **how)
    assert list(found) == [120, 60]
    (report,), (few,) = found.values()
    assert (report.train_pairs, few.train_pairs) == (120, 60)
    half = replace(pairs, **{n: getattr(pairs, n)[:60] for n in ("before", "after", "params")})
    ((alone,),) = score_pairs(images, half, [pairs], **how).values()
    assert [score.r2 for score in few.scores] == [score.r2 for score in alone.scores]

    same = report.difference("nine, patch", "again, patch")  # in every draw, not on average
    assert (same.mean, same.low, same.high, same.mean_high) == (0, (0,) * 3, (0,) * 3, 0)
    other = report.difference("nine, patch", "two, patch")
    own, base = report.best("nine, patch"), report.best("two, patch")
    assert other.r2 == tuple(a - b for a, b in zip(own.r2, base.r2, strict=True))
    assert all(a <= b <= c for a, b, c in zip(other.low, other.r2, other.high, strict=True))
    assert other.high[0] - other.low[0] < own.high[0] - own.low[0] + base.high[0] - base.low[0]
    labels = {d.label for d in report.differences}
    assert labels == {"nine, patch", "again, patch"}
    against = {d.against for d in report.differences if d.label == "again, patch"}
    assert against == {s.label for s in report.scores if s.is_baseline}
    assert report.best_baseline().is_baseline
    expected = f"angle {other.r2[0]:+.2f} [{other.low[0]:.2f}, {other.high[0]:.2f}], tx "
    assert other.sentence(report.names).startswith(expected)
    with pytest.raises(ValueError, match=r"fewer: expected different numbers of 2..119, got"):
        score_pairs(images, pairs, [pairs], fewer=(120,), **how)
    with pytest.raises(KeyError, match="no difference"):
        report.difference("two, patch", "nine, patch")


def test_differences_by_one_probe_are_of_that_probe():
    path = SE2(45, 10)
    pairs = collect_pairs(batches(path), path, VIEWS, 60)
    images = {
        name: Probed(lambda x, n=n: {"patch": x.flatten(2).transpose(1, 2)[:, :n]}, ("patch",))
        for name, n in (("nine", 9), ("four", 4))
    }
    fit = Fit(epochs=1, width=8, seeds=1)
    probes = ("cosines", "mlp", "ridge")
    ((report,),) = score_pairs(
        images, pairs, [pairs], patch_size=4, probes=probes, pixels=("raw pair",), fit=fit
    ).values()
    rows = {(s.label, s.probe): s for s in report.scores}
    for probe in ("cosines", "mlp, mean token", "ridge, mean token"):
        found = report.difference("nine, patch", "four, patch", probe)
        pair = rows["nine, patch", probe], rows["four, patch", probe]
        assert found.r2 == tuple(a - b for a, b in zip(pair[0].r2, pair[1].r2, strict=True))
        assert (found.probe, found.against_probe) == (probe, probe)
    assert report.difference("nine, patch", "raw pair", "cosines").against == "raw pair"
    with pytest.raises(KeyError, match="no difference"):
        report.difference("nine, patch", "four, patch", "token")


def test_photometric_change_is_of_each_image_alone_and_leaves_the_labels():
    path = SE2(45, 10)
    plain = collect_pairs(batches(path), path, VIEWS, 64)
    none = Photometric(0, 0, 0, 0, 0, 0)
    same = collect_pairs(batches(path), path, VIEWS, 64, photometric=none)
    torch.testing.assert_close(same.before, plain.before, atol=2e-3, rtol=2e-3)
    changed = collect_pairs(batches(path), path, VIEWS, 64, photometric=Photometric(), seed=1)
    again = collect_pairs(batches(path), path, VIEWS, 64, photometric=Photometric(), seed=1)
    assert torch.equal(changed.before, again.before)
    assert torch.equal(changed.params, plain.params)
    assert not torch.equal(changed.after, again.before)

    grey = torch.full((500, 3, 16, 16), 0.5)
    generator = torch.Generator().manual_seed(0)
    noise = Photometric(0, 0, 0, 0, 0).change(grey, generator) - grey
    assert noise.std().item() == pytest.approx(0.02, rel=0.01)
    light = Photometric(0.4, 0, 0, 0, 0, 0).change(grey, generator)[:, 0, 0, 0]
    assert 0.3 <= light.min() < 0.31 < 0.69 < light.max() <= 0.7
    assert (light[::2] - light[1::2]).abs().mean() > 0.1  # independent
    red = torch.zeros(500, 3, 16, 16)
    red[:, 0] = 0.6
    hue = Photometric(0, 0, 0, 0.1, 0, 0).change(red, generator)[:, :, 0, 0]
    assert hue[:, 1].max() > 0.1  # to yellow: a tenth of a circle of YIQ
    edge = torch.zeros(500, 3, 16, 16)
    edge[..., 8:] = 1
    soft = Photometric(0, 0, 0, 0, 28.0, 0).change(edge, generator)[:, 0, 0]
    step = soft[:, 8] - soft[:, 7]
    assert step.min() < 0.25 < 0.95 < step.max()  # σ from 0 to 2 px of 16
    assert ((soft[:, 1:] - soft[:, :-1]) > -1e-6).all()


@pytest.mark.parametrize("size", [224, 225, 518])
def test_photometric_blur_grows_with_the_image(size):
    """An edge's steepest step is 1 / (σ √2π) of it: σ goes up to 2 px of 224."""
    edge = torch.zeros(20, 3, size, size)
    edge[..., size // 2 :] = 1
    soft = Photometric(0, 0, 0, 0, 2.0, 0).change(edge, torch.Generator().manual_seed(0))
    steps = (soft[:, 0, 8, 1:] - soft[:, 0, 8, :-1]).amax(1)
    unit = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))[:, 4]
    sigma = 2 * size / 224 * unit
    wide = sigma > 0.8
    expected = 1 / (sigma * math.sqrt(2 * math.pi))
    torch.testing.assert_close(steps[wide], expected[wide], rtol=0.05, atol=0)
    assert sigma.max() > 1.8 * size / 224


def test_large_images_are_as_many_patches_of_fewer_pixels():
    images = torch.rand(2, 3, 224, 224)
    found = patches(images, 16)
    assert found.shape == (2, 196, 3 * 4 * 4)
    expected = torch.nn.functional.avg_pool2d(images, 4)[..., :4, :4].flatten(1)
    torch.testing.assert_close(found[:, 0], expected)
    assert patches(torch.rand(1, 3, 32, 32), 8).shape == (1, 16, 3 * 64)


def test_the_grid_shows_every_image_in_its_place():
    g = torch.Generator().manual_seed(0)
    shape = (3, 2, 3, 8, 8)
    views = {
        "v1": torch.rand(3, 3, 8, 8, generator=g),
        "target": torch.rand(shape, generator=g),
        "pred": torch.rand(shape, generator=g),
        "v2": torch.rand(3, 3, 8, 8, generator=g),
    }
    sheet = path_grid(views, VIEWS.mean, VIEWS.std, scale=2)
    assert sheet.size == (6 * 22 + 6, 26 + 3 * 22 + 6)
    expected = to_uint8(views["pred"][:, 1], VIEWS.mean, VIEWS.std)[2]
    left, top = 6 + 4 * 22, 26 + 6 + 2 * 22
    shown = sheet.crop((left, top, left + 16, top + 16)).resize((8, 8), resample=0)
    assert list(shown.getdata()) == [tuple(p) for row in expected.tolist() for p in row]
