import copy

import pytest
import torch
from torch import nn

from fastequi.models import vit
from fastequi.optim import (
    WeightEMA,
    adamw,
    clip_gradients,
    param_groups,
    schedule,
    stepped,
    warmup_cosine,
)


def test_warmup_cosine_has_its_known_values():
    schedule = [warmup_cosine(p, 2.0, 0.5, 0.2) for p in (0, 0.1, 0.2, 0.6, 1, 7)]
    assert schedule == pytest.approx([0, 1, 2, 1.25, 0.5, 0.5])
    assert warmup_cosine(0, 1.0) == 1.0


def test_steps_fall_at_their_milestones():
    rates = [stepped(p, 0.1, (0.3, 0.6), 0.2) for p in (0, 0.29, 0.3, 0.6, 1)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.004, 0.004])


def test_only_matrices_decay():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(1, 2, 3))
    model.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 5, 3)))
    decay, rest = param_groups(model, 0.1)
    assert decay["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    assert {id(p) for p in decay["params"]} == {id(model[0].weight), id(model[2].weight)}
    assert len(rest["params"]) == 5


def test_rates_fall_with_depth_as_in_dinov2():
    """facebookresearch/dinov2, get_vit_lr_decay_rate: .9 to the layers left, patches .2 of that."""
    encoder = vit.vit_tiny(embed_dim=8, depth=3, num_heads=1, img_size=16, patch_size=8)
    model = nn.ModuleDict({"head": nn.Linear(8, 8), "encoder": encoder})
    rates = {}
    groups = param_groups(model, 0.1, encoder, layer_decay=0.9, patch_embed_lr=0.2)
    for group in groups:
        assert group["weight_decay"] == (0.1 if group["decays"] else 0.0)
        rates |= {id(p): group["lr_scale"] for p in group["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert len(found) == len(rates)
    expected = {
        "head.weight": 1.0,
        "encoder.norm.weight": 1.0,
        "encoder.blocks.2.mlp.fc1.weight": 0.9,
        "encoder.blocks.0.norm1.bias": 0.9**3,
        "encoder.cls_token": 0.9**4,
        "encoder.pos_embed": 0.9**4,
        "encoder.patch_embed.proj.weight": 0.2 * 0.9**4,
    }
    for name, rate in expected.items():
        assert found[name] == pytest.approx(rate), name
    optimizer = torch.optim.AdamW(groups)
    schedule(optimizer, 2.0, 0.3)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(2 * group["lr_scale"])
        assert group["weight_decay"] == (0.3 if group["decays"] else 0.0)


def test_gradients_are_clipped_together_or_each_alone():
    """facebookresearch/dino, utils.clip_gradients: every parameter by its own norm."""
    together, alone = (
        nn.ParameterList([nn.Parameter(torch.zeros(4)) for _ in range(3)]) for _ in "ab"
    )
    for params in (together, alone):
        for p, size in zip(params, (0.5, 4.0, 8.0), strict=True):
            p.grad = torch.full((4,), size)
        params.append(nn.Parameter(torch.zeros(2)))  # one without a gradient
    total = clip_gradients(list(together), 3.0, per_tensor=False)
    torch.testing.assert_close(total, torch.tensor(2 * (0.25 + 16 + 64) ** 0.5))
    norm = torch.stack([p.grad.norm() for p in together if p.grad is not None]).norm()
    torch.testing.assert_close(norm, torch.tensor(3.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(clip_gradients(list(alone), 3.0, per_tensor=True), total)
    norms = torch.stack([p.grad.norm() for p in alone if p.grad is not None])
    torch.testing.assert_close(norms, torch.tensor([1.0, 3.0, 3.0]), rtol=1e-4, atol=0)
    before = alone[1].grad.clone()
    clip_gradients(list(alone), 0.0, per_tensor=True)
    assert torch.equal(alone[1].grad, before)


def test_decay_moves_a_matrix_without_gradient_but_not_a_bias():
    model = nn.Linear(2, 2)
    optimizer = adamw(model, lr=0.1, weight_decay=0.5)
    before = copy.deepcopy(model.state_dict())
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    torch.testing.assert_close(model.weight.data, before["weight"] * (1 - 0.05))
    torch.testing.assert_close(model.bias.data, before["bias"])


def test_weight_ema_is_the_recurrence():
    model = nn.BatchNorm1d(3)
    ema = WeightEMA(model, 0.9)
    expected = model.weight.detach().clone()
    for n in range(1, 4):
        with torch.no_grad():
            model.weight.add_(1.0)
            model.num_batches_tracked.add_(1)
        ema.update(model)
        keep = min(0.9, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * model.weight.detach()
    torch.testing.assert_close(ema.tensors["weight"], expected)
    assert ema.tensors["num_batches_tracked"] == 3
    with pytest.raises(ValueError, match="momentum"):
        WeightEMA(model, 1.0)
