"""Weights of encoders of other channels than RGB: runs, starts, teachers."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fastequi.build import build
from fastequi.cli.pretraining import _pretrain_options
from fastequi.config import Config, InitConfig
from fastequi.models.vit import VisionTransformer
from fastequi.runtime import checkpoint
from fastequi.weights.architecture import Stated
from fastequi.weights.reader import load_weights
from fastequi.weights.start import start
from fastequi.weights.teachers import attach, with_teacher
from tests.support.channels import ONE_OR_FIVE, SEVERAL, several
from tests.support.configs import config_of

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 1}
MEANS = [0.1, 0.2, 0.3, 0.4, 0.5]


def published(folder, channels, **said):
    """Weights as somebody publishes them, a config.json beside."""
    torch.manual_seed(4)
    network = VisionTransformer(in_chans=channels, **SIZE)
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_heads": 1, "img_size": 32, **said}))
    return network


def starting(path, channels, kept=()) -> Config:
    config = several(config_of("vicreg_vits16"), channels)
    return replace(config, init=InitConfig(str(path), channels=kept))


@pytest.mark.parametrize("channels", SEVERAL)
def test_a_run_starts_from_weights_of_as_many_channels(channels, tmp_path):
    own = published(tmp_path / "w", channels)
    config = starting(tmp_path / "w", channels)
    method = build(config)
    start(method, config)
    found = method.encoder.patch_embed.proj.weight
    assert torch.equal(found, own.patch_embed.proj.weight)


@pytest.mark.parametrize(("own", "kept"), [(5, (3, 0)), (3, (0, 2)), (1, (0, 0))])
def test_a_run_starts_from_the_channels_that_are_named_in_the_order_of_its_own(own, kept, tmp_path):
    network = published(tmp_path / "w", own, mean=MEANS[:own], std=[0.5] * own)
    config = starting(tmp_path / "w", 2, kept)
    method = build(config)
    start(method, config)
    found = method.encoder.patch_embed.proj.weight
    assert torch.equal(found, network.patch_embed.proj.weight[:, list(kept)])


def test_other_channels_than_the_images_are_named_with_both_numbers(tmp_path):
    published(tmp_path / "three", 3)
    for channels in (2, 5):
        config = starting(tmp_path / "three", channels)
        said = rf"in_chans: expected {channels}, as images have, got 3; --init\.channels says"
        with pytest.raises(ValueError, match=said):
            start(build(config), config)
    published(tmp_path / "five", 5)
    rgb = replace(config_of("vicreg_vits16"), init=InitConfig(str(tmp_path / "five")))
    with pytest.raises(ValueError, match=r"expected 3, as images have, got 5; --init\.channels"):
        start(build(rgb), rgb)


def test_init_takes_the_normalisation_of_the_channels_that_are_kept(tmp_path):
    published(tmp_path / "five", 5, mean=MEANS, std=[0.5, 0.4, 0.3, 0.2, 0.1])
    words = ["vicreg_vits16", "--init", str(tmp_path / "five"), "--data.batch-size", "4"]
    kept = ["--init.channels", "4", "0"]
    config = _pretrain_options([*words, "--data.channels", "7,2", *kept])[1].config
    assert (config.data.mean, config.data.std) == ((0.5, 0.1), (0.1, 0.5))
    assert config.data.in_chans == 2
    whole = _pretrain_options([*words, "--data.channels", "0,1,2,3,4"])[1].config
    assert whole.data.mean == tuple(MEANS)
    every = _pretrain_options([*words, "--data.channels", "all"])[1].config
    assert every.data.mean == Config().data.mean  # it is measured, when their number is known
    with pytest.raises(ValueError, match=r"--init\.channels: expected 3, as images have, got 4 0"):
        _pretrain_options([*words, *kept])
    with pytest.raises(ValueError, match=r"in_chans: expected 2, as images have, got 5"):
        _pretrain_options([*words, "--data.channels", "7,2"])


@pytest.mark.parametrize("channels", ONE_OR_FIVE)
def test_a_teacher_has_the_channels_of_its_student(channels, tmp_path):
    published(tmp_path / "t", channels, mean=[0.5] * channels, std=[0.25] * channels)
    config = several(config_of("tir_distill_vits16"), channels)
    config = replace(config, teacher=replace(config.teacher, path=str(tmp_path / "t")))
    config, teacher = with_teacher(config)
    method = build(config)
    attach(method, teacher, torch.device("cpu"))
    images = torch.randn(2, channels, 32, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.data.mean, config.data.std))
    own = (images * std + mean - 0.5) / 0.25
    expected = teacher.encoder.forward_features(own).patch
    torch.testing.assert_close(teacher(images, (4, 4)).patch, expected, rtol=1e-4, atol=1e-4)


def test_a_teacher_of_other_channels_is_refused(tmp_path):
    published(tmp_path / "t", 3)
    config = several(config_of("tir_distill_vits16"), 2)
    config = replace(config, teacher=replace(config.teacher, path=str(tmp_path / "t")))
    said = r"--teacher\.path: .*in_chans: expected 2, as images have, got 3; only --data\.channels"
    with pytest.raises(ValueError, match=said):
        with_teacher(config)


@pytest.mark.parametrize("channels", ONE_OR_FIVE)
def test_what_a_run_leaves_is_read_with_its_channels(channels, tmp_path):
    config = several(config_of("vicreg_vits16"), channels)
    method = build(config)
    about = {"format": "pt", checkpoint.SETTINGS: config.to_json()}
    save_file(method.encoder.state_dict(), tmp_path / "model.safetensors", about)
    weights = load_weights(tmp_path / "model.safetensors")
    assert weights.options["in_chans"] == channels
    assert (weights.mean, weights.std) == (config.data.mean, config.data.std)
    assert weights.values == (config.data.channels, "dtype")
    assert weights.make().in_chans == channels
    grey = load_weights(tmp_path / "model.safetensors", Stated(channels=(0, 0, 0)))
    assert grey.options["in_chans"] == 3
    assert grey.values == ("", "")
