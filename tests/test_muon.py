"""Muon: orthogonal updates of blocks' matrices, AdamW for the rest."""

import copy
import pickle
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastequi.build import build, build_optimizer
from fastequi.models import vit
from fastequi.models.block_decoder import BlockDecoder
from fastequi.muon import Muon, orthogonal
from fastequi.optim import adamw, muon, param_groups, schedule, sgd
from fastequi.recipes import RECIPES
from fastequi.resuming import changes
from fastequi.runtime import checkpoint


def encoder(**options):
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 8}
    return vit.vit_tiny(**sizes, **options)


def backward(model):
    torch.manual_seed(1)
    model.zero_grad()
    model(torch.randn(4, 3, 16, 16)).square().mean().backward()


def test_matrices_become_nearly_orthogonal_and_keep_their_singular_vectors():
    torch.manual_seed(0)
    shapes = [(6, 6), (6, 15), (15, 6), (6, 6), (4, 9)]
    given = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    results = [*orthogonal(given[:1]), *orthogonal(given[1:3]), *orthogonal(given[3:4])]
    for matrix, found in zip(given, [*results, *orthogonal(given[4:])], strict=True):
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
    assert orthogonal([]) == []


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_a_gradient_does_not_matter(size):
    matrix = torch.randn(5, 8)
    (plain,), (other,) = orthogonal([matrix]), orthogonal([matrix * size])
    torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(orthogonal([matrix])[0], plain)


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
    groups = param_groups(model, 0.1, model, layer_decay=0.5, muon=True)
    number = {id(p): group["orthogonal"] for group in groups for p in group["params"]}
    found = {name: number[id(p)] for name, p in model.named_parameters()}
    assert found["blocks.0.attn.qkv.weight"] == 3
    assert found["blocks.1.mlp.fc2.weight"] == found["blocks.1.attn.proj.weight"] == 1
    assert found["blocks.0.mlp.fc1.weight"] == 1
    assert not any(n for name, n in found.items() if "blocks" not in name or "bias" in name)
    optimizer = muon(model, 0.1, 0.1, encoder=model, layer_decay=0.5, muon_lr=3.0)
    schedule(optimizer, 0.2, 0.3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.blocks[0].mlp.fc1.weight)] == pytest.approx(0.2 * 0.5**2 * 3)
    assert rates[id(model.blocks[0].mlp.fc1.bias)] == pytest.approx(0.2 * 0.5**2)
    assert not any(group["orthogonal"] for group in param_groups(model, 0.1))


def test_swiglus_gate_and_value_are_two_matrices():
    """Each becomes orthogonal by itself, whatever the other's gradient."""
    model = encoder(mlp="swiglu")
    before = model.blocks[0].mlp.fc1.weight.detach().clone()
    optimizer = muon(model, lr=1.0, weight_decay=0.0)
    backward(model)
    grads = model.blocks[0].mlp.fc1.weight.grad.clone().chunk(2)
    optimizer.step()
    change = (before - model.blocks[0].mlp.fc1.weight).detach().chunk(2)
    assert grads[0].shape == grads[1].shape
    for part, grad in zip(change, grads, strict=True):
        (expected,) = orthogonal([grad])
        scale = 0.2 * max(part.shape) ** 0.5
        torch.testing.assert_close(part, scale * expected, rtol=1e-3, atol=1e-4)


def test_the_encoders_blocks_can_be_left_to_adamw(caplog):
    caplog.set_level("INFO")
    model = nn.ModuleDict({"encoder": encoder(), "decoder": BlockDecoder(8, 8, width=16, depth=1)})
    options = {"encoder": model["encoder"], "muon_encoder": False}
    optimizer = muon(model, 0.1, 0.1, **options)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [group for group in optimizer.param_groups if group["orthogonal"]]
    found = {names[id(p)] for group in groups for p in group["params"]}
    assert found == {
        name for name in names.values() if re.search(r"trunks.*(qkv|proj|fc.)\.w", name)
    }
    assert len(found) == 4
    alone = encoder()
    optimizer = muon(alone, 0.1, 0.1, encoder=alone, muon_encoder=False)
    assert "AdamW updates all parameters and Muon none: muon_encoder=False leaves " in caplog.text
    backward(alone)
    optimizer.step()
    assert all("exp_avg" in optimizer.state[p] for p in alone.parameters())


def one_step(model, optimizer):
    backward(model)
    optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_an_update_follows_the_schedule_the_depth_and_its_own_factor():
    """Of the rate and of the decay: from one state, the changes by two rates."""
    changes = []
    for lr, factor in ((0.1, 1.0), (0.05, 4.0)):
        model = encoder()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        options = {"encoder": model, "layer_decay": 0.5, "muon_lr": factor}
        optimizer = muon(model, 7.0, 7.0, **options)
        schedule(optimizer, lr, 0.3)
        after = one_step(model, optimizer)
        changes.append({name: after[name] - before[name] for name in before})
    one, other = changes
    name = "blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(other[name], 2 * one[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        other["blocks.0.norm1.bias"], one["blocks.0.norm1.bias"] / 2, rtol=1e-4, atol=1e-6
    )
    deep = "blocks.1.mlp.fc1.weight"  # twice the first block's rate
    assert 1.5 < one[deep].norm() / one[name].norm() < 3


def test_adamws_betas_are_the_given_ones():
    model = encoder()
    optimizer = muon(model, 0.1, 0.1, betas=(0.5, 0.6))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.6)}
    one_step(model, optimizer)
    grad = model.norm.bias.grad
    torch.testing.assert_close(optimizer.state[model.norm.bias]["exp_avg"], grad / 2)


def test_parameters_without_gradients_stay():
    model = encoder()
    optimizer = muon(model, 0.1, 0.5)
    backward(model)
    frozen = model.blocks[0].mlp.fc1.weight
    frozen.grad, before = None, frozen.detach().clone()
    optimizer.step()
    assert torch.equal(frozen, before)


def test_matrices_in_parts_of_the_memory_are_the_same(monkeypatch):
    whole = one_step(model := encoder(), muon(model, 0.1, 0.5))
    monkeypatch.setattr("fastequi.muon._AT_ONCE", 1)
    parts = one_step(model := encoder(), muon(model, 0.1, 0.5))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_a_copy_goes_on_as_the_original(how):
    model = encoder()
    optimizer = muon(model, 0.1, 0.5, momentum=0.5)
    one_step(model, optimizer)
    if how == "state_dict":
        twin = copy.deepcopy(model)
        other = muon(twin, 0.3, 0.1)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # which shares memory
    else:
        both = model, optimizer
        load = copy.deepcopy if how == "deepcopy" else lambda one: pickle.loads(pickle.dumps(one))  # noqa: S301
        twin, other = load(both)
    first, second = one_step(model, optimizer), one_step(twin, other)
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_gradients_of_a_scaler_are_unscaled():
    results = []
    for scale in (1.0, 2.0**16):
        model = encoder()
        optimizer = muon(model, 0.1, 0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1)
        for _ in range(2):
            torch.manual_seed(1)
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(4, 3, 16, 16)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(optimizer.state[model.blocks[0].mlp.fc1.weight]["momentum_buffer"])
    torch.testing.assert_close(results[1], results[0], rtol=1e-2, atol=1e-6)


def test_hooks_run_once_and_see_all_groups():
    model = encoder()
    torch.optim.AdamW(encoder().parameters())
    optimizer, seen = muon(model, 0.1, 0.1), []
    optimizer.register_step_post_hook(lambda one, *_: seen.append(len(one.param_groups)))
    one_step(model, optimizer)
    assert seen == [len(optimizer.param_groups)]


@pytest.mark.parametrize("shape", [(10, 8), (9,), (3, 2, 2)])
def test_what_is_not_so_many_matrices_is_refused(shape):
    group = {"params": [nn.Parameter(torch.zeros(shape))], "orthogonal": 3}
    with pytest.raises(ValueError, match=r"groups: expected 3 matrices .* shape"):
        Muon([group], 0.1)
    with pytest.raises(ValueError, match="momentum: expected"):
        Muon([{"params": [nn.Parameter(torch.zeros(3, 3))], "orthogonal": 1}], 0.1, momentum=1.0)


def test_settings_reach_the_optimiser():
    config = RECIPES["demo"]()
    optim = replace(config.optim, kind="muon", muon_lr=3.0, muon_momentum=0.7, betas=(0.8, 0.9))
    for inside in (False, True):
        optim = replace(optim, muon_encoder=inside)
        method = build(replace(config, optim=optim))
        optimizer = build_optimizer(method, replace(config, optim=optim))
        groups = [group for group in optimizer.param_groups if group["orthogonal"]]
        assert {group["lr_scale"] for group in groups} == {3.0}
        assert {group["momentum"] for group in groups} == {0.7}
        assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
        chosen = {id(p) for group in groups for p in group["params"]}
        assert (id(method.backbone.blocks[0].mlp.fc1.weight) in chosen) == inside
    with pytest.raises(ValueError, match=r"optim.muon_lr: expected > 0"):
        replace(config, optim=replace(optim, muon_lr=0.0))
    with pytest.raises(ValueError, match=r"optim.muon_momentum: expected 0 <= share < 1"):
        replace(config, optim=replace(optim, muon_momentum=1.0))


def test_a_resumed_run_keeps_which_blocks_are_muons():
    config = RECIPES["demo"]()
    other = replace(config, optim=replace(config.optim, muon_encoder=True))
    with pytest.raises(ValueError, match=r"optim.muon_encoder: expected False, which --resume"):
        changes(config, other)
    adamw, beside = (
        replace(one, optim=replace(one.optim, kind="adamw")) for one in (config, other)
    )
    assert changes(adamw, beside) == {}


def test_the_state_of_another_optimiser_is_refused(tmp_path):
    model = encoder()
    kinds = {"adamw": adamw, "muon": muon, "sgd": sgd}
    for name, kind in kinds.items():
        optimizer = kind(model, 0.01, 0.1)
        one_step(model, optimizer)
        (tmp_path / name).mkdir()
        snapshot = checkpoint.snapshot(1, model=model, optimizer=optimizer, state={})
        checkpoint.write(tmp_path / name, snapshot, keep=1)
    for saved in kinds:
        for name, kind in kinds.items():
            folder = checkpoint.latest(tmp_path / saved)
            optimizer = kind(model, 0.01, 0.1)
            if name == saved:
                checkpoint.load(folder, model, optimizer)
                continue
            with pytest.raises(ValueError, match=r"is of another optim.kind"):
                checkpoint.load(folder, model, optimizer)


def test_what_would_be_adamw_alone_is_refused():
    other = nn.ModuleDict({"layers": nn.Linear(3, 3)})
    with pytest.raises(ValueError, match="model: expected weights below a module named `blocks`"):
        muon(other, 0.1, 0.1)
    with pytest.raises(ValueError, match="encoder: expected the module that muon_encoder=False"):
        muon(encoder(), 0.1, 0.1, muon_encoder=False)
    with pytest.raises(ValueError, match=r"groups: expected dicts with \"orthogonal\""):
        Muon(encoder().parameters(), 0.1)
    with pytest.raises(TypeError, match="model: expected a module, got generator"):
        muon(encoder().parameters(), 0.1, 0.1)


def test_gradients_are_computed_before_the_step():
    with pytest.raises(ValueError, match="closure: expected None"):
        muon(encoder(), 0.1, 0.1).step(lambda: 0.0)
