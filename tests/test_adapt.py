"""Patch embeddings for other patches and channels, by what they are for."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fastequi.evaluate.encoders import load_encoder
from fastequi.models.vit import VisionTransformer
from fastequi.weights import adapt
from fastequi.weights.architecture import Stated
from fastequi.weights.reader import fill, load_weights
from tests.support.vit_by_hand import forward, tensors


def resized(patches, size):
    return F.interpolate(patches, (size, size), mode="bicubic", antialias=True)


@pytest.mark.parametrize("size", [8, 11, 16, 24])
def test_larger_patches_give_the_products_that_the_original_ones_gave(size):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 8, 8, generator=generator)
    patches = torch.randn(20, 3, 8, 8, generator=generator)
    expected = torch.einsum("nchw,dchw->nd", patches, weight)
    found = torch.einsum("nchw,dchw->nd", resized(patches, size), adapt.patches(weight, size))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_smaller_patches_have_the_weights_nearest_to_that():
    """Over white noise no other weights are nearer: the error does not fall along any direction."""
    weight = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    basis = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    small = resized(basis, 5)  # of every pixel

    def error(weights):
        return ((small * weights).sum((1, 2, 3)) - weight.flatten()).square().sum()

    found = adapt.patches(weight, 5).requires_grad_()
    (slope,) = torch.autograd.grad(error(found), found)
    assert slope.abs().max() < 1e-9
    assert error(found) < error(resized(weight, 5))


def test_channels():
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    grey = weight.sum(1, keepdim=True)
    torch.testing.assert_close(adapt.channels(weight, 1), grey)
    torch.testing.assert_close(adapt.channels(grey, 3).sum(1, keepdim=True), grey)
    assert torch.equal(adapt.channels(weight, 2, (2, 0)), weight[:, [2, 0]])
    six = adapt.channels(weight, 6)
    torch.testing.assert_close(six[:, :3], weight / 2)
    torch.testing.assert_close(six[:, 3:], weight / 2)
    for number, kept in ((2, (0, 3)), (2, (0,)), (2, None)):
        with pytest.raises(ValueError, match="channels: expected"):
            adapt.channels(weight, number, kept)


def of_channels(folder, number, **config):
    state = tensors(192, 2)
    state["patch_embed.proj.weight"] = torch.randn(192, number, 8, 8) * 0.3
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_heads": 3, "img_size": 32, **config}))
    return folder, state


def test_a_grey_network_sees_grey_images_as_before_and_says_so(tmp_path, caplog):
    folder, state = of_channels(tmp_path / "grey", 1, mean=[0.2], std=[0.5])
    with caplog.at_level(logging.WARNING):
        encoder = load_encoder(str(folder), "cpu")
    assert "patch embedding of 1 channels for 3, repeated and divided by 3" in caplog.text
    assert (encoder.mean, encoder.std) == ((0.2,) * 3, (0.5,) * 3)
    images = torch.randn(2, 1, 32, 32)
    found = encoder.features(images.expand(-1, 3, -1, -1))["patch"]
    torch.testing.assert_close(found, forward(state, images, 3)[:, 1:], rtol=1e-4, atol=1e-4)


def test_of_many_channels_those_asked_for_are_kept(tmp_path):
    means = [0.1, 0.2, 0.3, 0.4, 0.5]
    folder, state = of_channels(tmp_path / "five", 5, mean=means, std=[0.5] * 5)
    with pytest.raises(ValueError, match="3, as images have, got 5; --channels says which"):
        load_weights(folder, Stated(in_chans=3))
    assert load_weights(folder).mean == tuple(means)  # as they are
    encoder = load_encoder(str(folder), "cpu", Stated(channels=(3, 2, 1)))
    assert encoder.mean == (0.4, 0.3, 0.2)
    weight = state["patch_embed.proj.weight"][:, [3, 2, 1]]
    images = torch.randn(2, 3, 32, 32)
    expected = forward({**state, "patch_embed.proj.weight": weight}, images, 3)
    found = encoder.features(images)["cls"]
    torch.testing.assert_close(found, expected[:, :1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"channels: expected 3 of 0 .. 4, got 3 2 5"):
        load_weights(folder, Stated(channels=(3, 2, 5)))


def test_an_encoder_of_other_channels_is_filled_and_told(tmp_path):
    folder, state = of_channels(tmp_path / "rgb", 3)
    weights = load_weights(folder)
    network = VisionTransformer(**{**weights.options, "in_chans": 6}).eval()
    report = fill(network, weights)
    assert report.resized == ["patch embedding of 3 channels for 6"]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = network(images.repeat(1, 2, 1, 1))
    torch.testing.assert_close(found, forward(state, images, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [4, 8, 12, 16])
def test_an_evaluated_network_of_other_patches_is_of_images_of_about_the_same_size(tmp_path, size):
    folder, _ = of_channels(tmp_path / "rgb", 3)
    encoder = load_encoder(str(folder), "cpu", Stated(patch_size=size))
    assert (encoder.patch_size, encoder.image_size) == (size, 36 if size == 12 else 32)
    images = torch.randn(1, 3, encoder.image_size, encoder.image_size)
    patches = (encoder.image_size // size) ** 2
    assert encoder.features(images)["patch"].shape == (1, patches, 192)
