import importlib.abc
import importlib.machinery
import sys
import types
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from fastequi.models import vit

SIZES = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}


def timm_names(dim, depth, patch, tokens, classes):
    """The state dict of timm's vit_*_patch*_224, written down: name to shape."""
    names = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, tokens, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "head.weight": (classes, dim),
        "head.bias": (classes,),
    }
    for i in range(depth):
        shapes = {
            **{f"norm{n}.{part}": (dim,) for n in (1, 2) for part in ("weight", "bias")},
            "attn.qkv.weight": (3 * dim, dim),
            "attn.qkv.bias": (3 * dim,),
            "attn.proj.weight": (dim, dim),
            "attn.proj.bias": (dim,),
            "mlp.fc1.weight": (4 * dim, dim),
            "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim),
            "mlp.fc2.bias": (dim,),
        }
        names |= {f"blocks.{i}.{name}": shape for name, shape in shapes.items()}
    return names


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("patch", [16, 14])
def test_parameters_carry_timms_names_and_shapes(name, patch):
    dim, depth, _ = SIZES[name]
    with torch.device("meta"):
        model = vit.create(name, patch_size=patch, num_classes=1000)
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert ours == timm_names(dim, depth, patch, (224 // patch) ** 2 + 1, 1000)


class _Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports of packages that timm's model file names but the model never touches."""

    names = ("torchvision", "huggingface_hub")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: mock.MagicMock()
        return module

    def exec_module(self, module):
        pass


def timm_vit():
    """timm's VisionTransformer, the real one; a machine without torchvision need not skip it."""
    finder = _Unused()
    sys.meta_path.append(finder)  # last: an installed torchvision is found first
    try:
        from timm.models.vision_transformer import VisionTransformer
    except Exception as error:
        pytest.skip(f"timm cannot be imported: {error}")
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, m in sys.modules.items() if getattr(m, "__loader__", None) is finder]:
            del sys.modules[name]
    return VisionTransformer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reg_tokens": 4, "init_values": 0.1},
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
    ],
)
def test_the_same_weights_give_timms_outputs(options):
    size = {"img_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}
    torch.manual_seed(0)
    theirs = timm_vit()(**size, **options, num_classes=5).eval()
    with torch.no_grad():
        for param in theirs.parameters():
            param.add_(0.1 * torch.randn_like(param))
    ours = vit.VisionTransformer(**size, **options, num_classes=5).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(x), theirs.forward_features(x), rtol=1e-4, atol=1e-5)


def tiny(**options) -> vit.VisionTransformer:
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return vit.VisionTransformer(**{**size, **options})


def test_patch_embedding_is_the_convolution():
    model = tiny()
    x = torch.randn(2, 3, 16, 24)
    expected = F.conv2d(x, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8)
    torch.testing.assert_close(model.patch_embed(x), expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("reg_tokens", [0, 4])
@pytest.mark.parametrize("class_token", [True, False])
def test_tokens_come_with_their_prefix(class_token, reg_tokens):
    model = tiny(class_token=class_token, reg_tokens=reg_tokens)
    assert model.num_prefix_tokens == class_token + reg_tokens
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, model.num_prefix_tokens + 16, 32)


def test_no_image_sees_another_in_eval_and_training():
    for model in (tiny().eval(), tiny().train()):
        x = torch.randn(3, 3, 32, 32)
        y = x.clone()
        y[1] = 7.0
        before, after = model(x), model(y)
        torch.testing.assert_close(after[[0, 2]], before[[0, 2]])


def test_other_sizes_resize_the_position_embedding():
    model = tiny().eval()
    assert model(torch.randn(1, 3, 48, 16)).shape == (1, 1 + 6 * 2, 32)
    with torch.no_grad():
        model.pos_embed[:, 1:] = 0.25  # a constant stays itself at any size
    resized = vit.resize_pos_embed(model.pos_embed, (6, 2), 1)
    torch.testing.assert_close(resized[:, 1:], torch.full((1, 12, 32), 0.25))
    assert torch.equal(resized[:, :1], model.pos_embed[:, :1])
    larger = tiny(img_size=64)
    larger.load_state_dict(model.state_dict())
    torch.testing.assert_close(larger.pos_embed[:, 1:], torch.full((1, 64, 32), 0.25))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    block = vit.Block(8, 1, 4.0, True, 0.5, None, "auto").train()
    torch.manual_seed(0)
    dropped = block._drop(torch.ones(4000, 2, 8))
    rows = dropped.flatten(1)
    assert ((rows == 0).all(1) | (rows == 2).all(1)).all()
    assert abs(dropped.mean() - 1) < 0.1
    assert torch.equal(block.eval()._drop(torch.ones(4, 2, 8)), torch.ones(4, 2, 8))
    rates = [b.drop_path for b in tiny(depth=3, drop_path=0.2).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_activation_checkpoints_give_the_same_gradients():
    x = torch.randn(2, 3, 32, 32)
    grads = []
    for flag in (False, True):
        model = tiny(checkpoint_activations=flag).train()
        model(x).square().sum().backward()
        grads.append(model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_compiles_to_one_graph():
    torch._dynamo.reset()
    model = tiny(init_values=1e-5, reg_tokens=1).eval()
    x = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="divisible by patch_size=8, got 30x32"):
        tiny()(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match=r"images: expected \[B, 3, H, W\]"):
        tiny()(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="did you mean 'vit_small'"):
        vit.create("vit_smal")
    with pytest.raises(ValueError, match="num_heads"):
        tiny(num_heads=3)
