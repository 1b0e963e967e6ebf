"""Runs that end because their features become worse: by scores that the tests write."""

import json
import logging
from dataclasses import replace

import pytest
import torch

pytest.importorskip("nvidia.dali")

from fastequi import loop, train
from fastequi.config import Config, TrainConfig
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.evaluate.encoders import load_encoder
from fastequi.evaluate.online import OnlineProbe, score
from fastequi.runtime import checkpoint
from fastequi.runtime.watch import Watch, stopped_before
from fastequi.train import pretrain
from tests.support.configs import config_of, tensors
from tests.support.runs import changed, run

SCORES = {0: 0.5, 2: 0.6, 4: 0.7, 6: 0.69, 8: 0.5, 10: 0.9}
BEST = "step_00000004"


@pytest.fixture
def scores(monkeypatch):
    """What the probes find by step, which a test may change; and the steps of their calls."""
    found, calls, plain = dict(SCORES), [], loop.Loop._probe

    def measure(encoder):
        figures = found[calls[-1]]
        return figures if isinstance(figures, dict) else {"r2_patch_mean": figures}

    def probe(self, intervals, step, *clocks):
        if intervals:
            calls.append(step)
        return plain(self, intervals, step, *clocks)

    def online_probes(config, source):
        return [OnlineProbe(2, measure)] if config.train.r2_every else []

    monkeypatch.setattr(loop.Loop, "_probe", probe)
    monkeypatch.setattr(train, "online_probes", online_probes)
    return found, calls


def watched(**options) -> Config:
    options = {"r2_every": 2, "stop_if_worse": 0.05, "keep_checkpoints": 1, **options}
    return config_of("tir_ibot_vits16", precision="fp32", **options)


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def left(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def same_encoder(folder):
    """model.safetensors is the best checkpoint's teacher, and so is what evaluation reads."""
    saved = tensors(folder, "model")
    prefix = "base.teacher.encoder."
    for key, value in tensors(folder / "checkpoints" / BEST, "model").items():
        if key.startswith(prefix):
            assert torch.equal(saved.pop(key.removeprefix(prefix)), value), key
    assert not saved
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = [load_encoder(str(p), "cpu") for p in (folder, folder / "model.safetensors")]
    assert torch.equal(*(encoder.features(images)["patch"] for encoder in found))


def test_it_ends_at_the_best_checkpoint_and_says_so(tmp_path, scores, caplog):
    folder = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        method = pretrain(watched(), embedded_photos(), folder, max_steps=12)
    said = (
        "stopped after step 8: the online probe's score fell to 0.500, more than "
        "train.stop_if_worse=0.05 below the 0.700 of step 4, whose checkpoint and "
        "model.safetensors are what is left; --resume with other settings goes on from there"
    )
    assert said in caplog.text
    found = rows(folder)
    assert sorted(found) == list(range(9))
    assert {s: r["r2_patch_mean"] for s, r in found.items() if s % 2 == 0} == {
        step: value for step, value in SCORES.items() if step <= 8
    }
    assert found[0] == {"step": 0, "epoch": 0, "seconds": 0.0, "r2_patch_mean": 0.5}
    assert left(folder) == ["latest", BEST]
    assert (folder / "checkpoints" / "latest").read_text() == BEST
    same_encoder(folder)
    for key, value in tensors(folder / "checkpoints" / BEST, "model").items():
        assert torch.equal(method.state_dict()[key], value), key
    assert not method.training


def test_resumed_as_it_was_it_says_why_and_trains_no_step(tmp_path, scores, caplog):
    """Also where it was killed before its last files were written."""
    folder = tmp_path / "run"
    pretrain(watched(), embedded_photos(), folder, max_steps=12)
    before = (folder / "metrics.jsonl").read_bytes()
    encoder = tensors(folder, "model")
    (folder / "model.safetensors").unlink()
    (folder / "checkpoints" / "step_00000007").mkdir()
    caplog.clear()
    _, calls = scores
    count = len(calls)
    with caplog.at_level(logging.INFO):
        pretrain(watched(), embedded_photos(), folder, resume=True, max_steps=20)
    assert "stopped after step 8" in caplog.text
    assert len(calls) == count
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert left(folder) == ["latest", BEST]
    for key, value in tensors(folder, "model").items():
        assert torch.equal(encoder[key], value)


def test_with_other_settings_it_goes_on_from_the_best(tmp_path, scores, caplog):
    folder = tmp_path / "run"
    pretrain(watched(), embedded_photos(), folder, max_steps=12)
    found, _ = scores
    found |= {6: 0.71, 8: 0.72}
    config = watched()
    config = replace(config, optim=replace(config.optim, lr=config.optim.lr / 10))
    with caplog.at_level(logging.INFO):
        pretrain(config, embedded_photos(), folder, resume=True, max_steps=8)
    assert "it was stopped after step 8" in caplog.text
    assert stopped_before(folder) is None
    assert sorted(rows(folder)) == list(range(9))
    assert rows(folder)[8]["r2_patch_mean"] == 0.72
    assert left(folder) == ["latest", "step_00000008"]


@pytest.mark.slow
def test_a_run_that_was_interrupted_knows_its_best(tmp_path, scores):
    found, _ = scores
    found |= {5: 0.69}  # the last step of a part has a probe as well
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(watched(), embedded_photos(), whole, max_steps=12)
    pretrain(watched(), embedded_photos(), parts, max_steps=5)
    assert left(parts) == ["latest", BEST, "step_00000005"]  # one is kept, and the best
    pretrain(watched(), embedded_photos(), parts, resume=True, max_steps=12)
    assert stopped_before(parts) == stopped_before(whole)
    ends = [tensors(folder, "model") for folder in (whole, parts)]
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key
    assert left(parts) == left(whole)


def test_the_weights_that_a_run_began_with_may_be_the_best(tmp_path, scores):
    found, _ = scores
    found |= {0: 0.9, 2: 0.86, 4: 0.84}
    pretrain(watched(ema_momentum=0.9), embedded_photos(), tmp_path / "run", max_steps=12)
    assert left(tmp_path / "run") == ["latest", "step_00000000"]
    why = stopped_before(tmp_path / "run")
    assert (why.step, why.score, why.best_step, why.best) == (4, 0.84, 0, 0.9)


def test_a_run_that_stays_good_ends_as_any_other(tmp_path, scores):
    """With the bits of one that was not watched, and its best beside its last checkpoint."""
    found, _ = scores
    found |= {8: 0.66, 9: 0.66}
    method = pretrain(watched(), embedded_photos(), tmp_path / "run", max_steps=9)
    plain = watched(r2_every=0, stop_if_worse=0.0)
    other = pretrain(plain, embedded_photos(), tmp_path / "plain", max_steps=9)
    for key, value in other.state_dict().items():
        assert torch.equal(method.state_dict()[key], value), key
    assert left(tmp_path / "run") == ["latest", BEST, "step_00000009"]
    assert left(tmp_path / "plain") == ["latest", "step_00000009"]
    assert stopped_before(tmp_path / "run") is None


def test_a_probe_without_a_score_changes_nothing(tmp_path, scores):
    found, _ = scores
    found |= {6: {}, 7: {}}
    pretrain(watched(), embedded_photos(), tmp_path / "run", max_steps=7)
    assert stopped_before(tmp_path / "run") is None
    found |= {0: {}}
    with pytest.raises(RuntimeError, match=r"train.stop_if_worse: expected a score .* got none"):
        pretrain(watched(), embedded_photos(), tmp_path / "none", max_steps=7)


def test_a_damaged_best_checkpoint_is_an_error_and_nothing_is_removed(tmp_path, scores):
    found, _ = scores
    found |= {7: 0.69}
    folder = tmp_path / "run"
    pretrain(watched(keep_checkpoints=3), embedded_photos(), folder, max_steps=7)
    file = folder / "checkpoints" / BEST / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(OSError, match=r"stopped after step 8.*but .*step_00000004 is damaged"):
        pretrain(watched(keep_checkpoints=3), embedded_photos(), folder, resume=True, max_steps=12)
    assert left(folder) == ["latest", BEST, *(f"step_0000000{step}" for step in (5, 6, 7))]
    assert stopped_before(folder) is None


def test_the_watch_compares_with_the_best():
    watch = Watch(0.1)
    assert watch.state_dict() == {}
    assert [watch.see(step, value) for step, value in enumerate([0.5, 0.7, 0.7, 0.65])] == [
        True,
        True,
        False,
        False,
    ]
    assert watch.stopped() is None
    other = Watch(0.02)
    other.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    why = other.stopped()
    assert (why.step, why.best_step, why.score, why.best, why.amount) == (3, 1, 0.65, 0.7, 0.02)
    assert not watch.see(4, -torch.inf)
    assert watch.step == 3
    off = Watch(0.0)
    assert not off.see(0, 0.5)
    assert off.stopped() is None


def test_the_score_is_the_encoders_own():
    config = Config(train=TrainConfig(r2_every=1))
    figures = {"r2_z_equi_mean": 0.9, "r2_z_equi_tx": 0.8, "r2_patch_mean": 0.3, "r2_patch_tx": 0.5}
    assert score(figures, config) == 0.3
    assert score({"r2_block3_mean": 0.2, "r2_block3_angle": 0.4}, config) == 0.2
    assert score({"r2_z_equi_mean": 0.9}, config) == -torch.inf
    knn = replace(config.train, knn_every=2, knn_data=("x",))
    config = replace(config, train=knn)
    figures |= {"knn_k20": 0.25, "knn_k20_cls": 0.5}
    assert score(figures, config) == 0.5
    assert score({"r2_patch_mean": 0.3}, config) == -torch.inf  # a step of the other probe alone
    assert score({"knn_k20": torch.nan}, config) == -torch.inf


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(ValueError, match=r"train.stop_if_worse: expected 0 without an online pro"):
        Config(train=TrainConfig(stop_if_worse=0.1))
    with pytest.raises(ValueError, match=r"train.stop_if_worse: expected >= 0, got -0.1"):
        Config(train=TrainConfig(stop_if_worse=-0.1, r2_every=1))


SCRIPTED = """
import fastequi.train as train
from fastequi.evaluate.online import OnlineProbe
scores = iter([0.5, 0.8, 0.4, 0.9])
def online_probes(config, source):
    return [OnlineProbe(2, lambda encoder: {"r2_patch_mean": next(scores)})]
train.online_probes = online_probes
"""


@pytest.mark.slow  # processes of their own
def test_two_processes_end_together(tmp_path):
    folder = tmp_path / "run"
    options = ["--train.r2-every", 2, "--train.stop-if-worse", 0.1, "--max-steps", 9]
    program = changed(tmp_path, SCRIPTED)
    done = run("--run-dir", folder, *options, processes=2, program=program)
    assert done.returncode == 0, done.stderr
    assert "stopped after step 4: the online probe's score fell to 0.400" in done.stderr
    assert done.stdout.split() == [str(folder)]
    assert left(folder) == ["latest", "step_00000000", "step_00000002"]
    done = run("--run-dir", folder, *options, "--resume", processes=2, program=program)
    assert done.returncode == 0, done.stderr
    assert "stopped after step 4" in done.stderr
    assert sorted(rows(folder)) == list(range(5))
    assert checkpoint.latest(folder / "checkpoints").name == "step_00000002"
