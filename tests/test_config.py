import json
import math
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest
import torch

from fastequi import paths
from fastequi.build import build, build_encoder
from fastequi.config import Config, ModelConfig, PathConfig
from fastequi.recipes import RECIPES
from fastequi.resuming import changes


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    config = RECIPES[name]()
    assert Config.from_json(config.to_json()) == config


def test_the_paper_recipe_is_the_papers():
    config = RECIPES["tir_vicreg_vits16"]()
    assert (config.model.name, config.model.patch_size) == ("vit_small", 16)
    assert (config.data.image_size, config.data.batch_size, config.train.epochs) == (224, 2048, 800)
    assert (config.tir.dim, config.tir.equi_dim, config.tir.num_steps) == (512, 256, 2)
    assert config.tir.recon_weight == 1
    weights = (config.tir.inv_weight, config.tir.var_weight, config.tir.cov_weight)
    assert weights == (10, 10, 1)
    assert config.peak_lr() == pytest.approx(1e-4 * 2048 / 256)
    assert config.path.build() == paths.SE2(45, 10)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"patch_size": 15}, "model.patch_size: expected a divisor of .*224, got 15"),
        ("tir", {"equi_dim": 600}, "tir.equi_dim: expected 0 .. tir.dim=512, got 600"),
        ("tir", {"num_steps": -1}, "tir.num_steps"),
        ("tir", {"expander": ()}, "tir.expander"),
        ("optim", {"lr": 0.0}, "optim.lr: expected > 0"),
        ("train", {"epochs": 0}, "train.epochs"),
        ("train", {"ema_momentum": 1.0}, "train.ema_momentum"),
        ("train", {"accumulate": 0}, "train.accumulate"),
        ("train", {"checkpoint_minutes": -1.0}, "train.checkpoint_minutes: expected >= 0, got -1"),
        ("train", {"checkpoint_every": -1}, "train.checkpoint_every: expected >= 0, got -1"),
        ("data", {"batch_size": 1}, "data.batch_size: expected at least 2.*=vicreg.*, got 1"),
        ("model", {"patch_size": 0}, "model.patch_size: expected >= 1, got 0"),
        ("model", {"embed_dim": 32, "num_heads": 3}, "model.num_heads: expected a divisor of .*32"),
        ("model", {"mlp_ratio": math.nan}, "model.mlp_ratio: expected > 0, got nan"),
        ("model", {"mlp": "geglu"}, "model.mlp: expected one of gelu, swiglu, got geglu"),
        ("model", {"mlp_hidden": 0}, "model.mlp_hidden: expected >= 1, got 0"),
        ("model", {"norm_eps": 0.0}, "model.norm_eps: expected > 0, got 0.0"),
        ("model", {"pos": None}, "model.pos: expected one of learned, rope, got None"),
        ("model", {"rope_rescale": 0.5}, "model.rope_rescale: expected >= 1, got 0.5"),
        ("model", {"rope_jitter": 0.0}, "model.rope_jitter: expected >= 1, got 0.0"),
        ("model", {"rope_shift": -0.1}, "model.rope_shift: expected >= 0, got -0.1"),
        ("model", {"rope_theta": math.inf}, "model.rope_theta: expected > 0, got inf"),
        (
            "model",
            {"pos": "rope", "embed_dim": 18, "num_heads": 3},
            "model.num_heads: expected heads of a multiple of 4 channels for model.pos=rope, .* 3",
        ),
        ("model", {"drop_path": 1.0}, "model.drop_path: expected 0 <= share < 1, got 1.0"),
        ("model", {"reg_tokens": -1}, "model.reg_tokens: expected >= 0, got -1"),
        ("tir", {"decoder_width": 0}, "tir.decoder_width: expected >= 1, got 0"),
        ("tir", {"expander": (8, 0)}, r"tir.expander: expected >= 1, got \(8, 0\)"),
        ("tir", {"var_weight": math.inf}, "tir.var_weight: expected >= 0, got inf"),
        ("tir", {"temperature": 0.0}, "tir.temperature: expected > 0, got 0.0"),
        ("path", {"degrees": -1.0}, "path.degrees: expected a finite half-range"),
        ("optim", {"lr": math.inf}, "optim.lr: expected > 0, got inf"),
        ("optim", {"clip": math.nan}, "optim.clip: expected >= 0, got nan"),
        ("optim", {"betas": (0.9, 1.0)}, r"optim.betas: expected 0 <= share < 1, got \(0.9, 1.0"),
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
        (
            "vicreg_vits16",
            "data",
            {"local_crops": 2},
            "data.local_crops: expected 0 for tir.base=vicreg",
        ),
        (
            "dino_vits16",
            "data",
            {"local_crop_size": 90},
            "model.patch_size: .*data.local_crop_size=90",
        ),
        (
            "gtsa_vits16",
            "data",
            {"image_size": 64, "source_size": 64},
            r"data.local_crop_size: .* half \(18\) .* the 16 of data.image_size=64, .* got 96",
        ),
        ("dino_vits16", "model", {"class_token": False}, "model.class_token: expected true"),
        ("ibot_vits16", "tir", {"equi_dim": 8192}, "tir.equi_dim: expected less than"),
        ("dino_vits16", "distill", {"teacher_temp": 0.0}, "distill.teacher_temp: expected > 0"),
        *(
            (
                "dino_vits16",
                "distill",
                {name: 1.1e6},
                rf"distill\.{name}: .* <= 1e\+06, got 1100000",
            )
            for name in ("student_temp", "teacher_temp", "first_teacher_temp")
        ),
        ("dino_vits16", "distill", {"momentum": 1.1}, "distill.momentum: expected 0 .. 1"),
        ("dinov2_vitl16", "optim", {"layer_decay": 0.0}, "optim.layer_decay"),
        ("dinov2_vitl16", "distill", {"prototypes": 0}, "distill.prototypes"),
        ("simclr_vits16", "data", {"batch_size": 1}, "data.batch_size: expected at least 2"),
        ("dinov2_vitl16", "data", {"batch_size": 1}, "data.batch_size: .*distill.koleo_weight > 0"),
        ("rotnet_nin_32", "model", {"name": "alexnet"}, "data.image_size: expected >= 63"),
        ("rotnet_nin_32", "optim", {"kind": "muon"}, "optim.kind: expected adamw or sgd for a net"),
        ("rotnet_nin_32", "model", {"num_blocks": 2}, "model.num_blocks: expected 3 .. 5, got 2"),
    ],
)
def test_what_a_base_cannot_do_is_refused_at_once(name, section, change, message):
    config = RECIPES[name]()
    with pytest.raises(ValueError, match=message):
        replace(config, **{section: replace(getattr(config, section), **change)})


def others(value):
    """Values of a setting's kind that are not this one."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value * 2, value + 1, 0]
        case float():
            return [value / 2, 0.0, 0.5]
        case str():
            return [
                "swiglu",
                "rope",
                "simclr",
                "pixel_shuffle",
                "vit_base",
                "nin",
                "alexnet",
                "sgd",
                "adamw",
                "cosine",
            ]
        case None:
            return [2, 64, "swiglu"]
        case tuple():
            return [(*value[:-1], value[-1] + 1)] if value else []
    return []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "tir_ibot_vits16", "gtsa_vits16", "rotnet_nin_32"])
def test_a_resumed_run_keeps_what_its_weights_are_made_for(name):
    """Every setting that changes a tensor's name or shape is refused, whatever it is called."""
    begun = RECIPES[name]()
    if begun.model.name.startswith("vit"):
        small = replace(begun.model, embed_dim=16, depth=1, num_heads=1)
        begun = replace(begun, model=small, gtsa=replace(begun.gtsa, dim=8, rotation_dims=(8, 8)))
    small = replace(
        begun.tir, dim=24, equi_dim=8, decoder_width=8, decoder_heads=1, decoder_convs=1
    )
    small = replace(small, expander=(8, 8), projector=(8, 8))
    sizes = replace(begun.distill, prototypes=8, hidden_dim=8, bottleneck_dim=8)
    begun = replace(begun, tir=small, distill=sizes)
    shapes, tried = shapes_of(begun), 0
    sections = "model", "data", "path", "tir", "distill", "gtsa", "rotnet", "anchor", "optim"
    for section in sections:
        for field in fields(getattr(begun, section)):
            for value in others(getattr(getattr(begun, section), field.name)):
                part = replace_or_none(getattr(begun, section), field.name, value)
                config = part and replace_or_none(begun, section, part)
                if config is None or shapes_of(config) == shapes:
                    continue
                tried += 1
                with pytest.raises(
                    ValueError, match=rf"^{section}\.{field.name}: expected .* --resume cannot"
                ):
                    changes(begun, config)
    assert tried >= 1
    assert changes(begun, begun) == {}
    assert changes(begun, replace(begun, optim=replace(begun.optim, lr=7.0))) == {
        "optim.lr": (begun.optim.lr, 7.0)
    }


def of_an_earlier_version(config):
    """Its config.json as it was written before these settings existed."""
    found = json.loads(config.to_json())
    new = ["mlp", "mlp_hidden", "qkv_bias", "norm_eps", "final_norm", "pos", "embed_class"]
    for name in (*new, *(f"rope_{word}" for word in ("theta", "rescale", "jitter", "shift"))):
        del found["model"][name]
    found["model"]["mlp_ratio"] = found["model"]["mlp_ratio"] or 4.0
    return Config.from_json(json.dumps(found))


@pytest.mark.parametrize("name", ["demo", "tir_ibot_vits16", "rotnet_nin_32"])
def test_a_run_of_an_earlier_version_goes_on(name):
    config = RECIPES[name]()
    begun = of_an_earlier_version(config)
    assert changes(begun, config) == {}
    assert shapes_of(begun) == shapes_of(config)
    model = replace(config.model, mlp_ratio=3.0)
    with pytest.raises(ValueError, match=r"model.mlp_ratio: expected .* cannot change, got 3.0"):
        changes(begun, replace(config, model=model))


@pytest.mark.parametrize("name", ["vit_so150m", "vit_huge_plus"])
def test_a_vit_with_a_ratio_of_its_own_keeps_it(name):
    begun = Config(model=ModelConfig(name))
    other = replace(begun, model=replace(begun.model, mlp_ratio=4.0))
    for one, two in ((begun, other), (other, begun)):
        with pytest.raises(ValueError, match=r"model.mlp_ratio: expected .* cannot change"):
            changes(one, two)


@pytest.mark.parametrize(
    ("setting", "value"), [("pos", "rope"), ("norm_eps", 1e-5), ("rope_theta", 1e4)]
)
def test_a_resumed_run_keeps_what_its_weights_mean(setting, value):
    config = Config()
    other = replace(config, model=replace(config.model, **{setting: value}))
    with pytest.raises(ValueError, match=f"model.{setting}: expected .*, which --resume cannot"):
        changes(config, other)


def test_what_is_not_said_of_a_size_is_as_its_name_says():
    def mlp_of(**model):
        with torch.device("meta"):
            encoder = build_encoder(ModelConfig(depth=1, **model), 32)
        mlp = encoder.blocks[0].mlp
        return type(mlp).__name__, mlp.fc2.in_features

    assert mlp_of() == ("Mlp", 4 * 384)
    assert mlp_of(mlp="swiglu") == ("SwiGLU", 1024)
    assert mlp_of(mlp_ratio=3.0) == ("Mlp", 3 * 384)
    assert mlp_of(name="vit_giant") == ("SwiGLU", 4096)
    assert mlp_of(name="vit_giant", mlp="gelu") == ("Mlp", 4 * 1536)
    assert mlp_of(name="vit_huge_plus") == ("SwiGLU", 5120)
    assert mlp_of(name="vit_so150m") == ("Mlp", 2304)
    assert mlp_of(name="vit_so150m", mlp_ratio=4.0) == ("Mlp", 4 * 896)
    assert mlp_of(name="vit_so150m", mlp_hidden=77) == ("Mlp", 77)


def test_an_encoder_is_what_its_settings_say():
    settings = {"qkv_bias": False, "norm_eps": 1e-5, "final_norm": False, "reg_tokens": 2}
    box = {"rope_theta": 50.0, "rope_rescale": 2.0, "rope_jitter": 1.5, "rope_shift": 0.25}
    with torch.device("meta"):
        model = ModelConfig(depth=1, pos="rope", embed_class=False, **settings, **box)
        encoder = build_encoder(model, 32)
        learned = build_encoder(replace(model, pos="learned", final_norm=True), 32)
    rope, block = encoder.rope, encoder.blocks[0]
    assert (rope.theta, rope.rescale, rope.jitter, rope.shift) == (50.0, 2.0, 1.5, 0.25)
    assert (encoder.pos_embed, block.attn.qkv.bias) == (None, None)
    assert block.norm1.eps == block.norm2.eps == learned.norm.eps == 1e-5
    assert isinstance(encoder.norm, torch.nn.Identity)
    assert learned.pos_embed.shape == (1, 4, 384)  # none of the class token and registers


def replace_or_none(section, name, value):
    try:
        return replace(section, **{name: value})
    except (ValueError, TypeError):  # or text for a number
        return None


def shapes_of(config):
    """Of a method's tensors; None of one that cannot be made."""
    try:
        with torch.device("meta"):
            method = build(config)
    except (ValueError, KeyError, ZeroDivisionError, RuntimeError, TypeError):
        return None
    return {name: tuple(value.shape) for name, value in method.state_dict().items()}


@pytest.mark.parametrize("base", ["dino_vits16", "ibot_vits16", "ibot_vitl16", "dinov2_vitl16"])
def test_a_recipe_and_its_base_differ_by_tir_alone(base):
    tir, alone = RECIPES[f"tir_{base}"](), RECIPES[base]()
    still = replace(tir.path, degrees=0.0, pixels=0.0)
    section = replace(tir.tir, num_steps=0, equi_dim=0)
    assert replace(tir, path=still, tir=section) == alone
    assert (tir.data.local_crops, tir.data.local_crop_size, tir.data.image_size) == (8, 96, 224)
    assert tir.optim.final_weight_decay == 0.4


def test_settings_of_an_earlier_version_are_refused_with_the_new_names():
    with pytest.raises(ValueError, match=r"an earlier version.*`system` is now `method`.*`tir`"):
        Config.from_json('{"system": "tir", "method": {"num_steps": 3}}')


def test_unknown_fields_in_json_are_named():
    with pytest.raises(ValueError, match=r"OptimConfig: unknown fields \['learning_rate'\]"):
        Config.from_json('{"optim": {"learning_rate": 1}}')


@pytest.mark.parametrize("family", get_args(get_type_hints(PathConfig)["family"]))
def test_every_family_builds_its_path(family):
    assert type(PathConfig(family).build()).__name__.lower() == family


def test_cuda_without_a_device_is_an_error(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = Config()
    with pytest.raises(ValueError, match="no CUDA device"):
        replace(config.train, device="cuda").resolved_device()
    assert config.train.resolved_device() == "cpu"


@pytest.mark.parametrize(
    ("section", "name"),
    [("model", "name"), ("path", "padding_mode"), ("optim", "kind"), ("", "method")],
)
def test_a_name_that_does_not_exist_is_refused_from_python_too(section, name):
    config = RECIPES["demo"]()
    part = replace(getattr(config, section), **{name: "nearest"}) if section else None
    changed = {section: part} if section else {name: "nearest"}
    where = f"{section}.{name}" if section else name
    with pytest.raises(ValueError, match=rf"^{where}: expected one of .*, got nearest"):
        replace(config, **changed)
