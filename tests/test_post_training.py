"""Runs that go on from weights: the recipes, and all safeguards at once on several processes."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("nvidia.dali")

from fastequi.build import build, build_encoder
from fastequi.cli.main import main
from fastequi.config import AnchorConfig, Config
from fastequi.evaluate import online
from fastequi.loop import rates_at
from fastequi.models import vit
from fastequi.recipes import FROM_WEIGHTS, RECIPES
from tests.support.runs import PHOTOS, rows, run, same

TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 1}


def weights(file, **options):
    """A small ViT's file, as timm's tensors."""
    torch.manual_seed(3)
    network = vit.vit_tiny(**TINY_VIT, mlp_ratio=2.0, **options)
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.05 * torch.randn_like(param))
    save_file(network.state_dict(), file)
    return network.state_dict()


@pytest.mark.parametrize("name", FROM_WEIGHTS)
def test_a_recipe_has_every_safeguard(name):
    config = RECIPES[name]()
    rates = {p: rates_at(p, config) for p in (0.0, 0.099, 0.1, 0.15, 1.0)}
    factors = [factor for _, _, factor in rates.values()]
    assert factors == pytest.approx([0, 0, 0, 0.015, 0.015])
    # DINOv3's 3e-5 for 4,096 images, by the square root rule at this batch
    peak = config.peak_lr() * config.optim.encoder_lr
    assert peak == pytest.approx(3e-5 * (config.data.batch_size / 4096) ** 0.5)
    assert config.optim.layer_decay == 0.9
    assert config.distill.momentum == 0.999
    assert config.anchor.kind != "none"
    assert config.train.stop_if_worse > 0
    assert config.train.r2_every
    assert config.tir.num_steps == 2
    assert config.tir.equi_dim
    with torch.device("meta"):
        method = build(config)
    assert method.anchor is not None
    assert method.base.student.equi_dim == config.tir.equi_dim


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        # facebookresearch/dinov2: dinov2_vits14_pretrain.pth, at its 518 px
        (
            "tir_post_vits14",
            518,
            {
                "patch_embed.proj.weight": (384, 3, 14, 14),
                "pos_embed": (1, 1370, 384),
                "blocks.11.ls2.gamma": (384,),
                "blocks.11.mlp.fc1.weight": (1536, 384),
            },
        ),
        # bytedance/ibot and facebookresearch/dino: their ViT-B/16
        (
            "tir_post_vitb16",
            224,
            {
                "patch_embed.proj.weight": (768, 3, 16, 16),
                "pos_embed": (1, 197, 768),
                "blocks.11.attn.qkv.bias": (2304,),
            },
        ),
    ],
)
def test_a_recipes_encoder_is_the_published_one(name, side, expected):
    with torch.device("meta"):
        state = build_encoder(RECIPES[name]().model, side).state_dict()
    assert {key: tuple(state[key].shape) for key in expected} == expected
    assert ("blocks.0.ls1.gamma" in state) == ("blocks.11.ls2.gamma" in expected)
    assert "blocks.12.norm1.weight" not in state


def small(recipe, data, file, run_dir, *more):
    words = f"pretrain {recipe} --data {data} --run-dir {run_dir} --init {file}"
    words += " --model.num-heads 1"
    sizes = "--data.image-size 32 --data.source-size 32 --data.local-crop-size 16"
    sizes += " --data.batch-size 8 --data.local-crops 2 --data.repeat 8 --data.num-threads 1"
    sizes += " --tir.dim 40 --tir.equi-dim 16 --tir.decoder-width 8 --tir.decoder-convs 1"
    sizes += " --distill.prototypes 16 --distill.hidden-dim 16 --distill.bottleneck-dim 8"
    sizes += " --train.epochs 1 --train.log-every 1 --train.r2-every 2 --train.no-tensorboard"
    sizes += " --train.device cpu"
    return [*words.split(), *sizes.split(), *more]


@pytest.fixture
def short_probe(monkeypatch):
    """Few pairs: their figures are not looked at."""
    monkeypatch.setattr(online, "_TRAIN_PAIRS", 64)
    monkeypatch.setattr(online, "_TEST_PAIRS", 16)


@pytest.mark.parametrize("recipe", FROM_WEIGHTS)
def test_a_recipe_goes_on_from_weights(tmp_path, short_probe, recipe):
    """Frozen for the first step, probed from before it; what it leaves is a plain encoder."""
    begun = weights(tmp_path / "vit.safetensors")
    words = small(recipe, PHOTOS, tmp_path / "vit.safetensors", tmp_path / "run")
    main([*words, "--max-steps", "2", "--train.checkpoint-every", "1"])
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == [0, 1, 2]
    assert [row["step"] for row in found if "r2_patch_mean" in row] == [0, 2]
    assert "anchor" in found[1]
    assert load_file(tmp_path / "run" / "model.safetensors").keys() == begun.keys()
    for step in (1, 2):  # of nine: a tenth of the run is frozen
        file = tmp_path / "run" / "checkpoints" / f"step_0000000{step}" / "model.safetensors"
        state = load_file(file)
        same_as_begun = {
            torch.equal(state[f"base.student.encoder.{key}"], value) for key, value in begun.items()
        }
        assert same_as_begun == {True} if step == 1 else False in same_as_begun


def test_without_weights_a_recipe_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "tir_post_vits14", "--data", PHOTOS, "--run-dir", f"{tmp_path}/run"])
    assert stopped.value.code == 2
    assert (
        "--init: expected the weights that tir_post_vits14 goes on from" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_the_anchor_and_the_teacher_are_the_weights(tmp_path, short_probe):
    begun = weights(tmp_path / "vit.safetensors")
    words = small("tir_post_vitb16", PHOTOS, tmp_path / "vit.safetensors", tmp_path / "run")
    main([*words, "--max-steps", "1", "--optim.lora-rank", "2"])
    state = load_file(tmp_path / "run" / "checkpoints" / "step_00000001" / "model.safetensors")
    for part in ("anchor.frozen.", "base.student.encoder.", "base.teacher.encoder."):
        for key, value in begun.items():
            assert torch.equal(state[f"{part}{key}"], value), key


ALL = [
    *("--tir.base", "ibot", "--data.mask-share", 0.5, "--model.class-token"),
    *("--optim.kind", "adamw", "--optim.lr", 1e-3, "--train.precision", "fp32"),
    *("--optim.freeze-encoder", 0.035, "--optim.encoder-lr", 0.5, "--optim.layer-decay", 0.9),
    *("--anchor.kind", "cosine", "--distill.momentum", 0.9),
]
WAYS = {
    "all": ALL,
    "adapters": [*ALL, "--optim.lora-rank", 2],
    "sharded": [*ALL, "--train.parallel", "fsdp"],
}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["all", "adapters", "sharded"])
def test_on_two_processes_it_resumes_to_the_same_bits(tmp_path, way):
    """Stopped in the frozen share, and after it; the file of weights is gone by then."""
    file = tmp_path / "vit.safetensors"
    begun = weights(file)
    for name, stops in (("whole", (6,)), ("parts", (2, 6))):
        for stop in stops:
            if stop == stops[0]:
                weights(file)
                more = ["--init", file]
            else:
                file.unlink()
                more = ["--resume"]
            where = ["--run-dir", tmp_path / name, "--max-steps", stop]
            done = run(*where, *WAYS[way], *more, processes=2)
            assert done.returncode == 0, done.stderr
            ended = load_file(tmp_path / name / "model.safetensors")
            frozen = [torch.equal(ended[key], value) for key, value in begun.items()]
            assert all(frozen) == (stop == 2)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_settings_of_a_section_survive():
    config = Config(anchor=AnchorConfig("cosine", 0.5))
    assert Config.from_json(config.to_json()) == config
    assert replace(config, anchor=AnchorConfig()) == Config()
