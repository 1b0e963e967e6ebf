"""The commands as a user types them: in this process, or in their own where that matters."""

import json
import logging
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("nvidia.dali")

from fastequi.cli import pretraining
from fastequi.cli.main import main
from fastequi.cli.parsing import parse
from fastequi.recipes import RECIPES
from tests.support.channels import several

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "fastequi" / "data" / "photos"
SMALL = [
    *("--model.embed-dim", 32, "--model.depth", 1, "--model.num-heads", 1),
    *("--data.batch-size", 16, "--tir.expander", 16, 16),
    *("--train.minutes", 0, "--train.epochs", 1),
]


def fastequi(*args: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, "-m", "fastequi.cli", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code, run.stdout + run.stderr
    return run


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys, caplog):
    """`fastequi` above without the seconds that a process takes to import everything."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*args: object, code: int = 0) -> SimpleNamespace:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            try:
                main([str(word) for word in args])
                ended = 0
            except SystemExit as stopped:
                ended = stopped.code
        out = capsys.readouterr()
        assert ended == code, out
        return SimpleNamespace(stdout=out.out, stderr=out.err + caplog.text)

    return run


@pytest.mark.slow
def test_pretrain_and_resume_on_a_folder_with_spaces_and_subfolders(tmp_path):
    data = tmp_path / "my photos"
    for i, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))):
        target = data / f"part {i % 2}" / photo.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes())
    (data / "notes.txt").write_text("not an image")
    run = tmp_path / "run"
    options = ["--data", data, "--run-dir", run]
    out = fastequi("pretrain", "demo", *options, *SMALL, "--max-steps", 2, cwd=tmp_path)
    assert "stopped at step 2 of 288 (--max-steps); --resume goes on" in out.stderr
    assert out.stdout.strip().endswith(str(run))
    assert "images/s" in out.stderr
    assert "data wait" in out.stderr
    assert "ETA" in out.stderr
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["embed_dim"] == 32
    # the run's settings and its recipe come back with --resume: nothing but folders need be said
    fastequi("pretrain", *options, "--resume", "--max-steps", 3, cwd=tmp_path)
    assert json.loads((run / "config.json").read_text()) == config
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 3
    assert (run / "model.safetensors").is_file()


def test_resume_says_what_it_changes_and_refuses_what_it_cannot(tmp_path, caplog):
    run = tmp_path / "run"
    options = ["--data", PHOTOS, "--run-dir", run, "--train.no-tensorboard"]
    pretrain("demo", *options, *SMALL, "--max-steps", 1)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    again = [*options, "--resume", "--max-steps", 2]
    kept = "which --resume cannot change"
    for recipe, more, message in (
        ("vicreg_vits16", [], f"--resume: {run} is a run of the recipe demo, got vicreg_vits16"),
        ("demo", ["--model.depth", 2], f"model.depth: expected 1, {kept}, got 2"),
        ("demo", ["--tir.base", "simclr"], f"tir.base: expected vicreg, {kept}"),
        ("demo", ["--model.num-heads", 2], f"model.num_heads: expected 1, {kept}"),
        ("demo", ["--train.ema-momentum", 0.9], "train.ema_momentum: expected 0.0"),
        ("demo", ["--data.repeat", 63], f"data.repeat: expected 64, {kept}"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            pretrain(recipe, *again, *more)
    assert before == {path: path.stat().st_mtime_ns for path in before}  # nothing was touched
    with caplog.at_level(logging.INFO):
        pretrain("demo", *again, "--optim.lr", 0.5, "--train.seed", 3)
        assert (
            "changed settings from here on: optim.lr 0.004 → 0.5, train.seed 0 → 3" in caplog.text
        )
        config = json.loads((run / "config.json").read_text())
        assert (config["recipe"], config["optim"]["lr"]) == ("demo", 0.5)
        caplog.clear()
        pretrain("demo", *again)
        assert "already reached step 2" in caplog.text
        assert "others" not in caplog.text
        assert "(--resume with a larger --max-steps, or none, goes on)" in caplog.text
    (run / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=re.escape(f"--resume: {run}/config.json cannot be read")):
        pretrain("demo", *again)


def test_a_resumed_run_says_that_it_got_another_folder_before_what_changes(tmp_path, caplog):
    run, other = tmp_path / "run", tmp_path / "other"
    options = ["--run-dir", run, "--train.no-tensorboard"]
    pretrain("demo", "--data", PHOTOS, *options, *SMALL, "--max-steps", 1)
    other.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (other / name).write_bytes((PHOTOS / "coffee.jpg").read_bytes())
    message = (
        "--data: expected the place of the run's 9 images (astronaut.jpg, chelsea.jpg, china.jpg, "
        "coffee.jpg, flower.jpg, ...), got another one with 2 (a.jpg, b.jpg), none of which has "
        f"the name of one of them; they are listed in {run}"
    )
    caplog.clear()
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(ValueError, match=f"^{re.escape(message)}$"),
    ):
        pretrain("demo", "--data", other, *options, "--resume", "--optim.lr", 0.5)
    assert "changed settings" not in caplog.text


def test_what_needs_no_images_is_refused_before_they_are_listed(tmp_path):
    """The folder of images holds none, which is found where it is listed."""
    run, empty = tmp_path / "run", tmp_path / "empty"
    pretrain("demo", "--data", PHOTOS, "--run-dir", run, *SMALL, "--max-steps", 1)
    empty.mkdir()
    new = ["--run-dir", tmp_path / "new"]
    cases = [
        ([*new, "--resume"], FileNotFoundError, f"--resume: no run in {tmp_path / 'new'}"),
        (["--run-dir", run], FileExistsError, f"--run-dir: {run} already holds a run; --resume"),
        (["--run-dir", run, "--resume", "--model.depth", 2], ValueError, "model.depth: expected 1"),
        ([*new, "--model.name", "no_module:net"], ValueError, "model.name: no_module:net cannot"),
        ([*new, "--model.name", "no_module:net", "--resume"], FileNotFoundError, "--resume: no"),
    ]
    if not torch.cuda.is_available():
        cases.append(([*new, "--train.device", "cuda"], ValueError, "train.device: 'cuda' asked"))
    for words, error, message in cases:
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            pretrain("demo", "--data", empty, *words)
    with pytest.raises(ValueError, match="image"):
        pretrain("demo", "--data", empty, *new)


def pretrain(*words):
    pretraining.pretrain([str(word) for word in words])


def test_scanned_shards_are_trained_on_by_their_index(tmp_path, typed):
    photos = sorted(PHOTOS.glob("*.jpg"))
    for k in range(3):
        with tarfile.open(tmp_path / f"train-{k}.tar", "w") as shard:
            for photo in photos[3 * k : 3 * k + 3]:
                shard.add(photo, photo.name)
    data, index = "train-{0..2}.tar", tmp_path / "elsewhere" / "photos.jsonl"
    out = typed("data", "scan", data, "--index", index).stdout
    assert "9 images" in out
    options = ["--data", data, "--index", index, "--run-dir", "run", *SMALL, "--max-steps", 1]
    out = typed("pretrain", "demo", *options)
    assert f"9 images by the index {index}, scanned 2" in out.stderr
    assert "0 left out" in out.stderr
    assert not (tmp_path / ".fastequi").exists()


def test_a_reader_that_leaves_is_no_failure_to_tell_of():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fastequi.cli", "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "recipe",  # the second differs in its losses, which test_dino_method checks
    ["tir_ibot_vits16", pytest.param("dinov2_vitl16", marks=pytest.mark.slow)],
)
def test_a_multi_crop_recipe_made_small_by_options(tmp_path, typed, recipe):
    small = [
        *("--model.embed-dim", 32, "--model.depth", 1, "--model.num-heads", 1),
        *("--data.image-size", 64, "--data.source-size", 64, "--data.local-crop-size", 32),
        *("--data.local-crops", 2, "--data.batch-size", 8, "--distill.prototypes", 64),
        *("--distill.hidden-dim", 32, "--distill.bottleneck-dim", 16),
    ]
    run = tmp_path / "run"
    options = ["--data", PHOTOS, "--run-dir", run, "--max-steps", 2]
    typed("pretrain", recipe, *options, *small)
    (*_, last) = (run / "metrics.jsonl").read_text().splitlines()
    assert {"class", "patch", "std", "teacher_entropy", "prototypes"} < set(json.loads(last))
    out = typed("pretrain", recipe, "--dry-run", *small).stdout
    assert "student" in out
    assert "teacher" in out


def test_a_run_makes_a_dated_folder(tmp_path, typed):
    out = typed("pretrain", "demo", "--data", PHOTOS, *SMALL, "--max-steps", 1)
    run = tmp_path / out.stdout.strip().splitlines()[-1]
    assert run.parent == tmp_path / "runs"
    assert run.name.startswith("demo-20")
    assert (run / "checkpoints" / "latest").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pretrian", "demo"], "unknown command 'pretrian', did you mean 'pretrain'?"),
        (["pretrain", "tir_vicreg_vit16"], "did you mean 'tir_vicreg_vits16'?"),
        (["pretrain", "demo", "--data", "nowhere"], "nowhere does not exist"),
        (["pretrain", "demo"], "--data: expected a folder of images"),
        (["pretrain", "demo", "--data", ".", "--resume"], "--resume: expected --run-dir, the"),
        (["pretrain", "demo", "--data", ".", "--max-steps", "0"], "--max-steps: expected >= 1"),
        (["pretrain", "demo", "--data", ".", "--model.patch-size", "5"], "model.patch_size"),
        (
            ["pretrain", "--data", "."],
            "RECIPE is missing before --data, expected one of tir_vicreg_vits16, ",
        ),
        (["eval", "--data", "."], "the evaluation is missing before --data"),
        (
            ["pretrain", "demo", "--axes", "chw"],
            "--axes, which fastequi data scan has",
        ),
        (
            ["embed", "RUN", "--nodata", "0"],
            "--nodata, which fastequi data scan has",
        ),
        (["pretrain", "demo", "tiles"], "options: tiles (images are given by --data)"),
        (["demo", "--train.epochs", "3"], "--train.epochs: expected --train.minutes 0 beside it"),
        (
            ["demo", "--train.steps", "3"],
            "train.steps: expected 0, or train.minutes=0 beside it, got 3 beside train.minutes=3",
        ),
        (
            [
                *("pretrain", "demo", "--data", ".", "--train.minutes", "0"),
                *("--train.steps", "3", "--train.epochs", "2"),
            ],
            "--train.epochs: expected --train.steps 0 beside it, got train.steps=3, after which",
        ),
        (
            ["pretrain", "demo", "--data", ".", "--train.epochs=3"],
            "--train.epochs: expected --train.minutes 0 beside it, got train.minutes=3, after",
        ),
        *(
            (
                [*command, "--train.knn_data", "labelled"],
                "--train.knn-data: expected --train.knn-every N beside it, the steps between "
                "probes of labelled, got train.knn_every=0",
            )
            for command in (["demo"], ["pretrain", "demo", "--data", "."])
        ),
        (["pretrain", "demo", "--data", ".", "--optim.lrr", "1"], "did you mean --optim.lr?"),
        (["demo", "--minutes", "-1"], "--minutes: expected a time > 0"),
        (["doctor", "--fast"], "doctor takes no options"),
        (["pre", "demo"], "unknown command 'pre', did you mean 'pretrain'?"),
        (["pretrain", "gtsa"], "unknown recipe 'gtsa', did you mean 'gtsa_vits16'?"),
        (["eval", "equi", "run"], "unknown evaluation 'equi', did you mean 'equivariance'?"),
        (["visualise", "run"], "did you mean 'visualize'?"),
        (["xyz"], "unknown command 'xyz', expected one of demo, pretrain, "),
        (["visualize", "nowhere"], "CHECKPOINT: nowhere does not exist"),
        (["visualize", ".", "--windows", "9"], "--windows: expected 0 or at least 100, got 9"),
        (["report"], "RUN"),
        (["report", "nowhere"], "RUN: nowhere does not exist"),
        (["report", "."], "holds neither config.json nor metrics.jsonl"),
    ],
)
def test_bad_input_is_named_before_any_work(args, message, tmp_path, typed):
    run = typed(*args, code=2)
    assert run.stderr.splitlines()[-1].startswith("fastequi: ")  # the last line says it
    text = " ".join((run.stdout + run.stderr).replace("│", " ").split())
    assert message in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrain demo --method.base simclr", "--method.base, did you mean --tir.base?"),
        (
            "pretrain demo --optim.learning-rate 1",
            "--optim.learning-rate, did you mean --optim.lr?",
        ),
        ("pretrain demo --batch-size 8", "--batch-size, did you mean --data.batch-size?"),
        (
            "pretrain demo --train.batch_size 8",
            "--train.batch-size, did you mean --data.batch-size?",
        ),
        ("pretrain demo --epochs 8", "--epochs, did you mean --train.epochs?"),
        ("pretrain demo --steps 8", "--steps, did you mean --train.steps?"),
        ("pretrain demo --max-iters 8", "--max-iters, did you mean --train.steps?"),
        ("pretrain demo --num-workers 8", "--num-workers, did you mean --data.num-threads?"),
        ("eval knn RUN --tran-images 8", "--tran-images, did you mean --train-images?"),
        ("embed RUN --batch-size 8", "--batch-size, did you mean --batch?"),
        ("visualize RUN --window 8", "--window, did you mean --windows?"),
        ("report RUN --no-picture", "--no-picture, did you mean --pictures?"),
        ("data scan . --num-workers 8", "--num-workers, did you mean --threads?"),
        ("submit --node 2 -- demo", "--node, did you mean --nodes?"),
        ("pretrain demo --channels 0", "--channels, did you mean --data.channels?"),
        ("pretrain demo --init-channels 0", "--init-channels, did you mean --init.channels?"),
        ("pretrain demo --images x", "--images, did you mean --data?"),
        ("report RUN --images", "--images, did you mean --pictures?"),
        ("eval equivariance RUN --workers 2", "--workers"),
        ("eval equivariance RUN --lr 1", "--lr"),
        ("eval equivariance RUN --batch-size 8", "--batch-size"),
        ("eval equivariance RUN --image-size 96", "--image-size, did you mean --img-size?"),
    ],
)
def test_an_unknown_option_is_answered_with_the_one_that_was_meant(typed, words, message):
    said = typed(*words.split(), code=2).stderr
    assert said == f"fastequi: unknown option {message} (--help lists all)\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "pretrain demo --tir.base simlcr",
            "--tir.base: expected one of vicreg, simclr, dino, ibot, dinov2, distillation, got "
            "simlcr, did you mean 'simclr'?",
        ),
        (
            "pretrain demo --tir.base=x",
            "expected one of vicreg, simclr, dino, ibot, dinov2, distillation, got x",
        ),
        (
            "pretrain demo --data.batch-size many",
            "--data.batch-size: expected an integer, got many",
        ),
        ("pretrain demo --max-steps 1.5", "--max-steps: expected an integer, got 1.5"),
        ("pretrain demo --optim.lr fast", "--optim.lr: expected a number, got fast"),
        (f"visualize RUN --windows {10**400}", "--windows: expected an integer of 64 bits, got 1"),
        ("pretrain demo --optim.lr nan", "--optim.lr: expected a finite number, got nan"),
        (f"pretrain demo --train.seed {2**63}", "--train.seed: expected 0 to 2^63 - 1, got 92"),
        ("eval equivariance RUN --degrees inf", "--degrees: expected a finite number, got inf"),
        ("eval reconstruct RUN --seed -1", "--seed: expected 0 to 2^63 - 1, got -1"),
        ("pretrain demo --optim.betas 1", "--optim.betas: expected 2 values, got 1"),
        ("pretrain demo --optim.lr --resume", "--optim.lr: expected a value, got none"),
        (
            "pretrain demo --data x --resume runs/a",
            "--resume: expected no value, got runs/a; --run-dir runs/a --resume continues the run",
        ),
        (
            "pretrain demo --data.channels 0 3 5",
            "--data.channels: expected one value: 0,3,5, got 0 3 5",
        ),
        (
            "pretrain demo --data.channels 0, 3 , 5",
            "--data.channels: expected one value: 0,3,5, got 0, 3 , 5",
        ),
        (
            "pretrain demo --data.value-range 0:4095, 10:900",
            "--data.value-range: expected one value: 0:4095,10:900, got 0:4095, 10:900",
        ),
        ("pretrain demo --init.path a b", "--init.path: expected one value, got a b"),
        ("pretrain demo --train.compile yes", "--train.compile: expected no value, got yes"),
        ("pretrain demo --data.batch-size 5", "data.batch_size: expected a multiple of samples"),
        ("eval equivariance RUN --tasks se2 blurr", "got blurr, did you mean 'blur'?"),
        ("eval knn RUN --test-images few", "--test-images: expected an integer, got few"),
        ("embed RUN --tokens men", "--tokens: expected one of mean, all, got men, did you mean 'm"),
        ("visualize RUN --windows x", "--windows: expected an integer, got x"),
        ("data scan . --threads x", "--threads: expected an integer, got x"),
        ("submit --cluster lsf -- demo", "--cluster: expected one of slurm, local, got lsf"),
        ("eval knn", "CHECKPOINT"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(typed, words, message):
    said = typed(*words.split(), code=2).stderr
    assert said.startswith("fastequi: ")
    assert said.count("\n") == 1
    assert message in said


def test_values_that_do_fit_are_taken():
    options = parse(
        pretraining.PretrainOptions,
        "",
        [
            *(
                "--model.embed-dim",
                "None",
                "--optim.betas",
                "0.8",
                "0.9",
                "--optim.final-lr",
                "1e-6",
            ),
            *("--data.a1.side", "0.1", "0.2", "--train.no-tensorboard", "--tir.expander", "8"),
            *("--data", "a", "b", "--data", "c", "--tir.base=simclr", "--max_steps", "7"),
        ],
        pretraining.PretrainOptions(RECIPES["demo"]()),
    )
    config = options.config
    assert (config.model.embed_dim, config.optim.betas) == (None, (0.8, 0.9))
    assert (config.optim.final_lr, config.data.a1.side) == (1e-6, (0.1, 0.2))
    assert (config.train.tensorboard, config.tir.expander) == (False, (8,))
    assert (options.data, options.max_steps) == ((("a", "b"), ("c",)), 7)


def test_a_gpu_without_room_for_the_batch_names_the_option(typed, monkeypatch):
    def full(*args, **options):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 ...")

    monkeypatch.setattr("fastequi.train.pretrain", full)
    said = typed("pretrain", "demo", "--data", PHOTOS, *SMALL, code=2).stderr
    assert said.startswith(
        "fastequi: --data.batch-size: expected fewer than 16 images (CUDA out of"
    )
    assert "pretrain demo --dry-run says how many fit" in said


@pytest.mark.slow(every=3)
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pretrian", "demo"], "unknown command 'pretrian'"),  # before any import
        (["pretrain", "demo", "--data", "nowhere"], "nowhere does not exist"),  # by the command
        (["pretrain", "demo", "--data", ".", "--optim.lrr", "1"], "--optim.lrr"),  # by the parser
    ],
)
def test_a_process_refuses_with_exit_code_2_and_leaves_nothing(args, message, tmp_path):
    assert message in fastequi(*args, cwd=tmp_path, code=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_images_is_refused(tmp_path, typed):
    (tmp_path / "empty").mkdir()
    run = typed("pretrain", "demo", "--data", "empty", code=2)
    assert "empty" in run.stderr
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no")
    run = typed("pretrain", "demo", "--data", "text", code=2)
    assert ".jpg" in run.stderr


@pytest.mark.slow
def test_dry_run_needs_no_data_and_counts_the_paper_model(tmp_path, typed):
    run = typed("pretrain", "tir_vicreg_vits16", "--dry-run")
    lines = run.stdout.splitlines()
    (optim,) = (line for line in lines if line.startswith("optim: "))
    assert optim.startswith("optim: kind=adamw, lr=0.0001, base-batch=256, ")
    assert "batch-size=2048" in run.stdout
    assert "gtsa" not in run.stdout  # sections of other methods
    assert len(lines) < 50
    assert "21,665,664" in run.stdout  # ViT-S/16 without a classifier
    assert "saved activations" in run.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_does_not_fit_is_said_with_the_one_that_does(typed, monkeypatch):
    monkeypatch.setattr("fastequi.cli.dryrun.free_memory", lambda device: 50 * 2**20)
    small = [*SMALL, "--dry-run", "--train.device", "cpu"]
    out = typed("pretrain", "demo", *small, "--data.batch-size", 4096).stdout
    fits = re.search(r"--data\.batch-size: expected at most (\d+) on this machine \(0\.1 GB", out)
    assert fits, out
    less = typed("pretrain", "demo", *small, "--data.batch-size", fits[1]).stdout
    assert "expected at most" not in less


def test_doctor_says_what_each_part_uses_and_why(tmp_path):
    out = fastequi("doctor", cwd=tmp_path).stdout
    for part in ("torch", "nvidia-dali", "fused kernels", "attention", "images"):
        assert part in out
    assert "sdpa" in out


def test_help_names_commands_recipes_and_options(typed):
    commands = typed("--help").stdout
    assert "pretrain RECIPE" in commands
    assert "report RUN [RUN ...]" in commands
    assert "--no-pictures" in typed("report", "--help").stdout
    assert "tir_vicreg_vits16" in typed("pretrain", "--help").stdout
    options = typed("pretrain", "demo", "--help").stdout
    for option in ("--data.batch-size", "--run-dir", "--resume", "--dry-run", "--path.degrees"):
        assert option in options


def test_a_resumed_run_keeps_its_channels(tmp_path):
    """The error is of the channels, not of the ranges that are then too many."""
    run = tmp_path / "run"
    run.mkdir()
    config = several(RECIPES["demo"](), 3, "0:1,2:3,4:5")
    words = ["demo", "--data", "x", "--run-dir", str(run), "--resume", "--data.channels"]
    for channels, count, given in (("0,1,2", 12, "all"), ("0,1,2", 3, "9,0"), ("2,1,0", 3, "all")):
        data = replace(config.data, channels=channels, file_channels=count)
        (run / "config.json").write_text(replace(config, data=data).to_json())
        said = f"--data.channels: expected {channels}, which --resume cannot change, got {given}"
        with pytest.raises(ValueError, match=said):
            pretraining._pretrain_options([*words, given])
    data = replace(config.data, file_channels=3)
    (run / "config.json").write_text(replace(config, data=data).to_json())
    for given in ("all", "0,1,2"):
        pretraining._pretrain_options([*words, given])
    with pytest.raises(ValueError, match="--data: expected where the run's images are, as the run"):
        pretraining.pretrain(["demo", "--run-dir", str(run), "--resume"])


def test_a_dry_run_says_that_it_reads_no_images(capsys):
    words = ["demo", "--dry-run", "--data", "x", "--data.channels", "12"]
    pretraining.pretrain([*words, "--train.device", "cpu"])
    assert (
        "whether its images have data.channels=12 is seen when the run" in capsys.readouterr().out
    )
