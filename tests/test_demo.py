"""The demo's whole job, small: train, probe, picture."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")

import fastequi.cli.demo as module
from fastequi.build import build
from fastequi.cli.demo import BUDGET, TEST_REGION, TRAIN_REGION, demo
from fastequi.cli.main import main
from fastequi.recipes import RECIPES
from fastequi.report.page import page
from fastequi.report.runs import read_run


def small():
    config = RECIPES["demo"]()
    return replace(
        config,
        model=replace(config.model, embed_dim=32, depth=1, num_heads=1),
        tir=replace(
            config.tir, dim=16, equi_dim=8, decoder_width=8, decoder_heads=1, expander=(16,)
        ),
        train=replace(config.train, minutes=0.05),
    )


def test_it_leaves_a_table_figures_and_pictures(tmp_path, capsys):
    config = small()
    torch.manual_seed(3)
    budget = replace(BUDGET, train_pairs=256, fewer_pairs=(128,), test_pairs=64)
    reports = demo(config, tmp_path / "run", budget)
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


def test_training_and_fitting_see_one_part_of_the_photographs_and_testing_the_other(
    tmp_path, monkeypatch
):
    seen, trained = [], []

    def pretrain(config, source, run_dir, **options):
        seen.append(("trained", source.region))
        trained.append(config)
        run_dir.mkdir(parents=True)
        return build(config).eval()

    def score_tasks(encoders, train, test, *args, **options):
        seen.extend([("fitted", train.region), ("tested", test.region)])
        return {}

    def measured(encoder, source, **options):
        seen.append(("measured", source.region))
        return reconstruct(encoder, source, **options)

    def path_loader(config, source, device, seed):
        seen.append(("drawn", source.region))
        return batches(config, source, device, seed)

    reconstruct, batches = module.measured, module.path_loader
    for name, one in (("pretrain", pretrain), ("score_tasks", score_tasks),
                      ("measured", measured), ("path_loader", path_loader)):  # fmt: skip
        monkeypatch.setattr(module, name, one)
    monkeypatch.setattr(module, "_IMAGES", 64)
    config = small()
    demo(config, tmp_path / "run")
    left, right = (0.0, 0.0, 0.7, 1.0), (0.7, 0.0, 1.0, 1.0)
    assert (left, right) == (TRAIN_REGION, TEST_REGION)  # no pixel is in both
    assert seen == [
        *(("trained", left), ("trained", left), ("fitted", left)),
        *(("tested", right), ("measured", right), ("drawn", right)),
    ]
    # the base differs in nothing but what it lacks: as long, as many images
    assert trained == [config, replace(config, tir=replace(config.tir, num_steps=0))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tir.num-steps 0", "--tir.num-steps: expected at least 1 for the demo, got 0"),
        ("--tir.equi-dim 0", "--tir.equi-dim: expected at least 1 for the demo, got 0"),
        ("--data.channels 0,1", "--data.channels: expected rgb for the demo, got 0,1"),
        ("--tir.recon-weight 0", "--tir.recon-weight: expected a weight > 0 for the demo, got 0.0"),
        (
            "--data.image-size 8 --data.source-size 12 --model.patch-size 4",
            "--data.image-size: expected at least 11 for the demo, got 8",
        ),
        (
            "--method rotnet --data.source-size 32",
            "--method: expected tir for the demo, got rotnet",
        ),
        ("--method rotnet", "--method: expected tir for the demo, got rotnet"),
        ("--method tir --method=gtsa", "--method: expected tir for the demo, got gtsa"),
        (
            "--path.family color",
            "--path.family: expected some of rotation, translation, se2, got ['color']",
        ),
        ("--path.degrees 0", "--path.degrees: expected a half-range > 0, from which angle is"),
        ("--path.family translation --path.pixels 0", "--path.pixels: expected a half-range > 0"),
    ],
)
def test_what_could_not_be_evaluated_is_refused_before_training(
    words, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(module, "pretrain", None)
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--run-dir", str(tmp_path / "run"), *words.split()])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"fastequi: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--data", "--resume", "--max_steps=3", "--no-dry-run"])
def test_an_option_of_pretrain_is_named_as_one(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", option])
    flag = option.partition("=")[0].replace("_", "-")
    assert stopped.value.code == 2
    expected = f"fastequi: unknown option {flag}, which fastequi pretrain demo has "
    assert capsys.readouterr().err.startswith(expected)


@pytest.mark.parametrize("holds_a_run", ["run", "run/base"])
def test_a_folder_with_a_run_is_refused_before_training(holds_a_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "pretrain", None)
    folder = tmp_path / holds_a_run
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--run-dir", str(tmp_path / "run")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fastequi: --run-dir: expected a folder without a run, {folder} holds")
    assert "--resume" not in said  # which the demo does not have
