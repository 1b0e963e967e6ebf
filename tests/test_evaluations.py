"""The evaluations as a user types them, on a run of two steps."""

import json
import logging
import os
import re
import shutil
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("nvidia.dali")

from fastequi.cli.evaluations import equivariance
from fastequi.cli.main import main
from fastequi.data.reader import read
from fastequi.data.sources import kept
from fastequi.data.sources.image_sets import embedded_photos, image_folder
from fastequi.evaluate.classification import ClassScore, comparisons, normalise
from fastequi.evaluate.encoders import load_encoder
from fastequi.evaluate.published import published
from fastequi.evaluate.results import SCHEMA, label, name_of
from fastequi.evaluate.results import read as read_result
from fastequi.recipes import RECIPES
from fastequi.runtime import checkpoint, devices, manifest
from fastequi.runtime.devices import use_device
from fastequi.train import pretrain


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of TIR, of its base alone, and of photographs in two classes."""
    folder, source = tmp_path_factory.mktemp("runs"), embedded_photos()
    config = RECIPES["demo"]()
    config = replace(
        config,
        model=replace(config.model, embed_dim=32, depth=1, num_heads=1, class_token=True),
        data=replace(config.data, batch_size=8, samples_per_decode=4),
        tir=replace(
            config.tir, dim=16, equi_dim=8, decoder_width=8, decoder_heads=1, expander=(16, 16)
        ),
        train=replace(config.train, minutes=0.0, epochs=1, tensorboard=False),
    )
    pretrain(config, source, folder / "tir", max_steps=2)
    alone = replace(config, tir=replace(config.tir, num_steps=0, equi_dim=0))
    pretrain(alone, source, folder / "base", max_steps=2)
    for i, path in enumerate(source.paths):
        target = folder / "photos" / "ab"[i % 2]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


@pytest.mark.slow
def test_equivariance_with_its_base_beside_it(runs, capsys):
    run, base = str(runs / "tir"), str(runs / "base")
    options = ["--train-pairs", "200", "--test-pairs", "50", "--epochs", "1", "--seeds", "2"]
    main(["eval", "equivariance", run, "--against", base, "--data", str(runs / "photos"), *options,
          "--tasks", "rotation", "blur"])  # fmt: skip
    saved = json.loads((runs / "tir" / "eval_equivariance.json").read_text())
    assert list(saved["tasks"]) == ["rotation", "rotation 45..60", "blur"]
    assert saved["photographs"] == {"train": 8, "test": 1}
    assert saved["test_seen_in_training"] == {str(runs / "tir"): 1, str(runs / "base"): 1}
    assert saved["budget"]["fit"]["seeds"] == 2
    assert saved["machine"]["torch"] == torch.__version__
    assert (saved["kind"], saved["schema"], saved["encoder"]) == ("equivariance", SCHEMA, "tir")
    scores = saved["tasks"]["rotation"]["scores"]
    for score in scores:  # what is a baseline is said, not to be guessed from names
        assert score["is_baseline"] == (score["encoder"] in (None, "random init"))
    assert {label(score["encoder"], score["features"]) for score in scores} == {
        *("mean predictor", "transformed image alone", "raw pair", "pixel statistics"),
        *(f"{who}, {what}" for who in ("random init", "tir") for what in ("z_equi", "z_inv")),
        *(f"{who}, {what}" for who in ("random init", "tir", "base") for what in ("patch", "cls")),
        "base, z_inv",
    }
    assert {score["probe"] for score in scores} >= {"token", "mlp, mean token", "mlp", "ridge"}
    for score in scores:
        assert len(score["r2"]) == len(score["low"]) == len(score["error"]) == 1
        assert score["mean_low"] <= score["mean_high"]
        assert score["mean"] == pytest.approx(score["r2"][0])
    printed = capsys.readouterr().out
    assert "mean R² by each row's best probe" in printed
    assert "rotation 45..60" in printed


def test_photographs_seen_in_training_are_counted(runs, tmp_path, capsys, monkeypatch):
    """By the files' names and sizes, which the run kept; a folder of others says nothing."""
    monkeypatch.chdir(tmp_path)
    photos = runs / "photos"
    file, source = tmp_path / "run" / "images.jsonl", image_folder(photos)
    file.parent.mkdir()
    kept.keep(file, source.pick(range(4)))
    assert kept.seen(file.parent, source) == 4
    assert kept.seen(file.parent / "checkpoints" / "step_00000002", source.pick(range(3, 9))) == 1
    assert kept.seen(tmp_path, source) is None
    assert (runs / "tir" / "images.jsonl").is_file()  # what training leaves
    options = ["--train-pairs", "20", "--test-pairs", "10", "--epochs", "1", "--seeds", "1"]
    options += ["--tasks", "blur", "--probes", "ridge", "--out", str(tmp_path / "seen.json")]
    main(["eval", "equivariance", str(runs / "tir"), "--data", str(photos), *options])
    saved = json.loads((tmp_path / "seen.json").read_text())
    assert saved["test_seen_in_training"] == {str(runs / "tir"): 1}
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 NAMED AND SIZED AS ONE SEEN IN TRAINING" in printed
    # of other encoders in the table, of a run's own file, and where classes are asked
    run, file = str(runs / "tir"), str(runs / "tir" / "model.safetensors")
    main(["eval", "knn", file, "--against", run, "--data", str(photos)])
    saved = json.loads(Path("eval_knn_model.json").read_text())
    assert saved["test_seen_in_training"] == {file: 2, run: 2}
    line = "2 of the 2 test images have the name and the size of one that {} was trained on ("
    printed = capsys.readouterr().out
    assert line.format(run) in printed
    assert line.format(file) in printed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["equivariance", "knn"])
def test_images_that_probes_are_fitted_and_tested_on_are_counted(runs, tmp_path, capsys, kind):
    """By file or by bytes, whatever their names: 9 of the same folder, 3 copies, or none."""
    photos, copies, others = runs / "photos", tmp_path / "copies", tmp_path / "others"
    for i, path in enumerate(sorted(photos.glob("*/*"))):
        for folder in (copies, others):
            (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        if i < 3:
            shutil.copy(path, copies / "ab"[i % 2] / f"copy {i}{path.suffix}")
        else:
            with Image.open(path) as image:
                image.save(copies / "ab"[i % 2] / f"{i}.png")
        with Image.open(path) as image:
            image.save(others / "ab"[i % 2] / f"{i}.png")
    options = ["--train-pairs", "20", "--test-pairs", "10", "--epochs", "1", "--seeds", "1"]
    options += ["--tasks", "blur", "--probes", "ridge"]
    out = tmp_path / "found.json"
    for test, count in ((photos, 9), (copies, 3), (others, 0)):
        words = ["--data", str(photos), "--test-data", str(test), "--out", str(out)]
        words += options if kind == "equivariance" else []
        capsys.readouterr()
        main(["eval", kind, str(runs / "tir"), *words])
        assert json.loads(out.read_text())["test_used_for_fitting"] == count
        printed = " ".join(capsys.readouterr().out.split())
        said = f"fitted and tested on the same images: {count} of the 9 test images"
        assert (said in printed) == bool(count)
        if kind == "equivariance":
            of = f"{count} of 9 AMONG THOSE THAT PROBES ARE FITTED ON"
            assert (of in printed) == bool(count)
            if count:
                assert "held-out" not in printed


def test_ranges_of_nothing_are_refused_at_once(runs):
    with pytest.raises(ValueError, match=r"--pixels: expected a half-range > 0, got 0"):
        equivariance([str(runs / "tir"), "--pixels", "0"])
    with pytest.raises(FileNotFoundError):  # windows without room for shifts are a choice
        equivariance([str(runs / "none"), "--pixels", "0", "--tasks", "rotation"])
    with pytest.raises(ValueError, match=r"--degrees: expected a half-range >= 0, got -1"):
        equivariance([str(runs / "tir"), "--degrees", "-1", "--tasks", "blur"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tasks rotation --photometric se2", "--photometric: expected some of --tasks rotation"),
        ("--photometric=se2 --tasks blur color", "--photometric: .* --tasks blur color, got se2"),
        ("--tasks", "--tasks: expected one transformation or more, got none"),
        ("--degrees 1e300", r"--degrees: expected a half-range of at most 180, got 1e\+300"),
        ("--fewer-pairs 20 20", "--fewer-pairs: expected different numbers, got 20 20"),
        ("--fewer-pairs 9", r"--fewer-pairs: expected 10 \.\. 23999"),
    ],
)
def test_what_would_be_left_out_is_refused(runs, words, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        equivariance([str(runs / "none"), *words.split()])


def test_comparisons_are_of_like_with_like():
    def row(encoder, features, probe, share):
        interval = {"accuracy": share, "low": share - 0.01, "high": share + 0.01}
        named = {"encoder": encoder, "features": features, "is_baseline": encoder is None}
        return ClassScore(**named, probe=probe, **interval, seeds=(share,))

    rows = [
        row(None, "raw pixels", "knn, k=5", 0.8),
        row(None, "raw pixels", "knn, k=20", 0.7),
        row("mine", "patch", "knn, k=5", 0.79),
        row("mine", "patch", "knn, k=20", 0.75),
        row("mine", "cls", "knn, k=20", 0.71),
        row("mine2", "cls", "knn, k=20", 0.99),
    ]
    assert comparisons(rows, "mine", 1200) == [
        "mine, patch by knn, k=20: 0.750, more than raw pixels: 0.700",
        "mine, cls by knn, k=20: 0.710, raw pixels 0.700; with 1,200 test images the difference is "
        "within chance",
    ]


@pytest.mark.parametrize(
    ("kind", "data", "classes", "says"),
    [
        ("knn", "sets/imagenette2-160", 10, "ResNet-18, 800 epochs, best epoch): SimCLR 0.889"),
        ("knn", "sets/CIFAR_10", 10, "SimCLR 0.847, DINO 0.840"),
        ("knn", "/data/imagenet", 1000, "ViT-S/16, 100 epochs): DINO 0.675, iBOT 0.654"),
        ("linear", "ImageNet-1k/", 1000, "published linear top-1 (ImageNet-1k"),
        ("linear", "sets/cifar10", 10, ""),
        ("knn", "imagenet", 100, ""),  # a subset is another task
        ("knn", "/data/ImageNet-V2", 1000, ""),  # as are other images
        ("knn", "imagenet-c/fog/3", 1000, ""),
        ("knn", "imagenette-vs-fmnist/fashion-mnist", 10, ""),
        ("knn", "cifar10/../mnist", 10, ""),
        ("knn", "digits", 10, ""),
    ],
)
def test_published_accuracies_stand_beside_the_sets_they_are_of(kind, data, classes, says):
    found = published(kind, data, classes)
    assert says in found
    assert bool(says) == bool(found)


def test_neighbours_print_what_was_published(runs, tmp_path, capsys):
    photo = next((runs / "photos").rglob("*.jpg"))
    for name in "0123456789":
        (tmp_path / "cifar10" / name).mkdir(parents=True)
        for copy in "ab":
            shutil.copy(photo, tmp_path / "cifar10" / name / f"{copy}.jpg")
    out = tmp_path / "knn.json"
    main(["eval", "knn", str(runs / "tir"), "--data", str(tmp_path / "cifar10"), "--out", str(out)])
    line = "published knn top-1 (CIFAR-10, ResNet-18, 200 epochs, best epoch): SimCLR 0.847"
    assert json.loads(out.read_text())["published"].startswith(line)
    assert line in capsys.readouterr().out


def test_zero_filled_pairs_have_a_file_of_their_own_and_say_so(runs, capsys):
    run, file = runs / "tir", runs / "tir" / "eval_equivariance.json"
    before = file.read_bytes() if file.is_file() else None
    options = ["--train-pairs", "50", "--test-pairs", "20", "--epochs", "1", "--seeds", "1"]
    main(["eval", "equivariance", str(run), "--zero-fill", "--tasks", "rotation", *options])
    assert (file.read_bytes() if file.is_file() else None) == before
    saved = json.loads((run / "eval_equivariance_zero_fill.json").read_text())
    assert saved["budget"]["zero_fill"] is True
    printed = " ".join(capsys.readouterr().out.split())
    begin = (
        "rotation: for each 50 pairs of 9 photographs to fit probes on, 20 pairs of 9 to test "
        "them: the left and right parts of the embedded photographs"
    )
    title = (
        "R² on held-out parts of the embedded photographs, zero-filled borders (only to compare)"
    )
    assert -1 < printed.find(begin) < printed.find(title)


def test_neighbours_and_linear_probe(runs, tmp_path, capsys, caplog):
    run, photos = str(runs / "tir"), str(runs / "photos")
    main(["eval", "knn", run, "--data", photos, "--out", str(tmp_path / "knn.json")])
    saved = json.loads((tmp_path / "knn.json").read_text())
    assert (saved["classes"], saved["train_images"], saved["test_images"]) == (2, 7, 2)
    assert {row["probe"] for row in saved["scores"]} == {"knn, k=5"}  # seven images have no 10
    assert (saved["kind"], saved["schema"], saved["encoder"]) == ("knn", SCHEMA, "tir")
    names = [label(row["encoder"], row["features"]) for row in saved["scores"]]
    assert names[0] == "raw pixels"
    baselines = [row["encoder"] for row in saved["scores"] if row["is_baseline"]]
    assert set(baselines) == {None, "random init"}
    assert {"random init, patch", "tir, cls", "tir, z_equi"} <= set(names)
    pytest.importorskip("sklearn")
    main(["eval", "linear", run, "--data", "digits", "--train-images", "200", "--test-images",
          "100", "--seeds", "2"])  # fmt: skip
    saved = json.loads((runs / "tir" / "eval_linear.json").read_text())
    raw = saved["scores"][0]
    assert (raw["features"], len(raw["seeds"]), len(raw["penalties"])) == ("raw pixels", 2, 2)
    assert raw["accuracy"] > 0.8
    assert raw["low"] < raw["accuracy"] < raw["high"]
    assert "less than raw pixels" in capsys.readouterr().out  # after two steps
    assert [sum(n) for n in zip(*saved["class_images"].values(), strict=True)] == [200, 100]
    main(["report", run, "--no-pictures", "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "10 classes from frozen features, fitted on 200 and tested on 100 images" in page
    assert "test images: every fifth digit" in page
    assert "Images: digits." in page
    few = ["--train-images", "50", "--test-images", "20"]
    with caplog.at_level(logging.INFO):
        main(["eval", "knn", run, "--data", "digits", *few, "--out", str(tmp_path / "knn.json")])
    assert f"knn.json: the result of {photos} is replaced; --out keeps both" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "knn", "RUN", "--data", "PHOTOS"], r"--train-images: .* most 1 .*, got 7"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "x"], r"--data: expected at most .*, got 9"),
    ],
)
def test_images_whose_features_do_not_fit_are_refused(runs, monkeypatch, capsys, words, message):
    places = {"RUN": str(runs / "tir"), "PHOTOS": str(runs / "photos")}
    free = 85_000 if words[0] == "eval" else 1000
    monkeypatch.setattr(devices, "free_memory", lambda device: free)
    with pytest.raises(SystemExit):
        main([places.get(word, word) for word in words])
    assert re.search(message, capsys.readouterr().err)


def test_reconstruction_and_spectra(runs, capsys):
    main(["eval", "reconstruct", str(runs / "tir"), "--images", "16"])
    saved = json.loads((runs / "tir" / "eval_reconstruct.json").read_text())
    assert len(saved["psnr"]["predicted"]) == len(saved["ssim"]["nearer_view"]) == 2
    assert saved["psnr"]["low"] <= saved["psnr"]["gain"] <= saved["psnr"]["high"] < 0
    spectra = {(row["features"], row["tokens"]): row for row in saved["spectra"]}
    assert all((row["encoder"], row["is_baseline"]) == ("tir", False) for row in spectra.values())
    assert spectra["z_equi", "all"]["channels"] == 8
    assert spectra["z_inv", "mean"]["rank"] == 8
    main(["eval", "reconstruct", str(runs / "base"), "--images", "16"])
    assert "has no decoders" in capsys.readouterr().out
    saved = json.loads((runs / "base" / "eval_reconstruct.json").read_text())
    assert "psnr" not in saved
    first = saved["spectra"][0]
    assert (first["features"], first["tokens"], first["channels"]) == ("z_inv", "all", 16)


@pytest.mark.parametrize(("images", "photographs"), [(4, 1), (24, 3)])
def test_views_of_one_photograph_have_no_interval(runs, tmp_path, capsys, images, photographs):
    """However many the source has: a batch of this run is eight windows of one of the nine."""
    config = RECIPES["demo"]()
    config = replace(
        config,
        model=replace(config.model, embed_dim=32, depth=1, num_heads=1),
        data=replace(config.data, batch_size=8, samples_per_decode=8),
        tir=replace(
            config.tir, dim=16, equi_dim=8, decoder_width=8, decoder_heads=1, expander=(16, 16)
        ),
        train=replace(config.train, minutes=0.0, epochs=1, tensorboard=False),
    )
    run = tmp_path / "run"
    pretrain(config, embedded_photos(), run, max_steps=1)
    capsys.readouterr()
    main(["eval", "reconstruct", str(run), "--images", str(images)])
    saved = json.loads((run / "eval_reconstruct.json").read_text())
    assert saved["photographs"] == {"test": photographs}
    printed = capsys.readouterr().out
    assert ("of one photograph, so no interval" in printed) == (photographs == 1)
    assert bool(re.search(r"SSIM gained [-+.\d]+ \(", printed)) == (photographs > 1)
    for name in ("pooled", "psnr", "ssim"):
        ends = saved[name]["low"], saved[name]["high"]
        assert ends == (None, None) if photographs == 1 else ends[0] <= ends[1]
    main(["report", str(run), "--no-pictures", "--out", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert ("All are of one photograph" in page) == (photographs == 1)
    assert bool(re.search(r"pooled gain \S+ dB \(", page)) == (photographs > 1)


@pytest.fixture(scope="module")
def tolerant(runs):
    """A run that tolerates 30 % of unreadable images, and a folder of photographs with 3 of 12."""
    run, folder = runs / "tolerant", runs / "with_unreadable"
    shutil.copytree(runs / "tir", run)
    shutil.copytree(runs / "photos", folder)
    settings = json.loads((run / "config.json").read_text())
    settings["data"]["tolerate"] = 0.3
    (run / "config.json").write_text(json.dumps(settings))
    for name in ("a/x.jpg", "a/y.jpg", "b/z.jpg"):
        (folder / name).write_text("no image")
    return run, folder


@pytest.mark.parametrize(
    "words",
    [
        ["embed", "RUN", "--features", "patch", "--out", "OUT.npy"],
        ["eval", "knn", "RUN", "--out", "OUT"],
        ["eval", "layers", "RUN", "--windows", "2", "--out", "OUT"],
        ["eval", "reconstruct", "RUN", "--images", "8", "--out", "OUT"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_run_is_evaluated_on_the_folder_it_tolerated(tolerant, tmp_path, capsys, caplog, words):
    run, folder = map(str, tolerant)
    names = {"RUN": run, "OUT": str(tmp_path / "o.json"), "OUT.npy": str(tmp_path / "o.npy")}
    words = [*(names.get(word, word) for word in words), "--data", folder]
    with caplog.at_level(logging.INFO):
        main(words)
    assert "3 of 12 images in" in caplog.text
    assert "left out" in caplog.text
    with pytest.raises(SystemExit):
        main([*words, "--tolerate", "0.2"])
    said = capsys.readouterr().err
    assert "--exclude leaves images out, --tolerate a share of all" in said
    assert "data.tolerate" not in said


def test_the_share_that_a_file_of_weights_tolerates_is_given(tolerant, tmp_path, capsys):
    run, folder = tolerant
    state = load_file(run / "model.safetensors")
    save_file(state, tmp_path / "w.safetensors", {"format": "pt"})
    words = ["embed", str(tmp_path / "w.safetensors"), "--data", str(folder), "--img-size", "32"]
    words += ["--num-heads", "1", "--features", "patch", "--out", str(tmp_path / "o.npy")]
    with pytest.raises(SystemExit):
        main(words)
    assert "--tolerate a share of all" in capsys.readouterr().err
    main([*words, "--tolerate", "0.3"])
    assert len(np.load(tmp_path / "o.npy")) == 9
    with pytest.raises(SystemExit):
        main([*words, "--tolerate", "1"])
    assert "--tolerate: expected a share 0 <= tolerate < 1, got 1.0" in capsys.readouterr().err


def test_weights_files_in_one_folder_keep_their_results(runs, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    words = ["--windows", "2", "--data", str(runs / "photos")]
    for name in ("a.safetensors", "b.v2.safetensors", "other/a.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(runs / "tir" / "model.safetensors", name)
        with caplog.at_level(logging.INFO):
            main(["eval", "layers", name, *words])
        said = "eval_layers_a.json: the result of a.safetensors is replaced; --out keeps both"
        assert (said in caplog.text) == (name == "other/a.safetensors")
    found = sorted(path.name for path in tmp_path.glob("eval_*"))
    stems = "eval_layers_a", "eval_layers_b.v2"
    assert found == [f"{stem}{end}" for stem in stems for end in (".json", ".svg")]
    assert json.loads(Path(found[0]).read_text())["checkpoint"] == "other/a.safetensors"


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("vit.bin", "eval_knn_vit.json"),
        ("here/model.safetensors.index.json", "eval_knn_model.json"),
        ("my.nets:small", "eval_knn_my.nets_small.json"),
        (".", "eval_knn.json"),
    ],
)
def test_a_result_is_named_for_what_is_no_folder(spec, name):
    assert name_of("knn", spec) == name


def test_files_of_another_schema_or_kind_are_not_read():
    found = {"kind": "knn", "schema": SCHEMA, "encoder": "tir", "scores": []}
    assert read_result(found).document == found
    for other, message in (
        ({"schema": SCHEMA + 1}, rf"schema {SCHEMA + 1}, expected {SCHEMA}"),
        ({"schema": None}, r"schema None, expected"),
        ({"kind": "new"}, r"kind 'new', expected one of equivariance, knn, linear, reconstruct"),
        ({"encoder": None}, r"encoder None, expected a name"),
    ):
        with pytest.raises(ValueError, match=message):
            read_result({**found, **other})


def test_embed_writes_the_same_rows_in_every_form(runs, tmp_path):
    common = ["embed", str(runs / "tir"), "--data", str(runs / "photos"), "--batch", "4", "--out"]
    main([*common, str(tmp_path / "all.safetensors")])
    found = load_file(tmp_path / "all.safetensors")
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "patch": (9, 32), "cls": (9, 32), "z_inv": (9, 8), "z_equi": (9, 8)
    }  # fmt: skip
    beside = json.loads((tmp_path / "all.safetensors.json").read_text())
    assert beside["files"] == sorted(beside["files"])
    assert beside["files"][0] == "a/astronaut.jpg"
    assert beside["features"]["z_equi"] == [9, 8]
    main([*common, str(tmp_path / "one.npy"), "--features", "z_equi"])
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), found["z_equi"].numpy())
    main([*common, str(tmp_path / "many"), "--tokens", "all"])
    tokens = np.load(tmp_path / "many" / "patch.npy")
    assert tokens.shape == (9, 16, 32)
    np.testing.assert_allclose(tokens.mean(1), found["patch"].numpy(), atol=1e-5)
    assert np.load(tmp_path / "many" / "cls.npy").shape == (9, 32)
    assert (tmp_path / "many" / "files.json").is_file()
    # colleagues may read what they may read of other files
    plain = stat.S_IMODE((tmp_path / "one.npy").stat().st_mode)
    for file in (tmp_path / "all.safetensors", *(runs / "tir").rglob("*.safetensors")):
        assert stat.S_IMODE(file.stat().st_mode) == plain


@pytest.fixture(scope="module")
def unsound(runs):
    """The TIR run with one NaN in a weight of its encoder."""
    shutil.copytree(runs / "tir", runs / "unsound")
    for file in (runs / "unsound").rglob("*.safetensors"):
        state = {name: value.clone() for name, value in load_file(file).items()}  # not mapped
        for name in state:
            if name.endswith("blocks.0.mlp.fc1.weight") and state[name].ndim:
                state[name][0, 0] = float("nan")
        save_file(state, file)
    for step in checkpoint.steps(runs / "unsound" / "checkpoints"):
        about = checkpoint.about(step)
        (step / manifest.NAME).unlink()
        manifest.publish(step.rename(step.with_name("unfinished")), step, about)
    return runs / "unsound"


@pytest.mark.parametrize(
    "words",
    [
        *(["eval", kind, "RUN", "--data", "PHOTOS"] for kind in ("knn", "linear", "equivariance")),
        *(["eval", "reconstruct", "RUN"], ["embed", "RUN", "--data", "PHOTOS", "--out", "x.npy"]),
        *(["visualize", "RUN"], ["eval", "knn", "RUN/model.safetensors", "--data", "PHOTOS"]),
        ["eval", "knn", "GOOD", "--against", "RUN", "--data", "PHOTOS"],
    ],
    ids=" ".join,
)
def test_features_that_are_not_finite_are_one_error_for_all(
    runs, unsound, tmp_path, monkeypatch, capsys, words
):
    monkeypatch.chdir(tmp_path)
    for name, place in {"RUN": unsound, "PHOTOS": runs / "photos", "GOOD": runs / "tir"}.items():
        words = [word.replace(name, str(place)) for word in words]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "unsound" in said.rpartition("fastequi: ")[2]
    assert re.search(r"its features are not finite \(NaN or infinite: \d+ of \d+ patch", said)
    assert list(tmp_path.iterdir()) == []


def test_the_report_of_such_a_run_says_why_it_has_no_pictures(unsound, tmp_path):
    main(["report", str(unsound), "--out", str(tmp_path / "page.html")])
    assert "no pictures of its features (unsound: its features are not finite" in (
        (tmp_path / "page.html").read_text()
    )


def test_features_of_other_sizes(runs, tmp_path, capsys):
    """A ViT's positions are interpolated; windows have the shape that was asked for."""
    run = str(runs / "tir")
    encoder = load_encoder(run, "cpu")
    source = image_folder(runs / "photos")
    common = ["embed", run, "--data", str(runs / "photos"), "--tokens", "all", "--out"]
    for size, saved, frame in (
        (["64"], 64, (64, 64)),
        (["32", "64"], [32, 64], (32, 64)),
        (["48x32"], [48, 32], (48, 32)),
    ):
        file = tmp_path / f"{'x'.join(size)}.safetensors"
        main([*common, str(file), "--size", *size])
        found = load_file(file)
        beside = json.loads(file.with_name(f"{file.name}.json").read_text())
        assert beside["image_size"] == saved
        ((images, _),) = read(source, frame, device=torch.device("cpu"))
        assert images.shape[2:] == frame
        expected = encoder.features(normalise(images, encoder))["patch"]
        torch.testing.assert_close(found["patch"], expected, rtol=1e-4, atol=1e-4)
        assert found["patch"].shape[1] == frame[0] * frame[1] // 64
    with pytest.raises(SystemExit):
        main([*common, str(tmp_path / "g.npy"), "--features", "cls", "--size", "32x36"])
    assert "--size: expected multiples of the patch size 8, got 32x36" in capsys.readouterr().err


def test_windows_of_any_shape_show_the_middle(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[10:30, 20:60] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    ((images, _),) = read(image_folder(tmp_path), (10, 20), device=torch.device("cpu"), share=0.5)
    assert (images[..., 1:-1, 1:-1] == 255).all()  # antialiasing reaches beyond
    ((images, _),) = read(image_folder(tmp_path), (10, 20), device=torch.device("cpu"))
    assert images.float().mean().item() == pytest.approx(255 / 4, abs=2)
    ((images, _),) = read(image_folder(tmp_path), (20, 10), device=torch.device("cpu"))
    assert images[0, 0, 10].float().mean() > 250  # all its height, 20 of 80 pixels across
    assert images[0, 0, 0].float().mean() < 5


@pytest.mark.slow
def test_shards_lists_and_several_folders_are_evaluated_and_embedded(runs, tmp_path, capsys):
    run, photos = str(runs / "tir"), runs / "photos"
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for path in sorted(photos.rglob("*.jpg")):
            tar.add(path, f"{path.parent.name}/{path.name}")
    listed = "".join(f"{p}\t{p.parent.name}\n" for p in sorted(photos.rglob("*.jpg")))
    (tmp_path / "photos.txt").write_text(listed)
    accuracies, rows = [], []
    for words in (
        [str(photos)],
        [str(tmp_path / "photos.tar")],
        [str(tmp_path / "photos.txt")],
    ):
        main(["eval", "knn", run, "--data", *words, "--out", str(tmp_path / "knn.json")])
        saved = json.loads((tmp_path / "knn.json").read_text())
        assert saved["data"] == words[0]
        assert saved["class_images"] == {"a": [4, 1], "b": [3, 1]}
        assert saved["split"]["test"] == "every fifth image of a class"
        accuracies.append([row["accuracy"] for row in saved["scores"]])
        assert "2 classes (a, b), 7 training images" in capsys.readouterr().out
        file = tmp_path / f"{len(rows)}.safetensors"
        main(["embed", run, "--data", *words, "--out", str(file)])
        rows.append(load_file(file)["patch"])
    assert accuracies == [accuracies[0]] * 3
    assert all(torch.equal(part, rows[0]) for part in rows)
    both = ["--data", str(photos / "a"), str(photos / "b"), "--exclude", "astro*"]
    main(["embed", run, *both, "--out", str(tmp_path / "f.safetensors")])
    beside = json.loads((tmp_path / "f.safetensors.json").read_text())
    assert len(beside["files"]) == 8
    assert beside["exclude"] == ["astro*"]
    assert {name.split("/")[0] for name in beside["files"]} == {"a", "b"}
    main(["eval", "reconstruct", run, "--images", "8", "--data", str(tmp_path / "photos.tar"),
          "--out", str(tmp_path / "r.json")])  # fmt: skip
    assert json.loads((tmp_path / "r.json").read_text())["photographs"] == {"test": 1}
    main(["visualize", run, "--data", str(tmp_path / "photos.tar"), "--out", str(tmp_path / "v"),
          "--windows", "100"])  # fmt: skip
    assert (tmp_path / "v" / "pca.png").is_file()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:7", "--device: 'cuda:7' asked for, but torch sees no CUDA device: use cpu"),
        ("gpu", "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("cuda:x", "expected auto, cpu, cuda or cuda:N"),
    ],
)
@pytest.mark.parametrize("words", [["eval", "knn"], ["visualize"], ["eval", "rotnet"]])
def test_devices_that_are_not_there(runs, tmp_path, monkeypatch, capsys, words, device, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    run = [*words, str(runs / "tir"), "--data", str(runs / "photos"), "--device", device]
    with pytest.raises(SystemExit):
        main(run)
    assert message in capsys.readouterr().err


def test_of_several_gpus_one_is_chosen(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda i: f"GPU {i}")
    current = []
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    assert use_device("cuda:1") == torch.device("cuda:1") == current[0]
    assert use_device("cuda") == use_device("auto") == torch.device("cuda")
    with pytest.raises(ValueError, match=r"no cuda:2; .* has cpu, cuda:0 \(GPU 0\), cuda:1"):
        use_device("cuda:2")


def test_free_memory_is_the_devices(monkeypatch):
    pages = {name: os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE")}
    whole = pages["SC_PHYS_PAGES"] * pages["SC_PAGE_SIZE"]
    assert 0 < devices.free_memory(torch.device("cpu")) <= whole
    gpus = {None: (5, 80), 1: (7, 80)}  # without an index the current one; free, whole
    monkeypatch.setattr("torch.cuda.mem_get_info", gpus.get)
    assert devices.free_memory(torch.device("cuda")) == 5
    assert devices.free_memory(torch.device("cuda:1")) == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "equivariance", "nowhere"], "CHECKPOINT: nowhere does not exist"),
        (["eval", "equivarience", "RUN"], "did you mean 'equivariance'?"),
        (["eval", "equivariance", "RUN", "--data", "nowhere"], "nowhere does not exist"),
        (["eval", "equivariance", "RUN", "--epochs", "0"], "--epochs: expected >= 1, got 0"),
        (["eval", "equivariance", "RUN", "--train-pairs", "3"], "--train-pairs: expected >= 10"),
        (["eval", "knn", "RUN", "--data", "nowhere"], "nowhere does not exist"),
        (["eval", "knn", "RUN", "--data", "RUN"], "no image in"),
        (["eval", "knn", "RUN", "--data", "digits", "--crop", "2"], "--crop: expected 0 < share"),
        (["eval", "linear", "RUN", "--data", "digits", "--seeds", "0"], "--seeds: expected >= 1"),
        (["eval", "reconstruct", "RUN/model.safetensors"], "expected a run with method=tir"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "x.npy"], "--out: a .npy file holds one"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "x", "--features", "z"], "--features: exp"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "x.pt"], "--out: expected FILE.safetensors"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "x.NPY"], "--out: expected FILE.safetens"),
        (["embed", "RUN", "--data", "PHOTOS", "--out", "FILE/x"], "--out: FILE/x cannot be made"),
        (["visualize", "RUN", "--out", "FILE"], "--out: FILE cannot be made (File exists)"),
        (["report", "RUN", "--out", "FOLDER"], "--out: FOLDER cannot be written (it is a folder)"),
        (["eval", "knn", "RUN", "--data", "PHOTOS", "--out", "FOLDER"], "FOLDER cannot be written"),
        (["eval", "linear", "RUN", "--data", "PHOTOS", "--out", "FILE/x"], "FILE/x cannot be wri"),
        (["eval", "equivariance", "RUN", "--out", "FOLDER"], "--out: FOLDER cannot be written"),
        (["eval", "reconstruct", "RUN", "--out", "FOLDER"], "--out: FOLDER cannot be written"),
        (["eval", "rotnet", "RUN", "--data", "PHOTOS"], "expected a run with method=rotnet"),
        (["eval", "rotnet", "RUN", "--data", "PHOTOS", "--crop", "2"], "--crop: expected 0 < sha"),
        (["eval", "rotnet", "RUN"], "--data: expected folders of classes, shards, lists"),
        (["pretrain", "demo", "--data", "PHOTOS", "--run-dir", "FILE"], "a folder, FILE is a file"),
        (["eval", "knn", "broken_encoder:make", "--data", "PHOTOS"], "failed (KeyError: 'k')"),
    ],
)
def test_bad_input_is_named(runs, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FILE").write_text("not to be touched")
    (tmp_path / "broken_encoder.py").write_text("def make(device):\n    return {}['k']\n")
    places = {"RUN": str(runs / "tir"), "PHOTOS": str(runs / "photos")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"FOLDER", "FILE", "broken_encoder.py"}
    assert (tmp_path / "FILE").read_text() == "not to be touched"
    assert list((tmp_path / "FOLDER").iterdir()) == []
