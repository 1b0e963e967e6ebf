"""Whole runs on tiles of twelve channels of 16 bits: trained, killed, resumed, on two processes."""

import json
import os
import signal

import pytest
from safetensors.torch import load_file

pytest.importorskip("nvidia.dali")

from fastequi.cli import commands
from tests.support import science
from tests.support.runs import rows, run, run_once, same, start, wait_for

pytestmark = pytest.mark.slow

EPOCHS = "--train.epochs", 4
ASKED = "--data.channels", "all", "--data.value-range", "percentiles", *EPOCHS


@pytest.fixture(scope="session")
def tiles(tmp_path_factory):
    """A scanned folder: uncompressed, planar and tiled TIFFs, and one that is cut."""
    folder = tmp_path_factory.mktemp("tiles")
    write = (
        science.plain_tiff,
        science.tiff_of,
        lambda x: science.tiff_of(x, planarconfig="contig", tile=(16, 16)),
    )
    for i in range(30):
        array = science.values(12, "uint16", i, (70, 90)) // 16  # 12 bits
        (folder / f"{i:02}.tif").write_bytes(write[i % 3](array))
    cut = (folder / "07.tif").read_bytes()[:-3000]
    (folder / "07.tif").write_bytes(cut)
    commands.data(["scan", str(folder)])
    return folder


@pytest.fixture(scope="session")
def whole(tmp_path_factory, tiles):
    """The folder of a run of 12 steps."""
    options = "--data", tiles, *ASKED, "--max-steps", 12
    return run_once(tmp_path_factory, "on_tiles", *options)


def test_a_run_keeps_numbers(whole, tiles):
    data = json.loads((whole / "config.json").read_text())["data"]
    assert data["channels"] == "0,1,2,3,4,5,6,7,8,9,10,11"
    ends = [tuple(map(float, pair.split(":"))) for pair in data["value_range"].split(",")]
    assert len(ends) == len(data["mean"]) == len(data["std"]) == 12
    assert all(0 <= low < high <= 4095 for low, high in ends)
    assert rows(whole)[-1]["step"] == 12
    weights = load_file(whole / "model.safetensors")
    assert weights["patch_embed.proj.weight"].shape[1] == 12
    assert "07.tif" not in (whole / "images.jsonl").read_text()


def test_a_killed_run_goes_on_to_the_same_bits_without_the_index(tmp_path, tiles, whole):
    folder = tmp_path / "run"
    options = "--run-dir", folder, "--data", tiles
    process = start(*options, *ASKED, "--max-steps", 12)
    wait_for(folder, 5, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    aside = tiles / ".fastequi-aside"
    (tiles / ".fastequi").rename(aside)  # what a scan measured is gone
    try:
        done = run(*options, *EPOCHS, "--data.tolerate", 0.2, "--resume", "--max-steps", 12)
    finally:
        aside.rename(tiles / ".fastequi")
    assert done.returncode == 0, done.stderr
    assert same(folder, whole)


def test_two_processes_train_on_the_same_tiles(tmp_path, tiles, whole):
    options = "--run-dir", tmp_path / "run", "--data", tiles, *ASKED
    done = run(*options, "--max-steps", 4, processes=2)
    assert done.returncode == 0, done.stderr
    ours, theirs = ([r["loss"] for r in rows(folder)[:4]] for folder in (tmp_path / "run", whole))
    assert ours == pytest.approx(theirs, rel=2e-3)


def test_what_was_trained_is_evaluated_embedded_shown_and_exported(tmp_path, tiles, whole, capsys):
    few = "--train-pairs", "64", "--test-pairs", "32", "--seeds", "1"
    out = tmp_path / "pairs.json"
    place = "--data", str(tiles)
    commands.eval(["equivariance", str(whole), *place, *few, "--out", str(out)])
    said = capsys.readouterr().out
    assert "gain" in said
    assert "color" not in said
    assert json.loads(out.read_text())
    commands.eval(["reconstruct", str(whole), *place, "--images", "16"])
    assert "PSNR" in capsys.readouterr().out
    for kind, *few in (
        ("match", "--pairs", "12"),
        ("layers", "--windows", "8"),
        ("position", "--windows", "40", "--test-windows", "10"),
        ("homography", "--pairs", "12", "--train-pairs", "16", "--epochs", "1"),
    ):
        commands.eval([kind, str(whole), *place, *few, "--out", str(tmp_path / f"{kind}.json")])
        assert json.loads((tmp_path / f"{kind}.json").read_text())["tables"], kind
    capsys.readouterr()
    commands.embed([str(whole), *place, "--out", str(tmp_path / "e.safetensors")])
    found = load_file(tmp_path / "e.safetensors")
    assert {len(values) for values in found.values()} == {29}
    commands.report([str(whole), *place, "--out", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    assert "<img" in page
    assert "channel" in page
    commands.export([str(whole), "--to", "timm", "--out", str(tmp_path / "timm")])
    exported = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert exported["pretrained_cfg"]["input_size"][0] == 12
