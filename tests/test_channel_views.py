"""Views of images whose channels are kept: the formulas, and a loader that is exact in all ways."""

import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("nvidia.dali")

from fastequi.cli.main import main
from fastequi.config import Config, PathConfig
from fastequi.data import channel_views
from fastequi.data.channel_views import as_whole, augmented, in_range
from fastequi.data.config import Augment, DataConfig
from fastequi.data.indexing import merged, scan_into
from fastequi.data.loader import make_loader
from fastequi.data.pixels import Pixels, pixels_of
from fastequi.data.settling import settled, wanted
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.journal import End
from fastequi.data.sources.listing import folder_listing
from fastequi.data.views.parameters import ViewParams, view_params
from fastequi.functional import gaussian_blur
from fastequi.paths import SE2
from fastequi.philox import Draws
from fastequi.recipes import RECIPES
from fastequi.resuming import with_files
from tests.support import science
from tests.support.batches import assert_same
from tests.support.batches import batches as loaded
from tests.support.configs import config_of
from tests.support.science import values

ALL = Augment(area=(0.3, 1.0), gamma=0.5, noise=0.05, drop=0.3, blur=0.5)
CFG = DataConfig(
    image_size=16,
    source_size=20,
    channels="all",
    a1=ALL,
    a2=replace(ALL, noise=0.0),
    local_crops=2,
    local_crop_size=8,
    batch_size=6,
    samples_per_decode=2,
    num_threads=1,
)


def stored(folder, write, channels=5, depth="uint16", count=12):
    """A scanned set of images."""
    contents = {f"{i:02}.{write[0]}": write[1](values(channels, depth, i)) for i in range(count)}
    listing = folder_listing(science.write(folder, contents))
    journal = listing.index.with_name("index.part-1-of-1.jsonl")
    end = End((1, 1), "images", 0, count, count, "")
    scan_into(journal, listing, end, 1, lambda done, total: None)
    merged(listing.index, [journal])
    return folder


PLAIN = ("tif", science.plain_tiff)


@pytest.fixture
def folder(tmp_path):
    return stored(tmp_path / "set", PLAIN)


def opened(folder, cfg=CFG):
    source = open_source(folder, wanted=wanted(cfg))
    return source, settled(cfg, source)


def batches(folder, n=4, cfg=CFG, **options):
    source, cfg = opened(folder, cfg)
    return loaded(n, source, cfg, **options)


def plain(**changes):
    """The whole image, unchanged, in its own size."""
    none = Augment.none()
    return replace(
        CFG,
        a1=none,
        a2=none,
        local_crops=0,
        image_size=20,
        source_size=20,
        samples_per_decode=1,
        batch_size=4,
        **changes,
    )


def test_nothing_but_a_window_gives_the_values_themselves(tmp_path):
    for depth, whole in (("uint8", torch.uint8), ("uint16", torch.uint16)):
        arrays = [values(7, depth, i, (20, 20)) for i in range(4)]
        contents = {f"{i}.tif": science.plain_tiff(array) for i, array in enumerate(arrays)}
        folder = science.write(tmp_path / depth, contents)
        cfg = plain(mean=(0.25,) * 7, std=(0.5,) * 7)
        for chosen in ("all", "6,0,3"):
            count = 7 if chosen == "all" else 3
            one = replace(cfg, channels=chosen, mean=(0.25,) * count, std=(0.5,) * count)
            (batch,) = batches(folder, 1, one)
            assert batch.u.dtype == whole
            for i, u, v1 in zip(batch.sample_ids.tolist(), batch.u, batch.v1, strict=True):
                array = arrays[i] if chosen == "all" else arrays[i][..., [6, 0, 3]]
                np.testing.assert_array_equal(u.permute(1, 2, 0).numpy(), array)
                unit = array / np.iinfo(depth).max
                expected = (unit - 0.25) / 0.5
                np.testing.assert_allclose(v1.permute(1, 2, 0), expected, atol=2e-6)


def test_a_range_becomes_0_to_1():
    array = torch.tensor([[[[100.0, 5.0], [300.0, 10.0], [500.0, 20.0], [0.0, 0.0]]]])
    pixels = Pixels(2, "uint16", (1, 0), ((5.0, 15.0), (100.0, 500.0)))
    found = in_range(array, pixels)
    expected = [[[0.0, 0.5, 1.0, 0.0]], [[0.0, 0.5, 1.0, 0.0]]]
    torch.testing.assert_close(found, torch.tensor([expected]))
    assert as_whole(found, "uint8").tolist() == [[[[0, 128, 255, 0]]] * 2]
    assert as_whole(found, "float32").tolist() == [[[[0, 32768, 65535, 0]]] * 2]


def test_augmentations_are_their_formulas():
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    x = torch.rand(3, 4, 9, 10)
    table = channel_views.noise_table(torch.device("cpu"))
    params = ViewParams(
        np.zeros((3, 2), np.float32),
        np.ones((3, 2), np.float32),
        sigma=np.array([0.0, 0.7, 1.4], np.float32),
        channels=draw.uniform(0.5, 1.5, (3, 4, 3)).astype(np.float32),
        noise=np.array([0.0, 0.1, 0.3], np.float32),
        noise_places=draw.integers(0, 1 << 22, (3, 4)),
        dropped=draw.random((3, 4)) < 0.4,
    )
    aug = Augment(gamma=1.0)
    found = augmented(x.clone(), aug, params)
    for i in range(3):
        for c in range(4):
            gain, offset, gamma = params.channels[i, c].tolist()
            y = (gain * x[i, c] + offset).clamp(0, 1) ** gamma
            y = gaussian_blur(y[None, None], float(params.sigma[i]))[0, 0]
            place = params.noise_places[i, c]
            noise = table[place : place + 90].view(9, 10)
            y = (y + params.noise[i] * noise).clamp(0, 1)
            if params.dropped[i, c]:
                y = y.mean().expand(9, 10)
            torch.testing.assert_close(found[i, c], y, atol=1e-5, rtol=1e-5)


def test_the_table_of_noise_is_normal():
    table = channel_views.noise_table(torch.device("cpu"))[: 1 << 20].double()
    assert abs(table.mean()) < 4e-3
    assert abs(table.std() - 1) < 4e-3
    assert abs((table**3).mean()) < 0.01
    assert abs((table**4).mean() - 3) < 0.03
    for lag in (1, 7, 4096):
        assert abs((table[:-lag] * table[lag:]).mean()) < 5e-3
    # so that runs go on with the same everywhere
    known = [0.18009822, 0.20981011, 1.22856629]
    torch.testing.assert_close(table[:3].float(), torch.tensor(known))


def test_what_is_drawn_is_in_its_ranges():
    cfg = replace(CFG, channels="0,1,2,3,4", mean=(0.5,) * 5, std=(0.2,) * 5, local_crops=0)
    draws = Draws.of(3, 0, np.arange(4000))
    sizes = np.full((4000, 2), 30)
    v1, u = view_params(cfg, draws, sizes)
    gain, offset, gamma = np.moveaxis(v1.channels, -1, 0)
    changed = (gain != 1).any(1)
    assert abs(changed.mean() - 0.8) < 0.03
    assert (gamma[~changed] == 1).all()
    assert (offset[~changed] == 0).all()
    for array, low, high in ((gain, 0.6, 1.4), (offset, -0.1, 0.1), (np.log2(gamma), -0.5, 0.5)):
        of_changed = array[changed]
        assert of_changed.min() >= low - 1e-6
        assert of_changed.max() <= high + 1e-6
        assert abs(of_changed.mean() - (low + high) / 2) < 0.03 * (high - low)
        correlation = np.corrcoef(of_changed.T)  # channels are drawn independently
        assert np.abs(correlation - np.eye(5)).max() < 0.1
    assert abs(v1.dropped.mean() - 0.3) < 0.02
    assert 0 <= v1.noise.min() < 0.001 < 0.049 < v1.noise.max() <= 0.05
    assert v1.noise_places.max() > 0.99 * (1 << 22)
    assert u.noise is None
    assert not np.array_equal(u.channels, v1.channels)


WRITTEN = {
    "planar": ("tif", science.tiff_of),
    "npy": ("npy", science.npy),
    "npz": ("npz", science.npz),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_batches_do_not_depend_on_the_format(folder, tmp_path, how):
    expected = batches(folder, 5)
    assert_same(batches(stored(tmp_path / how, WRITTEN[how]), 5), expected)


def test_batches_do_not_depend_on_threads_ranks_or_a_restart(folder):
    expected = batches(folder, 8)
    assert_same(batches(folder, 8, replace(CFG, num_threads=2)), expected)
    ranks = [batches(folder, 8, replace(CFG, batch_size=12), rank=r, world_size=2) for r in (0, 1)]
    whole = batches(folder, 8, replace(CFG, batch_size=12))
    for step, batch in enumerate(whole):
        assert torch.equal(batch.u, torch.cat([rank[step].u for rank in ranks]))
        assert torch.equal(batch.v1, torch.cat([rank[step].v1 for rank in ranks]))
    source, cfg = opened(folder)
    with make_loader(source, cfg, SE2(), seed=0) as loader:
        for _ in range(3):
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
    assert_same(loaded(5, source, cfg, state=state), expected[3:])


@pytest.mark.parametrize("rotations", [False, True])
@pytest.mark.parametrize(
    ("channels", "depth"), [(5, "uint16"), (1, "uint8"), (17, "uint8"), (2, "float32")]
)
def test_views_in_one_pass_are_those_by_dali(tmp_path, channels, depth, rotations):
    """By the same draws, noise and dropped channels too; DALI tabulates its filter."""
    folder = stored(
        tmp_path / "set", PLAIN if depth != "float32" else WRITTEN["npy"], channels, depth
    )
    aug = replace(ALL, flip=0.0) if rotations else replace(ALL, noise=0.0, drop=0.0)
    asked = replace(
        CFG,
        a1=aug,
        a2=aug,
        a3=replace(CFG.a3, flip=0.0),
        value_range="percentiles:1:99",
        rotations=rotations,
    )
    ours, theirs = (batches(folder, 3, replace(asked, views=v)) for v in ("fused", "dali"))
    most = 255 if depth == "uint8" else 65535
    for a, b in zip(ours, theirs, strict=True):
        assert a.u.dtype == b.u.dtype == (torch.uint8 if depth == "uint8" else torch.uint16)
        assert a.u.shape == b.u.shape
        off = [(a.u.double() - b.u.double()).abs() / most]
        for name in ("v1", "local_crops"):
            off.append((getattr(a, name) - getattr(b, name)).abs().double() / 4)
        levels = torch.cat([x.flatten() for x in off])
        assert levels.quantile(0.99) < 0.02
        assert levels.mean() < 0.003


def test_damaged_images_are_replaced_and_counted(folder, caplog):
    source, cfg = opened(folder)
    damaged = folder / "03.tif"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with make_loader(source, cfg, SE2(), seed=0, steps=6) as loader:
        assert len(list(loader)) == 6
        assert list(loader.quarantined) == ["03.tif"]
    assert "03.tif cannot be decoded and is left out from now on" in caplog.text


def test_views_are_augmented_within_their_range(folder):
    for batch in batches(folder, 4):
        assert batch.u.shape == (6, 5, 20, 20)
        assert batch.local_crops.shape == (2, 6, 5, 8, 8)
        flat = batch.u.float().flatten(2).std(2) == 0
        assert 0 < flat.float().mean() < 0.8  # channels that were dropped


@pytest.mark.parametrize("views", ["fused", "dali"])
@pytest.mark.parametrize(
    ("kind", "ranges"),
    [
        ("uint16", ((20_000, 40_000),) * 2),
        ("uint16", ((20_000, 40_000), (0, 30_000))),
        ("uint16", ((20_000.5, 40_000), (10_000, 65_535))),
        ("float32", ((0.3, 0.6),) * 2),
        ("float32", ((0.3, 0.6), (0.1, 0.5))),
    ],
)
def test_values_outside_the_range_are_its_ends_before_they_are_resampled(
    tmp_path, kind, ranges, views
):
    """Dead pixels and places without data: their neighbours stay as they are."""
    array = values(3, kind, size=(40, 40))
    array[::7, ::5] = 65_535 if kind == "uint16" else -9999
    write = science.plain_tiff if kind == "uint16" else WRITTEN["npy"][1]
    suffix = "tif" if kind == "uint16" else "npy"
    folder = science.write(tmp_path, {f"{i}.{suffix}": write(array) for i in range(4)})
    asked = ",".join(f"{low}:{high}" for low, high in ranges)
    cfg = plain(mean=(0.5,) * 2, std=(0.2,) * 2, channels="2,0", value_range=asked)
    (batch,) = batches(folder, 1, replace(cfg, views=views))
    image = torch.from_numpy(array.astype(np.float64)).permute(2, 0, 1)[None, [2, 0]]
    low, high = torch.tensor(ranges, dtype=torch.float64).T[..., None, None]
    unit = (image.clamp(low, high) - low) / (high - low)
    expected = F.interpolate(unit, size=20, mode="bilinear", antialias=True)
    found = batch.u[:1].double() / 65535
    assert (found - expected).abs()[..., 1:-1, 1:-1].max() < 1 / 100
    other = (F.interpolate(image, size=20, mode="bilinear", antialias=True) - low) / (high - low)
    assert (other.clamp(0, 1) - expected).abs().max() > 0.2


def test_u_is_resampled_as_pytorch_does(tmp_path):
    array = values(3, "uint16", size=(40, 40))
    folder = science.write(tmp_path, {f"{i}.tif": science.plain_tiff(array) for i in range(4)})
    (batch,) = batches(folder, 1, plain(mean=(0.5,) * 3, std=(0.2,) * 3, channels="0,1,2"))
    image = torch.from_numpy(array.astype(np.float64)).permute(2, 0, 1)[None]
    expected = F.interpolate(image, size=20, mode="bilinear", antialias=True)
    # DALI's table of the filter's weights; beyond the edge it repeats the last pixel
    assert (batch.u[:1].double() - expected).abs()[..., 1:-1, 1:-1].max() < 65535 / 200
    assert (batch.u[:1].double() - expected).abs().max() < 65535 / 100


def test_settings_become_numbers(folder, caplog):
    source, cfg = opened(folder)
    every = np.concatenate([values(5, "uint16", i).reshape(-1, 5) for i in range(12)]) / 65535
    assert cfg.channels == "0,1,2,3,4"
    np.testing.assert_allclose(cfg.mean, every.mean(0), rtol=1e-9)
    np.testing.assert_allclose(cfg.std, every.std(0), rtol=1e-9)
    assert settled(cfg, source) == cfg
    ends = settled(replace(CFG, channels="3,1", value_range="percentiles:1:99"), source)
    raw = np.round(every * 65535)
    low, high = (np.percentile(raw, p, 0, method="inverted_cdf")[[3, 1]] for p in (1, 99))
    assert ends.value_range == ",".join(f"{a:.9g}:{b:.9g}" for a, b in zip(low, high, strict=True))
    unit = ((raw[:, [3, 1]] - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(ends.mean, unit.mean(0), atol=1e-3)
    np.testing.assert_allclose(ends.std, unit.std(0), atol=1e-3)
    with caplog.at_level(logging.INFO):
        opened(folder, replace(CFG, a2=replace(ALL, solarize=0.2)))
    assert "5 of 5 channels are kept; brightness" in caplog.text
    assert "gray, solarize" in caplog.text


def test_rgb_of_sixteen_bits_keeps_imagenets_normalisation(tmp_path):
    contents = {
        f"{i}.tif": science.tiff_of(
            values(3, "uint16", i), photometric="rgb", planarconfig="contig"
        )
        for i in range(3)
    }
    _, cfg = opened(science.write(tmp_path, contents))
    assert (cfg.mean, cfg.std) == (DataConfig().mean, DataConfig().std)


COLORS = Augment(area=(0.3, 1.0), jitter=0.9, gray=0.3, solarize=0.4, blur=0.5)
OF_RGB = replace(CFG, channels="rgb", a1=COLORS, a2=replace(COLORS, hue=0.4), a3=COLORS)


def rgb_sets(folder):
    """The same photographs with 8 and with 16 bits."""
    arrays = [values(3, "uint8", i) for i in range(6)]
    shallow = {f"{i}.png": science.png(array) for i, array in enumerate(arrays)}
    deep = {
        f"{i}.tif": science.tiff_of(
            array.astype(np.uint16) * 257, photometric="rgb", planarconfig="contig"
        )
        for i, array in enumerate(arrays)
    }
    return science.write(folder / "8", shallow), science.write(folder / "16", deep)


@pytest.mark.parametrize("views", ["dali", "fused"])
def test_deep_colours_change_as_those_of_eight_bits_do(tmp_path, views):
    """By the same draws: brightness, contrast, saturation, hue, grey, blur, solarization."""
    shallow, deep = rgb_sets(tmp_path)
    source, cfg = opened(deep, replace(OF_RGB, channels="all", views=views))
    assert cfg.file_colors
    assert cfg.channels == "0,1,2"
    of_deep = loaded(3, source, cfg)
    known = batches(shallow, 3, replace(OF_RGB, views=views))
    for ours, theirs in zip(of_deep, known, strict=True):
        assert ours.sample_ids.tolist() == theirs.sample_ids.tolist()
        assert ours.u.dtype == torch.uint16
        levels = (ours.u.double() / 257 - theirs.u.double()).abs()
        scale = 255 * torch.tensor(cfg.std)[:, None, None]
        for a, b in ((ours.v1, theirs.v1), (ours.local_crops, theirs.local_crops)):
            levels = torch.cat([levels.flatten(), ((a - b) * scale).abs().flatten().double()])
        # bytes are rounded between DALI's steps; near one half rounding decides on solarization
        assert levels.quantile(0.98) < 3
    assert (of_deep[0].u.unique().numel()) > 256


def test_deep_colours_are_those_that_files_say_or_that_are_given(tmp_path, caplog):
    _, deep = rgb_sets(tmp_path)
    with caplog.at_level(logging.INFO):
        _, cfg = opened(deep, replace(OF_RGB, channels="all"))
    assert "3 of 3 channels are kept: red, green and blue of uint16" in caplog.text
    assert "not used" not in caplog.text
    _, begun = opened(deep, replace(cfg, file_colors=None))  # as a run before had it
    assert begun.file_colors is None
    _, refused = opened(deep, replace(OF_RGB, channels="all", file_colors=False))
    assert not refused.has_colors
    _, turned = opened(deep, replace(OF_RGB, channels="2,1,0", mean=(0.5,) * 3, std=(0.2,) * 3))
    assert not turned.file_colors
    several = stored(tmp_path / "bands", PLAIN)
    bands = replace(OF_RGB, channels="4,2,1")
    _, told = opened(several, replace(bands, file_colors=True))
    assert told.has_colors
    assert not opened(several, bands)[1].has_colors
    with pytest.raises(
        ValueError, match=r"file_colors: expected true only where data\.channels are three"
    ):
        opened(several, replace(OF_RGB, channels="all", file_colors=True))


def test_a_channel_of_colours_may_be_noisy_and_dropped(tmp_path):
    _, deep = rgb_sets(tmp_path)
    cfg = replace(OF_RGB, channels="all", a1=replace(COLORS, noise=0.2, drop=0.5, blur=0.0))
    source, cfg = opened(deep, cfg)
    (first, *_), (quiet, *_) = (
        loaded(1, source, one) for one in (cfg, replace(cfg, a1=replace(cfg.a1, noise=0, drop=0)))
    )
    flat = first.v1.flatten(2).std(2) < 1e-6
    assert 0 < flat.float().mean() < 1
    kept = ~flat
    assert not torch.allclose(first.v1[kept], quiet.v1[kept], atol=0.05)
    assert torch.equal(first.u, quiet.u)


def test_several_places_that_were_scanned_are_measured_together(tmp_path, caplog):
    counts = {"a": 5, "b": 9}
    places = [stored(tmp_path / name, PLAIN, count=count) for name, count in counts.items()]
    cfg = replace(CFG, value_range="percentiles:1:99")
    source = open_source(places, wanted=wanted(cfg))
    found = settled(CFG, source)
    every = np.concatenate(
        [values(5, "uint16", i).reshape(-1, 5) for n in counts.values() for i in range(n)]
    )
    np.testing.assert_allclose(found.mean, every.mean(0) / 65535, rtol=1e-9)
    np.testing.assert_allclose(found.std, every.std(0) / 65535, rtol=1e-9)
    ends = settled(cfg, source).value_range
    low = [float(pair.split(":")[0]) for pair in ends.split(",")]
    shares = [(every[:, c] <= end).mean() for c, end in enumerate(low)]
    assert all(0.008 < share < 0.012 for share in shares)
    (places[1] / ".fastequi" / "index.fei").unlink()
    caplog.clear()
    with caplog.at_level("INFO"), pytest.raises(ValueError, match="of several places scan each"):
        settled(CFG, open_source(places, wanted=wanted(CFG)))
    assert f"not scanned: {places[1]}" in caplog.text


def test_several_places_are_of_one_kind(tmp_path):
    """Told first of all, with the way out, whatever else is given or not measured."""
    places = {
        "five": stored(tmp_path / "five", PLAIN, count=3),
        "two": stored(tmp_path / "two", PLAIN, channels=2, count=4),
        "eight": stored(tmp_path / "eight", PLAIN, depth="uint8", count=5),
    }
    given = replace(CFG, mean=(0.5,) * 5, std=(0.25,) * 5)
    ranges = "dtype", "percentiles", "0:4095"
    message = (
        r"data\.channels: expected images with one number of channels, got 4 of 2 channels .*, 3"
    )
    for value_range in ranges:
        for cfg in (CFG, given):
            asked = replace(cfg, value_range=value_range)
            source = open_source([places["five"], places["two"]], wanted=wanted(asked))
            with pytest.raises(ValueError, match=message):
                settled(asked, source)
    message = r"data\.value_range: expected dtype, or images of one depth, .* got 5 of 5 .*uint8, 3"
    for value_range in ranges[1:]:
        asked = replace(given, value_range=value_range)
        source = open_source([places["five"], places["eight"]], wanted=wanted(asked))
        with pytest.raises(ValueError, match=message):
            settled(asked, source)
    source = open_source([places["five"], places["eight"]], wanted=wanted(given))
    assert settled(given, source).file_depth == "uint16"


def test_of_places_inside_each_other_every_image_counts_once(tmp_path):
    whole = stored(tmp_path / "whole", PLAIN, count=7)
    (whole / "part").mkdir()
    for i in range(3):
        darker = science.plain_tiff(values(5, "uint16", 20 + i) // 4)
        (whole / "part" / f"{i}.tif").write_bytes(darker)
    (whole / ".fastequi" / "index.fei").unlink()
    for folder in (whole, whole / "part"):
        assert main(["data", "scan", str(folder)]) in (0, None)
    alone = settled(CFG, open_source(whole, wanted=wanted(CFG)))
    for places in ([whole, whole / "part"], [whole / "part", whole]):
        found = settled(CFG, open_source(places, wanted=wanted(CFG)))
        assert (found.mean, found.std) == (alone.mean, alone.std)
    again = settled(CFG, open_source([whole / "part", whole / "part"], wanted=wanted(CFG)))
    assert again.mean == settled(CFG, open_source(whole / "part", wanted=wanted(CFG))).mean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"data.mean, data.std: expected numbers, as the images were not scanned"),
        ({"channels": "0,5"}, r"5 channels of uint16, no channel 5"),
        ({"value_range": "percentiles"}, "as the images were not scanned; fastequi data scan"),
    ],
)
def test_what_is_missing_is_said(tmp_path, change, message):
    contents = {f"{i}.tif": science.plain_tiff(values(5, "uint16", i)) for i in range(3)}
    folder = science.write(tmp_path, contents)
    with pytest.raises(ValueError, match=message):
        opened(folder, replace(CFG, **change))


def test_channels_without_contents_are_named(tmp_path):
    def flat(array):
        array = array.copy()
        array[..., [1, 3]] = 7
        return science.plain_tiff(array)

    folder = stored(tmp_path / "a", ("tif", flat))
    with pytest.raises(
        ValueError,
        match=r"data.std: expected channels whose values differ, got 1,.* or give data.mean",
    ):
        opened(folder)
    with pytest.raises(ValueError, match=r"but channels 1,3 have 7 at both: leave them out"):
        opened(folder, replace(CFG, value_range="percentiles"))
    _, cfg = opened(folder, replace(CFG, channels="0,2,4"))
    assert cfg.in_chans == 3
    with pytest.raises(ValueError, match=r"value_range: expected percentiles among 0 0.1 0.5 1 "):
        opened(folder, replace(CFG, channels="0,2,4", value_range="percentiles:3:97"))


def test_no_other_range_is_named_for_channels_of_one_value(tmp_path, caplog):
    flat = science.plain_tiff(np.full((64, 64, 2), 7, np.uint16))
    folder = science.write(tmp_path, {f"{i}.tif": flat for i in range(3)})
    assert main(["data", "scan", str(folder)]) in (0, None)
    caplog.clear()
    given = replace(CFG, channels="all", mean=(0.5, 0.5), std=(0.2, 0.2), value_range="0:60000")
    opened(folder, given)
    assert "fits each channel's" not in caplog.text


def test_percentiles_of_what_stands_for_no_value_are_said(tmp_path):
    def holed(array):
        array[:2] = -3.4028235e38
        return science.npy(array)

    floats = {f"{i}.npy": holed(values(2, "float32", i)) for i in range(4)}
    folder = science.write(tmp_path, floats)
    assert main(["data", "scan", str(folder)]) in (0, None)
    cfg = replace(CFG, value_range="percentiles")
    said = r"data.value_range: .*within ±1e\+30.*, the percentiles 0.1 and 99.9; where an end is"
    with pytest.raises(ValueError, match=said):
        opened(folder, cfg)
    _, found = opened(folder, replace(cfg, value_range="percentiles:25:99.9"))
    assert found.value_range.startswith("-")


def test_a_source_that_was_opened_for_rgb_has_no_pixels(folder):
    source, cfg = opened(folder)
    with pytest.raises(ValueError, match=r"channels: expected numbers below 5, got 7"):
        pixels_of(replace(cfg, channels="7", mean=(0.5,), std=(0.5,)), source)
    with pytest.raises(ValueError, match=r"channels: expected images with one number of channels"):
        make_loader(replace(source, kinds=None), cfg, SE2(), seed=0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("0:9000", r"\d\d % of the values of channel \d lie outside 0:9000 and become its ends"),
        (
            "0:9e6",
            r"the values of channel \d, \d+ to \d+, are 0?\.\d+ % of 0:9000000 \(and the like "
            r"of 4 more of 5 channels\); data.value_ran",
        ),
        ("percentiles:1:99", r"data.value_range: 0 to 1 are \d+ to \d+ \(channel 0\), "),
    ],
)
def test_a_range_that_hardly_fits_is_said(folder, caplog, asked, said):
    with caplog.at_level(logging.INFO):
        opened(folder, replace(CFG, value_range=asked))
    assert re.search(said, caplog.text), caplog.text


def test_images_that_were_added_to_a_run_are_not_used(folder, caplog):
    """Whatever most of them have by then."""
    source, cfg = opened(folder)
    assert (cfg.file_channels, cfg.file_depth) == (5, "uint16")
    (folder / ".fastequi" / "index.fei").unlink()
    for i in range(20):
        (folder / f"new {i}.tif").write_bytes(science.plain_tiff(values(3, "uint8", i)))
        (folder / f"deep {i}.tif").write_bytes(science.plain_tiff(values(5, "float32", i)))
    with caplog.at_level(logging.INFO):
        again = open_source(folder, wanted=wanted(cfg))
    assert list(again.names) == list(source.names)
    assert "40 images of another kind than the run's are not used" in caplog.text
    assert settled(cfg, again) == cfg
    for name in source.names:
        (folder / name).write_bytes(science.plain_tiff(values(10, "uint8")))
    with pytest.raises(ValueError, match=r"10 channels of uint8, expected 5 channels as the run's"):
        open_source(folder, wanted=wanted(cfg))


def test_noise_needs_views_within_its_table():
    with pytest.raises(ValueError, match="image_size: expected at most 1024 px beside noise"):
        replace(CFG, image_size=1040, source_size=1040)


def test_a_run_begun_before_views_in_one_pass_goes_on_by_dali():
    config = RECIPES["tir_vicreg_vits16"]()
    kept = replace(config, data=replace(config.data, channels="0", views="fused"))
    kept = replace(kept, data=replace(kept.data, mean=(0.5,), std=(0.2,)))
    text = kept.to_json()
    assert Config.from_json(text).data.views == "fused"
    before = json.loads(text)
    assert before.pop("format") == 3
    assert Config.from_json(json.dumps(before)).data.views == "dali"
    of_rgb = json.loads(replace(config, data=replace(config.data, views="fused")).to_json())
    of_rgb.pop("format")
    assert Config.from_json(json.dumps(of_rgb)).data.views == "fused"


@pytest.mark.parametrize(("value_range", "said"), [("0:100", True), ("dtype", False)])
def test_a_run_begun_before_values_were_cut_off_first_is_told(value_range, said, caplog):
    config = RECIPES["tir_vicreg_vits16"]()
    kept = replace(config.data, channels="0", value_range=value_range, mean=(0.5,), std=(0.2,))
    text = replace(config, data=kept).to_json()
    Config.from_json(text)
    assert not caplog.records
    Config.from_json(json.dumps({**json.loads(text), "format": 2}))
    assert ("cut off after images were resized" in caplog.text) == said


def test_a_run_begun_without_colours_goes_on_without(tmp_path):
    """Its config says nothing of colours; that of the call says nothing of the files."""
    _, deep = rgb_sets(tmp_path)
    views = replace(OF_RGB, channels="all", local_crops=0, image_size=32, source_size=32)
    asked = replace(config_of("tir_vicreg_vits16"), data=views)
    source, data = opened(deep, asked.data)
    begun = replace(asked, data=replace(data, file_colors=None))
    (tmp_path / "config.json").write_text(begun.to_json())
    resumed = with_files(asked, tmp_path, True)
    assert settled(resumed.data, source) == begun.data
    assert with_files(asked, tmp_path, False) == asked
    assert settled(asked.data, source).file_colors
    replace(asked, data=data, path=PathConfig(family="color")).expect_colors()
    with pytest.raises(ValueError, match=r"path\.family: expected gain, or data\.file_colors=True"):
        replace(begun, path=PathConfig(family="color")).expect_colors()
