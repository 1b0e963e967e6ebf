"""What pictures are made of: attention, principal components, the predicted angle."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastequi.evaluate.encoder import Encoder
from fastequi.models.nin import NetworkInNetwork
from fastequi.models.vit import VisionTransformer
from fastequi.report import feature_views
from fastequi.report.sheets import Sheet, heat

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def vit_encoder(**options):
    torch.manual_seed(0)
    vit = VisionTransformer(**SMALL, **options).eval()

    def features(images):
        tokens = vit(images)
        out = {"patch": tokens[:, vit.num_prefix_tokens :]}
        return {**out, "cls": tokens[:, :1]} if vit.cls_token is not None else out

    names = ("patch", "cls") if vit.cls_token is not None else ("patch",)
    plain = torch.no_grad()(features)
    return Encoder(name="vit", features=plain, names=names, image_size=32, patch_size=8), vit


def pixels(size=32, cell=8):
    """An encoder whose tokens are the pixels of its patches."""

    def features(images):
        return {"patch": F.unfold(images, cell, stride=cell).transpose(1, 2)}

    return Encoder(
        name="pixels", features=features, names=("patch",), image_size=size, patch_size=cell
    )


@pytest.mark.parametrize("pos", ["learned", "rope"])
def test_explicit_attention_is_what_the_block_computes(pos):
    _, vit = vit_encoder(pos=pos)
    x = torch.randn(2, 17, 24, generator=torch.Generator().manual_seed(1))
    block = vit.blocks[-1].attn
    rotation = vit.rope((4, 4), 1, x) if vit.rope else None
    with torch.no_grad():
        weights = feature_views.attention_weights(block, x, rotation)
        v = block.qkv(x).unflatten(-1, (3, 3, -1))[:, :, 2]
        mixed = torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)
        rotations = [rotation] if rotation else None
        expected = block(x.flatten(0, 1), [(2, 17)], rotations).unflatten(0, (2, 17))
        torch.testing.assert_close(block.proj(mixed), expected)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 17))


@pytest.mark.parametrize("pos", ["learned", "rope"])
@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("class_token", [True, False])
def test_attention_of_the_last_block_is_of_the_class_token_or_of_the_patches(
    class_token, registers, pos
):
    encoder, vit = vit_encoder(class_token=class_token, reg_tokens=registers, pos=pos)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = feature_views.last_attention(encoder, images)
    seen = []
    hook = vit.blocks[-1].attn.register_forward_pre_hook(lambda _, args: seen.append(args))
    encoder.features(images)
    hook.remove()
    x, _, rotations = seen[0]
    rotation = rotations[0] if pos == "rope" else None
    weights = feature_views.attention_weights(vit.blocks[-1].attn, x.view(2, -1, 24), rotation)
    prefix = int(class_token) + registers
    rows = weights[:, :, 0] if class_token else weights[:, :, prefix:].mean(2)
    torch.testing.assert_close(found.flatten(2), rows[..., prefix:])
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_a_network_without_attention_has_none_to_show():
    network = NetworkInNetwork(3).eval()
    features = lambda x: {"patch": network(x)[-1].flatten(2).mT}  # noqa: E731
    encoder = Encoder(name="nin", features=features, names=("patch",), image_size=32)
    with torch.no_grad():
        assert feature_views.last_attention(encoder, torch.zeros(1, 3, 32, 32)) is None


def test_tokens_of_a_larger_image_are_those_of_the_views_that_hold_them():
    image = torch.rand(2, 3, 80, 48, generator=torch.Generator().manual_seed(0))
    tokens = feature_views.dense_tokens(pixels(), image)
    expected = F.unfold(image, 8, stride=8).mT.unflatten(1, (10, 6))
    torch.testing.assert_close(tokens, expected)
    with pytest.raises(ValueError, match="at least 32 px"):
        feature_views.dense_tokens(pixels(), image[..., :24])


def test_shown_images_hold_24_tokens_and_every_rotation():
    assert feature_views.shown_size(pixels()) == 24 * 8
    assert feature_views.shown_size(pixels(cell=1)) == 46  # 32 √2


def test_colours_are_one_basis_for_all_images_whatever_axes_the_features_have():
    g = torch.Generator().manual_seed(0)
    tokens = [torch.randn(n, n, 16, generator=g) * 0.5 ** torch.arange(16) for n in (20, 12)]
    colors = feature_views.pca_colors(tokens)
    assert [c.shape for c in colors] == [(20, 20, 3), (12, 12, 3)]
    every = torch.cat([c.flatten(0, 1) for c in colors])
    assert every.min() == 0
    assert every.max() == 1
    rotation, _ = torch.linalg.qr(torch.randn(16, 16, generator=g))
    again = feature_views.pca_colors([t @ rotation + 3 for t in tokens])
    torch.testing.assert_close(again[1], colors[1], atol=1e-4, rtol=0)
    first = torch.cat([t.flatten(0, 1) for t in tokens])[:, 0]
    correlation = torch.corrcoef(torch.stack([first, every[:, 0]]))[0, 1]
    assert correlation.abs() > 0.95  # the widest axis


def test_fewer_than_three_components_leave_colours_out():
    (colors,) = feature_views.pca_colors(
        [torch.randn(8, 8, 2, generator=torch.Generator().manual_seed(0))]
    )
    assert (colors[..., 2] == 0).all()


def test_an_image_resembles_itself_patch_by_patch():
    tokens = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    found = feature_views.similarities(tokens, tokens, tokens.flatten(0, 1)).view(3, 4, 5, 5)
    torch.testing.assert_close(found.diagonal(dim1=2, dim2=3), torch.ones(3, 4, 5))
    assert found.shape == (3, 4, 5, 5)


def test_the_sweep_predicts_angles_and_leaves_the_generator_alone():
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(900, 3, 12, 12, generator=g)
    windows = F.interpolate(noise, size=(46, 46), mode="bicubic").clamp(0, 1) * 255
    windows = windows.round().byte()
    degrees = torch.tensor([-45.0, 0.0, 45.0])
    before = torch.get_rng_state()
    encoder = pixels()
    parts = {"shown": windows[:2], "train": windows[200:], "test": windows[:200]}
    found = feature_views.sweep(encoder, **parts, degrees=degrees)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.predicted.shape == (2, 3)
    assert found.r2 > 0.3
    assert (found.predicted[:, 0] < found.predicted[:, 2]).all()
    frames = feature_views.rotated(windows[:1], torch.zeros(1), encoder)
    middle = windows[:1, :, 7:39, 7:39].float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.mean, encoder.std))
    torch.testing.assert_close(frames, (middle - mean) / std, atol=1e-4, rtol=0)


def test_a_sheet_has_its_tiles_in_place_and_its_captions_below():
    tiles = np.random.default_rng(0).integers(0, 256, (4, 2, 8, 8, 3), dtype=np.uint8)
    rows = tuple(tuple(row) for row in tiles)
    words = {"title": "t", "note": "n", "columns": ("a", "b"), "rows": rows, "side": 16}
    sheet = Sheet(**words)
    picture = np.asarray(sheet.png())
    left, top = 6 + 22, 26 + 6 + 2 * 22
    assert (picture[top : top + 16 : 2, left : left + 16 : 2] == tiles[2, 1]).all()
    wrapped = np.asarray(Sheet(**words, wrap=True).png())
    left = 6 + (2 * 2 + 1) * 22  # the third row is the third pair of the first line
    assert (wrapped[32:48:2, left : left + 16 : 2] == tiles[2, 1]).all()
    captions = (("−1°", "+2°"),) * 4
    captioned = np.asarray(Sheet(**words, captions=captions).png())
    assert captioned.shape[0] == picture.shape[0] + 4 * 22
    assert (captioned[26 + 6 + 16 : 26 + 6 + 16 + 22] < 128).any()


def test_heat_is_brightest_where_a_map_is_largest_and_even_where_it_is_even():
    image = np.full((32, 32, 3), 100, np.uint8)
    weights = torch.zeros(4, 4)
    weights[0, 3] = 1.0
    lit = heat(image, weights)
    assert lit[2, -2].mean() > 2 * lit[-2, 2].mean()
    even = heat(image, torch.full((4, 4), 0.1))
    assert even.std((0, 1)).max() == 0
    assert lit[-2, 2].mean() < even.mean() < lit[2, -2].mean()
