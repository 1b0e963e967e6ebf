"""Networks and methods of images with other channels than RGB; u of 8 and of 16 bits."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastequi import paths
from fastequi.build import build, build_network
from fastequi.cli.dryrun import dry_run, synthetic
from fastequi.cli.main import main
from fastequi.config import Config, DataConfig, InitConfig, ModelConfig, PathConfig
from fastequi.evaluate.encoders import load_encoder
from fastequi.functional import rot90_batch
from fastequi.functional.normalise import normalise
from fastequi.methods.distillation import FrozenTeacher
from fastequi.methods.tir import TIR
from fastequi.models.foreign_names import create
from fastequi.models.vit import VisionTransformer
from fastequi.weights.teachers import attach
from tests.support import science
from tests.support.channels import SEVERAL, several
from tests.support.configs import config_of, run_folder

CPU = torch.device("cpu")
RECIPES = {
    "vicreg": "tir_vicreg_vits16",
    "simclr": "tir_simclr_vits16",
    "dino": "tir_dino_vits16",
    "ibot": "tir_ibot_vits16",
    "dinov2": "tir_dinov2_vitl16",
    "distillation": "tir_distill_vits16",
    "gtsa": "gtsa_vits16",
    "rotnet": "rotnet_vits16",
}


def built(config):
    """The method of a config, with a small teacher where it has one."""
    torch.manual_seed(0)
    if config.method != "tir" or config.tir.base != "distillation":
        return build(config)
    teacher = replace(config.teacher, embed_dim=16, class_token=True)
    method = build(replace(config, teacher=teacher))
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    data, encoder = config.data, VisionTransformer(in_chans=config.data.in_chans, **size)
    attach(method, FrozenTeacher(encoder, data.mean, data.std, data.mean, data.std), CPU)
    return method


@pytest.mark.parametrize("channels", SEVERAL)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_method_learns_from_every_channel(recipe, channels):
    config = several(config_of(recipe), channels)
    method, batch = built(config), synthetic(config, 4, CPU)
    assert batch.v1.shape[1] == channels
    assert batch.u.dtype == torch.uint16
    first = method(batch)["loss"]
    first.backward()
    weight = method.backbone.patch_embed.proj.weight
    assert weight.shape[1] == channels
    assert torch.all(weight.grad.abs().sum((0, 2, 3)) > 0)  # of each channel
    with torch.no_grad():
        method.backbone.patch_embed.proj.weight -= 1e-2 * weight.grad
    method.before_step(0.0)
    method.after_step(0.0)
    method.eval()
    tokens = method.features(batch.v1)["patch"]
    assert tokens.isfinite().all()
    other = batch.v1.clone()
    other[:, -1] += 1
    assert not torch.equal(tokens, method.features(other)["patch"])  # it sees the last one


@pytest.mark.parametrize("recipe", [RECIPES["vicreg"], RECIPES["gtsa"], "rotnet_nin_32"])
def test_sixteen_bits_that_are_eight_give_the_same_loss(recipe):
    config = several(config_of(recipe), 5)
    method, batch = built(config).eval(), synthetic(config, 4, CPU)
    eight = torch.randint(256, batch.u.shape, dtype=torch.uint8)
    sixteen = (eight.int() * 257).to(torch.uint16)
    both = [method(replace(batch, u=u))["loss"] for u in (eight, sixteen)]
    torch.testing.assert_close(*both, rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ["se2", "gain", "blur"])
@pytest.mark.parametrize("decoder", ["patch", "blocks", "pixel_shuffle"])
def test_every_decoder_predicts_every_channel_along_every_path(family, decoder):
    config = several(config_of(RECIPES["vicreg"]), 2, family=family)
    config = replace(config, tir=replace(config.tir, decoder=decoder, decoder_width=32))
    method, batch = built(config), synthetic(config, 4, CPU)
    method(batch)["loss"].backward()
    found = method.eval().reconstruct(batch)
    assert found["pred"].shape == found["target"].shape == (4, 2, 2, 32, 32)
    error = (found["pred"] - found["target"]).square().mean()
    torch.testing.assert_close(method(batch)["recon"], error, rtol=1e-4, atol=0)
    if family == "gain":  # by hand: x (1 + gain k / 3) + offset k / 3
        assert batch.path.shape == (4, 4)
        unit = normalise(batch.u, (0.0, 0.0), (1.0, 1.0))
        for k in (1, 2):
            gain, offset = batch.path[:, :2] * k / 3, batch.path[:, 2:] * k / 3
            moved = unit * (1 + gain)[..., None, None] + offset[..., None, None]
            expected = normalise(moved, config.data.mean, config.data.std)
            torch.testing.assert_close(found["target"][:, k - 1], expected, rtol=1e-4, atol=1e-4)


def test_the_settings_of_a_gain_path_are_those_of_the_path():
    config = PathConfig("gain", gain=0.3, offset=0.2)
    assert config.build(2) == paths.Gain(channels=2, gain=0.3, offset=0.2)
    assert config.build() == paths.Gain(channels=3, gain=0.3, offset=0.2)
    with pytest.raises(ValueError, match=r"path\.gain: expected a finite half-range >= 0, got -1"):
        Config(path=PathConfig("gain", gain=-1.0))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("turns", [None, torch.tensor([3, 0])])
def test_uint16_images_turn_as_floats_do(kind, turns, backend):
    images = torch.randint(65536, (2, 5, 9, 9), dtype=torch.int32).to(torch.uint16)
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)
    found = rot90_batch(images, turns=turns, mean=mean, std=std, dtype=kind)
    x = normalise(images.double() / 65535, mean, std)
    every = torch.stack([torch.rot90(x, k, (2, 3)) for k in range(4)], 1)
    expected = every.flatten(0, 1) if turns is None else every[torch.arange(2), turns]
    near = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-6}[kind]
    torch.testing.assert_close(found.double(), expected.double(), rtol=near, atol=near)


@pytest.mark.parametrize("name", ["nin", "alexnet", "vit_tiny"])
def test_a_network_has_the_channels_that_it_is_asked_for(name):
    network = build_network(ModelConfig(name), 64, 2)
    first = next(p for p in network.parameters() if p.ndim == 4 and p.shape[2] > 1)
    assert first.shape[1] == 2
    images = torch.randn(1, 2, 64, 64)
    out = network(images)
    out = out[-1] if isinstance(out, list) else out
    assert out.isfinite().all()
    assert out.std() > 0


class TwoChannels(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 8, 8, 8))


def test_a_function_may_return_a_network_of_any_channels():
    name = f"{__name__}:TwoChannels"
    encoder = create(name, 32, 2)
    assert encoder.in_chans == 2
    assert encoder.forward_features(torch.randn(1, 2, 64, 64)).patch.shape == (1, 64, 8)
    with pytest.raises(ValueError, match=r"\[1, 5, 32, 32\].* of 5 input channels, as data.chann"):
        create(name, 32, 5)


@pytest.mark.parametrize("recipe", [RECIPES["simclr"], "rotnet_vits16"])
def test_a_run_of_another_packages_network_is_built_trained_and_evaluated(recipe, tmp_path):
    config = several(config_of(recipe), 2)
    config = replace(config, model=ModelConfig(f"{__name__}:TwoChannels"))
    method, batch = build(config), synthetic(config, 4, CPU)
    method(batch)["loss"].backward()
    assert torch.all(method.backbone.wrapped[0].weight.grad.abs().sum((0, 2, 3)) > 0)
    encoder = load_encoder(str(run_folder(tmp_path / "run", config)), "cpu")
    assert encoder.features(batch.v1)["patch"].shape == (4, 16, 8)


def test_a_path_of_colours_needs_rgb():
    several(config_of(RECIPES["vicreg"]), 3, family="color")  # three channels may be RGB
    with pytest.raises(ValueError, match=r"path\.family: expected gain, .*data\.channels=0,1"):
        several(config_of(RECIPES["vicreg"]), 2, family="color")


def test_init_channels_are_as_many_as_the_images():
    data = DataConfig(channels="4,2", mean=(0.1, 0.2), std=(0.1, 0.2))
    assert Config(data=data, init=InitConfig(channels=(1, 0))).init.channels == (1, 0)
    for channels, bad in (("4,2", (0, 1, 2)), ("rgb", (0, 1))):
        data = DataConfig(channels=channels)
        with pytest.raises(ValueError, match=rf"init\.channels: expected .*channels={channels} "):
            Config(data=data, init=InitConfig(channels=bad))
    assert Config(data=DataConfig(channels="all"), init=InitConfig(channels=(0, 1))).init.channels


def test_a_normalisation_of_other_channels_is_refused_where_a_network_is_built():
    config = replace(Config(), data=DataConfig(channels="0,1,2,3,4", batch_size=4))
    with pytest.raises(ValueError, match=r"data\.mean: expected 5 values, one for each of data.ch"):
        build(config)
    with pytest.raises(ValueError, match="channels: expected rgb or numbers"):
        build(replace(config, data=replace(config.data, channels="all")))


def test_a_dry_run_shows_the_sizes_of_its_channels(capsys):
    config = config_of(RECIPES["vicreg"])
    patch, width = config.model.patch_size, config.model.embed_dim
    counts = []
    for channels in (3, 5):
        numbers = ",".join(map(str, range(channels)))
        one = replace(config, data=replace(config.data, channels=numbers))
        dry_run(one)  # with nothing scanned
        said = capsys.readouterr().out
        assert f"channels={numbers}" in said
        assert "saved activations" in said
        method = build(several(one, channels))
        assert isinstance(method, TIR)
        counts.append([sum(p.numel() for p in n.parameters()) for n in (method.encoder, method)])
        assert all(f"{count:,}" in said for count in counts[-1])
    assert counts[1][0] - counts[0][0] == 2 * patch**2 * width
    with pytest.raises(ValueError, match=r"--data\.channels: expected .* without --data, got all"):
        dry_run(replace(config, data=replace(config.data, channels="all")))


def test_a_dry_run_of_all_channels_asks_the_images(tmp_path, capsys):
    pytest.importorskip("nvidia.dali")
    contents = {f"{i}.npy": science.npy(science.values(5, "uint16", i)) for i in range(4)}
    place = str(science.write(tmp_path / "set", contents))
    main(["data", "scan", place])
    main(["pretrain", "demo", "--dry-run", "--data", place, "--data.channels", "all"])
    said = capsys.readouterr().out
    assert "channels=0,1,2,3,4" in said
    assert "not read by --dry-run" not in said
