import pytest
import torch
import torch.nn.functional as F

from fastequi.models import vit
from fastequi.models.rope import rotate
from fastequi.models.transformer import Block, BlockShape

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


ROPE = {"pos": "rope", "rope_rescale": 2.0, "rope_jitter": 1.5, "rope_shift": 0.1}


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


@pytest.mark.parametrize("reg_tokens", [0, 4])
@pytest.mark.parametrize("class_token", [True, False])
def test_tokens_have_names(class_token, reg_tokens):
    model, x = tiny(class_token=class_token, reg_tokens=reg_tokens), torch.randn(2, 3, 32, 32)
    tokens, named = model(x), model.forward_features(x)
    cls = tokens[:, :1] if class_token else None
    assert (named.cls is None) == (cls is None)
    assert cls is None or torch.equal(named.cls, cls)
    assert (named.registers is None) == (reg_tokens == 0)
    if reg_tokens:
        assert torch.equal(named.registers, tokens[:, class_token : class_token + reg_tokens])
    assert torch.equal(named.patch, tokens[:, class_token + reg_tokens :])


@pytest.mark.parametrize("pos", vit.POSITIONS)
def test_no_image_sees_another_in_eval_and_training(pos):
    for model in (tiny(pos=pos).eval(), tiny(pos=pos).train()):
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


@pytest.mark.parametrize("source", [(14, 14), (8, 32), (1, 1), (5, 3)])
@pytest.mark.parametrize("grid", [(6, 6), (14, 14), (32, 8), (3, 50), (1, 1)])
def test_positions_are_resized_as_by_pytorchs_antialiased_bicubic(source, grid):
    places = torch.randn(1, 2 + source[0] * source[1], 16, dtype=torch.float64, requires_grad=True)
    image = places[:, 2:].unflatten(1, source).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=grid, mode="bicubic", antialias=True, align_corners=False)
    expected = torch.cat([places[:, :2], image.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    resized = vit.resize_pos_embed(places, grid, 2, source)
    torch.testing.assert_close(resized, expected, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(resized)
    grads = [torch.autograd.grad((r * probe).sum(), places)[0] for r in (resized, expected)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)
    if source == grid:
        assert torch.equal(resized, places)


def test_positions_are_not_rounded_by_autocast():
    places = torch.randn(1, 197, 16)
    expected = vit.resize_pos_embed(places, (6, 6), 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vit.resize_pos_embed(places, (6, 6), 1), expected)


def test_positions_of_a_rectangle_are_not_a_squares():
    """8x32 patches are as many as 16x16."""
    torch.manual_seed(0)
    model = tiny(img_size=(32, 128), patch_size=4).eval()
    assert model.img_size == (32, 128)
    x = torch.randn(1, 3, 32, 128)
    tokens = model.patch_embed(x) + model.pos_embed[:, 1:]
    torch.testing.assert_close(model.embed(x).tokens[:, 1:], tokens)
    half = vit.resize_pos_embed(model.pos_embed, (4, 16), 1, (8, 32))
    torch.testing.assert_close(model._positions((4, 16)), half)
    with pytest.raises(ValueError, match="pos_embed: expected a square of patches, got 12 of them"):
        vit.resize_pos_embed(torch.zeros(1, 12, 4), (4, 4), 0)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    block = Block(BlockShape(8, 1, 32), 0.5).train()
    torch.manual_seed(0)
    groups = [(4000, 2), (500, 3)]
    dropped = block._drop(torch.ones(9500, 8), groups)
    for part in (dropped[:8000].view(4000, 16), dropped[8000:].view(500, 24)):
        assert ((part == 0).all(1) | (part == 2).all(1)).all()
        assert abs(part.mean() - 1) < 0.1
    assert torch.equal(block.eval()._drop(torch.ones(8, 8), [(4, 2)]), torch.ones(8, 8))
    rates = [b.drop_path for b in tiny(depth=3, drop_path=0.2).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("options", [{}, {**ROPE, "mlp": "swiglu"}])
def test_activation_checkpoints_give_the_same_gradients(options):
    x = torch.randn(2, 3, 32, 32)
    grads = []
    for flag in (False, True):
        model = tiny(checkpoint_activations=flag, **options).train()
        torch.manual_seed(1)
        model(x).square().sum().backward()
        grads.append(model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("pos", vit.POSITIONS)
def test_no_image_of_a_packed_forward_sees_another(pos):
    """Multi-crop: each image alone gives what it gives among others, whatever those hold."""
    torch.manual_seed(0)
    model = tiny(depth=2, reg_tokens=1, init_values=0.1, pos=pos).double().train()
    large, small = torch.randn(3, 3, 32, 32).double(), torch.randn(5, 3, 16, 24).double()
    together = model.encode([model.embed(large), model.embed(small)])
    for images, tokens in ((large, together[0]), (small, together[1])):
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(tokens, alone, rtol=1e-10, atol=1e-10)
    other = model.encode(
        [model.embed(large), model.embed(small.clone().index_fill_(0, torch.tensor([1]), 9.0))]
    )
    kept = [0, 2, 3, 4]
    torch.testing.assert_close(other[0], together[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other[1][kept], together[1][kept], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(other[1][1], together[1][1])
    small.requires_grad_()
    large.requires_grad_()
    tokens = model.encode([model.embed(large), model.embed(small)])
    (tokens[0][1].sum() + tokens[1][4].sum()).backward()
    assert large.grad.flatten(1).abs().sum(1).nonzero().flatten().tolist() == [1]
    assert small.grad.flatten(1).abs().sum(1).nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("options", [{}, {**ROPE, "reg_tokens": 2}, {"final_norm": False}])
def test_tokens_after_every_block_are_those_of_a_loop(options):
    model, x = tiny(depth=3, **options).eval(), torch.randn(2, 3, 32, 24)
    groups = model.embed(x)
    sizes, rows = [groups.tokens.shape[:2]], groups.tokens.flatten(0, 1)
    rotations = [model.rope(groups.grid, model.num_prefix_tokens, rows)] if model.rope else None
    expected = [groups.tokens]
    for block in model.blocks:
        rows = block(rows, sizes, rotations)
        expected.append(rows.unflatten(0, sizes[0]))
    found = model.forward_blocks(x)
    assert len(found) == 4
    for tokens, after in zip(found, expected, strict=True):
        normed = model.split(model.norm(after))
        torch.testing.assert_close(tokens.patch, normed.patch)
        torch.testing.assert_close(tokens.cls, normed.cls)
    assert torch.equal(found[-1].patch, model.forward_features(x).patch)
    middle = model.encode_both([groups], 2)[1][0]
    torch.testing.assert_close(middle, expected[2])


def test_masked_patches_are_replaced_before_positions_are_added():
    model = tiny()
    x, mask, token = torch.randn(2, 3, 32, 32), torch.zeros(2, 16, dtype=torch.bool), torch.ones(32)
    mask[1, 3] = True
    plain, masked = model.embed(x).tokens, model.embed(x, mask, token).tokens
    torch.testing.assert_close(masked[1, 4], token + model.pos_embed[0, 4])
    keep = torch.ones(2, 17, dtype=torch.bool)
    keep[1, 4] = False
    assert torch.equal(masked[keep], plain[keep])


@pytest.mark.slow("options1")
@pytest.mark.parametrize("options", [{}, {**ROPE, "mlp": "swiglu"}])
def test_compiles_to_one_graph(options):
    torch._dynamo.reset()
    model = tiny(init_values=1e-5, reg_tokens=1, **options)
    x = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for mode in (True, False):
        model.train(mode)
        outs = []
        for network in (compiled, model):
            torch.manual_seed(1)  # of the rotations' random box
            outs.append(network(x))
        torch.testing.assert_close(*outs)


@pytest.mark.slow
@pytest.mark.parametrize("pos", vit.POSITIONS)
def test_one_graph_for_image_sizes_that_change(pos):
    torch._dynamo.reset()
    model = tiny(init_values=0.1, pos=pos).double()
    weight = model.blocks[0].attn.qkv.weight if model.pos_embed is None else model.pos_embed
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for height, width in ((32, 32), (48, 48), (64, 24), (32, 32)):
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        outs = compiled(x), model(x)
        torch.testing.assert_close(*outs)
        grads = [torch.autograd.grad(out.square().sum(), weight)[0] for out in outs]
        torch.testing.assert_close(*grads)


@pytest.mark.slow("False", "rope")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("pos", vit.POSITIONS)
@pytest.mark.parametrize("class_token", [True, False])
def test_exported_it_takes_any_batch_and_size(class_token, pos):
    model = tiny(class_token=class_token, init_values=0.1, pos=pos).eval()
    dim = torch.export.Dim
    batch = dim("batch", min=1, max=64)
    sides = {2: 8 * dim("h", min=1, max=32), 3: 8 * dim("w", min=1, max=32)}
    x, others = torch.randn(2, 3, 32, 32), [torch.randn(n, 3, 32, 32) for n in (1, 5)]
    for shapes, inputs in (
        ({0: batch}, others),
        ({0: dim.AUTO}, others),
        ({0: batch, **sides}, [*others, torch.randn(3, 3, 48, 16)]),
    ):
        program = torch.export.export(model, (x,), dynamic_shapes=(shapes,)).module()
        for images in inputs:
            torch.testing.assert_close(program(images), model(images))
    traced = torch.jit.trace(model, x)
    for images in others:
        torch.testing.assert_close(traced(images), model(images))
    traced = torch.jit.trace(model, torch.randn(2, 3, 48, 32))
    images = torch.randn(3, 3, 48, 32)
    torch.testing.assert_close(traced(images), model(images))


@pytest.mark.parametrize("pos", vit.POSITIONS)
def test_an_empty_batch_gives_no_tokens(pos):
    assert tiny(pos=pos)(torch.zeros(0, 3, 32, 32)).shape == (0, 17, 32)


def test_rotary_positions_are_no_weights():
    learned, rope = tiny().state_dict(), tiny(**ROPE).state_dict()
    assert set(learned) - set(rope) == {"pos_embed"}
    assert set(rope) < set(learned)
    assert torch.equal(rope["blocks.1.mlp.fc2.weight"], learned["blocks.1.mlp.fc2.weight"])


def test_rotary_positions_change_attention_alone():
    """What a block computes, written out: the rotation is of each group's own grid."""
    model = tiny(depth=1, reg_tokens=2, pos="rope", rope_theta=30.0).double().eval()
    groups = [model.embed(torch.randn(2, 3, *size).double()) for size in ((32, 32), (16, 40))]
    block, found = model.blocks[0], model.encode(groups)
    for (x, grid), tokens in zip(groups, found, strict=True):
        normed = block.norm1(x)
        q, k, v = block.attn.qkv(normed).unflatten(-1, (3, 2, 16)).unbind(2)
        q, k = (rotate(each, model.rope(grid, 3, x)) for each in (q, k))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 4
        mixed = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)
        x = x + block.attn.proj(mixed)
        x = model.norm(x + block.mlp(block.norm2(x)))
        torch.testing.assert_close(tokens, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pos", vit.POSITIONS)
def test_residuals_are_not_in_autocasts_type(pos):
    model = tiny(pos=pos).eval()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: seen.extend([args[0].dtype, out.dtype]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(2, 3, 32, 32))
    assert seen == 4 * [torch.float32]
    model.bfloat16()(torch.randn(2, 3, 32, 32).bfloat16())
    assert seen[4:] == 4 * [torch.bfloat16]


def test_groups_come_with_their_grids():
    """Eight patches are 2x4 or 4x2, which only the images tell."""
    model = tiny(pos="rope").eval()
    tokens, grid = model.embed(torch.randn(2, 3, 16, 32))
    assert grid == (2, 4)
    wide, tall = (model.encode([vit.Embedded(tokens, g)])[0] for g in ((2, 4), (4, 2)))
    assert not torch.allclose(wide, tall, atol=1e-3)
    with pytest.raises(TypeError, match=r"groups: expected what embed\(\) returns, got Tensor"):
        model.encode([tokens])


def test_without_a_final_norm_tokens_are_the_last_blocks():
    model, plain = tiny().eval(), tiny(final_norm=False).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.norm(plain(x)))
    assert set(model.state_dict()) - set(plain.state_dict()) == {"norm.weight", "norm.bias"}


def test_the_epsilon_is_of_every_norm():
    model = tiny(norm_eps=0.25)
    norms = [part for part in model.modules() if isinstance(part, torch.nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [0.25] * 5


# hidden channels of the MLP: DINOv2's giant, DINOv3's huge plus and timm's, as published
WIDTHS = {
    "vit_so150m": (896, 18, 14, 2304, 2304),
    "vit_giant": (1536, 40, 24, 4096, 2 * 4096),
    "vit_huge_plus": (1280, 32, 20, 5120, 2 * 5120),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_larger_sizes_are_the_published_ones(name):
    dim, depth, heads, hidden, rows = WIDTHS[name]
    with torch.device("meta"):
        model = vit.create(name, patch_size=14)
    assert (model.embed_dim, len(model.blocks), model.num_heads) == (dim, depth, heads)
    mlp = model.blocks[0].mlp
    assert (tuple(mlp.fc1.weight.shape), tuple(mlp.fc2.weight.shape)) == (
        (rows, dim),
        (dim, hidden),
    )
    with torch.device("meta"):
        exact = vit.create(name, patch_size=14, mlp_hidden=1003)
    assert exact.blocks[0].mlp.fc2.weight.shape == (dim, 1003)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="divisible by patch_size=8, got 30x32"):
        tiny()(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match=r"images: expected \[B, 3, H, W\]"):
        tiny()(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="did you mean 'vit_small'"):
        vit.create("vit_smal")
    with pytest.raises(ValueError, match="num_heads"):
        tiny(num_heads=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_path": 1.0}, "drop_path: expected a finite number >= 0 and < 1, got 1.0"),
        ({"drop_path": -0.1}, "drop_path: expected a finite number"),
        ({"patch_size": 0}, "patch_size: expected an integer >= 1, got 0"),
        ({"reg_tokens": -1}, "reg_tokens: expected an integer >= 0, got -1"),
        ({"img_size": (32, 0)}, "img_size: expected a size or"),
        ({"attention": "x"}, "attention: expected one of"),
        ({"pos": "rotary"}, r"pos: expected one of \('learned', 'rope'\), got 'rotary'"),
        ({"mlp": "geglu"}, "mlp: expected one of .*, got 'geglu', did you mean"),
        ({"mlp_hidden": 0}, "mlp_hidden: expected an integer >= 1, got 0"),
        ({"norm_eps": 0.0}, "norm_eps: expected a finite number > 0, got 0.0"),
        ({"pos": "rope", "num_heads": 8}, "num_heads: .* multiple of 4 channels .*, got 2 channe"),
        ({"pos": "rope", "rope_theta": 0.0}, "rope_theta: expected a finite number > 0, got 0.0"),
        ({"pos": "rope", "rope_rescale": 0.5}, "rope_rescale: expected a finite number >= 1"),
        ({"pos": "rope", "rope_jitter": 0.9}, "rope_jitter: expected a finite number >= 1"),
        ({"pos": "rope", "rope_shift": -1.0}, "rope_shift: expected a finite number >= 0"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        vit.VisionTransformer(
            **{"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
            | options
        )


def test_bytes_are_no_images():
    model = vit.VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(TypeError, match=r"images: expected floats, normalised, got torch.uint8"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
