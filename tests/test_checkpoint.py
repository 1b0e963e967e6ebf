import hashlib
import json
import subprocess
import sys
import threading

import pytest
import torch
from safetensors import safe_open
from torch import nn

from fastequi.atomic import save_tensors
from fastequi.optim import WeightEMA, adamw
from fastequi.runtime import checkpoint, manifest
from fastequi.runtime.processes import Processes

ABOUT = {"format": "pt", **{f"key {i}": f'{{"ß": "\n{i}"}}' for i in range(6)}}
SAVE = """
import sys, pathlib, torch
from fastequi.atomic import save_tensors
from tests.test_checkpoint import ABOUT
save_tensors(pathlib.Path(sys.argv[1]), {"w": torch.arange(5.0), "b": torch.ones(3)}, ABOUT)
"""


def trained(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    model[0].weight.data = model[0].weight.data.contiguous(memory_format=torch.channels_last)
    return model, adamw(model, 1e-2, 0.1), WeightEMA(model, 0.9)


def save(folder, number, model, optimizer, state, ema=None, keep=3, config=""):
    return checkpoint.write(
        folder,
        checkpoint.snapshot(
            number, model=model, optimizer=optimizer, state=state, ema=ema, config=config
        ),
        keep,
    )


def snapshot(parts, **options):
    names = dict(zip(("model", "optimizer", "ema"), parts, strict=False))
    return checkpoint.snapshot(1, state={}, **names, **options)


def step(model, optimizer, ema):
    model(torch.randn(5, 3, 4, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    ema.update(model)


def test_what_is_loaded_goes_on_bit_for_bit(tmp_path):
    ours = trained()
    for _ in range(3):
        step(*ours)
    folder = save(tmp_path, 3, *ours[:2], {"data": {"epoch": 1}}, ours[2])
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
        (ours[2].tensors, other[2].tensors),
    ):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_only_tensors_and_json_are_written_and_old_ones_go(tmp_path):
    ours = trained()
    for number in (1, 2, 3, 4):
        save(tmp_path, number, *ours[:2], {}, keep=2)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["latest", "step_00000003", "step_00000004"]
    files = sorted(p.name for p in checkpoint.latest(tmp_path).iterdir())
    assert files == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert (tmp_path / "latest").read_text() == "step_00000004"
    assert json.loads((checkpoint.latest(tmp_path) / "state.json").read_text())["step"] == 4


def test_a_half_written_folder_does_not_count(tmp_path):
    ours = trained()
    assert checkpoint.latest(tmp_path) is None
    save(tmp_path, 1, *ours[:2], {})
    (tmp_path / ".step_00000002.tmp").mkdir()  # what a crash leaves
    assert checkpoint.latest(tmp_path).name == "step_00000001"
    save(tmp_path, 2, *ours[:2], {})
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "latest").write_text("step_00000001")  # a crash before it was renewed
    assert checkpoint.latest(tmp_path).name == "step_00000002"


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize("harm", [flip, cut, lambda file: file.unlink()])
@pytest.mark.parametrize("name", ["model", "optimizer", "ema", "state", "manifest"])
def test_damage_is_noticed_and_the_one_before_is_taken(tmp_path, caplog, harm, name):
    ours = trained()
    for number in (1, 2):
        step(*ours)
        save(tmp_path, number, *ours[:2], {}, ours[2])
    (file,) = (tmp_path / "step_00000002").glob(f"{name}.*")
    harm(file)
    if name == "manifest" and harm is flip:  # a manifest may change where it names no file
        file.write_text(file.read_text().replace('"sha256": "', '"sha256": "0'))
    found = checkpoint.latest(tmp_path)
    assert found.name == "step_00000001"
    assert "step_00000002 is damaged" in caplog.text
    assert "going back to step_00000001" in caplog.text
    checkpoint.load(found, *trained())


def test_damaged_ones_that_were_passed_over_make_room(tmp_path):
    """However few are kept: the one just written stays, those beyond it go."""
    ours = trained()
    for number in (2, 4):
        save(tmp_path, number, *ours[:2], {})
    (tmp_path / "step_00000004" / "model.safetensors").write_bytes(b"")
    copied = tmp_path / "step_00000004 copy"
    copied.mkdir()
    assert checkpoint.latest(tmp_path).name == "step_00000002"
    save(tmp_path, 3, *ours[:2], {}, keep=1)
    assert checkpoint.steps(tmp_path) == [tmp_path / "step_00000003"]
    assert checkpoint.latest(tmp_path).name == "step_00000003"
    assert copied.is_dir()  # somebody's own


def test_no_sound_checkpoint_is_an_error_and_not_a_fresh_start(tmp_path):
    ours = trained()
    cut(save(tmp_path, 1, *ours[:2], {}) / "model.safetensors")
    with pytest.raises(OSError, match=r"no checkpoint can be used: .*model\.safetensors has"):
        checkpoint.latest(tmp_path)


def test_older_ones_stay_if_the_new_one_does_not_verify(tmp_path, monkeypatch):
    ours = trained()
    for number in (1, 2):
        save(tmp_path, number, *ours[:2], {}, keep=1)
    publish = manifest.publish

    def a_bad_disk(temporary, final, about):
        publish(temporary, final, about)
        flip(final / "optimizer.safetensors")

    monkeypatch.setattr(manifest, "publish", a_bad_disk)
    with pytest.raises(OSError, match=r"written, but optimizer\.safetensors has another SHA-256"):
        save(tmp_path, 3, *ours[:2], {}, keep=1)
    assert (tmp_path / "latest").read_text() == "step_00000002"
    assert checkpoint.latest(tmp_path).name == "step_00000002"


def test_the_manifest_tells_versions_and_settings(tmp_path):
    ours = trained()
    folder = save(tmp_path, 5, *ours[:2], {}, config="settings")
    told = checkpoint.about(folder)
    assert told["step"] == 5
    assert told["versions"]["torch"] == torch.__version__
    assert told["config_sha256"] == checkpoint.digest("settings") != checkpoint.digest("others")
    file = folder / "model.safetensors"
    assert told["files"][file.name] == {
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def test_the_same_tensors_and_texts_are_the_same_bytes(tmp_path):
    for i in range(3):
        named = tmp_path / f"{i}.safetensors"
        save_tensors(named, {"b": torch.ones(3), "w": torch.arange(5.0)}, dict(ABOUT))
    subprocess.run([sys.executable, "-c", SAVE, tmp_path / "other.safetensors"], check=True)
    digests = {manifest.sha256(file) for file in tmp_path.iterdir()}
    assert len(digests) == 1
    with safe_open(tmp_path / "other.safetensors", "pt") as file:
        assert file.metadata() == ABOUT
        assert torch.equal(file.get_tensor("w"), torch.arange(5.0))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_same_shards_are_the_same_bytes(tmp_path):
    tensors = {"model": {"w": torch.arange(5.0)}, "optimizer": {"m": torch.ones(3)}}
    for step in range(1, 7):
        checkpoint.write_parts(
            tmp_path, checkpoint.Snapshot(step, tensors, {}, ""), Processes(), keep=6
        )
    folders = list(tmp_path.glob("step_*"))
    for name in tensors:
        parts = [file for folder in folders for file in (folder / name).glob("*.safetensors")]
        assert len(parts) == 6
        assert len({manifest.sha256(file) for file in parts}) == 1


def test_another_models_checkpoint_is_refused(tmp_path):
    ours = trained()
    folder = save(tmp_path, 1, *ours[:2], {})
    with pytest.raises(RuntimeError, match="Missing key"):
        checkpoint.load(folder, nn.Linear(3, 3))


def test_a_thread_writes_what_was_there_when_it_was_asked(tmp_path, monkeypatch):
    ours = trained()
    step(*ours)
    before = {name: value.clone() for name, value in ours[0].state_dict().items()}
    may_write, write = threading.Event(), checkpoint.write

    def slowly(*args):
        may_write.wait(20)
        return write(*args)

    monkeypatch.setattr(checkpoint, "write", slowly)
    with checkpoint.Saver(tmp_path, 3, async_save=True) as saver:
        saver.save(snapshot(ours, copy=True))
        step(*ours)  # the training goes on
        assert checkpoint.steps(tmp_path) == []
        may_write.set()
        saver.wait()
    other = trained(seed=9)
    checkpoint.load(tmp_path / "step_00000001", *other)
    for name, value in other[0].state_dict().items():
        assert torch.equal(value, before[name])


def test_a_threads_failure_is_not_lost(tmp_path):
    ours = trained()
    (tmp_path / "file").write_text("in the way")
    with checkpoint.Saver(tmp_path / "file" / "checkpoints", 3, async_save=True) as saver:
        saver.save(snapshot(ours[:2], copy=True))
        with pytest.raises(OSError, match="file"):
            saver.wait()


def test_what_a_kill_left_is_removed(tmp_path):
    ours = trained()
    (tmp_path / ".step_00000007.tmp").mkdir()
    save(tmp_path, 9, *ours[:2], {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000009"]
