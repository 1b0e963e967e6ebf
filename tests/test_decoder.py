from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fastequi.models.block_decoder import BlockDecoder
from fastequi.models.decoder import (
    PathDecoder,
    PixelShuffleDecoder,
    StepLinear,
    cosine_patterns,
    cosines,
)
from fastequi.models.positions import sine_cosine


def test_what_is_fixed_survives_whatever_moves_a_layer():
    """Parameters are then restored in place, as sharded checkpoints are."""
    last = StepLinear(2, 8, 4, 3, 1)
    state = {name: value.clone() for name, value in last.state_dict().items()}
    with torch.device("meta"):
        empty = StepLinear(2, 8, 4, 3, 1)
    assert empty.patterns.device.type == empty.coefficients.device.type == "meta"
    empty = empty.to_empty(device="cpu")
    for name, value in empty.state_dict().items():
        value.copy_(state[name])
    torch.testing.assert_close(empty.weight, last.weight, rtol=0, atol=0)
    patterns = last.patterns.clone()
    assert torch.equal(last.bfloat16().float().patterns, patterns)
    with torch.device("meta"):
        last.load_state_dict(state)


def test_a_weight_that_does_not_fit_a_last_layer_is_named():
    last = StepLinear(2, 8, 4, 3)
    state = {"weight": torch.zeros(2, 48, 9), "bias": torch.zeros(2, 48)}
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"weight: expected \(2, 48, 8\), got \(2, 48, 9\)"):
            last.load_state_dict(state, strict=strict)
    both = {**last.state_dict(), "weight": torch.zeros(2, 48, 8)}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        last.load_state_dict(both)


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
        x = x.flatten(2).transpose(1, 2)
        if model.last is not None:
            x = F.linear(F.gelu(x), model.last.weight[k], model.last.bias[k])
        rows.append(x)
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


def blocks(**options) -> BlockDecoder:
    torch.manual_seed(0)
    sizes = {"num_steps": 3, "width": 16, "depth": 2, "num_heads": 2}
    return BlockDecoder(10, 4, **{**sizes, **options})


@pytest.mark.parametrize("shared", [True, False])
def test_blocks_are_torchs_pre_norm_transformer_on_places(shared):
    """Against torch's own encoder layers, which are given the same weights."""
    model = blocks(shared=shared)
    z = torch.randn(2, 9, 10)
    out = model(z)
    assert out.shape == (2, 3, 9, 48)
    for k in range(3):
        trunk = model.trunks[0 if shared else k]
        x = trunk.linear(z) + sine_cosine((3, 3), 16, z.device)
        for block in trunk.blocks:
            layer = torch.nn.TransformerEncoderLayer(
                16, 2, 64, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
            )
            layer.load_state_dict(
                {
                    "self_attn.in_proj_weight": block.attn.qkv.weight,
                    "self_attn.in_proj_bias": block.attn.qkv.bias,
                    "self_attn.out_proj.weight": block.attn.proj.weight,
                    "self_attn.out_proj.bias": block.attn.proj.bias,
                    **{f"linear{i}.{n}": getattr(getattr(block.mlp, f"fc{i}"), n)
                       for i in (1, 2) for n in ("weight", "bias")},
                    **{f"norm{i}.{n}": getattr(getattr(block, f"norm{i}"), n)
                       for i in (1, 2) for n in ("weight", "bias")},
                }
            )  # fmt: skip
            x = layer(x)
        expected = F.linear(trunk.norm(x), model.last.weight[k], model.last.bias[k])
        torch.testing.assert_close(out[:, k], expected, rtol=1e-4, atol=1e-5)


def test_steps_share_a_trunk_or_have_their_own():
    for shared, steps in ((True, 1), (False, 3)):
        model = blocks(shared=shared)
        hidden = model.hidden(torch.randn(2, 9, 10))
        assert hidden.shape == (2, 3, 9, 16)
        assert (hidden.stride(1) == 0) == shared
        model.last(hidden)[:, 1].square().sum().backward()
        reached = [any(p.grad is not None and p.grad.any() for p in t.parameters())
                   for t in model.trunks]  # fmt: skip
        assert reached == ([True] if shared else [False, True, False])
        assert len(model.trunks) == steps
        assert model.last.coefficients.grad.flatten(1).any(1).tolist() == [False, True, False]


def cosine_basis(patch_size, in_chans, overlap=0):
    """[w·w·C, p·p·C]: what patterns and channels are together."""
    return torch.kron(cosine_patterns(patch_size, overlap), cosines(in_chans)).float()


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("overlap", [0, 2])
def test_the_last_layers_weight_is_that_of_the_whole_basis(channels, overlap):
    last = StepLinear(3, 6, 4, channels, overlap)
    basis = cosine_basis(4, channels, overlap).double()
    expected = basis @ last.coefficients.double()
    torch.testing.assert_close(last.weight.double(), expected, rtol=1e-5, atol=1e-6)
    slope = torch.randn_like(last.weight)
    (found,) = torch.autograd.grad(last.weight, last.coefficients, slope)
    torch.testing.assert_close(found.double(), basis.T @ slope.double(), rtol=1e-5, atol=1e-5)


def test_weights_may_be_assigned():
    """Of another type, or to a layer that has no memory yet."""
    last = StepLinear(2, 8, 4, 3, 1)
    with torch.device("meta"):
        empty = StepLinear(2, 8, 4, 3, 1)
    empty.load_state_dict(last.state_dict(), assign=True)
    assert torch.equal(empty.weight, last.weight)
    wide = {name: value.double() for name, value in last.state_dict().items()}
    empty.load_state_dict(wide, assign=True)
    torch.testing.assert_close(empty.weight, last.weight.double(), rtol=1e-6, atol=1e-6)


def test_hundreds_of_channels_need_no_basis_of_their_square():
    last = StepLinear(1, 4, 16, 300)
    assert last.weight.shape == (1, 256 * 300, 4)
    assert sum(one.numel() for one in last.buffers()) < 200_000
    with pytest.raises(ValueError, match="patch_size: expected at most 124 with an overlap of 2"):
        StepLinear(1, 4, 128, 1, 2)


@pytest.mark.parametrize("overlap", [1, 2, 4])
def test_windows_of_the_same_tokens_make_an_image_without_edges(overlap):
    """A constant stays one, up to the image's border, and patterns go on over a patch's edge."""
    last = StepLinear(1, 5, 8, 3, overlap)
    assert last.coefficients.shape == (1, 192, 5)
    assert last.bias.shape == (1, (8 + 2 * overlap) ** 2 * 3)
    with torch.no_grad():
        last.coefficients.zero_()[:, 0] = 1
        flat = last(torch.ones(2, 1, 9, 5))
        assert flat.shape == (2, 1, 9, 192)
        torch.testing.assert_close(flat, flat[:1, :, :1, :1].expand_as(flat))
        last.coefficients.zero_()[:, 3] = 1  # one half wave along the columns
        wave = last(torch.ones(1, 1, 9, 5)).view(3, 3, 8, 8, 3)[1, 1, 0, :, 0]
        inside = wave[overlap : 8 - overlap]
        plain = cosine_basis(8, 3)[:, 3].view(8, 8, 3)[0, :, 0] * 5
        torch.testing.assert_close(inside, plain[overlap : 8 - overlap])
        # what the neighbour's half wave, which goes up again, adds meets this one's half way
        assert wave[0].abs() < plain[0].abs()
    other = StepLinear(1, 5, 8, 3, overlap)
    other.load_state_dict(last.state_dict())
    assert torch.equal(other.weight, last.weight)


@pytest.mark.parametrize("make", [BlockDecoder, partial(PathDecoder, num_convs=0)])
def test_an_overlap_is_at_most_half_a_patch(make):
    assert make(10, 4, 2, 16, overlap=2).last.overlap == 2
    for overlap, error in ((3, ValueError), (-1, ValueError), (0.5, TypeError)):
        with pytest.raises(error, match="overlap: expected an integer"):
            make(10, 4, 2, 16, overlap=overlap)
    with pytest.raises(ValueError, match="overlap: expected 0 with convolutions, got 1"):
        PathDecoder(10, 4, overlap=1)


def test_the_last_layer_is_trained_in_cosines_that_fall_with_the_frequency():
    basis = cosine_basis(8, 3).double()
    norms = basis.norm(dim=0).view(8, 8, 3)
    assert norms[0, 0] == pytest.approx(1)
    assert norms[3, 4] == pytest.approx(1 / 6)
    unit = basis / basis.norm(dim=0)
    torch.testing.assert_close(unit.T @ unit, torch.eye(192, dtype=torch.float64))
    grey = unit.view(8, 8, 3, 8, 8, 3)[..., 0, 1, 0]  # one wave along the rows of all channels
    wave = torch.cos(torch.pi * (torch.arange(8).double() + 0.5) / 8)
    wave = (wave / wave.norm() / 24**0.5)[None, :, None].expand(8, 8, 3)
    torch.testing.assert_close(grey, wave)
    last = StepLinear(2, 5, 4, 3)
    assert [name for name, _ in last.named_parameters()] == ["coefficients", "bias"]
    assert list(last.state_dict()) == ["coefficients", "bias"]
    torch.testing.assert_close(last.weight, cosine_basis(4, 3) @ last.coefficients)
    other = StepLinear(2, 5, 4, 3)
    other.load_state_dict({"weight": last.weight.detach(), "bias": last.bias.detach()})
    torch.testing.assert_close(other.weight, last.weight)
    torch.testing.assert_close(other.coefficients, last.coefficients, rtol=1e-5, atol=1e-5)
    with torch.device("meta"):
        empty = StepLinear(2, 5, 4, 3)
    empty.to_empty(device="cpu").load_state_dict(last.state_dict())
    assert torch.equal(empty.weight, last.weight)
    before = {**last.state_dict(), "basis": cosine_basis(4, 3)}  # as it was saved once
    other.load_state_dict(before)
    assert torch.equal(other.weight, last.weight)
    with pytest.raises(RuntimeError, match="basis: saved with other patterns than this layer's"):
        other.load_state_dict({**before, "basis": before["basis"] * 2})
    plain = last.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(last.weight, plain)


def test_positions_are_sines_and_cosines_of_row_and_column():
    found = sine_cosine((2, 3), 8, torch.device("cpu"))
    assert found.shape == (6, 8)
    for row in range(2):
        for column in range(3):
            rates = torch.tensor([1.0, 1e-2])  # 10000^(-4i/8)
            by_row, by_column = row * rates, column * rates
            expected = [by_row.sin(), by_row.cos(), by_column.sin(), by_column.cos()]
            torch.testing.assert_close(found[3 * row + column], torch.cat(expected))


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="width: expected a multiple of 12, got 16"):
        blocks(num_heads=3)
    with pytest.raises(ValueError, match="square number of tokens, got 8"):
        blocks()(torch.randn(1, 8, 10))
    with pytest.raises(ValueError, match="square number of tokens, got 8"):
        decoder()(torch.randn(1, 8, 10))
    with pytest.raises(ValueError, match="power of two, got 14"):
        PixelShuffleDecoder(10, 14)
    with pytest.raises(ValueError, match="kernel_size: expected an odd number, got 2"):
        decoder(kernel_size=2)

    def shuffle(patch_size=4, **options):
        return PixelShuffleDecoder(10, patch_size, **options)

    for make, names in (
        (blocks, "num_steps width depth num_heads in_chans"),
        (decoder, "in_dim patch_size num_steps width in_chans kernel_size"),
        (shuffle, "num_steps width in_chans"),
    ):
        for name in names.split():
            with pytest.raises(ValueError, match=f"^{name}: expected an integer >= 1, got 0"):
                make(**{name: 0})
    with pytest.raises(ValueError, match=r"^patch_size: expected an integer >= 2, got 1"):
        shuffle(1)
    for make in (decoder, shuffle):
        with pytest.raises(ValueError, match=r"^num_convs: expected an integer >= 0, got -1"):
            make(num_convs=-1)


@pytest.mark.slow(every=2)
@pytest.mark.parametrize("kind", [PathDecoder, PixelShuffleDecoder])
def test_compiles_for_grids_that_change(kind):
    torch._dynamo.reset()
    model = kind(in_dim=10, patch_size=4, width=8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for tokens in (16, 9, 25):
        z = torch.randn(2, tokens, 10)
        torch.testing.assert_close(compiled(z), model(z))


@pytest.mark.parametrize("decoder", [PathDecoder, PixelShuffleDecoder])
def test_a_step_at_a_time_is_the_same(decoder, monkeypatch):
    """As convolutions run on a GPU."""
    network = decoder(in_dim=6, patch_size=4, num_steps=3, width=16, num_convs=2)
    z = torch.randn(2, 9, 6, requires_grad=True)
    whole = network(z)
    expected = torch.autograd.grad(whole.square().sum(), [z, *network.parameters()])
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    found = network(z)
    grads = torch.autograd.grad(found.square().sum(), [z, *network.parameters()])
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(grads, expected)
