"""The demo's whole job, small: train, probe, picture."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")

from fastequi.cli.demo import TEST_REGION, TRAIN_REGION, demo
from fastequi.recipes import RECIPES
from fastequi.report.page import page
from fastequi.report.runs import read_run


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
    rows = {score.label for score in report.scores}
    for row in ("raw pair", "transformed image alone", "random init, z_equi", "random init, patch",
                "TIR, z_equi", "TIR, z_inv", "TIR, patch"):  # fmt: skip
        assert row in rows
    run = tmp_path / "run"
    saved = json.loads((run / "eval_equivariance.json").read_text())
    assert (saved["kind"], saved["encoder"]) == ("equivariance", "TIR")
    assert saved["tasks"] == {"se2": json.loads(json.dumps(report.to_json()))}
    assert saved["machine"]["torch"] == torch.__version__
    saved = json.loads((run / "eval_reconstruct.json").read_text())
    (predicted, nearer) = (sum(saved["psnr"][name]) for name in ("predicted", "nearer_view"))
    assert 0 < predicted < nearer  # after three seconds
    found = read_run(run)
    assert [result.kind for result in found.results.values()] == ["equivariance", "reconstruct"]
    assert found.notes == ()
    page([found], {}, [], "")
    assert Image.open(tmp_path / "run" / "reconstructions.png").width > 400
    assert (tmp_path / "run" / "model.safetensors").is_file()
    printed = capsys.readouterr().out
    assert "PSNR" in printed
    assert "z_equi" in printed
