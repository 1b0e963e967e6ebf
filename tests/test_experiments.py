"""The experiment's two scripts on the embedded photographs, as short as they can be."""

import json
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("nvidia.dali")

from bench import choices, equivariance, probe_pairs
from bench.equivariance import base_of, config_of, described
from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.data.sources.splits import TEST_REGION, TRAIN_REGION
from fastequi.evaluate.results import label

SHORT = ["--test-pairs", "20", "--epochs", "1", "--probes", "token", "mlp"]


def call(main, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
    main()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A finished experiment of one seed and two rows."""
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        few = ["--steps", 2, "--families", "blur", "--k", 2, "--seeds", 1, "--train-pairs", 60]
        call(equivariance.main, patch, "--out", folder, *few, *SHORT)
    return folder


def test_all_rows_share_encoder_images_and_steps():
    names = "VICReg", "TIR se2 K=3", "TIR blur K=1"
    base, one, blur = (config_of(base_of(), name, seed=0, steps=100, files=8) for name in names)
    for config in (base, one, blur):
        assert (config.model, config.optim) == (base.model, base.optim)
        assert (config.data.batch_size, config.data.repeat) == (64, base.data.repeat)
    assert (base.tir.num_steps, one.tir.num_steps, blur.tir.num_steps) == (0, 3, 1)
    assert (base.path.degrees, base.path.pixels) == (0, 0)  # its second view is untransformed
    assert (one.path.degrees, one.path.family, blur.path.family) == (45, "se2", "blur")
    assert blur.data.source_size == 32  # a blurred image is as large as it was
    for config in (base, one, blur, base_of(size=64)):  # pixels of a photograph behind one's own
        for view in (config.data.a1, config.data.a2):
            low, high = (256 * side / config.data.source_size for side in view.side)
            assert (low, high) == pytest.approx((1, 77 / 48))


@pytest.mark.parametrize("row", ["VICReg", "TIR translation K=2", "TIR blur K=1"])
def test_the_papers_encoder_at_another_size(row):
    base = base_of("tir_vicreg_vits16", size=96, batch=8)
    config = config_of(base, row, seed=0, steps=10, files=31)
    assert (config.data.image_size, config.data.batch_size) == (96, 8)
    assert (config.model.name, config.model.patch_size) == ("vit_small", 16)
    small = replace(config, model=replace(config.model, depth=1))
    loss = build(small)(synthetic(small, 2, torch.device("cpu")))["loss"]
    assert loss.isfinite()
    loss.backward()


def test_every_row_is_evaluated_at_every_task_beside_its_baselines(out):
    found = json.loads((out / "equivariance.json").read_text())
    assert found["steps"] == 2
    (seed,) = found["seeds"]
    assert seed["seed"] == 1
    assert list(seed["seconds"]) == ["VICReg", "TIR blur K=2"]
    assert list(seed["tasks"]) == [*equivariance.FAMILIES[:1], "rotation 45..60",
                                   *equivariance.FAMILIES[1:]]  # fmt: skip
    for report in seed["tasks"].values():
        names = {label(*described(row)[:2]) for row in report["scores"]}
        assert {"raw pair", "transformed image alone", "random init, z_equi"} <= names
        assert {"VICReg, patch", "TIR blur K=2, patch", "TIR blur K=2, z_equi"} <= names
    table = equivariance.tables(found)
    token = [row for row in seed["tasks"]["blur"]["scores"] if row["probe"] == "token"]
    (raw,) = (row["mean"] for row in token if row["features"] == "raw pair")
    line = next(line for line in table.splitlines() if line.startswith("| raw pair"))
    assert line.split("|")[-2].strip() == f"{raw:.2f}"


def test_what_is_finished_is_not_made_again(out, monkeypatch):
    def never(*_, **__):
        raise AssertionError("made again")

    before = json.loads((out / "equivariance.json").read_text())
    monkeypatch.setattr(equivariance, "pretrain", never)
    monkeypatch.setattr(equivariance, "score_tasks", never)
    few = ["--steps", 2, "--families", "blur", "--k", 2, "--seeds", 1, "--train-pairs", 60]
    call(equivariance.main, monkeypatch, "--out", out, *few, *SHORT)
    assert json.loads((out / "equivariance.json").read_text())["seeds"] == before["seeds"]


def test_results_of_other_settings_are_not_mixed(out, monkeypatch):
    few = ["--steps", 3, "--families", "blur", "--k", 2, "--seeds", 1, "--train-pairs", 60]
    with pytest.raises(ValueError, match=r"--out: .* holds results of steps 2; take another"):
        call(equivariance.main, monkeypatch, "--out", out, *few, *SHORT)


def test_the_curve_over_pairs(out, monkeypatch, tmp_path, capsys):
    run, base = out / "seed1" / "TIR_blur_K=2", out / "seed1" / "VICReg"
    few = ["--task", "blur", "--pairs", 30, 60, "--json", tmp_path / "curve.json", *SHORT]
    call(probe_pairs.main, monkeypatch, run, "--against", base, *few)
    found = json.loads((tmp_path / "curve.json").read_text())["pairs"]
    assert [found[n]["train_pairs"] for n in ("30", "60")] == [30, 60]
    assert found["30"]["test_pairs"] == found["60"]["test_pairs"] == 20
    printed = capsys.readouterr().out
    for row, more in zip(found["30"]["scores"], found["60"]["scores"], strict=True):
        name = label(row["encoder"], row["features"])
        line = f"| {name} | {row['probe']} | {row['mean']:.2f} | {more['mean']:.2f} |"
        assert line in printed


def test_choices_are_judged_on_a_part_of_the_training_regions(tmp_path, monkeypatch, capsys):
    assert choices.FITTED[3] <= choices.VALIDATION[1]
    assert choices.VALIDATION[2] == TRAIN_REGION[2] <= TEST_REGION[0]
    small = "--model.embed-dim 32 --model.depth 1 --tir.dim 16 --tir.equi-dim 8 --tir.expander 8"
    words = ["--steps", 2, "--pairs", 60, "--out", tmp_path, f"{small} --tir.decoder-convs 0"]
    call(choices.main, monkeypatch, *words)
    (row,) = json.loads((tmp_path / "choices.json").read_text())["runs"]
    assert row["options"] == words[-1]
    assert row["steps"] == 2
    for task in ("se2", "se2, photometric"):
        assert len(row[f"{task}: TIR, z_equi"]) == len(row[f"{task}: raw pair"]) == 3
    assert {"pooled", "most texture", "0..10°", "recon"} <= set(row)
    monkeypatch.setattr(choices, "pretrain", None)  # it is there already
    call(choices.main, monkeypatch, *words)
    assert json.loads((tmp_path / "choices.json").read_text())["runs"] == [row]
