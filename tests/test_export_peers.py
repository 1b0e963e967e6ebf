"""Exports opened by timm, transformers and onnxruntime, as the printed lines say."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastequi.export.subject import FOLDER
from tests.support.exported import (
    NETWORKS,
    OBSTACLES,
    encoder,
    images,
    run,
    tokens,
    write,
)
from tests.support.peers import close, package

pytestmark = pytest.mark.peers


def writable(to):
    return [name for name in NETWORKS if (name, to) not in OBSTACLES]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """transformers asks no server; the flag is read at import, which may have been earlier."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.socket.connect", _refuse)


def _refuse(*_):
    raise OSError("no network in tests")


@pytest.mark.parametrize("name", writable("timm"))
def test_timm_loads_the_folder_and_the_file_strictly(tmp_path, name):
    timm = package("timm")
    found, written = write(name, "timm", tmp_path / "out")
    x = images(found)
    scope = run(written, tmp_path / "out", images=x)
    close(scope["tokens"], tokens(found, x))
    assert not scope["encoder"].training
    line = written.notes[0].split("`")[1].replace(FOLDER, str(tmp_path / "out"))
    again = eval(line, {"timm": timm}).eval()
    close(tokens(again.forward_features, x), tokens(found, x))
    cfg = scope["encoder"].pretrained_cfg
    assert (tuple(cfg["mean"]), tuple(cfg["std"])) == (found.mean, found.std)


def photograph(height, width):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 7, width // 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(90, 124), (132, 64), (32, 32)])
def test_timms_own_transform_is_ours(tmp_path, size):
    """Where the crop begins at a whole pixel; timm rounds halves otherwise than transformers."""
    timm = package("timm")
    found, written = write("plain", "timm", tmp_path / "out")
    theirs = run(written, tmp_path / "out", images=images(found))["encoder"]
    made = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    image = photograph(*size)
    both = found.transform(image), made(image)
    levels = (both[0] - both[1]).abs() * torch.tensor(found.std)[:, None, None] * 255
    assert float(levels.max()) < 1.01


@pytest.mark.parametrize("name", writable("hf"))
def test_transformers_opens_the_folder_offline(tmp_path, name):
    transformers = package("transformers")
    found, written = write(name, "hf", tmp_path / "out")
    model, told = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    assert type(model).__name__ == written.what.split()[-1]
    x = images(found)
    with torch.no_grad():
        out = model.eval()(x)
    close(out.last_hidden_state, tokens(found, x))
    close(out.pooler_output, out.last_hidden_state[:, 0])


@pytest.mark.parametrize("size", [(90, 121), (131, 64), (20, 33), (32, 32)])
def test_the_processor_does_what_our_transform_does(tmp_path, size):
    package("transformers")
    found, written = write("plain", "hf", tmp_path / "out")
    image = photograph(*size)
    scope = run(written, tmp_path / "out", image=image)
    pixels = scope["processor"](image, return_tensors="pt")["pixel_values"]
    ours = found.transform(image)[None]
    levels = (pixels - ours).abs() * torch.tensor(found.std)[:, None, None] * 255
    assert float(levels.max()) < 1.01  # torchvision rounds otherwise than Pillow
    assert float(levels.mean()) < 0.2
    assert scope["tokens"].shape == (1, 17, 48)
    close(scope["tokens"], tokens(found, pixels))


def test_the_processor_of_pillow_does_exactly_what_our_transform_does(tmp_path):
    transformers = package("transformers")
    found, _ = write("plain", "hf", tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    for size in ((90, 121), (131, 64), (20, 33)):
        image = photograph(*size)
        pixels = processor(image, return_tensors="pt")["pixel_values"][0]
        close(torch.as_tensor(pixels), found.transform(image))


def test_a_processor_of_rectangles_only_normalises(tmp_path):
    package("transformers")
    found, written = write("rectangle", "hf", tmp_path / "out")
    image = photograph(24, 48)
    scope = run(written, tmp_path / "out", image=image)
    close(scope["tokens"], tokens(found, found.transform(image)[None]))


@pytest.mark.parametrize("name", ["plain", "registers apart", "rope swiglu", "no class"])
def test_onnxruntime_computes_the_tokens_of_all_sizes(tmp_path, name):
    package("onnxruntime")
    found, written = write(name, "onnx", tmp_path / "out")
    assert written.difference < 1e-5
    height, width = found.image_size
    for batch, size in ((1, (height, width)), (5, (height, width)), (2, (48, 24)), (1, (8, 8))):
        x = torch.randn(batch, 3, *size)
        outcome = run(written, tmp_path / "out", images=x.numpy())
        close(torch.from_numpy(outcome["tokens"]), tokens(found, x))
    model = package("onnx").load(tmp_path / "out/model.onnx")
    (about,) = (json.loads(p.value) for p in model.metadata_props if p.key == "fastequi")
    assert about["mean"] == list(found.mean)
    assert about["patch_size"] == found.patch_size


def test_a_graph_that_computes_other_tokens_is_refused(tmp_path, monkeypatch):
    package("onnxruntime")
    from fastequi.export import onnx

    found = encoder("plain")
    plain = onnx._Session.__call__
    monkeypatch.setattr(onnx._Session, "__call__", lambda self, x: plain(self, x) + 1e-3)
    with pytest.raises(RuntimeError, match="gives other tokens"):
        onnx.write(onnx.Subject.of(found), tmp_path)
