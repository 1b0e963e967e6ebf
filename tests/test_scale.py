"""float16 training: its curve, its overflows, its resume; against torch's own GradScaler."""

import itertools
import json
import logging
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fastequi.config import TrainConfig, fast_dtype
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.runtime import scale
from fastequi.runtime.guard import Guard
from fastequi.runtime.scale import LossScale
from fastequi.train import pretrain
from tests.support.configs import config_of, spoiled, tensors

CPU = torch.device("cpu")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow(every=3)
@pytest.mark.parametrize("name", ["tir_vicreg_vits16", "tir_ibot_vits16", "gtsa_vits16"])
def test_it_follows_the_curve_of_float32_to_its_rounding(tmp_path, monkeypatch, name):
    monkeypatch.setattr(scale, "_FIRST", 2.0**8)  # nothing overflows, so that no step is missing
    curves = []
    for precision in ("fp32", "fp16"):
        config = config_of(name, precision=precision, checkpoint_every=0)
        pretrain(config, embedded_photos(), tmp_path / precision, max_steps=6)
        curves.append(torch.tensor([row["loss"] for row in rows_of(tmp_path / precision)]))
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-2, atol=0)
    assert not torch.equal(*curves)
    assert rows_of(tmp_path / "fp16")[-1]["overflowed"] == 0


def test_an_overflow_skips_the_step_halves_the_scale_and_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(scale, "_FIRST", 2.0**40)
    config = config_of("tir_ibot_vits16", precision="fp16", ema_momentum=0.9, max_skipped=2)
    with caplog.at_level(logging.WARNING):
        pretrain(config, embedded_photos(), tmp_path, max_steps=3)
    rows = rows_of(tmp_path)
    assert [row["loss_scale"] for row in rows] == [2.0**39, 2.0**38, 2.0**37]
    assert [row["overflowed"] for row in rows] == [1, 2, 3]  # more than max_skipped: not its affair
    assert {row["skipped"] for row in rows} == {0}
    assert "is skipped" not in caplog.text
    first, last = (tmp_path / "checkpoints" / f"step_{n:08d}" for n in (1, 3))
    for kind in ("model", "ema"):
        before, after = tensors(first, kind), tensors(last, kind)
        for key, value in before.items():
            assert torch.equal(value, after[key]) or "num_batches_tracked" in key, key
    monkeypatch.setattr(scale, "_FIRST", 2.0**9)
    pretrain(config, embedded_photos(), tmp_path / "goes on", max_steps=3)
    first, last = (tmp_path / "goes on" / "checkpoints" / f"step_{n:08d}" for n in (1, 3))
    assert not torch.equal(*(tensors(f, "model")["base.mask_token"] for f in (first, last)))


def test_a_gradient_that_no_scale_can_help_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "_FIRST", 4.0)
    spoiled(monkeypatch, set(range(3, 99)), "gradient")
    config = config_of("tir_vicreg_vits16", precision="fp16", max_skipped=3)
    with pytest.raises(FloatingPointError, match="3 consecutive steps"):
        pretrain(config, embedded_photos(), tmp_path, max_steps=20)
    row = rows_of(tmp_path)[-1]
    assert (row["step"], row["overflowed"], row["loss_scale"]) == (6, 2, 1.0)  # the seventh ends it


def test_a_loss_that_is_not_finite_is_not_the_scales_fault(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(scale, "_FIRST", 2.0**8)
    spoiled(monkeypatch, {2})
    config = config_of("tir_vicreg_vits16", precision="fp16")
    with caplog.at_level(logging.WARNING):
        pretrain(config, embedded_photos(), tmp_path, max_steps=3)
    rows = rows_of(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 1, 1]
    assert {(row["overflowed"], row["loss_scale"]) for row in rows} == {(0, 2.0**8)}
    assert "step 2 is skipped: its loss" in caplog.text


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    """Scale and counter go on too: it overflows at first, and grows in every third clean step."""
    monkeypatch.setattr(scale, "_FIRST", 2.0**14)
    monkeypatch.setattr(scale, "_INTERVAL", 3)
    config = config_of("tir_simclr_vits16", precision="fp16", accumulate=2)
    whole = pretrain(config, embedded_photos(), tmp_path / "whole", max_steps=8)
    pretrain(config, embedded_photos(), tmp_path / "parts", max_steps=4)
    parts = pretrain(config, embedded_photos(), tmp_path / "parts", resume=True, max_steps=8)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    for name in ("loss_scale", "overflowed", "loss"):
        assert [r.get(name) for r in rows_of(tmp_path / "whole")] == [
            r.get(name) for r in rows_of(tmp_path / "parts")
        ]
    scales = [row["loss_scale"] for row in rows_of(tmp_path / "whole")]
    assert min(scales) < scales[0]
    assert any(b > a for a, b in itertools.pairwise(scales))


def test_a_checkpoint_without_a_scale_begins_with_the_first(tmp_path):
    """Of a float32 run, or of an older version; and back."""
    config = config_of("gtsa_vits16", precision="fp32")
    pretrain(config, embedded_photos(), tmp_path, max_steps=2)
    for precision, steps in (("fp16", 3), ("fp32", 4)):
        config = config_of("gtsa_vits16", precision=precision)
        pretrain(config, embedded_photos(), tmp_path, max_steps=steps, resume=True)
    assert [row.get("loss_scale") for row in rows_of(tmp_path)] == [None, None, 2.0**16, None]
    assert all(x.isfinite().all() for x in load_file(tmp_path / "model.safetensors").values())


def test_the_scale_moves_as_torchs_does(monkeypatch):
    monkeypatch.setattr(scale, "_INTERVAL", 3)
    param = torch.nn.Parameter(torch.ones(2))
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    optimizer = torch.optim.SGD([param], 0.0, fused=True)
    ours = LossScale(CPU)
    guard = Guard(torch.nn.Identity(), 99, scale=ours)
    pattern = torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.3
    for step, bad in enumerate(pattern.tolist()):
        guard.begin()
        guard.record(torch.tensor(1.0), torch.arange(2))
        guard.check(step, torch.tensor(math.inf if bad else 1.0))
        theirs.scale(param.sum() * (math.inf if bad else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        assert ours.value.item() == theirs.get_scale()
    guard.report()
    assert guard.overflowed == int(pattern.sum())


def test_gradients_come_back_exactly():
    layer = torch.nn.Linear(5, 3)
    x = torch.randn(7, 5)
    layer(x).square().mean().backward()
    plain = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    loss_scale = LossScale(CPU)
    (layer(x).square().mean() * loss_scale.value).backward()
    loss_scale.unscale(layer.parameters())
    assert all(torch.equal(p.grad, g) for p, g in zip(layer.parameters(), plain, strict=True))


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16)],
)
def test_auto_takes_what_a_gpu_has(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu, train = torch.device("cuda", 0), TrainConfig()
    assert fast_dtype(gpu) is train.autocast_dtype(gpu) is dtype
    probes = torch.bfloat16 if dtype is torch.bfloat16 else torch.float32
    assert train.fit_dtype(gpu) is probes  # they have no loss scale
    assert TrainConfig(precision="fp32").autocast_dtype(gpu) is None


@pytest.mark.slow
def test_auto_takes_no_type_that_onednn_has_to_emulate():
    """It reads its limit when it starts; beyond it a product takes a hundred times as long."""
    ask = "import torch; from fastequi.config import fast_dtype as f; print(f(torch.device('cpu')))"
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    words = [sys.executable, "-c", ask]
    found = subprocess.run(words, env=limited, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["None"]
