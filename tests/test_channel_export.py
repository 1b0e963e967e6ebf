"""Exports of encoders of other channels than RGB, read back; the transform and the card."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import fastequi
from fastequi.evaluate.encoders import load_encoder
from fastequi.export.job import export
from fastequi.export.transform import ImageTransform
from tests.support.channels import ONE_OR_FIVE, SEVERAL, several
from tests.support.configs import config_of, run_folder
from tests.support.exported import tokens
from tests.support.peers import close


def run_of(folder, channels, value_range="dtype"):
    config = several(config_of("vicreg_vits16"), channels, value_range=value_range)
    return run_folder(folder, config), config


@pytest.mark.parametrize("channels", SEVERAL)
@pytest.mark.parametrize("to", ["timm", "meta", "hf"])
def test_an_export_is_read_again_with_its_channels(to, channels, tmp_path):
    run, config = run_of(tmp_path / "run", channels, "10:900")
    encoder, folder = fastequi.load(run), export(str(run), to, tmp_path / to)
    found = fastequi.load(folder)
    images = torch.randn(2, channels, 32, 32)
    assert found.in_chans == channels
    close(tokens(found, images), tokens(encoder, images))
    assert (found.mean, found.std) == (config.data.mean, config.data.std)
    assert (found.channels, found.value_range) == (config.data.channels, "10:900")
    assert load_encoder(str(folder), "cpu").channels == config.data.channels
    said = json.loads((folder / "config.json").read_text())
    if to == "timm":
        assert said["pretrained_cfg"]["input_size"] == [channels, 32, 32]
        assert said["model_args"]["in_chans"] == channels
    if to == "hf":
        assert said["num_channels"] == channels
        assert not (folder / "preprocessor_config.json").exists()  # it would make RGB of them


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_takes_the_channels(tmp_path):
    run, _ = run_of(tmp_path / "run", 5)
    folder = export(str(run), "torchscript", tmp_path / "script")
    images = torch.randn(3, 5, 32, 32)
    script = torch.jit.load(folder / "model.pt")
    close(tokens(script, images), tokens(fastequi.load(run), images))


def test_the_card_says_which_values_are_expected(tmp_path):
    run, _ = run_of(tmp_path / "run", 2, "0:4095,10:900")
    text = (export(str(run), "timm", tmp_path / "out") / "README.md").read_text()
    assert "Images: 2 channels, in this order those that a file counts from 0 as 0, 1" in text
    assert "0:4095,10:900 (lower and upper end" in text
    assert "RGB" not in text
    assert '`fastequi.data.read_image(FILE, "0,1")` reads them' in text
    run, _ = run_of(tmp_path / "other", 1)
    text = (export(str(run), "meta", tmp_path / "meta") / "README.md").read_text()
    assert "all that the type holds (0..255, 0..65535, of floats 0..1) becomes 0..1" in text


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.float32])
def test_the_transform_takes_every_depth_of_several_channels(kind):
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)
    transform = ImageTransform((16, 16), mean, std, "0,1,2,3,4")
    unit = torch.rand(2, 5, 24, 32)
    top = 1 if kind.is_floating_point else torch.iinfo(kind).max
    image = unit if top == 1 else (unit * top).round().int().to(kind)
    found = transform(image)
    small = F.interpolate(unit, (16, 21), mode="bilinear", antialias=True)[..., 2:18]
    m, s = (torch.tensor(v)[:, None, None] for v in (mean, std))
    near = {torch.uint8: 5e-2, torch.uint16: 1e-3, torch.float32: 1e-5}[kind]
    torch.testing.assert_close(found, (small - m) / s, atol=near, rtol=0)


def test_the_transform_takes_the_numbers_of_files():
    """As a run does: what is outside the range becomes its ends, the range 0..1."""
    transform = ImageTransform((4, 4), (0.1, 0.2), (0.5, 0.4), "3,1", "100:300,-1:1")
    raw = torch.tensor([[0.0, 100, 200, 400], [-2, -1, 0.5, 1.5]])
    expected = torch.tensor([[0, 0, 0.5, 1], [0, 0, 0.75, 1]])
    image = raw[..., None].expand(2, 4, 4)
    want = (expected[..., None] - torch.tensor([0.1, 0.2])[:, None, None]) / torch.tensor(
        [0.5, 0.4]
    )[:, None, None]
    torch.testing.assert_close(transform(image), want.expand(2, 4, 4))
    spoiled = torch.tensor([[200.0, 1e9], [0.5, -1e9]])[:, None].repeat(1, 8, 4)  # halves of cells
    ends = torch.tensor([[0.75], [0.375]])[..., None].expand(2, 4, 4)
    mean, std = torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.4])
    want = (ends - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(transform(spoiled)[..., 1:3], want[..., 1:3], atol=0.3, rtol=0)
    torch.testing.assert_close(transform(spoiled).mean((1, 2)), want.mean((1, 2)))
    whole = image.clamp(0).round().to(torch.int32)
    kinds = torch.uint16, torch.int16, torch.int32, torch.float16, torch.bfloat16, torch.float64
    for kind in kinds:
        torch.testing.assert_close(transform(whole.to(kind)), transform(whole.float()))


def test_floats_in_unit_range_are_told_of_a_range_in_the_files_numbers(caplog):
    """As who divided them already gives them; once, and not of values of the range."""
    transform = ImageTransform((4, 4), (0.1, 0.2), (0.5, 0.4), "3,1", "0:4095")
    transform(torch.rand(2, 8, 8) * 4000)
    transform(torch.zeros(2, 8, 8, dtype=torch.int16))
    assert not caplog.records
    for _ in range(2):
        transform(torch.rand(2, 8, 8))
    (record,) = caplog.records
    assert "floats in 0..1 are nearly 0 in the range 0:4095" in record.getMessage()
    ImageTransform((4, 4), (0.1,), (0.5,), "0", "-1:1")(torch.rand(1, 8, 8))
    assert len(caplog.records) == 1


def test_the_transform_refuses_other_images():
    transform = ImageTransform((16, 16), (0.1, 0.2), (0.5, 0.4), "3,1", "0:4095")
    assert "'3,1', '0:4095'" in repr(transform)
    with pytest.raises(TypeError, match=r"a tensor \[\.\.\., 2, H, W\] of the channels 3,1, got"):
        transform(Image.new("RGB", (20, 20)))
    with pytest.raises(TypeError, match=r"fastequi\.data\.read_image\(FILE, '3,1'\) gives it"):
        transform(Image.new("RGB", (20, 20)))
    with pytest.raises(ValueError, match=r"expected \[\.\.\., 2, H, W\], got \[3, 20, 20\]"):
        transform(torch.zeros(3, 20, 20, dtype=torch.uint8))
    with pytest.raises(
        TypeError, match=r"expected uint8, uint16, int16, int32 or floats .*, got .*64"
    ):
        transform(torch.zeros(2, 20, 20, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"value_range: expected numbers, got percentiles"):
        ImageTransform((16, 16), (0.1,), (0.5,), "3", "percentiles")
    rgb = ImageTransform((16, 16), (0.1, 0.2, 0.3), (0.5, 0.4, 0.3))
    with pytest.raises(TypeError, match=r"expected uint8, got torch\.uint16"):
        rgb(torch.zeros(3, 20, 20, dtype=torch.uint16))


def by_onnxruntime(folder, images):
    from onnxruntime import InferenceSession

    session = InferenceSession(folder / "model.onnx")
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def by_timm(folder, images):
    import timm

    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return network.forward_features(images).detach()


def by_transformers(folder, images):
    from transformers import AutoModel

    network = AutoModel.from_pretrained(folder).eval()
    return network(pixel_values=images).last_hidden_state.detach()


_OPENED = {"timm": by_timm, "hf": by_transformers, "onnx": by_onnxruntime}


@pytest.mark.peers
@pytest.mark.parametrize("channels", ONE_OR_FIVE)
@pytest.mark.parametrize("to", ["timm", "hf", "onnx"])
def test_other_libraries_open_an_export_of_other_channels(to, channels, tmp_path):
    pytest.importorskip({"hf": "transformers"}.get(to, to))
    run, _ = run_of(tmp_path / "run", channels)
    folder = export(str(run), to, tmp_path / to)
    images = torch.randn(2, channels, 32, 32)
    expected = tokens(fastequi.load(run), images)
    close(_OPENED[to](folder, images), expected)
