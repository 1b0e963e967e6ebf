import pytest
import torch
import torch.nn.functional as F

from fastequi.models.decoder import PathDecoder, PixelShuffleDecoder


def decoder(**options) -> PathDecoder:
    torch.manual_seed(0)
    return PathDecoder(
        **{"in_dim": 10, "patch_size": 4, "num_steps": 3, "width": 6, "num_convs": 4, **options}
    )


@pytest.mark.parametrize("num_convs", [0, 1, 4])
def test_equals_k_separate_decoders_in_value_and_gradient(num_convs):
    model = decoder(num_convs=num_convs)
    z = torch.randn(2, 9, 10, requires_grad=True)
    out = model(z)
    assert out.shape == (2, 3, 9, 48)
    alone = z.detach().clone().requires_grad_()
    rows = []
    for k in range(3):
        part = slice(6 * k, 6 * k + 6)
        x = F.linear(alone, model.linear.weight[part], model.linear.bias[part])
        x = x.transpose(1, 2).reshape(2, 6, 3, 3)
        for layer in model.convs:
            if isinstance(layer, torch.nn.Conv2d):
                n = layer.out_channels // 3
                cut = slice(n * k, n * k + n)
                x = F.conv2d(x, layer.weight[cut], layer.bias[cut], padding=layer.padding)
            else:
                x = layer(x)
        rows.append(x.flatten(2).transpose(1, 2))
    expected = torch.stack(rows, 1)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(expected)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(z.grad, alone.grad, rtol=1e-4, atol=1e-5)


def test_a_steps_error_reaches_its_own_decoder_alone():
    model = decoder()
    model(torch.randn(2, 9, 10))[:, 1].square().sum().backward()
    for param in model.parameters():
        before, own, after = param.grad.chunk(3)
        assert own.abs().sum() > 0
        assert before.abs().sum() == after.abs().sum() == 0


def test_the_prediction_is_a_view_with_patches_innermost():
    out = decoder()(torch.randn(2, 9, 10))
    assert out.stride(-1) == 1
    assert out._base is not None


def test_pixel_shuffle_gives_images_step_by_step():
    torch.manual_seed(0)
    model = PixelShuffleDecoder(10, 8, num_steps=2, width=16, num_convs=1)
    z = torch.randn(2, 9, 10)
    assert model(z).shape == (2, 2, 3, 24, 24)
    model(z)[:, 0].square().sum().backward()
    for param in model.parameters():
        assert param.grad.chunk(2)[1].abs().sum() == 0
        assert param.grad.chunk(2)[0].abs().sum() > 0


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="square number of tokens, got 8"):
        decoder()(torch.randn(1, 8, 10))
    with pytest.raises(ValueError, match="power of two, got 14"):
        PixelShuffleDecoder(10, 14)
    with pytest.raises(ValueError, match="num_steps >= 1"):
        decoder(num_steps=0)


@pytest.mark.parametrize("kind", [PathDecoder, PixelShuffleDecoder])
def test_compiles_for_grids_that_change(kind):
    torch._dynamo.reset()
    model = kind(in_dim=10, patch_size=4, width=8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for tokens in (16, 9, 25):
        z = torch.randn(2, tokens, 10)
        torch.testing.assert_close(compiled(z), model(z))
