"""Files damaged, gone or back again while a run goes on: what replaces them, and when it stops."""

import json
import logging
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")


from fastequi.data.config import Augment
from fastequi.data.loader import make_loader
from fastequi.data.sources import kept
from fastequi.data.sources.image_sets import image_folder, tar_shards
from fastequi.paths import SE2
from tests.support.batches import CFG, assert_same, batches


def flat_images(folder, n=24, bad=()):
    """n files of one red each (10 · i); those in `bad` are cut after a good header."""
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 3, (96, 96, 1), np.uint8)
    for i in range(n):
        pixels = np.repeat(noise, 3, -1)
        pixels[..., 0] = 10 * i
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    for i in bad:
        path = folder / f"{i:02}.png"
        path.write_bytes(path.read_bytes()[:-600])
    return image_folder(folder)


QUARANTINE = replace(
    CFG.plain(), a1=Augment.none(), a2=Augment.none(), repeat=1, samples_per_decode=1, batch_size=4
)


def test_damaged_files_are_replaced_by_the_next_one(tmp_path, caplog):
    source = flat_images(tmp_path, bad=(5, 6))
    assert len(source) == 24  # the headers are fine
    with (
        caplog.at_level(logging.WARNING),
        make_loader(source, QUARANTINE, SE2(), seed=0, steps=12) as loader,
    ):
        got = list(loader)
        assert sorted(Path(p).name for p in loader.quarantined) == ["05.png", "06.png"]
    assert "05.png cannot be decoded" in caplog.text
    shown, ids = (torch.cat([getattr(b, name) for b in got]) for name in ("u", "sample_ids"))
    for image, sample in zip(shown, ids.tolist(), strict=True):
        expected = 7 if sample in (5, 6) else sample
        assert (image[0] == 10 * expected).all()
    clean = batches(12, flat_images(tmp_path / "clean"), QUARANTINE)
    assert torch.equal(torch.cat([b.sample_ids for b in clean]), ids)
    for done in (1, 4, 7):
        state = {"epoch": got[done - 1].epoch, "index": 4 * ((done - 1) % 6 + 1), "num_files": 24}
        assert_same(batches(12 - done, source, QUARANTINE, state=state), got[done:])


def test_too_many_damaged_files_end_the_run(tmp_path):
    source = flat_images(tmp_path, bad=(1, 5, 9))
    loader = make_loader(source, QUARANTINE, SE2(), seed=0, steps=6)
    with loader, pytest.raises(RuntimeError, match=r"3 of 24 images cannot be decoded.*png"):
        list(loader)


def test_a_file_that_vanishes_is_replaced_too(tmp_path):
    source = flat_images(tmp_path)
    with make_loader(source, QUARANTINE, SE2(), seed=0) as loader:
        next(loader)
        (tmp_path / "03.png").unlink()
        for _ in range(11):
            next(loader)
        assert [Path(p).name for p in loader.quarantined] == ["03.png"]


def test_every_rank_replaces_alike(tmp_path):
    """Whatever a rank has met before: the next file that decodes, here 5 -> 8 over all of 6, 7."""
    source, cfg = flat_images(tmp_path, bad=(5, 6, 7, 20)), replace(QUARANTINE, tolerate=0.2)
    whole = batches(20, source, cfg)
    shown = {i: u[0] for b in whole for i, u in zip(b.sample_ids.tolist(), b.u, strict=True)}
    assert all((shown[i] == 80).all() for i in (5, 6, 7, 8))
    for world_size in (2, 4):
        ranks = [batches(20, source, cfg, rank=r, world_size=world_size) for r in range(world_size)]
        for step, batch in enumerate(whole):
            for name in ("v1", "u", "sample_ids"):
                parts = torch.cat([getattr(rank[step], name) for rank in ranks])
                assert torch.equal(parts, getattr(batch, name))


def test_a_file_that_comes_back_stays_replaced_after_resuming(tmp_path):
    source = flat_images(tmp_path, bad=(5,))
    whole = tmp_path / "05.png"
    damaged, repaired = whole.read_bytes(), (tmp_path / "04.png").read_bytes()
    with make_loader(source, QUARANTINE, SE2(), seed=0) as loader:
        expected = [next(loader) for _ in range(18)]
    with make_loader(source, QUARANTINE, SE2(), seed=0) as loader:
        for _ in range(7):
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
    assert list(state["quarantined"]) == ["05.png"]
    whole.write_bytes(repaired)
    with make_loader(source, QUARANTINE, SE2(), seed=0, state=state, steps=11) as loader:
        assert loader.quarantined == state["quarantined"]
        assert_same(list(loader), expected[7:])
        assert loader.state_dict()["quarantined"] == state["quarantined"]
    whole.write_bytes(damaged)
    flat_images(tmp_path, bad=(7, 9))
    whole.write_bytes(damaged)
    loader = make_loader(source, QUARANTINE, SE2(), seed=0, state=state, steps=12)
    with loader, pytest.raises(RuntimeError, match="3 of 24"):  # the count goes on
        list(loader)


def test_the_share_of_damaged_files_is_a_setting(tmp_path):
    source = flat_images(tmp_path, bad=(1, 5, 9))
    with make_loader(source, replace(QUARANTINE, tolerate=0.125), SE2(), seed=0, steps=6) as loader:
        assert len(list(loader)) == 6
        assert len(loader.quarantined) == 3
    loader = make_loader(source, replace(QUARANTINE, tolerate=0.0), SE2(), seed=0, steps=6)
    with loader, pytest.raises(RuntimeError, match=r"more than 0 % of them \(data.tolerate\)"):
        list(loader)


def test_as_many_but_other_images_are_not_gone_on_with(tmp_path):
    source = flat_images(tmp_path)
    with make_loader(source, QUARANTINE, SE2(), seed=0) as loader:
        next(loader)
        state = loader.state_dict()
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    make_loader(image_folder(moved), QUARANTINE, SE2(), seed=0, state=state).close()
    (moved / "03.png").rename(moved / "3.png")
    with pytest.raises(ValueError, match="number of images is as before, but names or sizes"):
        make_loader(image_folder(moved), QUARANTINE, SE2(), seed=0, state=state)


def test_a_run_that_lost_files_goes_on_as_if_it_had_not_stopped(tmp_path, caplog):
    """One goes while it runs, one before it resumes, one comes: the same numbers for the rest."""
    source, file = flat_images(tmp_path / "data"), tmp_path / "images.jsonl"
    kept.keep(file, source)
    with make_loader(source, QUARANTINE, SE2(), seed=0) as loader:
        for _ in range(3):
            next(loader)
        (tmp_path / "data" / "03.png").unlink()
        for _ in range(6):
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
        expected = [next(loader) for _ in range(8)]
    assert list(state["quarantined"]) == ["03.png"]
    (tmp_path / "data" / "99.png").write_bytes((tmp_path / "data" / "04.png").read_bytes())
    now = image_folder(tmp_path / "data")
    assert len(now) == len(source) == 24
    with caplog.at_level(logging.INFO):
        again = kept.as_begun(file, now, 0.1)
    assert again == source
    assert "that are gone, and will be replaced: 03.png" in caplog.text
    assert "1 images were added after the run began" in caplog.text
    with make_loader(again, QUARANTINE, SE2(), seed=0, state=state, steps=8) as loader:
        assert_same(list(loader), expected)


def test_too_many_lost_or_other_files_are_not_gone_on_with(tmp_path):
    source, file = flat_images(tmp_path / "data"), tmp_path / "images.jsonl"
    assert kept.as_begun(file, source, 0.1) is source  # of older runs nothing was kept
    kept.keep(file, source)
    before = file.read_bytes()
    assert kept.as_begun(file, image_folder(tmp_path / "data"), 0.1) == source
    for i in (1, 2, 3):
        (tmp_path / "data" / f"0{i}.png").unlink()
    now = image_folder(tmp_path / "data")
    kept.keep(file, now)
    assert file.read_bytes() == before
    with pytest.raises(ValueError, match=r"of the 24 images of the run 3 \(01.png, .*\) are gone"):
        kept.as_begun(file, now, 0.1)
    assert len(kept.as_begun(file, now, 0.2)) == 24
    Image.new("RGB", (8, 9)).save(tmp_path / "data" / "07.png")
    with pytest.raises(ValueError, match=r"1 \(07.png\) is of another size"):
        kept.as_begun(file, image_folder(tmp_path / "data"), 0.2)


def test_what_one_process_met_counts_on_all(tmp_path):
    source = flat_images(tmp_path)
    with make_loader(source, QUARANTINE, SE2(), seed=0) as loader:
        next(loader)
        loader.leave_out({3, 4})
        assert loader.left_out == {3, 4}
        assert loader.state_dict()["quarantined"] == dict.fromkeys(
            ("03.png", "04.png"), "on another process"
        )
        with pytest.raises(RuntimeError, match="3 of 24 images cannot be decoded"):
            loader.leave_out({3, 4, 5})


def test_lost_members_of_shards_are_replaced(tmp_path):
    images = flat_images(tmp_path / "data", 6)
    for name, members in (("whole", range(6)), ("less", (0, 1, 2, 4, 5))):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for i in members:
                tar.add(images.paths[i], f"{i:02}.png")
    whole = tar_shards(tmp_path / "whole.tar")
    kept.keep(tmp_path / "images.jsonl", whole)
    (tmp_path / "less.tar").replace(tmp_path / "whole.tar")
    again = kept.as_begun(tmp_path / "images.jsonl", tar_shards(tmp_path / "whole.tar"), 0.2)
    assert again.names == whole.names
    cfg = replace(QUARANTINE, batch_size=2, tolerate=0.2)
    with make_loader(again, cfg, SE2(), seed=0, steps=3) as loader:
        for batch in loader:
            for image, sample in zip(batch.u, batch.sample_ids.tolist(), strict=True):
                assert (image[0] == 10 * (4 if sample == 3 else sample)).all()
        assert len(loader.quarantined) == 1
