import json

import pytest
import torch
from torch import nn

from fastequi import checkpoint
from fastequi.optim import WeightAverage, adamw


def trained(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    model[0].weight.data = model[0].weight.data.contiguous(memory_format=torch.channels_last)
    return model, adamw(model, 1e-2, 0.1), WeightAverage(model, 0.9)


def step(model, optimizer, average):
    model(torch.randn(5, 3, 4, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    average.update(model)


def test_what_is_loaded_goes_on_bit_for_bit(tmp_path):
    ours = trained()
    for _ in range(3):
        step(*ours)
    folder = checkpoint.save(tmp_path, 3, *ours[:2], {"data": {"epoch": 1}}, ours[2])
    for _ in range(3):
        step(*ours)
    other = trained(seed=9)
    state = checkpoint.load(folder, *other)
    assert state["step"] == 3
    assert state["data"] == {"epoch": 1}
    assert other[2].updates == 3
    for _ in range(3):
        step(*other)
    for a, b in (
        (ours[0].state_dict(), other[0].state_dict()),
        (ours[2].average, other[2].average),
    ):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_only_tensors_and_json_are_written_and_old_ones_go(tmp_path):
    ours = trained()
    for number in (1, 2, 3, 4):
        checkpoint.save(tmp_path, number, *ours[:2], {}, keep=2)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["latest", "step_00000003", "step_00000004"]
    files = sorted(p.name for p in checkpoint.latest(tmp_path).iterdir())
    assert files == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads((checkpoint.latest(tmp_path) / "state.json").read_text())["step"] == 4


def test_a_half_written_folder_does_not_count(tmp_path):
    ours = trained()
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, 1, *ours[:2], {})
    (tmp_path / ".step_00000002.tmp").mkdir()  # what a crash leaves
    assert checkpoint.latest(tmp_path).name == "step_00000001"
    (tmp_path / "latest").write_text("step_00000009")
    with pytest.raises(FileNotFoundError, match="missing or incomplete"):
        checkpoint.latest(tmp_path)


def test_another_models_checkpoint_is_refused(tmp_path):
    ours = trained()
    folder = checkpoint.save(tmp_path, 1, *ours[:2], {})
    with pytest.raises(RuntimeError, match="Missing key"):
        checkpoint.load(folder, nn.Linear(3, 3))
