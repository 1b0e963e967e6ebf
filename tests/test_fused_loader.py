"""Loading with `views="fused"`: DALI's views within a grey level, and exact in the same ways."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")

from fastequi.config import Config
from fastequi.data import views_choice
from fastequi.data.config import Augment, DataConfig
from fastequi.data.loader import make_loader
from fastequi.data.sources.image_sets import image_folder
from fastequi.paths import SE2
from fastequi.train import pretrain
from tests.support.batches import CFG, PHOTOS, assert_same, batches
from tests.support.configs import config_of

FUSED = replace(CFG, views="fused")
SEPARATE = DataConfig(
    image_size=32,
    source_size=40,
    a1=Augment(area=(0.2, 1.0)),
    a2=Augment(area=(0.3, 1.0), blur=0.5, solarize=0.5),
    local_crops=3,
    local_crop_size=16,
    a3=Augment(area=(0.1, 0.5), blur=0.5),
    batch_size=6,
    samples_per_decode=2,
    num_threads=1,
)
ROTATED = replace(
    SEPARATE,
    a1=Augment(area=(0.5, 1.0), flip=0.0),
    a2=Augment(area=(0.5, 1.0), flip=0.0),
    a3=Augment(area=(0.1, 0.5), flip=0.0),
    rotations=True,
)
PLAIN = replace(SEPARATE, local_crops=0, source_size=32).plain()


@pytest.mark.parametrize(
    "cfg", [CFG, SEPARATE, ROTATED, PLAIN], ids=["shared", "apart", "turned", "plain"]
)
def test_the_views_are_dalis_but_for_its_roundings(cfg):
    """Within half a grey level for each of DALI's operations, which round; ours do once."""
    ours = batches(2, cfg=replace(cfg, views="fused"))
    std = torch.tensor(cfg.std)[:, None, None]
    for a, b in zip(ours, batches(2, cfg=cfg), strict=True):
        assert torch.equal(a.sample_ids, b.sample_ids)
        assert torch.equal(a.path, b.path)
        assert a.u.dtype == torch.uint8
        assert a.u.is_contiguous(memory_format=torch.channels_last)
        pairs = [(a.u.float(), b.u.float()), (255 * std * a.v1, 255 * std * b.v1)]
        if b.local_crops is not None:
            pairs.append((255 * std * a.local_crops, 255 * std * b.local_crops))
        for found, wanted in pairs:
            assert found.shape == wanted.shape
            apart = (found - wanted).abs()
            assert apart.max() <= 3.01
            assert (apart > 1.51).float().mean() < 2e-3


@pytest.mark.parametrize("cfg", [CFG, SEPARATE, ROTATED], ids=["shared", "apart", "turned"])
def test_views_of_bfloat16_are_those_of_float32_rounded(cfg):
    cfg = replace(cfg, views="fused")
    halves = batches(2, cfg=cfg, dtype=torch.bfloat16)
    for a, b in zip(halves, batches(2, cfg=cfg), strict=True):
        assert torch.equal(a.u, b.u)
        assert torch.equal(a.v1, b.v1.bfloat16())
        if b.local_crops is not None:
            assert torch.equal(a.local_crops, b.local_crops.bfloat16())


def test_shared_crops_are_the_middle_of_u():
    cfg = replace(FUSED, a1=CFG.a1.plain(), a2=CFG.a2.plain())
    for batch in batches(2, cfg=cfg):
        middle = batch.u[..., 8:-8, 8:-8].float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (cfg.mean, cfg.std))
        apart = (batch.v1 * std + mean - middle).abs()
        assert apart.max() <= 0.51 / 255  # u's rounding


def test_the_same_bytes_for_any_number_of_threads():
    expected = batches(3, cfg=FUSED)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_same(batches(3, cfg=replace(FUSED, num_threads=2)), expected)
    finally:
        torch.set_num_threads(before)


def test_resuming_gives_the_same_batches():
    expected = batches(6, cfg=FUSED)
    with make_loader(PHOTOS, FUSED, SE2(), seed=0) as loader:
        before = [next(loader) for _ in range(3)]
        state = json.loads(json.dumps(loader.state_dict()))
    assert_same(before + batches(3, cfg=FUSED, state=state), expected)


def test_ranks_split_the_same_batch():
    whole = batches(2, cfg=FUSED)
    ranks = [batches(2, cfg=FUSED, rank=rank, world_size=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        both = torch.cat([rank[step].v1 for rank in ranks])
        assert torch.equal(both, batch.v1)


def test_damaged_images_are_replaced_and_counted(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.jpg")
    broken = tmp_path / "05.jpg"
    whole = broken.read_bytes()
    source = image_folder(tmp_path)
    broken.write_bytes(whole[:40])
    cfg = replace(SEPARATE, views="fused", tolerate=0.2)
    with make_loader(source, cfg, SE2(), seed=0, steps=6) as loader:
        found = list(loader)
        assert set(loader.quarantined) == {"05.jpg"}
    assert len(found) == 6
    assert all(batch.v1.isfinite().all() for batch in found)
    with make_loader(source, replace(cfg, views="dali"), SE2(), seed=0, steps=6) as loader:
        theirs = list(loader)
    for a, b in zip(found, theirs, strict=True):
        assert (a.u.float() - b.u.float()).abs().mean() < 0.5  # the same replacements


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="views: expected dali, fused or auto, got magic"):
        replace(CFG, views="magic")


@pytest.mark.gpu
@pytest.mark.parametrize("cfg", [CFG, ROTATED], ids=["shared", "turned"])
def test_gpu_views_match_the_cpu_ones(cfg):
    """nvJPEG decodes a little differently; the parameters and the views' equation are the same."""
    cfg = replace(cfg, views="fused")
    ours = batches(3, cfg=cfg, device="cuda")
    assert_same(batches(3, cfg=cfg, device="cuda"), ours)
    std = torch.tensor(cfg.std)[:, None, None]
    for a, b in zip(ours, batches(3, cfg=cfg), strict=True):
        assert a.u.is_cuda
        assert a.u.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(a.sample_ids, b.sample_ids)
        assert (a.u.cpu().float() - b.u.float()).abs().mean() < 3
        assert (255 * std * (a.v1.cpu() - b.v1)).abs().mean() < 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs are on the GPU, where it is measured")
def test_auto_is_fused_where_c_runs_and_a_run_keeps_what_it_began_with(tmp_path, monkeypatch):
    config = config_of("tir_vicreg_vits16")
    config = replace(config, data=replace(config.data, views="auto"))
    monkeypatch.setattr(views_choice, "backend", lambda device: ("native", ""))
    pretrain(config, PHOTOS, tmp_path / "run", max_steps=1)
    begun = Config.from_json((tmp_path / "run" / "config.json").read_text())
    assert begun.data.views == "fused"
    monkeypatch.setattr(views_choice, "backend", lambda device: ("torch", "no compiler"))
    pretrain(config, PHOTOS, tmp_path / "run", resume=True, max_steps=2)
    begun = Config.from_json((tmp_path / "run" / "config.json").read_text())
    assert begun.data.views == "fused"
    pretrain(config, PHOTOS, tmp_path / "other", max_steps=1)
    begun = Config.from_json((tmp_path / "other" / "config.json").read_text())
    assert begun.data.views == "dali"


def test_a_run_from_before_the_setting_keeps_dalis_views():
    config = config_of("tir_vicreg_vits16")
    found = json.loads(config.to_json())
    assert found["data"].pop("views") == "auto"
    assert Config.from_json(json.dumps(found)).data.views == "dali"
