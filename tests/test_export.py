"""Exports read back by our own readers, what cannot be exported, the card, and `fastequi.load`."""

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fastequi
from fastequi.cli.main import main
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.evaluate.encoders import load_encoder
from fastequi.export import timm
from fastequi.export.job import FORMATS, export
from fastequi.export.subject import Subject
from fastequi.export.transform import ImageTransform
from fastequi.models import vit
from fastequi.recipes import RECIPES
from fastequi.weights.architecture import Stated
from tests.support import exported, made_up
from tests.support.configs import config_of, run_folder, small_demo
from tests.support.exported import NETWORKS, OBSTACLES, encoder, images, tokens, write
from tests.support.peers import close

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("to", ["timm", "meta", "hf"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_written_is_read_again_as_the_same_network(tmp_path, name, to):
    if (name, to) in OBSTACLES:
        assert OBSTACLES[name, to] in FORMATS[to].obstacle(Subject.of(encoder(name)))
        return
    assert FORMATS[to].obstacle(Subject.of(encoder(name))) is None
    found, written = write(name, to, tmp_path / to)
    assert written.difference < 1e-5
    if to == "timm" and name in ("rope", "no norm"):  # only its config.json tells what it is
        return
    again = fastequi.load(tmp_path / to)
    x = images(found)
    close(tokens(again, x), tokens(found, x))
    assert (again.mean, again.std) == (exported.MEAN, exported.STD)


@pytest.mark.parametrize("name", ["plain", "registers", "rope swiglu", "no class"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_takes_any_batch_and_one_size(tmp_path, name):
    found, written = write(name, "torchscript", tmp_path / "script")
    script = exported.run(written, tmp_path / "script", images=images(found))["encoder"]
    for batch in (1, 5):
        x = images(found, batch)
        close(tokens(script, x), tokens(found, x))
    height, width = found.image_size
    with pytest.raises(RuntimeError):
        script(torch.zeros(1, 3, height + 8, width + 8))
    assert f"images of {height}x{width} px" in written.notes[0]


@pytest.mark.slow(every=3)
@pytest.mark.parametrize("name", ["plain", "registers apart", "rope swiglu"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_load_gives_is_exported_with_a_dynamic_batch(name):
    found = encoder(name)
    shapes = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(found, (images(found),), dynamic_shapes=shapes).module()
    for batch in (1, 3, 7):
        x = images(found, batch)
        close(tokens(program, x), tokens(found, x))


@pytest.mark.parametrize("recipe", ["tir_simclr_vits16", "tir_dinov2_vitl16", "gtsa_vits16"])
def test_a_runs_encoder_gives_the_tokens_that_evaluations_see(tmp_path, recipe):
    """The teacher's, whose weights take no gradient in the run."""
    run = run_folder(tmp_path / "run", config_of(recipe))
    found, evaluated = fastequi.load(run), load_encoder(str(run), "cpu")
    x = images(found)
    patch = evaluated.features(x)["patch"]
    close(found.forward_features(x).patch, patch)
    close(found(x)[:, found.num_prefix_tokens :], patch)
    assert not found.training
    assert not any(module.training for module in found.modules())
    assert all(param.requires_grad for param in found.parameters())
    config = evaluated.config.data
    assert (found.mean, found.std) == (config.mean, config.std)
    assert found.image_size == (config.image_size, config.image_size)


def test_only_vits_are_loaded(tmp_path, monkeypatch):
    run = run_folder(tmp_path / "nin", RECIPES["rotnet_nin_32"]())
    with pytest.raises(ValueError, match=r"CHECKPOINT: expected a ViT, got NetworkInNetwork"):
        fastequi.load(run)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.py").write_text(
        "from fastequi.evaluate.encoders import Encoder\n"
        "def encoder(device):\n"
        "    return Encoder(name='own', features=lambda x: {'patch': x.flatten(2)},\n"
        "                   names=('patch',), image_size=8)\n"
    )
    with pytest.raises(ValueError, match="expected a ViT, got a function's"):
        fastequi.load("own:encoder")


def gradients(height, width):
    """An image whose values tell the place, [H, W, 3] uint8."""
    y, x = np.mgrid[:height, :width]
    across, down = (x + 0.5) * 255 / width, (y + 0.5) * 255 / height
    return np.stack([across, down, (x + y) % 7 * 30], -1).round().astype(np.uint8)


def test_an_image_of_the_right_size_is_only_normalised():
    pixels = gradients(24, 48)
    transform = ImageTransform((24, 48), exported.MEAN, exported.STD)
    expected = (pixels / 255 - exported.MEAN) / exported.STD
    expected = torch.from_numpy(expected).permute(2, 0, 1).float()
    close(transform(Image.fromarray(pixels)), expected)
    close(transform(torch.from_numpy(pixels).permute(2, 0, 1)), expected)


@pytest.mark.parametrize("size", [(90, 120), (131, 64), (20, 33), (64, 64)])
@pytest.mark.parametrize("wanted", [(32, 32), (24, 48)])
def test_the_centre_of_the_covering_image_is_taken(size, wanted):
    """Positions in the image, read from its values, are those of the formula."""
    pixels = gradients(*size)
    transform = ImageTransform(wanted, (0, 0, 0), (1, 1, 1))
    found = transform(Image.fromarray(pixels))
    assert found.shape == (3, *wanted)
    scale = max(wanted[0] / size[0], wanted[1] / size[1])
    for channel, axis in ((0, 1), (1, 0)):  # red grows with the column, green with the row
        line = found[channel].mean(1 - axis)
        places = (torch.arange(wanted[axis]) + 0.5 - wanted[axis] / 2) / (scale * size[axis]) + 0.5
        pixel = 1 / (scale * size[axis])  # the crop begins at a whole one; at edges weights end
        assert float((line - places).abs().max()) < 0.75 * pixel + 1 / 255
    batch = torch.from_numpy(pixels).permute(2, 0, 1).expand(2, 1, -1, -1, -1)
    of_tensor = transform(batch)
    assert of_tensor.shape == (2, 1, 3, *wanted)
    assert float((of_tensor[1, 0] - found).abs().max()) <= 1 / 255 + 1e-6  # one grey level


def test_images_of_all_modes_are_turned_upright_and_to_rgb(tmp_path):
    transform = ImageTransform((16, 16), (0, 0, 0), (1, 1, 1))
    pixels = gradients(16, 16)
    turned = Image.fromarray(np.rot90(pixels).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    expected = torch.from_numpy(pixels / 255).permute(2, 0, 1).float()
    close(transform(Image.open(tmp_path / "turned.png")), expected)
    grey = transform(Image.fromarray(pixels[..., 0]))
    close(grey, expected[:1].expand(3, -1, -1))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 3)), TypeError, "expected one of Pillow's or a uint8 tensor, got ndarray"),
        (torch.zeros(3, 4, 4), TypeError, "image: expected uint8, got torch.float32"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), ValueError, r"expected \[..., 3, H, W\], got"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), ValueError, r"got \[3, 0, 4\]"),
    ],
)
def test_other_things_than_images_are_named(image, error, message):
    with pytest.raises(error, match=message):
        ImageTransform((8, 8), (0, 0, 0), (1, 1, 1))(image)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with made-up figures, whose encoder has a class token."""
    config = small_demo()
    config = replace(
        config,
        model=replace(config.model, class_token=True),
        init=replace(config.init, path="/home/someone/start.pth", sha256="0123abcd"),
    )
    machine = {**made_up.MACHINE, "commit": "abc1234+"}
    folder = tmp_path_factory.mktemp("runs") / "mine"
    made_up.evaluated(made_up.make_run(folder, 60, config, machine))
    run_folder(folder, config)
    (folder / "config.json").write_text(config.to_json("demo"))
    (folder / "images.jsonl").write_text('["a.jpg", 10, 10]\n' * 1234)
    return folder


def test_the_card_says_what_the_runs_folder_holds(run, tmp_path):
    text = (export(str(run), "hf", tmp_path / "out") / "README.md").read_text()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for said in (
        "# mine",
        "library_name: transformers",
        "- recipe: demo",
        "- method: TIR on VICReg, SE(2) path",
        "- started from: start.pth, SHA-256 0123abcd\n",
        "- images: 1,234",
        "- batch: 64 images",
        "- steps: 60, to epoch 3",
        "- commit: abc1234+",
        "- versions: torch 2.13.0",
        f"Logged at step 60: loss {rows[-1]['loss']:.3g}, recon {rows[-1]['recon']:.3g}.",
        "| mean R² of se2 | 0.57 | patch; strongest baseline 0.35 |",
        "| accuracy | 0.891 | patch, knn, k=20;",
        "| gain of predicted pixels, dB | +1.8 |",
        'AutoModel.from_pretrained("FOLDER")',
        "license:",
    ):
        assert said in text, said
    assert "someone" not in text
    assert "apache" not in text.lower()


def test_the_card_of_a_step_has_no_figures_of_later_ones(run):
    step = run / "checkpoints/step_00000001"
    folder = export(str(step), "torchscript")
    assert folder == run / "export-torchscript-step_00000001"
    text = (folder / "README.md").read_text()
    assert "# mine/step_00000001" in text
    assert "Logged at" not in text
    assert "No evaluation lies in its folder." in text
    (step / "eval_knn.json").write_text((run / "eval_knn.json").read_text())
    assert "| accuracy | 0.891 |" in (export(str(step), "torchscript") / "README.md").read_text()


def test_of_a_file_the_card_says_that_nothing_is_known(tmp_path):
    file = vit_file(tmp_path / "plain")
    folder = export(str(file), "timm")
    assert folder == tmp_path / "plain/export-timm"
    text = (folder / "README.md").read_text()
    assert "What it was trained on is not known here." in text
    assert "Figures" not in text


def test_a_classifier_is_left_out(tmp_path):
    file = vit_file(tmp_path / "classes", head=True)
    found = fastequi.load(file)
    assert not any(name.startswith("head") for name in found.network.state_dict())
    folder = export(str(file), "timm")
    assert not any(name.startswith("head") for name in load_file(folder / "model.safetensors"))
    x = images(found)
    close(tokens(found, x), tokens(encoder("plain"), x))


def vit_file(folder, name="plain", head=False):
    folder.mkdir()
    found = encoder(name)
    classes = {"head.weight": torch.ones(5, 48), "head.bias": torch.ones(5)} if head else {}
    save_file({**found.network.state_dict(), **classes}, folder / "vit.safetensors")
    size = list(found.image_size)
    (folder / "config.json").write_text(json.dumps({"num_heads": 4, "img_size": size}))
    return folder / "vit.safetensors"


def test_an_earlier_export_is_replaced_and_nothing_else(run, tmp_path, capsys):
    folder = tmp_path / "out"
    main(["export", str(run), "--to", "timm", "--out", str(folder)])
    said = capsys.readouterr().out
    assert f'encoder = timm.create_model("local-dir:{folder}", pretrained=True).eval()' in said
    (folder / "model.safetensors").write_bytes(b"")
    (folder / ".git").mkdir()
    main(["export", str(run), "--to", "timm", "--out", str(folder)])
    assert (
        load_file(folder / "model.safetensors").keys()
        == fastequi.load(run).network.state_dict().keys()
    )
    assert sorted(os.listdir(folder)) == [".git", "README.md", "config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["out"]
    capsys.readouterr()

    def refused(*words):
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        with pytest.raises(SystemExit):
            main(["export", *map(str, words)])
        after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        assert before == after
        return capsys.readouterr().err

    expected = "expected a new folder, or an earlier export --to hf, got"
    assert expected in refused(run, "--to", "hf", "--out", folder)
    (folder / "notes.txt").write_text("mine")
    assert "which holds notes.txt" in refused(run, "--to", "timm", "--out", folder)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    assert "which holds config.json" in refused(run, "--to", "timm", "--out", bare)
    assert "got the file" in refused(run, "--to", "timm", "--out", bare / "config.json")
    assert "another folder than that of CHECKPOINT" in refused(run, "--to", "hf", "--out", run)
    assert "--to: expected one of timm, meta, hf, onnx, torchscript" in refused(run)
    assert "--to: expected one of" in refused(run, "--to", "coreml")


def test_a_network_that_a_format_lacks_is_refused_with_those_that_have_it(tmp_path, capsys):
    file = vit_file(tmp_path / "bare", "no class")
    with pytest.raises(SystemExit):
        main(["export", str(file), "--to", "hf"])
    said = capsys.readouterr().err
    assert "--to hf: transformers' ViTs have a class token, this network has none" in said
    assert said.strip().endswith("expected one of timm, onnx, torchscript")


def test_what_computes_other_tokens_is_not_kept(run, tmp_path, monkeypatch):
    plain = timm.save_tensors

    def damaged(file, state, about):
        plain(file, {**state, "norm.bias": state["norm.bias"] + 0.01}, about)

    monkeypatch.setattr(timm, "save_tensors", damaged)
    with pytest.raises(RuntimeError, match=r"gives other tokens \(difference .*e-03, expected at"):
        export(str(run), "timm", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_in_python_errors_name_what_python_takes(tmp_path):
    network = vit.vit_tiny(img_size=32, embed_dim=100, depth=1, num_heads=5)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"num_heads: .* expected stated=Stated\(num_heads=...\)"):
        fastequi.load(tmp_path / "vit.safetensors")
    for wrong, message in (
        ({"num_heads": 0}, "num_heads: expected an integer >= 1, got 0"),
        ({"patch_size": 0}, "patch_size: expected an integer >= 1, got 0"),
        ({"img_size": (70,)}, r"img_size: expected \(height, width\) in pixels, got \(70,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Stated(**wrong)
    stated = Stated(num_heads=5)
    assert fastequi.load(tmp_path / "vit.safetensors", stated).network.blocks[0].attn.num_heads == 5


@pytest.mark.skipif(importlib.util.find_spec("onnx") is not None, reason="onnx is installed")
def test_onnx_says_what_to_install(run, tmp_path):
    with pytest.raises(ImportError, match=r"pip install 'fastequi\[onnx\]'"):
        export(str(run), "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_readmes_lines_work(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text().partition("## A finished encoder")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "runs/mine", RECIPES["demo"]())
    Image.open(embedded_photos().paths[0]).save(tmp_path / "photo.jpg")
    scope: dict[str, torch.Tensor] = {}
    exec(code, scope)
    assert scope["images"].shape == (1, 3, 32, 32)
    assert scope["tokens"].shape == (1, 16, 128)
    expected = load_encoder("runs/mine", "cpu").features(scope["images"])
    assert {"z_inv", "z_equi"} <= expected.keys()
    close(scope["tokens"], expected["patch"])
