"""Checkpoints as the authors of DINO, iBOT, MAE, DINOv2 and DINOv3 write them, against forwards
written out on their names; and ours under their names."""

import argparse

import pytest
import torch
from safetensors.torch import save_file

from fastequi.weights import meta
from fastequi.weights.architecture import Stated
from fastequi.weights.reader import fill, load_weights
from tests.support import vit_by_hand
from tests.support.vit_by_hand import forward, tensors

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
DIM, DEPTH, HEADS = 32, 3, 4


def gated(state, names):
    """With SwiGLU of 40 hidden channels instead of each block's MLP."""
    shapes = {"w12": (80, DIM), "w1": (40, DIM), "w2": (40, DIM), "w3": (DIM, 40)}
    kept = {name: t for name, t in state.items() if ".mlp." not in name}
    for i in range(DEPTH):
        for name in names:
            kept[f"blocks.{i}.mlp.{name}.weight"] = torch.randn(shapes[name]) * 0.2
            kept[f"blocks.{i}.mlp.{name}.bias"] = torch.randn(shapes[name][0]) * 0.2
    return kept


def dinov2(registers=0, swiglu=False):
    state = tensors(DIM, DEPTH, ls=True)
    if swiglu:
        state = gated(state, ("w12", "w3"))
    if registers:
        state["register_tokens"] = torch.randn(1, registers, DIM)
    return {**state, "mask_token": torch.zeros(1, DIM)}


def dinov3(swiglu=False, registers=4):
    state = tensors(DIM, DEPTH, ls=True)
    del state["pos_embed"]
    if swiglu:
        state = gated(state, ("w1", "w2", "w3"))
    state["storage_tokens"] = torch.randn(1, registers, DIM)
    quarter = DIM // HEADS // 4
    state["rope_embed.periods"] = 100.0 ** (torch.arange(quarter) / quarter)
    for i in range(DEPTH):
        mask = torch.ones(3 * DIM)
        mask[DIM : 2 * DIM] = 0
        state[f"blocks.{i}.attn.qkv.bias_mask"] = mask
    return {**state, "mask_token": torch.zeros(1, DIM)}


def chunked(state, size=2):
    """Blocks in chunks, as training writes them."""
    found = {}
    for name, tensor in state.items():
        start, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        chunk = f"{start}.{int(number) // size}." if start == "blocks" else ""
        found[f"{chunk}{rest}" if chunk else name] = tensor
    return found


def ours(path, *args):
    weights = load_weights(path, *args)
    network = weights.make().eval()
    fill(network, weights)
    with torch.no_grad():
        return network(IMAGES), network, weights


def saved(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("form", ["published", "chunks", "teacher"])
def test_dinov2(tmp_path, registers, swiglu, form):
    state = dinov2(registers, swiglu)
    content = {
        "published": state,
        "chunks": chunked(state),
        "teacher": {"teacher": {f"backbone.{n}": t for n, t in chunked(state).items()}},
    }[form]
    expected = vit_by_hand.dinov2(state, IMAGES, HEADS)
    found, network, weights = ours(saved(tmp_path, content), Stated(num_heads=HEADS))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert weights.layout.name == "DINOv2"
    written = weights.layout.theirs(network.state_dict(), weights.options)
    assert written.keys() == state.keys()
    again = vit_by_hand.dinov2(written, IMAGES, HEADS)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("swiglu", [False, True])
def test_dinov3(tmp_path, swiglu):
    state = dinov3(swiglu)
    expected = vit_by_hand.dinov3(state, IMAGES, HEADS)
    found, network, weights = ours(saved(tmp_path, state))  # heads follow from the periods
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert network.num_heads == HEADS
    assert network.norm.eps == 1e-5
    written = weights.layout.theirs(network.state_dict(), weights.options)
    assert written.keys() == state.keys()
    assert not written["blocks.1.attn.qkv.bias_mask"].chunk(3)[1].any()
    again = vit_by_hand.dinov3(written, IMAGES, HEADS)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)
    # keys that have learned a bias keep it
    with torch.no_grad():
        network.blocks[0].attn.qkv.bias += 0.5
        moved = network(IMAGES)
    written = weights.layout.theirs(network.state_dict(), weights.options)
    again = vit_by_hand.dinov3(written, IMAGES, HEADS)
    torch.testing.assert_close(again, moved, rtol=1e-5, atol=1e-5)


def test_dinov3s_periods_tell_theta_though_rounded_and_what_is_of_training_is_left_out(tmp_path):
    state = dinov3()
    for theta in (100.0, 10.0, 256.0):
        periods = theta ** (torch.arange(2) / 2)
        state["rope_embed.periods"] = periods.bfloat16().float()
        for kind in ("weight", "bias"):
            state[f"local_cls_norm.{kind}"] = torch.ones(DIM)
        found, _, weights = ours(saved(tmp_path, state))
        assert weights.options["rope_theta"] == theta
        expected = vit_by_hand.dinov3(state, IMAGES, HEADS, theta)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "local_cls_norm.weight" in weights.report.unexpected[0]
    wide = {**state, "rope_embed.periods": torch.tensor([1.0, 3.0, 4.0, 5.0])}
    with pytest.raises(ValueError, match=r"periods: expected theta\^\(j/4\) of one theta"):
        ours(saved(tmp_path, wide))
    with pytest.raises(ValueError, match="expected a divisor of 8 periods > 0"):
        ours(saved(tmp_path, {**state, "rope_embed.periods": torch.ones(3)}))
    untied = {**state, "cls_norm.weight": torch.ones(DIM), "cls_norm.bias": torch.ones(DIM)}
    with pytest.raises(ValueError, match="class and patch tokens have norms of their own"):
        ours(saved(tmp_path, untied))


def test_mae_is_read_without_its_decoder(tmp_path):
    state = tensors(192, DEPTH)
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 192)}
    decoder["decoder_blocks.0.norm1.weight"] = torch.ones(8)
    content = {
        "model": {**state, **decoder},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": argparse.Namespace(model="mae_vit_tiny_patch8", lr=0.1),
    }
    found, _, weights = ours(saved(tmp_path, content))
    torch.testing.assert_close(found, forward(state, IMAGES, 3), rtol=1e-5, atol=1e-5)
    assert weights.layout is meta.MAE
    told = "; ".join(weights.report.unexpected)
    for name in ("mask_token", "decoder_embed.weight", "optimizer.state.0.exp_avg"):
        assert name in told


def test_a_fine_tuned_mae_has_tokens_without_a_norm(tmp_path):
    """Its norm comes after the mean over tokens."""
    state = {n: t for n, t in tensors(192, DEPTH).items() if not n.startswith("norm.")}
    identity = {"norm.weight": torch.ones(192), "norm.bias": torch.zeros(192)}
    after = {"fc_norm.weight": torch.ones(192), "fc_norm.bias": torch.ones(192)}
    head = {"head.weight": torch.ones(5, 192), "head.bias": torch.ones(5)}
    found, _, weights = ours(saved(tmp_path, {"model": {**state, **after, **head}}))
    normed = torch.nn.functional.layer_norm(found, (192,), eps=1e-6)
    expected = forward({**state, **identity}, IMAGES, 3)
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, expected, atol=0.1)
    assert "tokens have none" in weights.report.missing[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("wanted", [None, "teacher", "student"])
def test_of_student_and_teacher_the_teacher_is_taken_unless_asked(tmp_path, masked, wanted):
    student, teacher = (tensors(192, DEPTH) for _ in range(2))
    student = {name: tensor.flip(0) for name, tensor in student.items()}
    extra = {"masked_embed": torch.ones(1, 192)} if masked else {}
    head = {"head.mlp.0.weight": torch.ones(4, 192), "head.last_layer.weight_g": torch.ones(8, 1)}
    content = {
        "student": {f"module.backbone.{n}": t for n, t in {**student, **extra}.items()},
        "teacher": {f"backbone.{n}": t for n, t in teacher.items()} | head,
        "args": argparse.Namespace(arch="vit_tiny"),
        "epoch": 100,
        "dino_loss": {"center": torch.ones(1, 8)},
    }
    found, _, weights = ours(saved(tmp_path, content), Stated(network=wanted))
    state, rest = (student, teacher) if wanted == "student" else (teacher, student)
    torch.testing.assert_close(found, forward(state, IMAGES, 3), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, forward(rest, IMAGES, 3), atol=0.1)
    name, other = ("student", "teacher") if wanted == "student" else ("teacher", "student")
    assert weights.report.chosen.startswith(f"the {name}, below '{name}.")
    assert weights.report.chosen.endswith(f"--network {other} takes the other")
    assert weights.options["num_heads"] == 3
    assert not [said for said in weights.report.assumed if "num_heads" in said]


def test_ibots_layerscale_has_names_of_its_own(tmp_path):
    state = tensors(192, DEPTH, ls=True)
    names = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    renamed = {}
    for name, tensor in state.items():
        for own, their in names.items():
            name = name.replace(own, their)
        renamed[name] = tensor
    found, network, weights = ours(saved(tmp_path, {"state_dict": renamed}))
    torch.testing.assert_close(found, forward(state, IMAGES, 3), rtol=1e-5, atol=1e-5)
    assert weights.layout.theirs(network.state_dict(), weights.options).keys() == renamed.keys()


def test_heads_of_published_files_are_known_by_the_files_names(tmp_path):
    state = tensors(384, 1)
    torch.save(state, tmp_path / "dino_deitsmall8_pretrain.pth")
    weights = load_weights(tmp_path / "dino_deitsmall8_pretrain.pth")
    assert weights.options["num_heads"] == 6
    assert "num_heads 6, by the file's name, dino_deitsmall8_pretrain" in weights.report.said
    torch.save(state, tmp_path / "vit_small_patch14_dinov2.lvd142m.pth")  # timm's name
    assert load_weights(tmp_path / "vit_small_patch14_dinov2.lvd142m.pth").options["num_heads"] == 6
    torch.save(state, tmp_path / "dino_of_mine.pth")
    with pytest.raises(ValueError, match="num_heads: unknown for 384 channels"):
        load_weights(tmp_path / "dino_of_mine.pth")


def test_dinov2s_small_has_six_heads_though_384_channels_may_have_others(tmp_path):
    state = tensors(384, 1, ls=True) | {"mask_token": torch.zeros(1, 384)}
    save_file(state, tmp_path / "model.safetensors")
    assert load_weights(tmp_path).options["num_heads"] == 6
