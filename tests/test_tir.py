"""TIR's equations on small shapes, on synthetic batches."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.config import Config
from fastequi.kernels.nt_xent import nt_xent_loss_ref
from fastequi.kernels.pixel_loss import patchify
from fastequi.methods.tir import unpatchify
from fastequi.paths import fractions
from fastequi.recipes import RECIPES

CPU = torch.device("cpu")


def small(**method) -> Config:
    config = RECIPES["demo"]()
    return replace(
        config,
        model=replace(config.model, embed_dim=32, depth=1, num_heads=1),
        tir=replace(
            config.tir,
            **{
                "dim": 16,
                "equi_dim": 8,
                "decoder_width": 8,
                "decoder_heads": 1,
                "expander": (16, 16),
                "decoder_overlap": 0,
                **method,
            },
        ),
    )


def built(config: Config):
    torch.manual_seed(0)
    return build(config), synthetic(config, 4, CPU)


def test_the_loss_is_the_papers_sum():
    model, batch = built(small(recon_weight=0.7, inv_weight=25.0, var_weight=25.0, cov_weight=1.0))
    out = model(batch)
    torch.testing.assert_close(out["loss"], out["ssl"] + 0.7 * out["recon"])
    expected = 25 * out["inv"] + 25 * out["var"] + out["cov"]
    torch.testing.assert_close(out["ssl"], expected)


@pytest.mark.parametrize("decoder_convs", [0, 1])
def test_a_blur_path_may_be_wider_than_the_ops_default(decoder_convs):
    config = small(decoder="patch", decoder_convs=decoder_convs)
    data = replace(config.data, source_size=config.data.image_size)
    config = replace(config, data=data, path=replace(config.path, family="blur", sigma_high=6.5))
    model, batch = built(config)
    assert batch.path.max() > 4
    shown = model.reconstruct(batch)
    out = model(batch)
    torch.testing.assert_close(out["recon"], F.mse_loss(shown["pred"], shown["target"]))
    assert out["loss"].isfinite()


@pytest.mark.parametrize(
    "decoder",
    [
        {"decoder": "patch", "decoder_convs": 1},
        {"decoder": "patch", "decoder_convs": 0},
        {"decoder": "patch", "decoder_convs": 0, "decoder_overlap": 3},
        {"decoder": "blocks", "decoder_heads": 2},
        {"decoder": "blocks", "decoder_heads": 2, "decoder_overlap": 2},
        {"decoder": "blocks", "decoder_heads": 1, "decoder_shared": False},
    ],
)
def test_recon_is_the_error_of_what_reconstruct_shows(decoder, monkeypatch):
    """Equation and picture agree: targets are u warped at k/(K+1) of θ, straight from u.

    A decoder whose last layer is linear predicts nothing in training: the loss computes it.
    """
    config = small(**decoder)
    model, batch = built(config)
    if not decoder.get("decoder_convs"):
        monkeypatch.setattr(model, "warp_loss", None)
        data = replace(config.data, source_size=config.data.image_size)
        blur = replace(config, path=replace(config.path, family="blur"), data=data)
        other, images = built(blur)
        monkeypatch.setattr(other, "blur_loss", None)
        seen = other.reconstruct(images)
        error = F.mse_loss(seen["pred"], seen["target"])
        torch.testing.assert_close(other(images)["recon"], error)
    shown = model.reconstruct(batch)
    torch.testing.assert_close(model(batch)["recon"], F.mse_loss(shown["pred"], shown["target"]))
    zoom = config.data.image_size / config.data.source_size
    thetas = model.path.at(batch.path, fractions(2), (32, 32), zoom=zoom).theta
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.data.mean, config.data.std))
    for k in range(2):
        grid = F.affine_grid(thetas[:, k], [4, 3, 32, 32], align_corners=False)
        image = F.grid_sample(batch.u.float() / 255, grid, align_corners=False)
        torch.testing.assert_close(
            shown["target"][:, k], (image - mean) / std, atol=1e-4, rtol=1e-4
        )


def test_an_overlap_that_cannot_be_names_the_setting_and_the_way_out():
    with pytest.raises(
        ValueError, match=r"tir\.decoder_overlap: expected 0 \.\. 4, half of patches"
    ):
        build(small(decoder_overlap=5))
    message = (
        r"tir\.decoder_overlap: expected 0 for tir\.decoder=patch with tir\.decoder_convs=4, whose "
        r"last layer is a convolution \(--tir\.decoder-convs 0 makes it linear\), got 2"
    )
    with pytest.raises(ValueError, match=message):
        small(decoder="patch", decoder_overlap=2)


def test_the_base_sees_z_inv_only_and_the_decoders_z_equi_only():
    model, batch = built(small())
    model(batch)["ssl"].backward()
    equi = model.base.head.proj.weight.grad[model.base.head.inv_dim :]
    assert model.base.head.proj.weight.grad[: model.base.head.inv_dim].abs().sum() > 0
    assert equi.abs().sum() == 0
    assert all(p.grad is None for p in model.decoder.parameters())
    model.zero_grad(set_to_none=True)
    model(batch)["recon"].backward()
    assert model.base.head.proj.weight.grad[: model.base.head.inv_dim].abs().sum() == 0
    assert model.base.head.proj.weight.grad[model.base.head.inv_dim :].abs().sum() > 0
    assert all(p.grad is None for p in model.base.criterion.parameters())


@pytest.mark.parametrize("change", [{"equi_dim": 0}, {"num_steps": 0}, {"recon_weight": 0.0}])
def test_without_reconstruction_it_is_the_base(change):
    model, batch = built(small(**change))
    out = model(batch)
    assert model.decoder is None
    assert "recon" not in out
    assert out["loss"] is out["ssl"]
    with pytest.raises(ValueError, match="no decoders"):
        model.reconstruct(batch)


@pytest.mark.parametrize("decoder", ["patch", "blocks", "pixel_shuffle"])
def test_every_decoder_learns_one_batch(decoder):
    model, batch = built(small(decoder=decoder, num_steps=3, decoder_width=32))
    smooth = F.interpolate(batch.u[..., :4, :4].float(), size=(48, 48), mode="bilinear")
    batch = replace(batch, u=smooth.byte())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(model(batch)["recon"])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_features_are_split_tokens():
    config = small()
    config = replace(config, model=replace(config.model, class_token=True, reg_tokens=2))
    model, batch = built(config)
    model.eval()
    features = model.features(batch.v1)
    assert {k: v.shape[1:] for k, v in features.items()} == {
        "patch": (16, 32),
        "z_inv": (16, 8),
        "z_equi": (16, 8),
        "cls": (1, 32),
    }
    both = model.base.head.proj(features["patch"])
    torch.testing.assert_close(torch.cat([features["z_inv"], features["z_equi"]], -1), both)


def test_unpatchify_inverts_patchify():
    images = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpatchify(patchify(images, 4), 4), images)


def test_under_autocast_losses_stay_finite_and_float32():
    model, batch = built(small())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out["loss"].dtype == torch.float32
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_step_compiles_to_one_graph():
    torch._dynamo.reset()
    model, batch = built(small())
    expected = model(batch)["loss"]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch)["loss"], expected)


def test_simclr_as_the_base_sees_z_inv_alone():
    config = small(base="simclr", projector=(16, 8), temperature=0.3)
    model, batch = built(config)
    out = model(batch)
    torch.testing.assert_close(out["loss"], out["ssl"] + out["recon"])
    shown = model.reconstruct(batch)
    views = torch.cat([batch.v1, shown["v2"]])
    _, z_inv, _ = model.base.split(views)
    z1, z2 = (model.base.criterion.projector(z.mean(1)) for z in z_inv.chunk(2))
    torch.testing.assert_close(out["ssl"], nt_xent_loss_ref(z1, z2, 0.3))


@pytest.mark.parametrize("base", ["vicreg", "simclr"])
def test_without_equivariant_channels_it_is_the_base_bit_for_bit(base):
    gradients = []
    for method in ({"num_steps": 2}, {"num_steps": 0}, {"num_steps": 2, "recon_weight": 0.0}):
        model, batch = built(small(base=base, equi_dim=0, projector=(16, 8), **method))
        out = model(batch)
        assert "recon" not in out
        out["loss"].backward()
        gradients.append([p.grad for p in model.parameters()])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


@pytest.mark.parametrize("name", ["vicreg_vits16", "simclr_vits16"])
def test_a_base_alone_sees_the_second_view_untransformed(name):
    config = RECIPES[name]()
    config = replace(
        config,
        model=replace(config.model, embed_dim=16, depth=1, num_heads=1),
        data=replace(config.data, image_size=32, source_size=32),
        tir=replace(config.tir, expander=(8, 8), projector=(8, 8), dim=8),
    )
    torch.manual_seed(0)
    model, batch = build(config), synthetic(config, 4, CPU)
    assert model.decoder is None
    _, end = model._points(batch.path)
    v2 = model._view(batch.u, end, torch.float32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.data.mean, config.data.std))
    torch.testing.assert_close(v2, (batch.u.float() / 255 - mean) / std, rtol=1e-4, atol=1e-4)
