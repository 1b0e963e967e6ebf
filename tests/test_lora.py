"""LoRA: the adapted network against its formula, and what a run of it leaves."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

pytest.importorskip("nvidia.dali")

from fastequi.build import build, build_encoder
from fastequi.config import Config, ModelConfig, OptimConfig
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.evaluate.encoders import load_encoder
from fastequi.models import lora, vit
from fastequi.optim import param_groups
from fastequi.train import pretrain
from tests.support.configs import config_of, tensors
from tests.support.runs import FSDP, SGD, expect_close, run, same, whole_and_parts

LAYERS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


def small(**options):
    torch.manual_seed(0)
    size = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
    return vit.vit_tiny(**size, **options).double()


def learned(**options):
    """An encoder whose adapters are not zero, and the same before it had any."""
    plain = small(**options)
    encoder = small(**options)
    lora.adapt(encoder, 3, 6.0)
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            if "lora" in name:
                p.normal_(generator=torch.Generator().manual_seed(len(name)))
    return encoder, plain


@pytest.mark.parametrize("options", [{}, {"mlp": "swiglu", "pos": "rope", "qkv_bias": False}])
def test_merged_equals_unmerged(options):
    """By the formula in NumPy, as a state dict and in place."""
    encoder, plain = learned(**options)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    by_hand = {name: value.numpy().copy() for name, value in plain.state_dict().items()}
    own = {name: value.detach().numpy() for name, value in encoder.named_parameters()}
    for i in range(2):
        for layer in LAYERS:
            name = f"blocks.{i}.{layer}"
            change = np.einsum("or,ri->oi", own[f"{name}.lora_b"], own[f"{name}.lora_a"])
            by_hand[f"{name}.weight"] += 6.0 / 3 * change
    before = encoder(images)
    state = lora.merged(encoder.state_dict(), 6.0)
    assert state.keys() == by_hand.keys()
    for name, value in state.items():
        np.testing.assert_allclose(value.numpy(), by_hand[name], rtol=1e-13, atol=1e-13)
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(images), before, rtol=1e-11, atol=1e-11)
    lora.merge(encoder)
    assert not any("lora" in name for name, _ in encoder.named_parameters())
    assert torch.equal(encoder(images), plain(images))
    assert lora.merged(state, 6.0).keys() == state.keys()


def test_at_first_it_is_the_network_bit_for_bit_and_only_adapters_learn():
    encoder, plain, images = small(), small(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    lora.adapt(encoder, 4, 4.0)
    assert torch.equal(encoder(images), plain(images))
    encoder(images).square().sum().backward()
    assert {name for name, p in encoder.named_parameters() if p.grad is not None} == {
        f"blocks.{i}.{layer}.lora_{factor}" for i in (0, 1) for layer in LAYERS for factor in "ab"
    }
    bound = 1 / 16**0.5  # loralib's kaiming_uniform_(a=sqrt(5))
    a = encoder.blocks[0].attn.qkv.lora_a
    assert a.shape == (4, 16)
    assert bound / 2 < a.abs().max() <= bound


def test_a_plain_networks_weights_load_as_what_they_are():
    """And those of an adapted one do not pass for a plain one's."""
    encoder, _ = learned()
    other = vit.vit_tiny(embed_dim=16, depth=2, num_heads=2, img_size=32, patch_size=8).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    adapted = encoder.state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict(adapted)
    encoder.load_state_dict(other.state_dict())
    assert torch.equal(encoder(images), other(images))
    half = {name: value for name, value in adapted.items() if not name.endswith("lora_b")}
    with pytest.raises(RuntimeError, match=r"Missing key.*lora_b"):
        encoder.load_state_dict(half)


def test_rank_0_changes_nothing():
    encoder = small()
    lora.adapt(encoder, 0, 1.0)
    assert all(p.requires_grad for p in encoder.parameters())
    assert not any(isinstance(part, lora.LoRALinear) for part in encoder.modules())
    with pytest.raises(ValueError, match="rank: expected an integer >= 0, got -1"):
        lora.adapt(encoder, -1, 1.0)
    with pytest.raises(ValueError, match=r"alpha: expected .*> 0, got 0"):
        lora.adapt(encoder, 2, 0.0)


def test_adapters_have_their_blocks_rate():
    encoder = small()
    lora.adapt(encoder, 2, 2.0)
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(2, 2)})
    rates = {}
    for group in param_groups(model, 0.1, encoder, layer_decay=0.5):
        rates |= {id(p): group["lr_scale"] for p in group["params"]}
    found = {name: rates.get(id(p)) for name, p in model.named_parameters()}
    assert found["encoder.blocks.1.mlp.fc1.lora_a"] == 0.5
    assert found["encoder.blocks.0.attn.qkv.lora_b"] == 0.25
    assert found["encoder.blocks.0.attn.qkv.weight"] is None
    assert found["head.weight"] == 1


def adapted(name, **optim) -> Config:
    config = config_of(name, precision="fp32")
    return replace(
        config,
        model=replace(config.model, depth=2),
        optim=replace(config.optim, lr=0.01, lora_rank=2, **optim),
    )


@pytest.mark.parametrize(
    "name", ["tir_vicreg_vits16", "tir_ibot_vits16", "gtsa_vits16", "rotnet_vits16"]
)
def test_a_run_leaves_a_plain_encoder_under_timms_names(tmp_path, name):
    config, source = adapted(name), embedded_photos()
    torch.manual_seed(config.train.seed)
    begun = {key: value.clone() for key, value in build(config).state_dict().items()}
    method = pretrain(config, source, tmp_path / "run", max_steps=3)
    run_dir, now = tmp_path / "run", method.state_dict()
    of_blocks = [key for key in now if ".encoder." in key or "_encoder." in key or "network" in key]
    for key in of_blocks:
        # of the teacher the first factor moves as well, by its own small share
        assert torch.equal(now[key], begun[key]) == ("lora_" not in key), key
    for key in now.keys() - {*of_blocks}:
        assert not torch.equal(now[key], begun[key]) or not now[key].is_floating_point(), key
    optimizer = tensors(run_dir / "checkpoints" / "step_00000003", "optimizer")
    with_state = {key.split(".", 1)[1] for key in optimizer}
    assert with_state.isdisjoint({key for key in of_blocks if "lora_" not in key})
    encoder = build_encoder(config.model, config.data.image_size).eval()
    encoder.load_state_dict(load_file(run_dir / "model.safetensors"))  # strictly
    size = config.data.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = method.encoder(images)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
    from_run, from_file = (
        load_encoder(str(p), "cpu") for p in (run_dir, run_dir / "model.safetensors")
    )
    patch = from_file.features(images)["patch"]
    assert torch.equal(from_run.features(images)["patch"], patch)
    torch.testing.assert_close(patch, encoder.forward_features(images).patch)


def test_the_teachers_adapters_follow_the_students():
    config = adapted("tir_ibot_vits16")
    method = build(config)
    student, teacher = method.base.student.encoder, method.base.teacher.encoder
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            if p.requires_grad:
                p.add_(1.0)
    method.after_step(0.0)
    keep = config.distill.momentum
    for (name, p), old in zip(teacher.named_parameters(), before, strict=True):
        moved = 1 - keep if "lora_" in name else 0.0
        torch.testing.assert_close(p, old + moved, rtol=1e-5, atol=1e-6)
        assert not p.requires_grad


@pytest.mark.parametrize("freeze", [0.0, 2 / 288])
def test_a_resumed_run_of_adapters_ends_with_the_same_bits(tmp_path, freeze):
    config, source = adapted("tir_ibot_vits16", freeze_encoder=freeze), embedded_photos()
    whole = pretrain(config, source, tmp_path / "whole", max_steps=5)
    pretrain(config, source, tmp_path / "parts", max_steps=2)
    parts = pretrain(config, source, tmp_path / "parts", resume=True, max_steps=5)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    learning = {name for name, p in parts.backbone.named_parameters() if p.requires_grad}
    assert len(learning) == 16
    assert all("lora_" in name for name in learning)
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["optim"]["lora_rank"] == 2


LORA = ["--optim.lora-rank", 2]


@pytest.mark.slow  # test_post_training resumes on two processes, with all else
@pytest.mark.parametrize("options", [SGD, FSDP])
def test_two_processes_adapt_as_one_and_resume_to_the_same_bits(tmp_path, options):
    one = [word if word != "fsdp" else "ddp" for word in options]
    done = run("--run-dir", tmp_path / "one", *one, *LORA, "--max-steps", 8)
    assert done.returncode == 0, done.stderr
    whole, parts = whole_and_parts(tmp_path, *options, *LORA)
    expect_close(whole, tmp_path / "one")
    assert same(whole, parts)


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"lora_rank": -1}, "optim.lora_rank: expected >= 0, got -1"),
        ({"lora_alpha": 0.0}, "optim.lora_alpha: expected > 0, got 0.0"),
        (
            {"lora_rank": 4, "kind": "muon"},
            "optim.muon_encoder: expected false",
        ),
    ],
)
def test_what_cannot_be_is_refused(optim, message):
    with pytest.raises(ValueError, match=message):
        Config(optim=OptimConfig(**optim))


def test_a_rank_above_the_channels_is_refused():
    config = config_of("vicreg_vits16")
    optim = replace(config.optim, lora_rank=1 + build_encoder(config.model, 32).embed_dim)
    with pytest.raises(ValueError, match=r"optim\.lora_rank: expected at most \d+, the encoder"):
        build(replace(config, optim=optim))


def test_a_convolutional_network_has_no_adapters():
    with pytest.raises(ValueError, match=r"optim.lora_rank: expected 0 for model.name=nin, got 4"):
        Config("rotnet", model=ModelConfig("nin"), optim=OptimConfig(lora_rank=4))
