"""Published networks' tensors give the outputs of timm's and transformers' own code.

Weights are random and networks small: what is tested is the architecture. Sizes are compared with
timm's on the meta device.
"""

import re

import pytest
import torch

from fastequi.models import vit
from tests.support.timm_networks import timm_module

pytestmark = pytest.mark.peers

SIZE = {"img_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def moved(network):
    """Its weights moved at random, biases and gains too, which start at 0 and 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.1 * torch.randn_like(param))
    return network.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reg_tokens": 4, "init_values": 0.1},
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
        {"class_token": False, "qkv_bias": False},
    ],
)
def test_timms_vit(options):
    gap = {} if options.get("class_token", True) else {"global_pool": "avg", "fc_norm": False}
    network = timm_module("models.vision_transformer").VisionTransformer
    theirs = moved(network(**SIZE, **options, **gap, num_classes=5))
    ours = vit.VisionTransformer(**SIZE, **options, num_classes=5).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(x), theirs.forward_features(x), **CLOSE)


def test_timms_vit_whose_last_norm_follows_the_mean():
    network = timm_module("models.vision_transformer").VisionTransformer
    theirs = moved(network(**SIZE, num_classes=0, global_pool="avg"))
    ours = vit.VisionTransformer(**SIZE, final_norm=False).eval()
    state = {n: t for n, t in theirs.state_dict().items() if not n.startswith("fc_norm.")}
    assert len(state) == len(theirs.state_dict()) - 2
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(x), theirs.forward_features(x), **CLOSE)


def test_timms_dinov2_with_swiglu():
    vision_transformer = timm_module("models.vision_transformer")
    theirs = vision_transformer.VisionTransformer(
        **SIZE, mlp_ratio=2.66667 * 2, mlp_layer=vision_transformer.SwiGLUPacked,
        act_layer=torch.nn.SiLU, init_values=0.1, reg_tokens=4, no_embed_class=True, num_classes=0,
    )  # fmt: skip
    theirs = moved(theirs)
    hidden = theirs.blocks[0].mlp.fc2.in_features
    options = {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True, "mlp": "swiglu"}
    ours = vit.VisionTransformer(**SIZE, **options, mlp_hidden=hidden).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(x), theirs.forward_features(x), **CLOSE)


def zero_between(first, last):
    """A bias [3 D] of queries, keys and values out of those of queries and values."""
    return torch.cat([first, torch.zeros_like(first), last])


def from_eva(state, depth):
    """timm's tensors of DINOv3 under our names."""
    state = dict(state)
    for i in range(depth):
        block = f"blocks.{i}"
        if f"{block}.gamma_1" in state:
            for n in (1, 2):
                state[f"{block}.ls{n}.gamma"] = state.pop(f"{block}.gamma_{n}")
        if f"{block}.attn.q_bias" in state:
            biases = [state.pop(f"{block}.attn.{name}_bias") for name in "qv"]
            state[f"{block}.attn.qkv.bias"] = zero_between(*biases)
        if f"{block}.mlp.fc1_g.weight" in state:
            for part in ("weight", "bias"):
                both = [state.pop(f"{block}.mlp.fc1_{name}.{part}") for name in "gx"]
                state[f"{block}.mlp.fc1.{part}"] = torch.cat(both)
    return state


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_timms_dinov3(swiglu, qkv_bias):
    theirs = moved(
        timm_module("models.eva").Eva(
            **SIZE, num_classes=0, mlp_ratio=3, qkv_bias=qkv_bias, init_values=0.1,
            swiglu_mlp=swiglu, swiglu_align_to=8, num_reg_tokens=4, use_fc_norm=False,
            use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type="dinov3", rope_temperature=100,
            rope_rotate_half=True, dynamic_img_size=True,
            norm_layer=lambda *args, **kw: torch.nn.LayerNorm(*args, eps=1e-5, **kw),
        )
    )  # fmt: skip
    ours = vit.VisionTransformer(
        **SIZE, reg_tokens=4, init_values=0.1, qkv_bias=qkv_bias, norm_eps=1e-5, pos="rope",
        mlp="swiglu" if swiglu else "gelu", mlp_hidden=theirs.blocks[0].mlp.fc2.in_features,
    ).eval()  # fmt: skip
    ours.load_state_dict(from_eva(theirs.state_dict(), SIZE["depth"]))
    for height, width in ((48, 48), (32, 80)):
        x = torch.randn(2, 3, height, width)
        torch.testing.assert_close(ours(x), theirs.forward_features(x), **CLOSE)


# names of transformers' networks in memory, and ours
RENAMED = [
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^((model|encoder)\.layer|layers)\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.attention\.(o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.attention\.([qkv])(uery|ey|alue)\.", r".attn.\1."),
    (r"\.mlp\.(up_proj|weights_in)\.", ".mlp.fc1."),
    (r"\.mlp\.(down_proj|weights_out)\.", ".mlp.fc2."),
    (r"^(layernorm|norm)\.", "norm."),
]


def from_hugging_face(state, depth):
    """The tensors of a network of transformers under our names."""
    found = {}
    for name, tensor in state.items():
        for old, new in RENAMED:
            name = re.sub(old, new, name)
        found[name] = tensor
    found.pop("embeddings.mask_token", None)
    for block in (f"blocks.{i}" for i in range(depth)):
        for part in ("weight", "bias"):
            q, k, v = (found.pop(f"{block}.attn.{name}.{part}", None) for name in "qkv")
            together = zero_between(q, v) if k is None else torch.cat([q, k, v])
            found[f"{block}.attn.qkv.{part}"] = together
            if f"{block}.mlp.gate_proj.{part}" in found:
                both = found.pop(f"{block}.mlp.gate_proj.{part}"), found[f"{block}.mlp.fc1.{part}"]
                found[f"{block}.mlp.fc1.{part}"] = torch.cat(both)
    return found


HF = {
    "image_size": 48, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("gated", [False, True])
def test_transformers_dinov3(gated):
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        **HF, layerscale_value=0.1, intermediate_size=72, use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu", num_register_tokens=4,
    )  # fmt: skip
    theirs = moved(transformers.DINOv3ViTModel(config))
    ours = vit.VisionTransformer(
        **SIZE, reg_tokens=4, init_values=0.1, norm_eps=1e-5, pos="rope",
        mlp="swiglu" if gated else "gelu", mlp_hidden=72,
    ).eval()  # fmt: skip
    ours.load_state_dict(from_hugging_face(theirs.state_dict(), SIZE["depth"]))
    for height, width in ((48, 48), (32, 80)):
        x = torch.randn(2, 3, height, width)
        torch.testing.assert_close(ours(x), theirs(x).last_hidden_state, **CLOSE)
    assert theirs.config.pos_embed_rescale == 2.0  # of the random box in training, as DINOv3's


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [False, True])
def test_transformers_dinov2(registers, swiglu):
    transformers = pytest.importorskip("transformers")
    kind, options = "Dinov2", {}
    if registers:
        kind, options = "Dinov2WithRegisters", {"num_register_tokens": 4}
    options |= {"layerscale_value": 0.1, "use_swiglu_ffn": swiglu}
    config = getattr(transformers, f"{kind}Config")(**HF, **options)
    theirs = moved(getattr(transformers, f"{kind}Model")(config))
    ours = vit.VisionTransformer(
        **SIZE, reg_tokens=4 * registers, init_values=0.1, mlp="swiglu" if swiglu else "gelu",
    ).eval()  # fmt: skip
    state = from_hugging_face(theirs.state_dict(), SIZE["depth"])
    if registers:  # the class token has a position, they have none
        first, rest = state["pos_embed"].split([1, 9], 1)
        state["pos_embed"] = torch.cat([first, torch.zeros(1, 4, 32), rest], 1)
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(x), theirs(x).last_hidden_state, **CLOSE)


def test_transformers_vit():
    """Its epsilon is 1e-12; activations are small enough that it matters."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**HF, intermediate_size=128)
    theirs = moved(transformers.ViTModel(config, add_pooling_layer=False))
    with torch.no_grad():
        for name in ("cls_token", "position_embeddings"):
            getattr(theirs.embeddings, name).mul_(1e-3)
        for param in theirs.embeddings.patch_embeddings.parameters():
            param.mul_(1e-3)
    state = from_hugging_face(theirs.state_dict(), SIZE["depth"])
    x = torch.randn(2, 3, 48, 48)
    found = []
    for eps in (1e-12, 1e-6):
        ours = vit.VisionTransformer(**SIZE, norm_eps=eps).eval()
        ours.load_state_dict(state)
        found.append(ours(x))
    torch.testing.assert_close(found[0], theirs(x).last_hidden_state, **CLOSE)
    assert (found[0] - found[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        (
            "vit_giant",
            "vit_giant_patch14_reg4_dinov2",
            {"patch_size": 14, "img_size": 518, "reg_tokens": 4, "no_embed_class": True},
        ),
        (
            "vit_so150m",
            "vit_so150m_patch16_reg4_gap_256",
            {"img_size": 256, "class_token": False, "reg_tokens": 4, "init_values": None},
        ),
        (
            "vit_huge_plus",
            "vit_huge_plus_patch16_dinov3",
            {"img_size": 256, "reg_tokens": 4, "pos": "rope", "qkv_bias": False},
        ),
    ],
)
def test_larger_sizes_have_timms_tensors(name, theirs, options):
    models = timm_module("models")
    with torch.device("meta"):
        state = models.create_model(theirs, num_classes=0).state_dict()
        ours = vit.create(name, **{"init_values": 1e-5, **options}).state_dict()
    depth = max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")) + 1
    found = {key: tuple(value.shape) for key, value in from_eva(state, depth).items()}
    assert {key: tuple(value.shape) for key, value in ours.items()} == found
