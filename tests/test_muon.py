"""Muon: orthogonal updates of blocks' matrices, AdamW for the rest."""

import re

import pytest
import torch
from torch import nn

from fastequi.models import vit
from fastequi.models.block_decoder import BlockDecoder
from fastequi.muon import orthogonal
from fastequi.optim import adamw, muon, param_groups, schedule


def encoder():
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 8}
    return vit.vit_tiny(**sizes)


def backward(model):
    torch.manual_seed(1)
    model.zero_grad()
    model(torch.randn(4, 3, 16, 16)).square().mean().backward()


def test_matrices_become_nearly_orthogonal_and_keep_their_singular_vectors():
    torch.manual_seed(0)
    shapes = [(6, 6), (6, 15), (15, 6), (6, 6), (4, 9)]
    given = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    for matrix, found in zip(given, orthogonal(given), strict=True):
        assert found.shape == matrix.shape
        assert found.dtype == torch.float32
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ found.double() @ v.T
        values = inner.diagonal()
        assert values.min() > 0.18
        assert values.max() < 1.9
        torch.testing.assert_close(inner, values.diag(), rtol=0, atol=1e-4)


def test_small_singular_values_rise_and_zero_stays_zero():
    matrix = torch.diag(torch.tensor([1.0, 1e-3, 0.0]))
    (found,) = orthogonal([matrix])
    assert found[0, 0] > 0.5
    assert found[1, 1] > 0.1
    assert found[2, 2] == 0
    (nothing,) = orthogonal([torch.zeros(3, 4)])
    assert torch.equal(nothing, torch.zeros(3, 4))


def test_an_update_is_that_of_the_formula():
    model = encoder()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = muon(model, lr=0.1, weight_decay=0.5, momentum=0.9)
    buffers = {}
    for _ in range(2):
        backward(model)
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        old = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        for name, param in model.named_parameters():
            if "blocks" not in name or param.ndim != 2:
                continue
            m = 0.9 * buffers.get(name, 0) + 0.1 * grads[name]
            buffers[name] = m
            parts = (0.9 * m + 0.1 * grads[name]).chunk(3 if "qkv" in name else 1)
            change = torch.cat([orthogonal([part])[0] for part in parts])
            size = 0.2 * max(parts[0].shape) ** 0.5
            wanted = (1 - 0.1 * 0.5) * old[name] - 0.1 * size * change
            torch.testing.assert_close(param.detach(), wanted, rtol=1e-5, atol=1e-5)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_all_else_is_adamws_to_the_bit():
    ours, theirs = encoder(), encoder()
    theirs.load_state_dict(ours.state_dict())
    mine, plain = muon(ours, 0.1, 0.5), adamw(theirs, 0.1, 0.5)
    for model, optimizer in ((ours, mine), (theirs, plain)):
        backward(model)
        optimizer.step()
    others = dict(theirs.named_parameters())
    for name, param in ours.named_parameters():
        hidden = "blocks" in name and param.ndim == 2
        assert torch.equal(param, others[name]) != hidden, name


def test_an_updates_size_is_near_adamws():
    model = encoder()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = muon(model, lr=1.0, weight_decay=0.0)
    backward(model)
    optimizer.step()
    change = (model.blocks[0].mlp.fc1.weight - before["blocks.0.mlp.fc1.weight"]).square().mean()
    assert 0.1 < change.sqrt() < 0.4  # of AdamW 0.2 to 0.4 in training (arXiv 2502.16982)


def test_groups_of_their_own_and_a_schedule_for_all():
    model = encoder()
    groups = param_groups(model, 0.1, model, layer_decay=0.5, orthogonal=True)
    number = {id(p): group["orthogonal"] for group in groups for p in group["params"]}
    found = {name: number[id(p)] for name, p in model.named_parameters()}
    assert found["blocks.0.attn.qkv.weight"] == 3
    assert found["blocks.1.mlp.fc2.weight"] == found["blocks.1.attn.proj.weight"] == 1
    assert not any(n for name, n in found.items() if "blocks" not in name or "bias" in name)
    optimizer = muon(model, 0.1, 0.1, encoder=model, layer_decay=0.5, orthogonal_lr=3.0)
    schedule(optimizer, 0.2, 0.3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.blocks[0].mlp.fc1.weight)] == pytest.approx(0.2 * 0.5**2 * 3)
    assert rates[id(model.blocks[0].mlp.fc1.bias)] == pytest.approx(0.2 * 0.5**2)
    assert not any(group["orthogonal"] for group in param_groups(model, 0.1))


def test_the_encoders_blocks_can_be_left_to_adamw(caplog):
    caplog.set_level("INFO")
    model = nn.ModuleDict({"encoder": encoder(), "decoder": BlockDecoder(8, 8, width=16, depth=1)})
    options = {"encoder": model["encoder"], "orthogonal_encoder": False}
    optimizer = muon(model, 0.1, 0.1, **options)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [group for group in optimizer.param_groups if group["orthogonal"]]
    found = {names[id(p)] for group in groups for p in group["params"]}
    assert found == {
        name for name in names.values() if re.search(r"trunks.*(qkv|proj|fc.)\.w", name)
    }
    assert len(found) == 4
    alone = encoder()
    optimizer = muon(alone, 0.1, 0.1, encoder=alone, orthogonal_encoder=False)
    assert "no matrix of a transformer block to update" in caplog.text
    backward(alone)
    optimizer.step()
    assert all("exp_avg" in optimizer.state[p] for p in alone.parameters())


def test_gradients_are_computed_before_the_step():
    with pytest.raises(ValueError, match="closure: expected None"):
        muon(encoder(), 0.1, 0.1).step(lambda: 0.0)
