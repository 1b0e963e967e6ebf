"""One encoder from a run, a checkpoint, a file, a function."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fastequi import checkpoint
from fastequi.build import build
from fastequi.evaluate.encoders import Encoder, load_all, load_encoder, random_init
from fastequi.models.timm_names import timm_options
from fastequi.models.vit import VisionTransformer
from fastequi.optim import WeightAverage, adamw
from fastequi.recipes import RECIPES

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def config(**method):
    found = RECIPES["demo"]()
    return replace(
        found,
        model=replace(found.model, embed_dim=64, depth=1, num_heads=2, class_token=True),
        method=replace(found.method, **{"dim": 16, "equi_dim": 8, "expander": (16,), **method}),
    )


def run(folder, cfg, average=False, steps=(3,)):
    """A run folder with a checkpoint of weights unlike those it started from."""
    torch.manual_seed(7)
    method = build(cfg)
    kept = WeightAverage(method, 0.5) if average else None
    if kept is not None:
        torch.nn.init.ones_(method.encoder.pos_embed)
    folder.mkdir()
    (folder / "config.json").write_text(cfg.to_json())
    for step in steps:
        taken = checkpoint.snapshot(step, method, adamw(method, 0.1, 0.1), {}, kept)
        checkpoint.write(folder / "checkpoints", taken)
    return method.eval()


def test_a_run_and_its_checkpoints_give_the_methods_features(tmp_path):
    method = run(tmp_path / "a", config(), steps=(3, 5))
    for spec, name in (("a", "a"), ("a/checkpoints/step_00000003", "a/step_00000003")):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        encoder = load_encoder(str(tmp_path / spec), "cpu")
        assert torch.equal(torch.get_rng_state(), before)
        assert (encoder.name, encoder.names) == (name, ("patch", "z_inv", "z_equi", "cls"))
        assert (encoder.image_size, encoder.patch_size) == (32, 8)
        assert encoder.config == config()
        expected = method.features(IMAGES)
        for key, value in encoder.features(IMAGES).items():
            assert torch.equal(value, expected[key])
            assert not value.requires_grad
    fresh = random_init(encoder)
    torch.manual_seed(config().train.seed)
    started = build(config()).eval().features(IMAGES)
    assert torch.equal(fresh.features(IMAGES)["z_equi"], started["z_equi"])
    assert fresh.name == "random init"


def test_a_base_alone_has_no_z_equi_and_an_average_is_taken(tmp_path):
    run(tmp_path / "a", config(equi_dim=0), average=True)
    encoder = load_encoder(str(tmp_path / "a"), "cpu")
    assert encoder.names == ("patch", "z_inv", "cls")
    assert encoder.method.encoder.pos_embed.std() > 0  # the average, not the last weights


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"class_token": False}, {"class_token": False}),
        ({"reg_tokens": 4, "no_embed_class": True}, {"reg_tokens": 4, "no_embed_class": True}),
        ({"init_values": 0.1, "num_classes": 5, "qkv_bias": False}, {"num_classes": 5}),
    ],
)
def test_a_file_of_timm_names_says_its_architecture(tmp_path, options, expected):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    network = VisionTransformer(**sizes, **options).eval()
    (tmp_path / "net").mkdir()
    file = tmp_path / "net" / "vit.safetensors"
    save_file(network.state_dict(), file)
    read = timm_options(network.state_dict())
    assert {**read, **sizes, **expected} == read
    encoder = load_encoder(str(file), "cpu")
    prefix = network.num_prefix_tokens
    with torch.no_grad():
        tokens = network(IMAGES)
    torch.testing.assert_close(encoder.features(IMAGES)["patch"], tokens[:, prefix:])
    assert ("cls" in encoder.names) == options.get("class_token", True)
    assert encoder.name == "net/vit"
    assert not torch.equal(random_init(encoder).features(IMAGES)["patch"], tokens[:, prefix:])


def test_the_hubs_config_beside_a_file_says_its_normalisation(tmp_path):
    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=96, depth=1, num_heads=3)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="96 channels, so how many heads"):
        load_encoder(str(tmp_path / "model.safetensors"))
    hub = {"num_heads": 3, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(hub))
    encoder = load_encoder(str(tmp_path / "model.safetensors"), "cpu")
    with torch.no_grad():
        tokens = network.eval()(IMAGES)
    torch.testing.assert_close(encoder.features(IMAGES)["cls"], tokens[:, :1])
    assert (encoder.mean, encoder.std) == ((0.5,) * 3, (0.25,) * 3)


def test_a_runs_own_encoder_file_takes_its_settings_from_the_run(tmp_path):
    method = run(tmp_path / "a", config())  # heads of 32 channels: no shape says so
    save_file(method.encoder.state_dict(), tmp_path / "a" / "model.safetensors")
    encoder = load_encoder(str(tmp_path / "a" / "model.safetensors"), "cpu")
    expected = method.features(IMAGES)["patch"]
    torch.testing.assert_close(encoder.features(IMAGES)["patch"], expected)
    assert encoder.config == config()


def test_a_function_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "own_encoder.py").write_text(
        "from fastequi.evaluate.encoders import Encoder\n"
        "def mine(device):\n"
        "    return Encoder('mine', lambda x: {'patch': x.flatten(2)}, ('patch',), 16)\n"
        "def wrong(device):\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    encoder, encoders = load_all("own_encoder:mine", ["own_encoder:mine"], "cpu")
    assert isinstance(encoder, Encoder)
    assert list(encoders) == ["mine", "mine (2)"]
    assert encoder.name == "mine (2)"
    with pytest.raises(ValueError, match="mine gives no `fresh`"):
        random_init(load_encoder("own_encoder:mine", "cpu"))
    with pytest.raises(ValueError, match="returned int, expected a fastequi"):
        load_encoder("own_encoder:wrong", "cpu")
    with pytest.raises(ValueError, match="none cannot be imported"):
        load_encoder("own_encoder:none", "cpu")


def test_what_is_no_encoder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; expected a run's folder"):
        load_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(config().to_json())
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        load_encoder(str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="got the file"):
        load_encoder(str(tmp_path / "a.txt"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.safetensors").write_text("x")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_encoder(str(tmp_path / "b" / "b.safetensors"))
    save_file({"weight": torch.zeros(1)}, tmp_path / "b" / "c.safetensors")
    with pytest.raises(ValueError, match=r"no patch_embed\.proj\.weight, pos_embed"):
        load_encoder(str(tmp_path / "b" / "c.safetensors"))
    run(tmp_path / "c", config())
    (tmp_path / "c" / "config.json").write_text(config(dim=24).to_json())
    with pytest.raises(ValueError, match="weights do not fit"):
        load_encoder(str(tmp_path / "c"))
