"""Steps that are not finite: nothing changes, samples are named, enough in a row end the run."""

import json
import logging
import math

import pytest
import torch

from fastequi.data.sources.image_sets import embedded_photos
from fastequi.methods.method import Method
from fastequi.optim import WeightEMA, adamw, lerp_, muon, sgd, take_step
from fastequi.runtime import checkpoint
from fastequi.runtime.guard import Guard
from fastequi.train import pretrain
from tests.support.configs import config_of, spoiled, tensors


@pytest.mark.slow(every=3)
@pytest.mark.parametrize("what", ["loss", "gradient", "input"])
@pytest.mark.parametrize("name", ["tir_vicreg_vits16", "tir_ibot_vits16", "gtsa_vits16"])
def test_a_step_that_is_not_finite_changes_no_bit(tmp_path, monkeypatch, caplog, name, what):
    """Weights, moments, teacher, centres, weight EMA: as after the step before."""
    spoiled(monkeypatch, {3}, what)
    config = config_of(name, ema_momentum=0.9)
    with caplog.at_level(logging.WARNING):
        pretrain(config, embedded_photos(), tmp_path, max_steps=4)
    folders = [tmp_path / "checkpoints" / f"step_{n:08d}" for n in (2, 3, 4)]
    for kind in ("model", "optimizer", "ema"):
        before, skipped, after = (tensors(folder, kind) for folder in folders)
        for key, value in before.items():
            if key.startswith("rng_state") or "num_batches_tracked" in key:
                continue
            assert torch.equal(value, skipped[key]), (kind, key)
        assert not all(torch.equal(value, after[key]) for key, value in before.items())
        assert all(value.isfinite().all() for value in after.values())
    assert "step 3 is skipped" in caplog.text
    assert "samples" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1]
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_too_many_in_a_row_end_the_run_and_leave_good_checkpoints(tmp_path, monkeypatch):
    spoiled(monkeypatch, {3, 5, 6, 7})
    config = config_of("tir_vicreg_vits16", max_skipped=3)
    with pytest.raises(FloatingPointError, match=r"3 consecutive steps .* 4 in all"):
        pretrain(config, embedded_photos(), tmp_path, max_steps=9)
    newest = checkpoint.latest(tmp_path / "checkpoints")
    assert newest.name == "step_00000006"
    assert all(value.isfinite().all() for value in tensors(newest, "model").values())
    monkeypatch.undo()
    pretrain(config, embedded_photos(), tmp_path, max_steps=8, resume=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 8
    assert rows[-1]["skipped"] == 3  # what was counted when it was saved


def test_any_batch_of_an_accumulated_step_counts(tmp_path, monkeypatch):
    spoiled(monkeypatch, {3})  # the first of the second step's two
    config = config_of("tir_vicreg_vits16", accumulate=2)
    pretrain(config, embedded_photos(), tmp_path, max_steps=3)
    first, second, third = (
        tensors(tmp_path / "checkpoints" / f"step_{n:08d}", "model") for n in (1, 2, 3)
    )
    assert all(torch.equal(first[key], second[key]) for key in first if "batches" not in key)
    assert not all(torch.equal(first[key], third[key]) for key in first)


@pytest.mark.parametrize("first", [1.0, 0.0])
@pytest.mark.parametrize("kind", [adamw, sgd, muon])
def test_the_optimisers_obey(kind, first, poisoned):
    """From the first step on, when their moments are made."""
    model = torch.nn.ModuleDict({"blocks": torch.nn.Linear(5, 1)})
    params = list(model.parameters())
    optimizer = kind(model, lr=0.1, weight_decay=0.0)
    for taken in (first, 1.0, 0.0, 1.0):
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = torch.full_like(param, 1.0 if taken else math.nan)
        take_step(optimizer, torch.tensor(taken))
        for old, param in zip(before, params, strict=True):
            assert torch.equal(old, param) == (not taken)
            assert param.isfinite().all()
        for state in optimizer.state.values():
            assert all(value.isfinite().all() for value in state.values())


def test_sgds_buffers_are_torchs_own():
    """Made beforehand, with the bits they would have had."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizers = (
        sgd(ours, 0.1, 0.01),
        torch.optim.SGD(
            [{"params": [theirs.weight], "weight_decay": 0.01}, {"params": [theirs.bias]}],
            0.1, 0.9, nesterov=True, fused=True,
        ),
    )  # fmt: skip
    for _ in range(3):
        x = torch.randn(4, 5)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


def test_averages_stand_still_or_move_as_lerp_does():
    ours, theirs = [torch.randn(7), torch.randn(2, 3)], [torch.randn(7), torch.randn(2, 3)]
    before = [x.clone() for x in ours]
    lerp_(ours, theirs, 0.3, torch.tensor(0.0))
    assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=True))
    lerp_(ours, theirs, 0.3, torch.tensor(1.0))
    for a, b, c in zip(ours, before, theirs, strict=True):
        torch.testing.assert_close(a, torch.lerp(b, c, 0.3))
    model = torch.nn.Linear(3, 2)
    ema = WeightEMA(model, 0.9)
    start = {name: value.clone() for name, value in ema.tensors.items()}
    with torch.no_grad():
        model.weight += 1
    ema.update(model, torch.tensor(0.0))
    assert all(torch.equal(value, start[name]) for name, value in ema.tensors.items())


def test_it_reads_the_device_only_when_asked(monkeypatch):
    """Nothing of a step turns a tensor into a number."""

    class Tiny(Method):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

    guard = Guard(Tiny(), limit=2)

    def refuse(*_):
        raise AssertionError("the host waited for a value")

    for name in ("item", "__bool__", "__float__", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    guard.begin()
    guard.record(torch.tensor(1.0), torch.arange(4))
    taken = guard.check(1, torch.tensor(math.nan))
    guard.restore(taken)
    monkeypatch.undo()
    assert guard.report() == 1
    assert guard.skipped == 1


def test_as_many_in_a_row_end_the_run_wherever_they_lie_between_two_reads():
    guard = Guard(torch.nn.Linear(1, 1), limit=3)
    for step, norm in enumerate([1, math.nan, math.nan, 1, math.nan, math.nan]):
        guard.begin()
        guard.record(torch.tensor(1.0), torch.arange(4))
        guard.check(step, torch.tensor(float(norm)))
    assert guard.report() == 4
    assert guard.in_a_row == 2
    for step, norm in enumerate([math.nan, 1, 1], 6):  # the third in a row, and good ones after it
        guard.begin()
        guard.record(torch.tensor(1.0), torch.arange(4))
        guard.check(step, torch.tensor(float(norm)))
    with pytest.raises(FloatingPointError, match=r"3 consecutive steps .* 5 in all"):
        guard.report()


def test_the_samples_named_are_those_of_the_batch_whose_loss_it_was(caplog):
    guard = Guard(torch.nn.Linear(1, 1), limit=9)
    for loss, norm in ((math.nan, math.nan), (1.0, math.inf)):
        guard.begin()
        guard.record(torch.tensor(1.0), torch.arange(4))
        guard.record(torch.tensor(loss), torch.arange(10, 14))
        guard.check(1, torch.tensor(norm))
    guard.report()
    first, second = caplog.messages
    assert first == "step 1 is skipped: its loss is not finite; samples 10, 11, 12, 13"
    assert second.endswith("its gradient is not finite; samples 0, 1, 2, 3, 10, 11, 12, 13")
