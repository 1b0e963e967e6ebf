"""Maps of tokens on the disk."""

import errno
import math
import os

import pytest
import torch

from fastequi.evaluate.geometry.grids import grids_of
from fastequi.evaluate.geometry.kept_maps import KeptMaps
from tests.support.places import small_vit

CPU = torch.device("cpu")


def images(count=3):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_maps_are_the_same_from_the_disk(tmp_path):
    encoder = small_vit(CPU)
    plain = grids_of(encoder)
    kept = KeptMaps(tmp_path, 1.0).around(plain, encoder)
    expected = plain(images())["patch"]
    for _ in range(2):
        assert torch.equal(kept(images())["patch"], expected)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 3


def test_a_full_disk_costs_time_alone(tmp_path, monkeypatch, caplog):
    encoder = small_vit(CPU)
    plain = grids_of(encoder)
    maps = KeptMaps(tmp_path, 1.0)
    kept = maps.around(plain, encoder)
    tries = []

    def full(path, *_):
        path.write_bytes(b"half")
        tries.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastequi.evaluate.geometry.kept_maps.save_tensors", full)
    with caplog.at_level("WARNING"):
        for _ in range(2):
            assert torch.equal(kept(images())["patch"], plain(images())["patch"])
    (said,) = (record.getMessage() for record in caplog.records)
    assert f"{tmp_path} cannot be written (No space left on device)" in said
    assert len(tries) == 1
    assert not list(tmp_path.glob("*/*"))
    assert not list(tmp_path.glob("*/.*"))


def test_how_many_maps_were_there_is_said(tmp_path):
    encoder = small_vit(CPU)
    for found in (0, 2):
        maps = KeptMaps(tmp_path, 1.0)
        assert maps.sentence() == ""
        maps.around(grids_of(encoder), encoder)(images(2 + found))
        of = f"{found} of {2 + found} maps of tokens were there already; {tmp_path}"
        assert maps.sentence() == of


def test_the_limit_is_kept_on_the_way_and_rests_are_removed(tmp_path):
    encoder = small_vit(CPU)
    rest = tmp_path / "x" / ".map.safetensors.host.1.tmp"
    rest.parent.mkdir()
    rest.write_text("half")
    KeptMaps(tmp_path, 1.0).trim()
    assert rest.exists()  # its writer may live
    os.utime(rest, (0, 0))
    maps = KeptMaps(tmp_path, 1e-9)  # a byte
    maps.around(grids_of(encoder), encoder)(images(3))
    assert not list(tmp_path.glob("*/*.safetensors"))
    assert not rest.exists()


def test_a_map_that_another_process_removed_is_made_anew(tmp_path):
    encoder = small_vit(CPU)
    kept = KeptMaps(tmp_path, 1.0).around(grids_of(encoder), encoder)
    expected = kept(images())["patch"]
    next(tmp_path.glob("*/*.safetensors")).unlink()
    assert torch.equal(kept(images())["patch"], expected)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 3


def test_a_limit_of_0_neither_keeps_nor_removes(tmp_path):
    """`--cache-gb 0` of one command leaves the maps of others."""
    encoder = small_vit(CPU)
    KeptMaps(tmp_path, 1.0).around(grids_of(encoder), encoder)(images(1))
    nothing = KeptMaps(tmp_path, 0.0)
    nothing.around(grids_of(encoder), encoder)(images(3))
    nothing.trim()
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 1
    KeptMaps(tmp_path, 1e-9).trim()
    assert not list(tmp_path.glob("*/*.safetensors"))


@pytest.mark.parametrize("gigabytes", [-1.0, math.nan])
def test_a_limit_that_cannot_be_is_refused(tmp_path, gigabytes):
    with pytest.raises(ValueError, match=f"--cache-gb: expected 0 or more, got {gigabytes:g}"):
        KeptMaps(tmp_path, gigabytes)


def test_a_folder_that_cannot_be_written_is_refused_unless_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--cache: .*file/in cannot be made \(Not a directory"):
        KeptMaps(tmp_path / "file" / "in", 1.0)
    KeptMaps(tmp_path / "file", 0.0)


def test_a_folder_in_which_nothing_can_be_written_is_refused(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "touch", full)
    with pytest.raises(ValueError, match=r"--cache: .* cannot be written \(No space left"):
        KeptMaps(tmp_path, 1.0)
