"""The demo's whole job, small: train, probe, picture."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")

from fastequi.cli.demo import TEST_REGION, TRAIN_REGION, demo
from fastequi.recipes import RECIPES


def test_it_leaves_a_table_figures_and_pictures(tmp_path, capsys):
    config = RECIPES["demo"]()
    config = replace(
        config,
        model=replace(config.model, embed_dim=32, depth=1, num_heads=1),
        tir=replace(config.tir, dim=16, equi_dim=8, decoder_width=8, expander=(16,)),
        train=replace(config.train, minutes=0.05),
    )
    torch.manual_seed(3)
    report = demo(config, tmp_path / "run", train_pairs=256)
    assert TRAIN_REGION[2] <= TEST_REGION[0]  # no pixel is trained and tested on
    rows = {score.features for score in report.scores}
    for row in ("raw pair", "transformed image alone", "random init, z_equi", "random init, patch",
                "TIR, z_equi", "TIR, z_inv", "TIR, patch"):  # fmt: skip
        assert row in rows
    saved = json.loads((tmp_path / "run" / "equivariance.json").read_text())
    assert len(saved["scores"]) == len(report.scores)
    assert saved["machine"]["torch"] == torch.__version__
    assert 0 < saved["psnr"]["predicted"] < saved["psnr"]["nearer_view"]  # after three seconds
    assert Image.open(tmp_path / "run" / "reconstructions.png").width > 400
    assert (tmp_path / "run" / "model.safetensors").is_file()
    printed = capsys.readouterr().out
    assert "PSNR" in printed
    assert "z_equi" in printed
