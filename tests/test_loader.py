"""The loader end to end: exact repetition and resumption, regions, clean ends."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")

from fastequi.data.config import Augment
from fastequi.data.loader import make_loader
from fastequi.data.sources.image_sets import image_folder
from fastequi.data.views.parameters import view_params
from fastequi.paths import SE2, Color
from fastequi.philox import Draws
from tests.support.batches import CFG, CROP, PHOTOS, assert_same, batches


def test_batches_keep_the_contract():
    with make_loader(PHOTOS, CFG, SE2(), seed=0) as loader:
        assert len(loader) == 4  # 9 files, 4 samples each; the last four samples are dropped
        batch = next(loader)
    assert batch.v1.shape == (8, 3, 32, 32)
    assert batch.v1.dtype == torch.float32
    assert batch.u.shape == (8, 3, 48, 48)
    assert batch.u.dtype == torch.uint8
    assert batch.u.is_contiguous(memory_format=torch.channels_last)
    assert batch.sample_ids.dtype == torch.int64
    draws = Draws.of(0, 0, batch.sample_ids.numpy())
    assert torch.equal(batch.path, SE2().sample(draws, 32))
    assert len(batch) == 8
    half = batches(1, dtype=torch.bfloat16)[0]
    assert torch.equal(half.v1, batch.v1.bfloat16())


def test_the_same_bytes_for_any_number_of_threads():
    torch.manual_seed(0)
    expected = batches(6)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - nothing may come from global generators
    assert_same(batches(6, cfg=replace(CFG, num_threads=2)), expected)
    assert not torch.equal(batches(1, seed=1)[0].u, expected[0].u)
    assert {b.epoch for b in expected} == {0, 1}
    assert not any(torch.equal(expected[0].u, b.u) for b in expected[1:])


@pytest.mark.parametrize("done", [1, 3, 4, 5])
def test_resuming_gives_the_same_batches(done):
    expected = batches(7)
    with make_loader(PHOTOS, CFG, SE2(), seed=0) as loader:
        before = [next(loader) for _ in range(done)]
        assert loader.epoch == before[-1].epoch
        state = json.loads(json.dumps(loader.state_dict()))
    assert_same(before + batches(7 - done, state=state), expected)


def test_a_second_for_goes_on():
    with make_loader(PHOTOS, CFG, SE2(), seed=0, steps=5) as loader:
        first = [batch for batch, _ in zip(loader, range(2), strict=False)]
        rest = list(loader)
        assert list(loader) == []
    # zip takes a third batch before it notices the end of the range
    assert_same([*first, *rest], [b for i, b in enumerate(batches(5)) if i != 2])


def test_ranks_split_the_same_batch():
    whole = batches(5)
    ranks = [batches(5, rank=rank, world_size=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        for name in ("v1", "u", "path", "sample_ids"):
            both = torch.cat([getattr(rank[step], name) for rank in ranks])
            assert torch.equal(both, getattr(batch, name))


def test_batches_do_not_share_memory():
    with make_loader(PHOTOS, CFG, SE2(), seed=0) as loader:
        held = [next(loader) for _ in range(4)]
        copies = [(b.v1.clone(), b.u.clone()) for b in held]
        for _ in range(6):
            next(loader)
    for batch, (v1, u) in zip(held, copies, strict=True):
        assert torch.equal(batch.v1, v1)
        assert torch.equal(batch.u, u)


def coordinates(folder, names=("a", "b"), size=256):
    """PNG files whose red is x and green is y, 0..255 over the image."""
    folder.mkdir(exist_ok=True)
    ramp = np.linspace(0, 255, size)
    y, x = np.meshgrid(ramp, ramp, indexing="ij")
    image = np.stack([x, y, 0 * x], -1).round().astype(np.uint8)
    for name in names:
        Image.fromarray(image).save(folder / f"{name}.png")
    return image_folder(folder)


@pytest.mark.parametrize("region", [(0.7, 0.0, 1.0, 1.0), (0.0, 0.2, 0.5, 0.9)])
def test_no_pixel_outside_the_region_is_shown(tmp_path, region):
    source = coordinates(tmp_path).with_region(region)
    flips = Augment.none(side=(0.1, 0.29))
    for shared in (False, True):
        cfg = replace(CFG, a1=replace(flips, flip=0.5), a2=flips, shared_crop=shared)
        x0, y0, x1, y1 = (255 * r for r in region)
        for batch in batches(8, source, replace(cfg, repeat=8)):
            views = batch.v1 * torch.tensor(cfg.std)[:, None, None]
            views = 255 * (views + torch.tensor(cfg.mean)[:, None, None])
            for view in (views, batch.u.float()):
                x, y = view[:, 0], view[:, 1]
                assert x.min() >= x0 - 1.5
                assert x.max() <= x1 + 1.5
                assert y.min() >= y0 - 1.5
                assert y.max() <= y1 + 1.5


def test_windows_show_what_the_parameters_say(tmp_path):
    source = coordinates(tmp_path)
    aug = Augment(area=(0.1, 0.6), jitter=0, gray=0, blur=0)
    cfg = replace(CFG, a1=aug, a2=aug, shared_crop=False, repeat=4)
    got = batches(6, source, cfg)
    assert {batch.epoch for batch in got} == {0, 1}
    for batch in got:
        draws = Draws.of(0, batch.epoch, batch.sample_ids.numpy())
        assert torch.equal(batch.path, SE2().sample(draws, 32))
        v1, u = view_params(cfg, draws, np.full((8, 2), 256))
        views = batch.v1 * torch.tensor(cfg.std)[:, None, None]
        views = 255 * (views + torch.tensor(cfg.mean)[:, None, None])
        for image, params in ((views, v1), (batch.u.float(), u)):
            size = image.shape[-1]
            share = (np.arange(size) + 0.5) / size
            for row in range(8):
                (y0, x0), (y1, x1) = params.start[row], params.end[row]
                x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
                inner = slice(2, -2)  # antialiasing meets the image's edge
                np.testing.assert_allclose(image[row, 0, 9, inner], 256 * x[inner] - 0.5, atol=1)
                np.testing.assert_allclose(image[row, 1, inner, 9], 256 * y[inner] - 0.5, atol=1)


# DALI's operators round views to bytes, as u is; fused_views rounds u alone
GREY_LEVELS = pytest.mark.parametrize(("views", "levels"), [("dali", 1e-3), ("fused", 0.501)])


@GREY_LEVELS
def test_a_shared_crop_is_the_centre_of_u_mirrored_alike(views, levels):
    plain = Augment.none(side=CROP.side)
    cfg = replace(CFG, a1=plain, a2=replace(plain, flip=0.5), views=views)
    (batch,) = batches(1, cfg=cfg)
    v1 = batch.v1 * torch.tensor(cfg.std)[:, None, None]
    v1 = 255 * (v1 + torch.tensor(cfg.mean)[:, None, None])
    torch.testing.assert_close(v1, batch.u[..., 8:40, 8:40].float(), rtol=0, atol=levels)
    (unflipped,) = batches(1, cfg=replace(cfg, a2=plain))
    mirrored = [not torch.equal(a, b) for a, b in zip(batch.u, unflipped.u, strict=True)]
    assert 0 < sum(mirrored) < 8
    for a, b, flipped in zip(batch.u, unflipped.u, mirrored, strict=True):
        assert (a.int() - (b.flip(-1) if flipped else b).int()).abs().max() <= 1


@GREY_LEVELS
def test_normalisation(views, levels):
    cfg = replace(CFG.plain(), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0), views=views)
    (batch,) = batches(1, cfg=cfg)
    expected = batch.u[..., 8:40, 8:40].float() / 255
    expected = (expected - torch.tensor(cfg.mean)[:, None, None]) / torch.tensor(cfg.std)[
        :, None, None
    ]
    error = (batch.v1 - expected).abs().amax((0, 2, 3)) * torch.tensor(cfg.std)
    assert (255 * error).max() <= levels


def test_repeated_augmentation_takes_new_windows_of_the_same_photograph(tmp_path):
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (batch,) = batches(1, image_folder(tmp_path), CFG.plain())
    red = batch.u[:, 0].flatten(1)
    for decode in range(2):
        file = batch.sample_ids[4 * decode].item() // 4
        assert (red[4 * decode : 4 * decode + 4] == 60 * file).all()
    (batch,) = batches(1, cfg=CFG.plain())
    assert len({image.numpy().tobytes() for image in batch.u}) == 8


def test_other_paths_travel_with_the_batch():
    with make_loader(PHOTOS, CFG, Color(), seed=0) as loader:
        assert next(loader).path.shape == (8, 4)


def test_nothing_is_drawn_from_global_generators():
    def states():
        return (
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),  # noqa: NPY002
            random.getstate(),
        )

    before = states()
    with make_loader(PHOTOS, CFG, SE2(), seed=0) as loader:
        assert states() == before
        next(loader)
        state = loader.state_dict()
    with make_loader(PHOTOS, CFG, SE2(), seed=0, state=state) as loader:
        next(loader)
    assert states() == before


def test_other_errors_are_not_hidden():
    class Broken(SE2):
        def sample(self, draws, size):
            raise ArithmeticError("the path is broken")

    with (
        make_loader(PHOTOS, CFG, Broken(), seed=0) as loader,
        pytest.raises(ArithmeticError, match="the path is broken"),
    ):
        next(loader)


def test_errors_while_feeding_come_through(monkeypatch):
    from fastequi.data import loader as module

    def broken(*_):
        raise ZeroDivisionError("broken parameters")

    monkeypatch.setattr(module, "view_params", broken)
    with (
        make_loader(PHOTOS, CFG, SE2(), seed=0) as loader,
        pytest.raises(ZeroDivisionError, match="broken parameters"),
    ):
        next(loader)


def test_small_sets_and_wrong_states_are_refused(tmp_path):
    source = coordinates(tmp_path)
    with pytest.raises(ValueError, match="expected repeat >= 4"):
        make_loader(source, replace(CFG, batch_size=32), SE2(), seed=0)
    state = {"epoch": 0, "index": 0, "num_files": 9}
    with pytest.raises(ValueError, match="the run had 9 readable images, now there are 2"):
        make_loader(source, CFG, SE2(), seed=0, state=state)


def test_a_closed_loader_ends():
    loader = make_loader(PHOTOS, CFG, SE2(), seed=0)
    next(loader)
    loader.close()
    loader.close()
    assert list(loader) == []


def test_the_interpreter_ends_with_a_loader_at_work():
    script = (
        "from fastequi.data.config import DataConfig\n"
        "from fastequi.data.loader import make_loader\n"
        "from fastequi.data.sources.image_sets import embedded_photos\n"
        "from fastequi.paths import SE2\n"
        "cfg = DataConfig(image_size=32, source_size=32, batch_size=8, num_threads=2)\n"
        "loader = make_loader(embedded_photos(), cfg, SE2(), seed=0)\n"
        "print(len(next(loader)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent.parent,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


def test_without_dali_the_error_names_the_extra():
    script = (
        "import sys\n"
        "sys.modules['nvidia.dali'] = None\n"
        "import torch\n"
        "from fastequi.data.config import DataConfig\n"
        "from fastequi.data.decode import decoder_backend\n"
        "from fastequi.data.loader import make_loader\n"
        "from fastequi.data.sources.image_sets import embedded_photos\n"
        "from fastequi.paths import SE2\n"
        "assert decoder_backend(torch.device('cpu'))[0] == 'none'\n"
        "make_loader(embedded_photos(), DataConfig(), SE2(), seed=0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent.parent,
    )
    assert "ImportError: reading images needs DALI: pip install fastequi[dali]" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_batches_match_the_cpu_ones():
    """nvJPEG and DALI's GPU resampling round differently; the parameters are the same."""
    cfg = replace(CFG.plain(), repeat=4)
    for ours, expected in zip(batches(4, cfg=cfg, device="cuda"), batches(4, cfg=cfg), strict=True):
        assert ours.v1.is_cuda
        assert ours.u.is_cuda
        assert ours.path.is_cuda
        assert ours.u.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours.sample_ids, expected.sample_ids)
        assert torch.equal(ours.path.cpu(), expected.path)
        assert (ours.u.cpu().float() - expected.u.float()).abs().mean() < 3
    full = replace(CFG, repeat=4)
    assert_same(batches(4, cfg=full, device="cuda"), batches(4, cfg=full, device="cuda"))
