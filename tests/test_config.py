from dataclasses import replace

import pytest

from fastequi import paths
from fastequi.config import Config, PathConfig
from fastequi.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    config = RECIPES[name]()
    assert Config.from_json(config.to_json()) == config


def test_the_paper_recipe_is_the_papers():
    config = RECIPES["tir_vicreg_vits16"]()
    assert (config.model.name, config.model.patch_size) == ("vit_small", 16)
    assert (config.data.image_size, config.data.batch_size, config.train.epochs) == (224, 2048, 800)
    assert (config.method.dim, config.method.equi_dim, config.method.num_steps) == (512, 256, 2)
    assert config.method.recon_weight == 1
    weights = (config.method.inv_weight, config.method.var_weight, config.method.cov_weight)
    assert weights == (10, 10, 1)
    assert config.peak_lr() == pytest.approx(1e-4 * 2048 / 256)
    assert config.path.build() == paths.SE2(45, 10)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"patch_size": 15}, "model.patch_size: expected a divisor of .*224, got 15"),
        ("method", {"equi_dim": 600}, "method.equi_dim: expected 0 .. method.dim=512, got 600"),
        ("method", {"num_steps": -1}, "method.num_steps"),
        ("method", {"expander": ()}, "method.expander"),
        ("optim", {"lr": 0.0}, "optim.lr: expected > 0"),
        ("train", {"epochs": 0}, "train.epochs"),
        ("train", {"average_momentum": 1.0}, "train.average_momentum"),
        ("train", {"accumulate": 0}, "train.accumulate"),
    ],
)
def test_what_cannot_work_is_refused_at_once(section, change, message):
    config = Config()
    with pytest.raises(ValueError, match=message):
        replace(config, **{section: replace(getattr(config, section), **change)})


@pytest.mark.parametrize(
    ("name", "section", "change", "message"),
    [
        ("ibot_vits16", "data", {"mask_share": 0.0}, "data.mask_share: expected > 0 .*=ibot"),
        ("dino_vits16", "data", {"mask_share": 0.5}, "data.mask_share: expected 0 .*=dino"),
        ("vicreg_vits16", "data", {"crops": 2}, "data.crops: expected 0 for method.base=vicreg"),
        ("dino_vits16", "data", {"crop_size": 90}, "model.patch_size: .*data.crop_size=90"),
        ("dino_vits16", "model", {"class_token": False}, "model.class_token: expected true"),
        ("ibot_vits16", "method", {"equi_dim": 8192}, "method.equi_dim: expected less than"),
        ("dino_vits16", "distill", {"teacher_temp": 0.0}, "distill.teacher_temp: expected > 0"),
        ("dino_vits16", "distill", {"momentum": 1.1}, "distill.momentum: expected 0 .. 1"),
        ("dinov2_vitl16", "optim", {"layer_decay": 0.0}, "optim.layer_decay"),
        ("dinov2_vitl16", "distill", {"prototypes": 0}, "distill.prototypes"),
    ],
)
def test_what_a_base_cannot_do_is_refused_at_once(name, section, change, message):
    config = RECIPES[name]()
    with pytest.raises(ValueError, match=message):
        replace(config, **{section: replace(getattr(config, section), **change)})


@pytest.mark.parametrize("base", ["dino_vits16", "ibot_vits16", "ibot_vitl16", "dinov2_vitl16"])
def test_a_recipe_and_its_base_differ_by_tir_alone(base):
    tir, alone = RECIPES[f"tir_{base}"](), RECIPES[base]()
    still = replace(tir.path, degrees=0.0, pixels=0.0)
    method = replace(tir.method, num_steps=0, equi_dim=0)
    assert replace(tir, path=still, method=method) == alone
    assert (tir.data.crops, tir.data.crop_size, tir.data.image_size) == (8, 96, 224)
    assert tir.optim.final_weight_decay == 0.4


def test_unknown_fields_in_json_are_named():
    with pytest.raises(ValueError, match=r"OptimConfig: unknown fields \['learning_rate'\]"):
        Config.from_json('{"optim": {"learning_rate": 1}}')


@pytest.mark.parametrize("family", ["se2", "rotation", "translation", "color", "blur"])
def test_every_family_builds_its_path(family):
    assert type(PathConfig(family).build()).__name__.lower() == family


def test_cuda_without_a_device_is_an_error(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = Config()
    with pytest.raises(ValueError, match="no CUDA device"):
        replace(config.train, device="cuda").resolved_device()
    assert config.train.resolved_device() == "cpu"
