"""z_equi from the tokens after an earlier block; the base's z_inv stays at the end."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bench.recipes import scaled
from fastequi.build import build
from fastequi.cli.dryrun import synthetic
from fastequi.recipes import RECIPES

CPU = torch.device("cpu")


def built(recipe: str, equi_layer: float, **model):
    config = scaled(RECIPES[recipe]())
    config = replace(
        config,
        model=replace(config.model, embed_dim=32, depth=4, num_heads=2, drop_path=0.0, **model),
        tir=replace(config.tir, dim=24, equi_dim=8, decoder_width=8, equi_layer=equi_layer),
        distill=replace(config.distill, prototypes=16, hidden_dim=32, bottleneck_dim=8),
    )
    torch.manual_seed(0)
    model, batch = build(config), synthetic(config, 4, CPU)
    model.before_step(0.5)
    return model.train(), batch


def recipes():
    return [
        "tir_vicreg_vits16",
        "tir_simclr_vits16",
        "tir_dino_vits16",
        "tir_ibot_vits16",
        "tir_dinov2_vitl16",
    ]


@pytest.mark.parametrize("recipe", recipes())
def test_reconstruction_reaches_the_blocks_before_alone(recipe):
    model, batch = built(recipe, 0.5)
    model(batch)["recon"].backward()
    encoder = model.backbone
    reached = [any(p.grad is not None and p.grad.any() for p in b.parameters())
               for b in encoder.blocks]  # fmt: skip
    assert reached == [True, True, False, False]
    assert encoder.norm.weight.grad is None or not encoder.norm.weight.grad.any()
    model.zero_grad(set_to_none=True)
    model(batch)["ssl"].backward()
    reached = [any(p.grad is not None and p.grad.any() for p in b.parameters())
               for b in encoder.blocks]  # fmt: skip
    assert reached == [True] * 4


@pytest.mark.parametrize("pos", ["learned", "rope"])
@pytest.mark.parametrize("recipe", recipes())
def test_z_equi_is_the_norm_and_linear_layer_of_that_blocks_tokens(recipe, pos):
    model, batch = built(recipe, 0.5, pos=pos)
    model.eval()
    student = getattr(model.base, "student", model.base)
    head, encoder = student.equi_head, model.encoder  # the teacher began as a copy
    assert head.block == 2
    x, grid = encoder.embed(batch.v1)
    rotations = [encoder.rope(grid, 1, x)] if encoder.rope else None
    for block in encoder.blocks[:2]:
        x = block(x.flatten(0, 1), [x.shape[:2]], rotations).view_as(x)
    x = F.layer_norm(encoder.split(x).patch, (32,), head.norm.weight, head.norm.bias, 1e-6)
    expected = F.linear(x, head.proj.weight, head.proj.bias)
    found = model.features(batch.v1)
    torch.testing.assert_close(found["z_equi"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.base.equivariant(batch.v1), expected, rtol=1e-4, atol=1e-5)
    last = encoder.forward_features(batch.v1).patch
    torch.testing.assert_close(found["patch"], last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["tir_vicreg_vits16", "tir_ibot_vits16"])
def test_at_the_end_it_is_the_papers_split(recipe):
    model, batch = built(recipe, 1.0)
    assert getattr(model.base, "student", model.base).equi_head is None
    assert model.features(batch.v1)["z_equi"].shape[-1] == 8


def test_shares_that_cannot_be_are_named():
    config = RECIPES["demo"]()
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"tir.equi_layer: .* 1, got {share}"):
            replace(config, tir=replace(config.tir, equi_layer=share))
