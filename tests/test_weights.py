"""ViTs of others, from files as timm writes them, against a ViT written out in plain PyTorch."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from fastequi.evaluate.encoders import load_encoder
from fastequi.models.vit import VisionTransformer
from fastequi.weights.architecture import ASKED, Stated, from_shapes, settled
from fastequi.weights.encoder import encoder_of
from fastequi.weights.published import named_size
from fastequi.weights.reader import load_weights
from fastequi.weights.report import Report
from tests.support.vit_by_hand import forward, tensors


def timms(architecture, size=(32, 32), **model_args):
    """config.json as timm 1.0 writes it beside model.safetensors."""
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": 384,
        "global_pool": "token",
        "model_args": {"depth": 2, "in_chans": 3, "num_classes": 0, **model_args},
        "pretrained_cfg": {
            "tag": "augreg_in21k",
            "input_size": [3, *size],
            "fixed_input_size": True,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "pool_size": None,
        },
    }


def saved(folder, state, config=None):
    folder.mkdir(exist_ok=True)
    save_file({name: t.contiguous() for name, t in state.items()}, folder / "model.safetensors")
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
    return folder / "model.safetensors"


def read(file, stated=Stated()):  # noqa: B008
    weights = load_weights(file, stated)
    network = weights.make().eval()
    network.load_state_dict(weights.state)
    return network


@pytest.mark.parametrize(
    ("dim", "config", "heads"),
    [
        (384, timms("vit_small_patch16_224"), 6),
        (384, timms("vit_small_patch16_224.dino"), 6),
        (384, timms("vit_small_patch16_224", num_heads=12), 12),  # MoCo v3's
        (320, timms("vit_huge_patch14_224", embed_dim=320), 16),
        (384, {"num_heads": 12}, 12),
        (384, {"architecture": "vit_new_patch8_32", "model_args": {"num_heads": 3}}, 3),
        (192, timms("deit_tiny_patch16_224"), 3),
        (192, None, 3),
    ],
)
def test_heads_are_those_of_the_config(tmp_path, dim, config, heads):
    state = tensors(dim)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = read(saved(tmp_path, state, config))(images)
    torch.testing.assert_close(found, forward(state, images, heads), rtol=1e-4, atol=1e-4)
    other = forward(state, images, 2 * heads)
    assert (found - other).abs().max() > 1e-3  # it matters


def test_timms_words_for_sizes_are_known():
    known = {
        "vit_tiny_patch16_224": (192, 3),
        "vit_small_patch14_reg4_dinov2.lvd142m": (384, 6),
        "vit_base_patch16_224": (768, 12),
        "vit_base_patch16_gap_224": (768, 16),
        "vit_base_patch16_plus_240": (896, 14),
        "vit_large_patch14_224": (1024, 16),
        "timm/vit_huge_patch14_224.orig_in21k": (1280, 16),
        "deit3_medium_patch16_224": (512, 8),
        "deit_tiny_distilled_patch16_224": (192, 3),
        "flexivit_large": (1024, 16),
        "vit_base_patch16_siglip_gap_224": (768, 12),
    }
    assert {name: named_size(name) for name in known} == known
    for name in ("resnet50", "vit_small_r26_s32_224", "vit_base_patch32_siglip_gap_256", "vit"):
        assert named_size(name) is None


def remarks(file, stated=Stated()):  # noqa: B008
    return "; ".join(load_weights(file, stated).report.remarks())


def test_what_nobody_says_is_asked_for_or_assumed_aloud(tmp_path, caplog):
    for dim in (384, 128, 64):
        file = saved(tmp_path / str(dim), tensors(dim))
        with pytest.raises(ValueError, match=f"unknown for {dim} channels; expected --num-heads"):
            load_weights(file)
        assert read(file, Stated(num_heads=4)).num_heads == 4
    without = tensors(768, 1, prefix=())  # published with 12 and with 16
    with pytest.raises(ValueError, match="expected --num-heads"):
        load_weights(saved(tmp_path / "768", without))
    file = saved(tmp_path / "192", tensors(192))
    with caplog.at_level(logging.WARNING):
        assert load_encoder(str(file), "cpu").patch_size == 8
    (record,) = caplog.messages
    for words in (str(file), "num_heads 3", "img_size 32x32", "ImageNet's mean", "--num-heads"):
        assert words in record
    file = saved(tmp_path / "said", tensors(192), timms("vit_tiny_patch16_224"))
    assert load_weights(file).mean == (0.5, 0.5, 0.5)
    assert not remarks(file)  # nothing had to be assumed
    assert read(file, Stated(num_heads=6)).num_heads == 6  # the caller knows better
    assert "go before what" in remarks(file, Stated(num_heads=6))


def test_fewer_blocks_than_published_are_remarked_unless_they_are_said(tmp_path):
    said = "2 blocks, where published ViTs of 192 channels have 12: is the file whole?"
    assert said in remarks(saved(tmp_path / "a", tensors(192)))
    config = timms("vit_tiny_patch16_224")
    assert said not in remarks(saved(tmp_path / "b", tensors(192), config))
    del config["model_args"]["depth"]
    assert said in remarks(saved(tmp_path / "c", tensors(192), config))
    assert "published ViTs" not in remarks(saved(tmp_path / "d", tensors(64)), Stated(num_heads=4))


@pytest.mark.parametrize("said", ["model_args", "input_size", "config", "option"])
@pytest.mark.parametrize("embedded", [True, False])
def test_positions_lie_on_the_grid_that_is_said(tmp_path, said, embedded):
    """8x32 of 128x512 px images, as many as 16x16."""
    state = tensors(192, 2, (8, 32), 16, embedded=embedded)
    size, stated = (128, 512), Stated()
    config = {
        "model_args": timms("vit_tiny_patch16_224", img_size=[*size]),
        "input_size": timms("vit_tiny_patch16_224", size),
        "config": {"img_size": [*size]},
        "option": None,
    }[said]
    if said == "option":
        stated = Stated(img_size=size)
    file = saved(tmp_path, state, config)
    images = torch.randn(1, 3, *size)
    expected = forward(state, images, 3)
    with torch.no_grad():
        found = read(file, stated)(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    encoder = load_encoder(str(file), "cpu", stated)
    torch.testing.assert_close(encoder.features(images)["cls"], found[:, :1])
    assert encoder.image_size == 256  # squares of as many patches


def test_a_grid_that_does_not_fit_or_is_no_square_is_named(tmp_path):
    file = saved(tmp_path, tensors(192, 1, (4, 5)))
    with pytest.raises(ValueError, match="unknown for 21 positions in pos_embed; expected --img"):
        load_weights(file)
    with pytest.raises(ValueError, match=r"32x32 px .* are 4x4 patches .* pos_embed has 21 pos"):
        load_weights(file, Stated(img_size=(32, 32)))
    assert read(file, Stated(img_size=(32, 40))).img_size == (32, 40)


@pytest.mark.parametrize(
    ("prefix", "embedded", "expected"),
    [
        (("cls_token", "dist_token"), True, (True, 1, False)),
        (("cls_token", "dist_token"), False, (True, 1, True)),
        (("cls_token", "reg_token"), False, (True, 1, True)),
        (("reg_token",), True, (False, 1, False)),
        ((), True, (False, 0, False)),
        (("cls_token",), False, (True, 0, True)),
    ],
)
def test_tokens_before_the_patches(prefix, embedded, expected):
    state = tensors(64, 2, prefix=prefix, embedded=embedded, ls=True)
    del state["blocks.0.attn.qkv.bias"], state["blocks.1.attn.qkv.bias"]
    images = torch.randn(2, 3, 32, 32)
    wanted = forward(state, images, 4, prefix)
    _, found, _ = encoder_of(state, Stated(), ASKED, Report(""))
    options, _ = settled(found, from_shapes(found), Stated(num_heads=4))
    assert tuple(options[n] for n in ("class_token", "reg_tokens", "no_embed_class")) == expected
    assert not options["qkv_bias"]
    network = VisionTransformer(**options).eval()
    network.load_state_dict(found)
    with torch.no_grad():
        torch.testing.assert_close(network(images), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "module.encoder."])
def test_prefixes_and_tensors_behind_the_tokens_are_named(tmp_path, prefix):
    state = tensors(192)
    behind = {"head.0.weight": torch.zeros(5, 192), "mask_token": torch.zeros(1, 192)}
    other = {"projector.weight": torch.zeros(3, 3)}
    file = saved(tmp_path, {prefix + n: t for n, t in {**state, **behind}.items()} | other)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = read(file)(images)
    torch.testing.assert_close(found, forward(state, images, 3), rtol=1e-4, atol=1e-4)
    for words in (repr(prefix), "projector.weight", "head.0.weight", "mask_token"):
        assert words in remarks(file)


def changed(**names):
    state = tensors(192)
    for name, value in names.items():
        del_or_set = name.replace("__", ".")
        if value is None:
            del state[del_or_set]
        else:
            state[del_or_set] = torch.zeros(value)
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no patch_embed.proj.weight, but nothing"),
        (changed(norm__weight=None), "no norm.weight"),
        (changed(norm__weight=None, fc_norm__weight=(192,)), "unknown norm.bias"),
        (changed(norm_pre__weight=(192,)), "a norm before the blocks"),
        (changed(blocks__0__attn__q_norm__weight=(64,)), "q and k are normalised; unknown blocks"),
        (changed(blocks__1__attn__q_proj__weight=(192, 192)), "q, k and v are apart"),
        (changed(blocks__0__mlp__fc1_g__weight=(768, 192)), r"a gated MLP \(SwiGLU\)"),
        (
            changed(blocks__0__mlp__fc2__weight=(192, 300), blocks__1__mlp__fc2__weight=(192, 300)),
            r"blocks.0.mlp.fc1.weight \(768, 192\), not \(300, 192\)",
        ),
        (changed(blocks__0__attns__0__qkv__weight=(576, 192)), "parallel blocks"),
        (changed(blocks__3__norm1__weight=(192,)), "blocks.2 missing of blocks.0 to blocks.3"),
        (changed(blocks__0__norm2__bias=None), "no blocks.0.norm2.bias"),
        (changed(patch_embed__proj__bias=None), "no patch_embed.proj.bias"),
        (changed(patch_embed__proj__weight=(192, 3, 8, 16)), "square patches, got 8x16"),
        (changed(patch_embed__proj__weight=(192, 4, 8, 8)), "expected 3, .*got 4; --channels"),
        (changed(reg_token=(4, 192)), "reg_token has 2 axes, expected 3"),
        (changed(pos_embed=(16, 192)), "pos_embed has 2 axes, expected 3"),
        (
            {f"{p}.{n}": t for p in ("left", "right") for n, t in tensors(192).items()},
            "expected one network, got 2 networks, below 'left.', 'right.'",
        ),
    ],
)
def test_what_is_no_plain_vit_is_told_in_one_line(tmp_path, state, message):
    file = saved(tmp_path, state)
    with pytest.raises(ValueError, match=message) as told:
        load_weights(file)
    assert str(told.value).startswith(f"CHECKPOINT: {file}: ")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "is not JSON"),
        ("{'a': 1}", "is not JSON"),
        ("[1]", r"expected a JSON object, got \[1\]"),
        ("null", "expected a JSON object, got null"),
        ('{"num_heads": null}', "num_heads: expected an integer >= 1, got null"),
        ('{"num_heads": "3"}', 'num_heads: expected an integer >= 1, got "3"'),
        ('{"num_heads": 0}', "num_heads: expected an integer >= 1, got 0"),
        ('{"num_heads": true}', "num_heads: expected an integer >= 1, got true"),
        ('{"model_args": {"num_heads": 3.0}}', "num_heads: expected an integer >= 1, got 3.0"),
        ('{"model_args": null}', "model_args: expected an object, got null"),
        ('{"pretrained_cfg": []}', r"pretrained_cfg: expected an object, got \[\]"),
        ('{"architecture": 5}', "architecture: expected a name, got 5"),
        ('{"img_size": "32"}', "img_size: expected 2 numbers, each an integer >= 1, got"),
        ('{"img_size": [32, 32, 32]}', "img_size: expected 2 numbers"),
        ('{"input_size": 32}', "input_size: expected 3 numbers"),
        ('{"mean": null}', "mean: expected 3 numbers, each a number, got null"),
        ('{"mean": [0.5, 0.5]}', "mean: expected 3 numbers"),
        ('{"std": [0.5, 0.5, 0]}', "std: expected numbers > 0"),
        ('{"model_args": {"act_layer": "quick_gelu"}}', "act_layer: expected gelu, a plain ViT's"),
        ('{"model_args": {"norm_layer": "rmsnorm"}}', "norm_layer: expected layernorm"),
        ('{"method": "tir", "model": null}', "not a run's settings: Config.model: expected"),
    ],
)
def test_what_is_wrong_with_a_config_is_told_in_one_line(tmp_path, config, message):
    file = saved(tmp_path, tensors(192), config)
    with pytest.raises(ValueError, match=message) as told:
        load_weights(file)
    assert str(tmp_path / "config.json") in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_heads": 5}, "num_heads: expected a divisor of its 192 channels, got 5"),
        (timms("resnet50"), "architecture 'resnet50', which is no ViT known here; say --num-heads"),
        (timms("vit_base_patch16_rpn_224"), "whose GELU or norms are others"),
        (timms("vit_small_patch16_224"), "of 384 channels, the tensors have 192"),
        (timms("vit_tiny_patch16_224", (224, 224)), "224x224 px .* are 28x28 patches of 8 px"),
    ],
)
def test_a_config_of_another_network_is_refused(tmp_path, config, message):
    file = saved(tmp_path, tensors(192), config)
    with pytest.raises(ValueError, match=message) as told:
        load_weights(file)
    assert "\n" not in str(told.value)


def test_an_mlp_of_any_width_is_read_back():
    for dim, hidden in ((1408, 6144), (1664, 8192), (49, 1), (1152, 4304), (187, 1037)):
        state = tensors(dim, 1, patch=1)
        shapes = {"fc1.weight": (hidden, dim), "fc1.bias": (hidden,), "fc2.weight": (dim, hidden)}
        state |= {f"blocks.0.mlp.{name}": torch.zeros(shape) for name, shape in shapes.items()}
        assert from_shapes(state)["mlp_hidden"] == hidden
