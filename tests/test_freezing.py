"""An encoder that is frozen for the first share of a run: its bits, and what learns beside it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("nvidia.dali")

from fastequi.build import build, build_optimizer
from fastequi.config import Config, OptimConfig
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.freezing import Freezing
from fastequi.optim import thawed
from fastequi.train import pretrain
from tests.support.configs import config_of, tensors
from tests.support.runs import (
    ALONE,
    FSDP,
    MUON,
    SGD,
    expect_close,
    run,
    run_once,
    same,
    whole_and_parts,
)

# the name of the learning encoder in each method, and of those that follow it
ENCODERS = {
    "tir_vicreg_vits16": ["base._encoder."],
    "tir_ibot_vits16": ["base.student.encoder.", "base.teacher.encoder."],
    "gtsa_vits16": ["student.encoder.", "teacher.encoder."],
    "rotnet_nin_32": ["network."],
}
STEPS = 288  # of an epoch: nine photographs, 64 times four windows of each, in batches of 8


def frozen(name, steps, kind="adamw", **train) -> Config:
    """A run whose encoder is frozen for so many of its steps."""
    config = config_of(name, precision="fp32", **train)
    optim = replace(config.optim, kind=kind, freeze_encoder=steps / STEPS, warmup=2 / STEPS)
    return replace(config, optim=replace(optim, lr=0.01, muon_encoder=kind == "muon"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "adamw") for name in ENCODERS),
        *(("tir_vicreg_vits16", kind) for kind in ("sgd", "muon")),
    ],
)
def test_a_frozen_encoder_keeps_its_bits_and_the_rest_learns(tmp_path, name, kind):
    config = frozen(name, 3, kind, accumulate=2 if kind == "sgd" else 1, ema_momentum=0.9)
    if kind == "sgd":  # half as many steps
        config = replace(config, optim=replace(config.optim, freeze_encoder=6 / STEPS))
    torch.manual_seed(config.train.seed)
    method = build(config)
    begun = {key: value.clone() for key, value in method.state_dict().items()}
    pretrain(config, embedded_photos(), tmp_path / "run", max_steps=5)
    names, files = ENCODERS[name], {}
    for step in (3, 5):
        folder = tmp_path / "run" / "checkpoints" / f"step_{step:08d}"
        files[step] = {file: tensors(folder, file) for file in ("model", "ema", "optimizer")}
    parts = [key for key in begun if key.startswith(tuple(names))]
    learning = [key for key, _ in method.named_parameters() if key.startswith(names[0])]
    others = [
        key for key, p in method.named_parameters() if p.requires_grad and key not in learning
    ]
    assert len(parts) > 8
    for file in ("model", "ema"):
        for key in parts:  # statistics of BatchNorm among them
            assert torch.equal(files[3][file][key], begun[key]), (file, key)
    states = [key for key in files[3]["optimizer"] if key.split(".", 1)[1] in learning]
    assert not any(files[3]["optimizer"][key].any() for key in states)
    assert kind == "sgd" or not states
    moved = [key for key in others if not torch.equal(files[3]["model"][key], begun[key])]
    assert moved == others
    for key in learning:  # the first step after it has a rate of 0
        assert not torch.equal(files[5]["model"][key], begun[key]), key


def test_the_encoders_rate_rises_after_the_frozen_share():
    factors = [thawed(p, 0.2, 0.1) for p in (0, 0.19, 0.2, 0.25, 0.3, 1)]
    assert factors == pytest.approx([0, 0, 0, 0.5, 1, 1])
    assert [thawed(p, 0.0, 0.1) for p in (0, 0.05)] == [1, 1]  # that of all rises already
    assert [thawed(p, 0.2, 0.0) for p in (0.19, 0.2)] == [0, 1]


def test_the_rates_in_a_run_are_those(tmp_path, monkeypatch):
    seen = []
    config = frozen("tir_vicreg_vits16", 2)
    config = replace(config, optim=replace(config.optim, encoder_lr=0.1))

    def watched(optimizer, taken):
        seen.append({group["encoder"]: group["lr"] for group in optimizer.param_groups})

    monkeypatch.setattr("fastequi.loop.take_step", watched)
    pretrain(config, embedded_photos(), tmp_path / "run", max_steps=5)
    rows = [json.loads(r) for r in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows]
    assert [row[False] for row in seen] == pytest.approx(rates)
    factors = [row[True] / row[False] for row in seen[1:]]  # the first is 0 of 0
    assert factors == pytest.approx([0, 0, 0.05, 0.1])


def test_what_needed_no_gradient_needs_none_after_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model[0].bias.requires_grad_(False)
    freezing = Freezing(model, 0.5)
    assert freezing.at(0.0)
    assert not any(p.requires_grad for p in model.parameters())
    assert [part.training for part in model] == [True, False, True]
    assert not freezing.at(0.49)
    assert freezing.at(0.5)
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert all(part.training for part in model)
    assert not freezing.at(0.7)


def test_no_gradient_is_computed_for_a_frozen_encoder():
    """Nor, without masks, anything of its forward kept for a backward."""
    config = frozen("tir_vicreg_vits16", 1)
    method = build(config)
    Freezing(method.backbone, 0.5).at(0.0)
    tokens = method.backbone(torch.randn(2, 3, 32, 32))
    assert tokens.grad_fn is None
    optimizer = build_optimizer(build(config), config)
    assert {group["encoder"] for group in optimizer.param_groups} == {True, False}


@pytest.mark.slow(every=2)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_resumed_in_the_frozen_share_ends_with_the_same_bits(tmp_path, kind):
    config, source = frozen("tir_ibot_vits16", 3, kind), embedded_photos()
    whole = pretrain(config, source, tmp_path / "whole", max_steps=6)
    for stop in (2, 3, 6):  # within it, at its end
        parts = pretrain(config, source, tmp_path / "parts", resume=stop > 2, max_steps=stop)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert all(p.requires_grad for p in parts.backbone.parameters())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run of one process."""
    kinds = {"sgd": SGD, "adamw": ALONE}

    def folder(name):
        options = [*kinds[name], *SHARE, "--max-steps", 8]
        return run_once(tmp_path_factory, f"frozen_{name}", *options)

    return folder


SHARE = ["--optim.freeze-encoder", 0.035]  # four of 96 steps


# test_post_training has the same on two processes with all else, the curve of one aside
@pytest.mark.slow
@pytest.mark.parametrize("options", [SGD, FSDP])
def test_several_processes_freeze_as_one(tmp_path, alone, options):
    folder = tmp_path / "run"
    done = run("--run-dir", folder, *options, *SHARE, "--max-steps", 8, processes=2)
    assert done.returncode == 0, done.stderr
    expect_close(folder, alone("sgd" if options is SGD else "adamw"))


@pytest.mark.slow  # test_post_training has AdamW's, with all else
@pytest.mark.parametrize("options", [SGD, FSDP, MUON])
def test_two_processes_resume_over_the_boundary_to_the_same_bits(tmp_path, options):
    assert same(*whole_and_parts(tmp_path, *options, *SHARE, stops=(2, 6)))


@pytest.mark.slow  # compiles twice, half a minute each
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler here")
def test_compiled_it_freezes_and_thaws_alike(tmp_path):
    ends = []
    for compiled in (False, True):
        config = frozen("tir_vicreg_vits16", 2, "sgd", compile=compiled)
        where = tmp_path / f"run{compiled}"
        ends.append(pretrain(config, embedded_photos(), where, max_steps=4).state_dict())
        early = tensors(where / "checkpoints" / "step_00000002", "model")
        torch.manual_seed(config.train.seed)
        for key, value in build(config).state_dict().items():
            if key.startswith("base._encoder."):
                assert torch.equal(early[key], value)
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-3, atol=1e-5, msg=key)


def test_a_share_of_all_is_refused():
    with pytest.raises(ValueError, match=r"optim.freeze_encoder: expected 0 <= share < 1, got 1.0"):
        Config(optim=OptimConfig(freeze_encoder=1.0))
