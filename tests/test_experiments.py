"""The experiment's two scripts on the embedded photographs, as short as they can be."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("nvidia.dali")

from bench import choices, equivariance, geometry, probe_pairs
from bench.equivariance import base_of, config_of, described
from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.data.sources.splits import TEST_REGION, TRAIN_REGION
from fastequi.evaluate.probes import Fit
from fastequi.evaluate.results import label
from fastequi.evaluate.tasks import Budget
from fastequi.recipes import RECIPES
from fastequi.runtime.pace import Clock
from tests.support.made_up import of_geometry, of_layers

SHORT = ["--test-pairs", "20", "--epochs", "1", "--probes", "token", "mlp"]


def call(main, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
    main()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A finished experiment of one seed and two rows."""
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        few = ["--steps", 2, "--families", "blur", "--seeds", 1, "--train-pairs", 60]
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_every_row_is_evaluated_at_every_task_beside_its_baselines(out):
    found = json.loads((out / "equivariance.json").read_text())
    assert found["steps"] == 2
    (seed,) = found["seeds"]
    assert seed["seed"] == 1
    assert list(seed["seconds"]) == ["VICReg", "TIR blur K=2"]
    first, *others = equivariance.FAMILIES
    changed = [f"{name}, photometric" for name in ("rotation", "translation", "se2")]
    assert list(seed["tasks"]) == [first, "rotation 45..60", *others, *changed]
    reports = seed["tasks"]
    assert reports["se2"]["scores"] != reports["se2, photometric"]["scores"]
    for report in seed["tasks"].values():
        names = {label(*described(row)[:2]) for row in report["scores"]}
        assert {"raw pair", "transformed image alone", "random init, z_equi"} <= names
        assert {"VICReg, patch", "TIR blur K=2, patch", "TIR blur K=2, z_equi"} <= names
    table = equivariance.tables(found)
    last = seed["tasks"]["se2, photometric"]["scores"]
    token = [row for row in last if row["probe"] == "token"]
    (raw,) = (row["mean"] for row in token if row["features"] == "raw pair")
    line = next(line for line in table.splitlines() if line.startswith("| raw pair"))
    assert line.split("|")[-2].strip() == f"{raw:.2f}"
    for report in seed["tasks"].values():
        report["scores"] = [row for row in report["scores"] if row["probe"] == "token"]
    assert "probe: token" in equivariance.tables(found)
    assert "probe: mlp" not in equivariance.tables(found)


def test_one_family_is_swept_over_the_number_of_steps():
    names = equivariance.rows(["rotation", "se2"], [1, 2, 3], ["se2"])
    assert names == ["VICReg", "TIR rotation K=2", *(f"TIR se2 K={k}" for k in (1, 2, 3))]


@pytest.mark.slow
def test_what_is_finished_is_not_made_again(out, monkeypatch):
    def never(*_, **__):
        raise AssertionError("made again")

    before = json.loads((out / "equivariance.json").read_text())
    monkeypatch.setattr(equivariance, "pretrain", never)
    monkeypatch.setattr(equivariance, "score_tasks", never)
    few = ["--steps", 2, "--families", "blur", "--seeds", 1, "--train-pairs", 60]
    call(equivariance.main, monkeypatch, "--out", out, *few, *SHORT)
    assert json.loads((out / "equivariance.json").read_text())["seeds"] == before["seeds"]


@pytest.mark.slow
def test_results_of_other_settings_are_not_mixed(out, monkeypatch, capsys):
    few = ["--steps", 3, "--families", "blur", "--seeds", 1, "--train-pairs", 60]
    with pytest.raises(SystemExit):
        call(equivariance.main, monkeypatch, "--out", out, *few, *SHORT)
    assert re.search(r"--out: .* holds results of steps 2; take another", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--families", "blur", "--sweep", "se2"], "--sweep: expected some of --families, got"),
        (["--families", "blur", "--k", "3"], "--k: expected --sweep with families"),
    ],
)
def test_a_sweep_that_does_nothing_is_refused(words, said, monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        call(equivariance.main, monkeypatch, "--out", tmp_path / "out", *words)
    assert said in capsys.readouterr().err


@pytest.mark.slow
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


SMALL = "--model.embed-dim 32 --model.depth 1 --tir.dim 16 --tir.equi-dim 8 --tir.expander 8"
CHOICE = f"{SMALL} --tir.decoder-convs 0"


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A finished choice of one setting, from 60 pairs."""
    folder = tmp_path_factory.mktemp("choices")
    with pytest.MonkeyPatch.context() as patch:
        call(choices.main, patch, "--steps", 2, "--pairs", 60, "--out", folder, CHOICE)
    return folder


@pytest.mark.slow
def test_choices_are_judged_on_a_part_of_the_training_regions(tmp_path, monkeypatch):
    (left, top, right, cut), validation = choices.FITTED, choices.VALIDATION
    assert (left, top, right) == (0.0, 0.0, 0.7)
    assert validation == (0.0, cut, 0.7, 1.0)  # below it, as wide: no pixel is in both
    assert validation[2] == TRAIN_REGION[2] <= TEST_REGION[0]
    seen = []

    def told(name, function, regions):
        def call(*args, **options):
            seen.append((name, *(source.region for source in regions(args))))
            return function(*args, **options)

        monkeypatch.setattr(choices, name, call)

    told("pretrain", choices.pretrain, lambda args: args[1:2])
    told("path_loader", choices.path_loader, lambda args: args[1:2])
    told("score_tasks", lambda *args, **options: {}, lambda args: args[1:3])
    call(choices.main, monkeypatch, "--steps", 1, "--pairs", 60, "--out", tmp_path, CHOICE)
    assert seen == [
        ("pretrain", choices.FITTED),
        ("path_loader", validation),
        ("score_tasks", choices.FITTED, validation),
    ]


@pytest.mark.slow
def test_choices_that_are_made_are_not_made_again(chosen, monkeypatch):
    (row,) = json.loads((chosen / "choices.json").read_text())["runs"]
    assert row["options"] == CHOICE
    assert row["steps"] == 2
    for task in ("se2", "se2, photometric"):
        assert len(row[f"{task}: TIR, z_equi"]) == len(row[f"{task}: raw pair"]) == 3
    assert {"pooled", "most texture", "0..10°", "recon"} <= set(row)
    monkeypatch.setattr(choices, "pretrain", None)
    call(choices.main, monkeypatch, "--steps", 2, "--pairs", 60, "--out", chosen, CHOICE)
    assert json.loads((chosen / "choices.json").read_text())["runs"] == [row]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["pairs", "probes", "recipe"])
def test_choices_are_not_mixed_with_those_of_other_pairs_probes_or_recipes(
    chosen, monkeypatch, change
):
    """Judged once more: of the run that is there, if that is the same."""
    made = []
    pretrain = choices.pretrain

    def told(config, source, run, **options):
        made.append(options["resume"])
        return pretrain(config, source, run, **options)

    monkeypatch.setattr(choices, "pretrain", told)
    monkeypatch.setattr(choices, "score_tasks", lambda *args, **options: {})
    pairs = 70 if change == "pairs" else 60
    if change == "probes":
        monkeypatch.setattr(choices, "Fit", lambda **options: Fit(**{**options, "width": 64}))
    if change == "recipe":
        other = RECIPES["demo"]()
        other = replace(other, optim=replace(other.optim, lr=1e-3))
        monkeypatch.setitem(RECIPES, "demo", lambda: other)
    call(choices.main, monkeypatch, "--steps", 2, "--pairs", pairs, "--out", chosen, CHOICE)
    assert made == [change != "recipe"]
    (row,) = json.loads((chosen / "choices.json").read_text())["runs"]
    assert not any("se2" in name for name in row)


def test_a_resumed_choice_counts_the_seconds_of_all_its_training(tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "judged", lambda *args: {})
    config = choices.config_of(CHOICE, 4)
    run = tmp_path / choices.run_name(config, 4)
    begun = Clock.__init__
    with monkeypatch.context() as patch:  # its first half takes 100 s more

        def late(self, minutes, total_steps, max_steps, seconds):
            begun(self, minutes, total_steps, max_steps, seconds + 100)

        patch.setattr(Clock, "__init__", late)
        choices.pretrain(config, embedded_photos(choices.FITTED), run, max_steps=2)
    row = choices.run_one(CHOICE, 4, tmp_path, Budget(60, 20))
    assert row["steps"] == 4
    assert 100 < row["seconds"] < 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tir.decoder-heads 7", "tir.decoder_width: expected a multiple of 28"),
        ("--path.family blur --data.source-size 32", "--path.family: expected some of rotation"),
        ("--method rotnet --data.source-size 32", "--method: expected tir, got rotnet"),
        ("--data.image-size 8 --model.patch-size 4", "--data.image-size: expected at least 11"),
        ("--tir.num-stops 3", "unknown option --tir.num-stops, did you mean --tir.num-steps"),
    ],
)
def test_no_choice_is_trained_if_one_cannot_be(words, message, tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "pretrain", None)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call(choices.main, monkeypatch, "--steps", 2, "--out", tmp_path, CHOICE, words)


@pytest.mark.parametrize("row", geometry.ROWS)
def test_rows_of_geometry_share_encoder_batch_and_time(row):
    config = geometry.config_of(row, minutes=2.0, seed=3)
    first = geometry.config_of("VICReg", minutes=2.0, seed=3)
    assert config.model == first.model
    assert (config.data.image_size, config.data.batch_size) == (48, 32)
    assert (config.train.minutes, config.train.seed) == (2.0, 3)
    assert (config.tir.num_steps > 0) == row.startswith("TIR") or config.method != "tir"
    loss = build(config)(synthetic(config, 2, torch.device("cpu")))["loss"]
    assert loss.isfinite()


def test_the_table_of_geometry_has_the_outputs_of_every_encoder():
    layers = of_layers("VICReg")["tables"]
    for found in layers.values():
        for row in found["scores"]:
            row["features"] = row["features"].replace("block2", f"block{geometry.DEPTH}")
    match = of_geometry("match", "VICReg", ("rotation", "se2"))["tables"]
    assert geometry.markdown({"match": match, "layers": layers}).splitlines() == [
        "| features | match, se2: recall, 1 patch |",
        "| --- | --- |",
        "| raw patches | 0.400 [0.300, 0.500] |",
        "| random init, patch | 0.250 [0.150, 0.350] |",
        "| VICReg, z_equi | 0.500 [0.400, 0.600] |",
        "| VICReg, patch | 0.600 [0.500, 0.700] |",
        "",
        "| features | layers, turns: equivariance | layers, flips: equivariance |",
        "| --- | --- | --- |",
        "| random init, patch | 0.200 [0.000, 1.000] | 0.200 [0.000, 1.000] |",
        "| VICReg, patch | 0.200 [0.000, 1.000] | 0.200 [0.000, 1.000] |",
    ]
    assert geometry.added({"match": match, "layers": layers}) == ""  # no TIR beside it


def test_what_tir_adds_is_taken_from_the_pairs():
    """The differences in the file are of a row less those after it; here it is the other way."""
    found = {
        "figures": [{"name": "error", "better": "lower", "digits": 1}],
        "scores": [
            {"encoder": encoder, "features": features}
            for encoder, features in (
                ("VICReg", f"block{geometry.DEPTH}"),
                ("TIR-VICReg", "z_equi"),
                ("TIR-VICReg", f"block{geometry.DEPTH}"),
            )
        ],
        "differences": [
            {
                "label": "VICReg, block3",
                "against": f"TIR-VICReg, {features}",
                "values": [value],
                "low": [value - 1],
                "high": [value + 2],
            }
            for features, value in (("z_equi", 3.0), ("block3", -0.5))
        ],
    }
    assert geometry.added({"layers": {"turns": found}}).splitlines() == [
        "| figure | TIR-VICReg, patch less VICReg, patch | TIR-VICReg, z_equi less VICReg, patch |",
        "| --- | --- | --- |",
        "| layers, turns: error, lower is better | +0.5 [-1.5, +1.5] | -3.0 [-5.0, -2.0] |",
    ]


def test_a_row_of_geometry_says_what_all_its_processes_took(tmp_path, monkeypatch):
    def stopped(*_, **__):
        (tmp_path / "VICReg").mkdir()
        raise KeyboardInterrupt

    about = {"minutes": 1.0, "seed": 0, "runs": tmp_path}
    monkeypatch.setattr(geometry, "pretrain", stopped)
    with pytest.raises(KeyboardInterrupt):
        geometry.trained("VICReg", None, **about)
    so_far = tmp_path / "VICReg/seconds_so_far.json"
    so_far.write_text(json.dumps({"wall": 100.0, "cpu": 50.0}))
    monkeypatch.setattr(geometry, "pretrain", lambda *_, **__: None)
    run = geometry.trained("VICReg", None, **about)
    taken = json.loads((run / "seconds.json").read_text())
    assert 100 <= taken["wall"] < 101
    assert 50 <= taken["cpu"] < 51


@pytest.mark.slow  # six trainings and their evaluations, a minute
def test_the_experiment_of_geometry(tmp_path, monkeypatch, capsys):
    out, words = tmp_path / "out.json", ["--minutes", 0.03, "--runs", tmp_path / "runs"]
    for line in ("match --pairs 20 --families se2", "layers --windows 4",
                 "position --windows 10 --test-windows 4"):  # fmt: skip
        words += ["--words", line]
    kinds = ["--evaluations", "match", "layers", "position"]
    call(geometry.main, monkeypatch, "--out", out, *words, *kinds)
    found = json.loads(out.read_text())
    assert list(found["results"]) == ["match", "layers", "position"]
    assert all(steps > 0 for steps in found["steps"].values())
    printed = capsys.readouterr().out
    for row in (*geometry.ROWS, "random init"):
        assert f"\n| {row}, patch | " in printed
    assert "\n| TIR-VICReg, z_equi | " in printed

    def never(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(geometry, "pretrain", never)
    call(geometry.main, monkeypatch, "--out", out, *words, *kinds)
    assert json.loads(out.read_text())["results"] == found["results"]
    with pytest.raises(SystemExit):
        call(geometry.main, monkeypatch, "--out", out, "--words", "mtach --pairs 3")
    assert "--words: expected to begin with match" in capsys.readouterr().err
