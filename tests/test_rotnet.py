"""RotNet: networks, loss, metrics, a run through DALI, its evaluation."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.cli.main import main
from fastequi.config import Config
from fastequi.data.labelled import Labelled
from fastequi.data.sources import idx
from fastequi.data.sources.image_sets import image_folder
from fastequi.evaluate import class_probes as classes
from fastequi.evaluate import rotnet as rotation
from fastequi.evaluate.encoders import of_method
from fastequi.evaluate.rotnet import _few, block_features, class_scores, rotation_score
from fastequi.models.alexnet import AlexNet, AlexNetClassifier
from fastequi.models.nin import NetworkInNetwork
from fastequi.optim import WeightEMA, adamw
from fastequi.recipes import RECIPES
from fastequi.report.page import page
from fastequi.report.runs import read_run
from fastequi.runtime import checkpoint

CPU = torch.device("cpu")


def small(name="rotnet_vits16", **rotnet) -> Config:
    config = RECIPES[name]()
    return replace(
        config,
        model=replace(config.model, embed_dim=32, depth=1, num_heads=1, patch_size=8),
        data=replace(config.data, image_size=16, source_size=16, batch_size=8, num_threads=1),
        rotnet=replace(config.rotnet, **rotnet),
    )


def test_nin_is_the_papers():
    model = NetworkInNetwork(4)
    maps = model(torch.zeros(2, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (96, 16, 16), (192, 8, 8), (192, 8, 8), (192, 8, 8)
    ]  # fmt: skip
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0]) for c in convs] == [
        (192, 5), (160, 1), (96, 1), (192, 5), (192, 1), (192, 1),
        (192, 3), (192, 1), (192, 1), (192, 3), (192, 1), (192, 1),
    ]  # fmt: skip
    kinds = [type(m) for block in model.blocks for m in block]
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.ReLU) == len(convs)
    assert isinstance(model.blocks[0][-1], nn.MaxPool2d)
    assert isinstance(model.blocks[1][-1], nn.AvgPool2d)
    for blocks in (3, 5):
        assert len(NetworkInNetwork(blocks)(torch.zeros(1, 3, 32, 32))) == blocks
    with pytest.raises(ValueError, match=r"num_blocks: expected 3 \.\. 5, got 6"):
        NetworkInNetwork(6)


def test_alexnet_is_the_papers():
    model = AlexNet()
    maps = model(torch.zeros(1, 3, 224, 224))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 27, 27), (192, 13, 13), (384, 13, 13), (256, 13, 13), (256, 6, 6)
    ]  # fmt: skip
    head = AlexNetClassifier(4)
    widths = [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)]
    assert widths == [(9216, 4096), (4096, 4096), (4096, 4)]
    assert head.eval()(maps[-1]).shape == (1, 4)


@pytest.mark.parametrize("name", ["rotnet_nin_32", "rotnet_vits16"])
def test_loss_and_accuracies_are_those_of_the_four_rotations(name):
    config = small(name)
    torch.manual_seed(0)
    model = build(config).eval()
    batch = synthetic(config, 5, CPU)
    out = model(batch)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.data.mean, config.data.std))
    losses, right = [], {angle: [] for angle in (0, 90, 180, 270)}
    for image in batch.u:
        for k, angle in enumerate(right):
            rotated = torch.from_numpy(np.rot90(image.numpy(), k, (1, 2)).copy())
            logits = model.classify(((rotated.float() / 255 - mean) / std)[None])
            losses.append(F.cross_entropy(logits, torch.tensor([k])))
            right[angle].append(float(logits.argmax() == k))
    torch.testing.assert_close(out["loss"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    for angle, hits in right.items():
        assert out[f"accuracy_{angle}"].item() == pytest.approx(sum(hits) / 5)
    assert out["accuracy"].item() == pytest.approx(sum(map(sum, right.values())) / 20)


def test_one_rotation_each_as_an_option():
    config = small(all_rotations=False)
    torch.manual_seed(0)
    model = build(config)
    batch = synthetic(config, 6, CPU)
    seen = []
    model.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(batch)
    model(batch)
    assert [x.shape[0] for x in seen] == [6, 6]
    assert not torch.equal(seen[0], seen[1])  # rotations are drawn anew


def test_features_are_tokens_of_every_block():
    config = small("rotnet_nin_32")
    features = build(config).eval().features(torch.zeros(2, 3, 32, 32))
    shapes = {name: tuple(value.shape) for name, value in features.items()}
    assert shapes["block2"] == (2, 64, 192)
    assert list(shapes) == ["block1", "block2", "block3", "block4"]
    tokens = build(small()).eval().features(torch.zeros(2, 3, 16, 16))
    assert tokens["patch"].shape == (2, 4, 32)
    assert tokens["cls"].shape == (2, 1, 32)


def test_what_rotnet_cannot_do_is_refused():
    config = RECIPES["rotnet_nin_32"]()
    with pytest.raises(ValueError, match=r"data\.source_size: expected data.image_size=32"):
        replace(config, data=replace(config.data, source_size=48))
    with pytest.raises(
        ValueError, match=r"model\.name: expected a ViT or .* for method=tir, got nin"
    ):
        replace(Config(), model=config.model)
    with pytest.raises(ValueError, match=r"optim\.milestones: expected increasing"):
        replace(config, optim=replace(config.optim, milestones=(0.5, 0.2)))


def bars(n, size=28, seed=0):
    """Images that have an upright: bright above, dark below; the class is how wide the bar is."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n).astype(np.uint8)
    images = rng.integers(0, 60, (n, size, size)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2:6, 2 : 8 + 8 * label] += 150
    return images, labels


def write_idx(folder, sizes=(512, 200)):
    folder.mkdir(parents=True)
    for split, name, n in (("train", "train", sizes[0]), ("test", "t10k", sizes[1])):
        images, labels = bars(n, seed=n)
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim])
            head += b"".join(int(size).to_bytes(4, "big") for size in array.shape)
            data = head + array.tobytes()
            path = folder / f"{name}-{what}-ubyte"
            if split == "train":
                path = path.with_name(path.name + ".gz")
                data = gzip.compress(data)
            path.write_bytes(data)
    return folder


def test_idx_sets_become_files_once(tmp_path):
    folder = write_idx(tmp_path / "set")
    assert idx.is_idx_folder(folder)
    assert not idx.is_idx_folder(tmp_path)
    images, labels = idx.load(folder, "test")
    expected = bars(200, seed=200)
    np.testing.assert_array_equal(images, expected[0])
    np.testing.assert_array_equal(labels, expected[1])
    files = idx.as_files(folder, "train", tmp_path / "cache")
    source = image_folder(files)
    assert len(source) == 512
    assert source.names[3].endswith("000003.png")
    before = (files / "000" / "000003.png").stat().st_mtime_ns
    assert idx.as_files(folder, "train", tmp_path / "cache") == files
    assert (files / "000" / "000003.png").stat().st_mtime_ns == before
    with pytest.raises(FileNotFoundError, match="no train-images-idx3-ubyte"):
        idx.load(tmp_path, "train")
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\5abc")
    with pytest.raises(ValueError, match="3 bytes, expected 5"):
        idx.load(folder, "test")


@pytest.mark.slow
def test_a_run_on_an_idx_set_and_its_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rotation, "_CONV_STEPS", 3)
    monkeypatch.setattr(classes, "_PENALTIES", (1e-2,))
    pytest.importorskip("nvidia.dali")
    monkeypatch.setenv("FASTEQUI_CACHE", str(tmp_path / "cache"))
    folder, run = write_idx(tmp_path / "set"), tmp_path / "run"
    words = ["pretrain", "rotnet_vits16", "--data", str(folder), "--run-dir", str(run)]
    sizes = {"embed-dim": 48, "depth": 2, "num-heads": 2, "patch-size": 4, "drop-path": 0}
    words += [w for k, v in sizes.items() for w in (f"--model.{k}", str(v))]
    words += ["--data.image-size", "16", "--data.source-size", "16", "--data.batch-size", "32"]
    words += ["--optim.lr", "2e-3", "--optim.base-batch", "32", "--train.epochs", "6"]
    words += ["--train.knn-every", "60", "--train.knn-data", str(folder)]
    main([*words, "--train.log-every", "8"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 0  # the probe of what the run begins with
    assert rows[-1]["accuracy"] > 0.6 > 0.45 > rows[1]["accuracy"]
    assert rows[-1]["accuracy_90"] > 0.5
    assert rows[-1]["knn_k20"] > 0.5  # of the set's classes, on its test images
    assert sum("knn_k20" in row for row in rows) == 3
    main(["eval", "rotnet", str(run), "--data", str(folder), "--train-images", "300"])
    out = capsys.readouterr().out
    assert "rotations predicted correctly, 200 test images" in out
    assert "3 classes (0, 1, 2), 300 training images" in out
    found = json.loads((run / "eval_rotnet.json").read_text())
    assert (found["kind"], found["encoder"]) == ("rotnet", "run")
    chance, ours = found["rotation_accuracy"]
    assert (chance["is_baseline"], chance["accuracy"]) == (True, 0.25)
    assert (ours["encoder"], ours["is_baseline"]) == ("run", False)
    assert ours["accuracy"] > 0.6
    assert list(ours["by_rotation"]) == ["0", "90", "180", "270"]
    assert sum(ours["by_rotation"].values()) / 4 == pytest.approx(ours["accuracy"])
    counts = np.array(list(found["class_images"].values()))
    assert counts.sum(0).tolist() == [300, 200]
    baselines = {row["encoder"]: row["is_baseline"] for row in found["scores"]}
    assert baselines == {None: True, "random init": True, "run": False}
    shown = page([read_run(run)], {}, [], "")
    assert f"run {ours['accuracy']:.3f} (0° {ours['by_rotation']['0']:.3f}" in shown
    main(["eval", "knn", str(run), "--data", str(folder)])
    scores = json.loads((run / "eval_knn.json").read_text())["scores"]
    assert {row["features"] for row in scores if row["accuracy"] > 0.5} >= {"raw pixels"}
    with pytest.raises(SystemExit):
        main(["eval", "rotnet", str(tmp_path), "--data", str(folder)])
    assert "holds no config.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", "rotnett", str(run)])
    assert "did you mean 'rotnet'?" in capsys.readouterr().err


def leave(folder, config, method, ema=None):
    """A run's folder with one checkpoint."""
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    optimizer = adamw(method, 0.1, 0.1)
    taken = checkpoint.snapshot(1, model=method, optimizer=optimizer, state={}, ema=ema)
    checkpoint.write(folder / "checkpoints", taken)


@pytest.mark.slow
def test_its_evaluation_takes_what_the_others_take(tmp_path, monkeypatch, capsys):
    """EMA weights, folders of classes, --out, --against, --test-data."""
    monkeypatch.setattr(rotation, "_CONV_STEPS", 3)
    monkeypatch.setattr(classes, "_PENALTIES", (1e-2,))
    pytest.importorskip("nvidia.dali")
    config = small()
    for name in ("one", "two"):
        torch.manual_seed(1)
        method = build(config)
        ema = None
        if name == "one":  # the last weights would be an error: only the EMA is finite
            ema = WeightEMA(method, 0.5)
            with torch.no_grad():
                next(method.encoder.parameters()).fill_(float("nan"))
        leave(tmp_path / name, config, method, ema)
    for split, n in (("train", 30), ("test", 12)):
        images, labels = bars(n, 16, n)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert("RGB").save(folder / f"{i}.png")
    words = ["eval", "rotnet", str(tmp_path / "one"), "--data", str(tmp_path / "train")]
    words += ["--test-data", str(tmp_path / "test"), "--against", str(tmp_path / "two")]
    words += ["--device", "cpu"]
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path)])
    assert "cannot be written (it is a folder)" in capsys.readouterr().err
    main([*words, "--out", str(tmp_path / "new" / "r.json")])
    assert not (tmp_path / "one" / "eval_rotnet.json").exists()
    found = json.loads((tmp_path / "new" / "r.json").read_text())
    assert (found["train_images"], found["test_images"]) == (30, 12)
    assert list(found["class_images"]) == ["class0", "class1", "class2"]
    rows = {row["encoder"]: row for row in found["rotation_accuracy"]}
    assert list(rows) == [None, "two", "one"]
    # the same weights, of a run with and of one without an EMA
    assert rows["one"]["by_rotation"] == rows["two"]["by_rotation"]
    assert {row["encoder"] for row in found["scores"]} == {None, "random init", "two", "one"}
    other = replace(config, data=replace(config.data, image_size=24, source_size=24))
    leave(tmp_path / "three", other, build(other))
    with pytest.raises(SystemExit):
        main([*words, "--against", str(tmp_path / "three")])
    assert "--against: expected images of 16 px" in capsys.readouterr().err


def test_raw_pixels_are_averaged_to_32_px():
    images = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    pixels = rotation._raw_pixels(images)
    expected = F.avg_pool2d(images.float() / 255, 2).flatten(1)
    torch.testing.assert_close(pixels, expected)
    small = images[..., :16, :16]
    assert torch.equal(rotation._raw_pixels(small), small.float().flatten(1) / 255)


def test_rotation_accuracy_counts_every_rotation():
    config = small("rotnet_nin_32")
    torch.manual_seed(0)
    model = build(config).eval()
    images = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8)
    found = rotation_score("net", model, images, batch=3)
    logits = model.classify(model.rotated(images)).argmax(1).view(7, 4)
    for k, angle in enumerate(("0", "90", "180", "270")):
        expected = (logits[:, k] == k).float().mean().item()
        assert found.by_rotation[angle] == pytest.approx(expected)
    assert found.accuracy == pytest.approx((logits == torch.arange(4)).float().mean().item())


def test_weights_that_are_not_finite_are_no_chance_level():
    model = build(small()).eval()
    with torch.no_grad():
        next(model.encoder.parameters()).fill_(float("nan"))
    images = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(FloatingPointError, match="net: its features are not finite"):
        rotation_score("net", model, images)
    with pytest.raises(FloatingPointError, match="not finite"):
        block_features(model, images)


def test_few_label_probes_need_as_many_images(capsys):
    def some(*labels):
        return Labelled(torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8), torch.tensor(labels))

    assert _few(some(*[0, 1] * 50), some(0, 1)) == (10, 50)
    assert _few(some(*[0, 1] * 21), some(0, 1)) == (10,)
    assert "no probe of 50 labels a class: one has 21" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--train-images: 4 hold none of classes \[2\]"):
        _few(some(0, 1, 0, 1), some(0, 2))


@pytest.mark.slow  # trains ten probes; the run above trains those of a smaller network
def test_block_probes_read_classes_and_stand_beside_pixels(monkeypatch):
    monkeypatch.setattr(rotation, "_CONV_STEPS", 3)
    monkeypatch.setattr(classes, "_PENALTIES", (1e-2,))
    config = small("rotnet_nin_32")
    torch.manual_seed(0)
    model = build(config)

    def part(n):
        images, labels = bars(n, 32, n)
        images = torch.from_numpy(images)[:, None].repeat(1, 3, 1, 1)
        return Labelled(images, torch.from_numpy(labels).long())

    train, test = part(150), part(60)
    features = block_features(model.eval(), train.images)
    assert features["block2"].shape == (150, 192 * 36)  # 8x8 pooled to 6x6: at most 9,216
    assert features["block1"].shape == (150, 96 * 81)
    rows = class_scores({"net": of_method(model, config, "net")}, train, test, few=(5,))
    assert (rows[0].encoder, rows[0].features) == (None, "raw pixels")
    assert rows[0].accuracy > 0.9
    by_key = {(r.features, r.probe, r.labels_per_class): r for r in rows[1:]}
    shown = {("block2", "linear", 0), ("block4", "non-linear", 0), ("block2", "convolutional", 0)}
    assert set(by_key) >= shown
    assert by_key["block2", "linear", 0].accuracy > 0.8
    few = by_key["block2", "non-linear", 5]
    assert 0.3 < few.accuracy <= 1
    assert few.low < few.accuracy < few.high or few.accuracy in (0, 1)
