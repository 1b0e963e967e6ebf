"""The demo's whole job, small: train, probe, picture."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")

from fastequi.cli.demo import BUDGET, TEST_REGION, TRAIN_REGION, demo
from fastequi.recipes import RECIPES
from fastequi.report.page import page
from fastequi.report.runs import read_run


def test_it_leaves_a_table_figures_and_pictures(tmp_path, capsys):
    config = RECIPES["demo"]()
    config = replace(
        config,
        model=replace(config.model, embed_dim=32, depth=1, num_heads=1),
        tir=replace(
            config.tir, dim=16, equi_dim=8, decoder_width=8, decoder_heads=1, expander=(16,)
        ),
        train=replace(config.train, minutes=0.05),
    )
    torch.manual_seed(3)
    budget = replace(BUDGET, train_pairs=256, fewer_pairs=(128,), test_pairs=64)
    reports = demo(config, tmp_path / "run", budget)
    assert TRAIN_REGION[2] <= TEST_REGION[0]  # no pixel is trained and tested on
    assert [(name, r.train_pairs) for name, r in reports.items()] == [
        ("se2", 256),
        ("se2, 128 pairs", 128),
        ("se2, photometric", 256),
        ("se2, photometric, 128 pairs", 128),
    ]
    for report in reports.values():
        rows = {score.label for score in report.scores}
        assert rows == {
            *("mean predictor", "raw pair", "pixel statistics", "random init, z_equi"),
            *("TIR, z_equi", "TIR, patch", "base alone, patch"),
        }
    run = tmp_path / "run"
    saved = json.loads((run / "eval_equivariance.json").read_text())
    assert (saved["kind"], saved["encoder"]) == ("equivariance", "TIR")
    for name, report in reports.items():
        assert saved["tasks"][name] == json.loads(json.dumps(report.to_json()))
    assert saved["machine"]["torch"] == torch.__version__
    saved = json.loads((run / "eval_reconstruct.json").read_text())
    (predicted, nearer) = (sum(saved["psnr"][name]) for name in ("predicted", "nearer_view"))
    assert 0 < predicted < nearer  # after three seconds
    pooled = saved["pooled"]
    assert pooled["low"] <= pooled["gain"] <= pooled["high"] < 0
    found = read_run(run)
    assert [result.kind for result in found.results.values()] == ["equivariance", "reconstruct"]
    assert found.notes == ()
    page([found], {}, [], "")
    assert Image.open(tmp_path / "run" / "reconstructions.png").width > 400
    assert (tmp_path / "run" / "model.safetensors").is_file()
    printed = capsys.readouterr().out
    assert f"pooled gain {pooled['gain']:+.1f} dB [{pooled['low']:.1f}, " in printed
    found = reports["se2, photometric, 128 pairs"]
    lead = found.difference("TIR, z_equi", found.best_baseline().label)
    said = f"128 photometric pairs: angle {lead.r2[0]:+.2f} [{lead.low[0]:.2f}, {lead.high[0]:.2f}]"
    assert said in printed
    assert json.loads((run / "base" / "config.json").read_text())["tir"]["num_steps"] == 0
