"""What `data.views=auto` means: measured by real pipelines of both kinds, and kept."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from fastequi import choices
from fastequi.data import views_choice
from fastequi.data.config import Augment, DataConfig
from fastequi.data.views_choice import about, chosen, fastest_views
from fastequi.functional import backend as backend_of
from fastequi.kernels import backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CFG = DataConfig(image_size=32, source_size=48, batch_size=6, samples_per_decode=2, local_crops=1,
                 local_crop_size=16, num_threads=1, a2=Augment(solarize=0.5))  # fmt: skip


@pytest.fixture(autouse=True)
def no_choices_of_before(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTEQUI_CACHE", str(tmp_path))
    monkeypatch.setattr(choices, "_known", {})


def kept(tmp_path):
    (file,) = tmp_path.glob("views-cpu-torch*.json")
    return file


def test_on_a_cpu_it_is_fused_where_c_runs():
    assert chosen(CFG, CPU) == ("fused" if backend_of(CPU)[0] == "native" else "dali")
    assert [chosen(replace(CFG, views=v), CPU) for v in ("dali", "fused")] == ["dali", "fused"]
    with backend.force("torch"):
        assert chosen(CFG, CPU) == "dali"


def test_on_a_gpu_it_is_measured_where_triton_runs(monkeypatch):
    monkeypatch.setattr(views_choice, "backend", lambda device: ("triton", ""))
    asked = []
    monkeypatch.setattr(views_choice, "fastest_views", lambda *given: asked.append(given) or "x")
    assert chosen(CFG, CUDA) == "x"
    assert asked == [(CFG, CUDA)]
    assert chosen(replace(CFG, channels="all"), CUDA) == "dali"
    assert chosen(replace(CFG, views="fused"), CUDA) == "fused"
    monkeypatch.setattr(views_choice, "backend", lambda device: ("torch", "no Triton"))
    assert chosen(CFG, CUDA) == "dali"
    assert len(asked) == 1


def test_it_is_measured_once_and_read_back(tmp_path, monkeypatch, caplog):
    real, seen = views_choice._times, []

    def times(*given):
        seen.append(real(*given))
        return seen[-1]

    monkeypatch.setattr(views_choice, "_times", times)
    with caplog.at_level(logging.INFO):
        first = fastest_views(CFG, CPU)
    assert fastest_views(CFG, CPU) == first
    (measured,) = seen
    assert set(measured) == {"dali", "fused"}
    assert all(seconds > 0 for seconds in measured.values())
    assert first == min(measured, key=measured.get)
    assert "views 48 and 32 px, 1 of 16 px, 6 samples" in caplog.text
    found = json.loads(kept(tmp_path).read_text())
    assert list(found.values()) == [first]
    # another process reads it, whatever would be the faster one now
    other = {"dali": "fused", "fused": "dali"}[first]
    kept(tmp_path).write_text(json.dumps(dict.fromkeys(found, other)))
    monkeypatch.setattr(choices, "_known", {})
    assert fastest_views(CFG, CPU) == other
    assert len(seen) == 1
    # other views are measured by themselves
    fastest_views(replace(CFG, a1=Augment(blur=0.0)), CPU)
    assert len(seen) == 2
    assert len(json.loads(kept(tmp_path).read_text())) == 2


def test_both_make_the_same_views():
    draws = [views_choice._draws(CFG, 3) for _ in range(2)]
    for _ in range(2):
        ours, theirs = (draw() for draw in draws)
        assert ours.files == theirs.files
        assert len(ours.files) == 3
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            assert (a.start == b.start).all()
    assert (draws[0]().v1.start != ours.v1.start).any()  # and others in the next batch


def test_what_cannot_be_measured_is_dali_and_said(tmp_path, monkeypatch, caplog):
    def broken(*given):
        raise RuntimeError("PTX JIT failed")

    monkeypatch.setattr(views_choice, "_times", broken)
    assert fastest_views(CFG, CPU) == "dali"
    assert "data.views=auto is dali, as both could not be measured: PTX JIT failed" in caplog.text
    assert not list(tmp_path.glob("views-*.json"))


def test_what_makes_views_is_said():
    assert about("dali", CPU) == "views by DALI's operators (data.views=dali)"
    with backend.force("torch"):
        assert about("fused", CPU) == "views in one pass each, by PyTorch (data.views=fused)"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[1, 2]", '{"a": 3}'])
def test_a_file_that_is_damaged_is_written_again(text, tmp_path, monkeypatch):
    monkeypatch.setattr(views_choice, "_times", lambda *given: {"dali": 2.0, "fused": 1.0})
    assert fastest_views(CFG, CPU) == "fused"
    kept(tmp_path).write_text(text)
    monkeypatch.setattr(choices, "_known", {})
    assert fastest_views(CFG, CPU) == "fused"
    assert "fused" in json.loads(kept(tmp_path).read_text()).values()
