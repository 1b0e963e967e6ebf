"""Layouts in general: what one writes it recognises and reads back, exactly."""

import pytest
import torch

from fastequi.models.vit import VisionTransformer
from fastequi.weights import huggingface, layouts, meta, timm
from fastequi.weights.architecture import options_of
from fastequi.weights.encoder import LAYOUTS
from fastequi.weights.names import Names

NAMED = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in (timm, meta, huggingface)
    for name, value in vars(module).items()
    if isinstance(value, layouts.Layout)
}
# networks of these marks need more than names of tensors
UNMARKED = {"meta.MAE", "meta.IBOT", "meta.DINO"}


def network(layout, **options):
    torch.manual_seed(0)
    given = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 11, "num_heads": 2}
    given |= {"init_values": 0.3, "class_token": True, **layout.written}
    given["pos"] = "rope" if layout.rope else "learned"
    if ("vit" in layout.name.lower() and "DINOv3" not in layout.name) or "DeiT" in layout.name:
        given["init_values"] = None
    if "reg_tokens" not in layout.written and "iBOT" not in layout.name:
        given["reg_tokens"] = 3
        given["no_embed_class"] = not layout.rope
    made = VisionTransformer(**{**given, **options})
    with torch.no_grad():
        for param in made.parameters():
            param.add_(0.3 * torch.randn_like(param))
    return made


def test_all_layouts_are_tried():
    assert {id(layout) for layout in NAMED.values()} == {id(layout) for layout in LAYOUTS}


@pytest.mark.parametrize("name", NAMED)
def test_what_a_layout_writes_it_recognises_and_reads_back(name):
    layout = NAMED[name]
    made = network(layout)
    state = made.state_dict()
    written = layout.theirs(state, options_of(made))
    again = layout.ours(written)
    assert again.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(again[key], tensor), key
    below = {f"module.backbone.{key}": tensor for key, tensor in written.items()}
    if name not in UNMARKED:
        (found,) = layouts.networks([*below, "other.weight"], LAYOUTS)
        assert (found.layout, found.prefix) == (layout, "module.backbone.")
        assert found.within(below).keys() == written.keys()
    for key in state:  # a name alone is spelled as the tensors are written
        spelled = set(layout.spelled(key).split("+"))
        assert spelled & written.keys(), key


@pytest.mark.parametrize("name", [n for n in NAMED if n.startswith(("meta.DINOV2", "hugging"))])
def test_positions_of_registers_are_added_to_them(name):
    """A layout without such positions writes a network that gives the same tokens."""
    layout = NAMED[name]
    if layout.rope or layout.written.get("reg_tokens") is not None:
        return
    made = network(layout, no_embed_class=False).eval()
    again = network(layout, no_embed_class=True).eval()
    again.load_state_dict(layout.ours(layout.theirs(made.state_dict(), options_of(made))))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(images), made(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMED if "DINOV2" in n or "DINOV3" in n])
def test_a_network_without_layerscale_is_written_with_gains_of_one(name):
    layout = NAMED[name]
    if layout.name.startswith("timm"):
        return
    made, again = network(layout, init_values=None).eval(), network(layout).eval()
    again.load_state_dict(layout.ours(layout.theirs(made.state_dict(), options_of(made))))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(images), made(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("huggingface.DINOV2", {"class_token": False}, "class_token: expected True for Hugging"),
        ("huggingface.DINOV2", {"mlp": "swiglu"}, "mlp: expected gelu for Hugging Face Dinov2"),
        ("huggingface.DINOV2_SWIGLU", {"mlp": "gelu"}, "mlp: expected swiglu for Hugging Face"),
        ("huggingface.VIT", {"init_values": 0.1}, "blocks.0.ls1.gamma: the layout has no such"),
        ("huggingface.VIT", {"reg_tokens": 2}, "reg_tokens: expected 0 for Hugging Face ViT"),
        ("meta.DINOV2", {"pos": "rope"}, "pos: expected learned for DINOv2, got rope"),
        ("meta.DINOV3", {"pos": "learned"}, "pos: expected rope for DINOv3, got learned"),
        ("meta.DINOV3", {"final_norm": False}, "final_norm: expected True for DINOv3"),
    ],
)
def test_what_a_layout_cannot_express_is_refused(name, options, message):
    layout = NAMED[name]
    made = network(layout, **options)
    with pytest.raises(ValueError, match=message):
        layout.theirs(made.state_dict(), options_of(made))


def test_a_table_reads_what_it_writes_by_whole_words_of_a_name():
    table = Names(
        whole={"norm": "ln", "head": "head.out"},
        block={"norm1": "ln.a", "attn.qkv": ("q", "k", "v")},
        blocks="layers",
    )
    state = {
        "norm.weight": torch.tensor([1.0]),
        "normal": torch.tensor([2.0]),
        "head.bias": torch.tensor([3.0]),
        "blocks.12.norm1.bias": torch.tensor([4.0]),
        "blocks.12.norm10.bias": torch.tensor([5.0]),
        "blocks.1.attn.qkv.weight": torch.arange(12.0).reshape(6, 2),
    }
    written = table.theirs(state)
    assert {name: tensor.tolist() for name, tensor in written.items()} == {
        "ln.weight": [1.0],
        "normal": [2.0],
        "head.out.bias": [3.0],
        "layers.12.ln.a.bias": [4.0],
        "layers.12.norm10.bias": [5.0],
        "layers.1.q.weight": [[0.0, 1.0], [2.0, 3.0]],
        "layers.1.k.weight": [[4.0, 5.0], [6.0, 7.0]],
        "layers.1.v.weight": [[8.0, 9.0], [10.0, 11.0]],
    }
    again = table.ours(written)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    del written["layers.1.k.weight"]
    with pytest.raises(ValueError, match=r"no layers.1.k.weight, which belongs to layers"):
        table.ours(written)
    with pytest.raises(ValueError, match=r"qkv.weight: expected rows for 3, got 4"):
        table.theirs({"blocks.0.attn.qkv.weight": torch.ones(4, 2)})
    other = {**written, "layers.1.k.weight": torch.ones(3, 2)}
    with pytest.raises(ValueError, match=r"expected equal shapes, got \(2, 2\), \(3, 2\)"):
        table.ours(other)
