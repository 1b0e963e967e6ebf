"""Windows that overlap by rule, rotations by DALI, and boxes that find the same in both views."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali")

from PIL import Image

from fastequi.data.config import Augment, DataConfig
from fastequi.data.dali import ViewPipeline, feed_of
from fastequi.data.loader import make_loader
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.data.views import parameters
from fastequi.data.views.parameters import crop_params, view_params
from fastequi.functional import crop_align_loss
from fastequi.paths import SE2
from fastequi.philox import Draws
from tests.support.dali import CPU, config, whole

GLOBAL = Augment.none(area=(0.3, 1.0))
LOCAL = Augment.none(area=(0.1, 0.3))
CROPS = DataConfig(
    image_size=64,
    source_size=64,
    a1=GLOBAL,
    a2=GLOBAL,
    a3=LOCAL,
    local_crops=3,
    local_crop_size=32,
    rotations=True,
    overlap=(0.02, 0.01),
    batch_size=8,
    num_threads=1,
)


def windows(cfg, n, sizes, region=parameters.WHOLE, epoch=0):
    draws = Draws.of(3, epoch, np.arange(n))
    v1, u = view_params(cfg, draws, sizes, region)
    crops = crop_params(cfg, draws, sizes, region, (v1, u))
    return v1.boxes, u.boxes, crops.boxes.reshape(n, cfg.local_crops, 4)


def common(a, b):
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.maximum(sides, 0).prod(-1)


@pytest.mark.parametrize("tries", [1, 10])
@pytest.mark.parametrize("region", [(0.0, 0.0, 1.0, 1.0), (0.2, 0.0, 0.7, 1.0)])
@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 100), (300, 900)])
def test_every_crop_overlaps_the_earlier_global_ones(monkeypatch, tries, region, size):
    monkeypatch.setattr(parameters, "_WINDOWS", tries)  # with one, all that fail are moved
    n, area = 2000, (region[2] - region[0]) * (region[3] - region[1])
    cfg = replace(CROPS, a1=replace(GLOBAL, area=(0.3, 0.31)), a2=replace(GLOBAL, area=(0.3, 0.31)))
    v1, u, crops = windows(cfg, n, np.tile(size, (n, 1)), region)
    assert (common(v1, u) > 0.0199 * area).all()
    for other in (v1, u):
        assert (common(crops, other[:, None]) > 0.0099 * area).all()
    for box in (v1, u, crops):
        assert (box[..., :2] >= np.array(region[:2]) - 1e-6).all()
        assert (box[..., 2:] <= np.array(region[2:]) + 1e-6).all()


def test_the_rule_rejects_and_the_first_window_that_fits_is_taken():
    n = 2000
    sizes = np.tile((480, 640), (n, 1))
    small = replace(GLOBAL, area=(0.3, 0.31))
    free = replace(CROPS, a1=small, a2=small, overlap=(0.0, 0.0))
    ruled = replace(free, overlap=(0.08 / 4, 0.01))
    before, after = windows(free, n, sizes), windows(ruled, n, sizes)
    np.testing.assert_array_equal(before[0], after[0])
    kept = (before[1] == after[1]).all(1)
    fine = common(before[0], before[1]) > 0.02
    np.testing.assert_array_equal(kept, fine)
    assert 0.5 < fine.mean() < 1
    # every sample alone gives what it gives in company
    draws = Draws.of(3, 0, np.arange(n)[~kept][:5])
    _, u = view_params(ruled, draws, sizes[:5])
    np.testing.assert_array_equal(u.boxes, after[1][~kept][:5])


def test_photographs_too_oblong_for_the_rule_still_overlap():
    n = 500
    v1, u, crops = windows(CROPS, n, np.tile((100, 6000), (n, 1)))
    assert (common(v1, u) > 0).all()
    assert (common(crops, v1[:, None]) > 0).all()
    assert (common(crops, u[:, None]) > 0).all()


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("samples", [1, 2])
def test_rotations_are_np_rot90_bit_for_bit(tmp_path, size, samples):
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    cfg = config(size=size, rotations=True, samples_per_decode=samples, batch_size=4 * samples)
    turns = np.arange(4 * samples) % 4
    other = (turns + 1) % 4
    n = 4 * samples
    feed = feed_of(
        cfg, [str(tmp_path / "a.png")] * 4, whole(n, rotation=turns), whole(n, rotation=other)
    )
    v1, u, _ = ViewPipeline(cfg, 4, lambda: feed, CPU, 1).run()
    for i in range(n):
        np.testing.assert_array_equal(u[i].permute(1, 2, 0), np.rot90(noise, other[i]))
        seen = (v1[i].permute(1, 2, 0) * 255).round().byte()
        np.testing.assert_array_equal(seen, np.rot90(noise, turns[i]))


@pytest.mark.parametrize("samples", [1, 4])
def test_boxes_find_the_same_pixels_in_both_views(samples):
    """The crop loss on the pixels: -1 where boxes and rotations are right, and only there. (The
    seed draws photographs that look different when they are turned.)"""
    cfg = replace(CROPS, samples_per_decode=samples)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.mean, cfg.std))
    with make_loader(embedded_photos(), cfg, SE2(0.0, 0.0), seed=1) as loader:
        batch = next(loader)
    v2 = (batch.u / 255 - mean) / std
    views = torch.stack([batch.v1, v2]).permute(0, 1, 3, 4, 2)
    crops = batch.local_crops.permute(0, 1, 3, 4, 2)
    overlaps = batch.overlaps
    assert overlaps.rotations.shape == (5, 8)
    assert len(overlaps.rotations.unique()) == 4

    def loss(maps, shared, pairs, turned=0, rolled=0):
        boxes = shared.own.roll(rolled, 1), shared.other
        return crop_align_loss(maps, views, *boxes, shared.rotations + turned, bins=4, pairs=pairs)

    of_globals = views, overlaps.of_globals, [(0, 1), (1, 0)]
    of_local_crops = crops, overlaps.of_local_crops, [(i, t) for i in range(3) for t in (0, 1)]
    for given in (of_globals, of_local_crops):
        assert loss(*given) < -0.99
        assert loss(*given, turned=1) > -0.9
        assert loss(*given, rolled=1) > -0.9


def test_without_rotations_or_overlap_there_are_none():
    cfg = replace(CROPS, rotations=False, overlap=(0.0, 0.0))
    with make_loader(embedded_photos(), cfg, SE2(0.0, 0.0), seed=0) as loader:
        assert next(loader).overlaps is None


def test_a_resumed_loader_gives_the_same_overlaps():
    batches = []
    with make_loader(embedded_photos(), CROPS, SE2(0.0, 0.0), seed=0) as loader:
        batches = [next(loader)]
        state = loader.state_dict()
        batches.append(next(loader))
    with make_loader(embedded_photos(), CROPS, SE2(0.0, 0.0), seed=0, state=state) as loader:
        again = next(loader)
    assert torch.equal(again.local_crops, batches[1].local_crops)
    values = [
        (
            x.rotations,
            x.of_globals.own,
            x.of_globals.other,
            x.of_local_crops.own,
            x.of_local_crops.rotations,
        )
        for x in (again.overlaps, batches[1].overlaps, batches[0].overlaps)
    ]
    for now, then, before in zip(*values, strict=True):
        assert torch.equal(now, then)
        assert not torch.equal(now, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"a1": replace(GLOBAL, flip=0.5)},
            "a1.flip: expected 0 beside rotations or overlap, got 0.5",
        ),
        ({"a3": replace(LOCAL, flip=0.5)}, "a3.flip: expected 0"),
        ({"a2": Augment.none(side=(0.1, 0.2))}, "a2.side: expected None"),
        ({"shared_crop": True}, "shared_crop: expected False"),
        ({"overlap": (0.1, 0.01)}, r"a2.area: expected at least 0.4, four times .*, got \(0.3"),
        ({"overlap": (0.02, 0.03)}, r"a3.area: expected at least 0.12"),
        ({"overlap": (-0.1, 0.0)}, "a2.area: expected"),
    ],
)
def test_bad_settings_name_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CROPS, **changes)
