"""Files of weights that are not what they should be, each with its message; and shards."""

import argparse
import hashlib
import json
import os
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastequi.weights.files import read_weights
from fastequi.weights.reader import load_weights
from tests.support.vit_by_hand import tensors

STATE = {"a.b": torch.arange(300.0), "c": torch.ones(2, 2)}


class Harmful:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


def saved(folder, content, name="weights.pth", **options):
    torch.save(content, folder / name, **options)
    return folder / name


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_nested_dicts_have_names_with_dots(tmp_path, zipped):
    content = {
        "teacher": OrderedDict(STATE),
        "args": argparse.Namespace(lr=1, arch="vit"),
        "epoch": 3,
        0: {1: torch.ones(1)},
    }
    file = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    found = read_weights(file).tensors
    assert found.keys() == {"teacher.a.b", "teacher.c", "0.1"}
    assert torch.equal(found["teacher.a.b"], STATE["a.b"])
    assert read_weights(file).sha256() == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("what", "named"),
    [(Harmful(), "posix.system"), (np.float64(1), "numpy"), (torch.nn.Linear(1, 1), "Linear")],
)
def test_objects_of_python_are_refused_and_not_made(tmp_path, monkeypatch, zipped, what, named):
    monkeypatch.chdir(tmp_path)
    file = saved(tmp_path, {**STATE, "x": what}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"objects of Python \(.*{named}.* is refused") as told:
        read_weights(file)
    assert str(told.value).startswith(str(file))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "harmed").exists()


def cut(folder, name, zipped=True):
    if name.endswith(".safetensors"):
        save_file(STATE, folder / name)
    else:
        saved(folder, STATE, name, _use_new_zipfile_serialization=zipped)
    file = folder / name
    file.write_bytes(file.read_bytes()[:900])
    return file


def made(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def program(folder):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), folder / "program.pt")
    return folder / "program.pt"


def index(folder, **changes):
    save_file(STATE, folder / "model-00001-of-00002.safetensors")
    places = dict.fromkeys(STATE, "model-00001-of-00002.safetensors")
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": {**places, **changes}}))
    return folder


def two(folder):
    for name in ("one.safetensors", "two.safetensors"):
        save_file(STATE, folder / name)
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: cut(f, "cut.pth"), "cut.pth is not whole: it is a zip archive without an end"),
        (lambda f: cut(f, "old.pth", False), "old.pth is damaged, or no file by torch.save"),
        (lambda f: cut(f, "cut.safetensors"), r"no safetensors file \(.*incomplete|not fully cov"),
        (made("page.pth", b"<html>Not found"), "no file by torch.save: it begins with b'<html>"),
        (made("none.bin", b""), "none.bin is empty"),
        (made("none.safetensors", b""), "none.safetensors is empty"),
        (
            made("lfs.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:00"),
            "lfs.bin is a pointer of Git LFS, not the file itself",
        ),
        (program, r"program.pt is a program \(TorchScript\)"),
        (lambda f: saved(f, torch.ones(2)), "weights.pth holds a Tensor, expected tensors by name"),
        (lambda f: saved(f, [torch.ones(2)]), "weights.pth holds a list, expected tensors by name"),
        (made("weights.h5", b"x"), "expected a file of .safetensors, .pth, .pt, .bin, or a folder"),
        (two, r"holds several files \(one.safetensors, two.safetensors\): name one of them"),
        (lambda f: index(f, x="../x.safetensors"), "expected weight_map, the file of every"),
        (
            lambda f: index(f, x="model-00001-of-00002.safetensors"),
            "lacks x, which .* says it ho",
        ),
    ],
)
def test_a_file_that_is_none_says_so_in_one_line(tmp_path, make, message):
    with pytest.raises(ValueError, match=message) as told:
        load_weights(make(tmp_path))
    assert "\n" not in str(told.value)
    assert str(told.value).startswith(f"CHECKPOINT: {tmp_path}")


def test_what_is_not_there_is_named(tmp_path):
    index(tmp_path, x="model-00002-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match=r"00002-of-00002.safetensors is missing, a shard"):
        load_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"CHECKPOINT: .*nowhere.pth does not exist"):
        load_weights(tmp_path / "nowhere.pth")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "README.md").write_text("x")
    with pytest.raises(ValueError, match=r"empty holds no weights: expected .*, got README.md"):
        load_weights(empty)


def test_shards_in_torchs_format_and_any_name_are_one_network(tmp_path):
    state = tensors(192, 2)
    names = sorted(state)
    places = {}
    for i in range(3):
        part = {name: state[name] for name in names[i::3]}
        torch.save(part, tmp_path / f"part-{i}.bin")
        places |= dict.fromkeys(part, f"part-{i}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    whole = load_weights(tmp_path)
    assert all(torch.equal(whole.state[name], tensor) for name, tensor in state.items())
    (tmp_path / "part-1.bin").write_bytes((tmp_path / "part-2.bin").read_bytes())
    with pytest.raises(ValueError, match=r"part-1.bin lacks .* and 7 more, which pytorch_model"):
        read_weights(tmp_path / "pytorch_model.bin.index.json")


OTHERS = {
    "a ResNet": {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 1, 1)},
    "CLIP": {"visual.conv1.weight": (32, 3, 8, 8), "visual.transformer.resblocks.0.x": (1,)},
    "a network in stages": {"stages.0.blocks.0.conv_dw.weight": (8, 1, 7, 7)},
    "a convolutional network": {"features.0.weight": (8, 3, 3, 3)},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_checkpoint_of_something_else_is_named(tmp_path, kind):
    file = saved(tmp_path, {name: torch.ones(shape) for name, shape in OTHERS[kind].items()})
    with pytest.raises(ValueError, match=f"not the tensors of a ViT but of {kind}"):
        load_weights(file)


def test_the_nearest_layout_is_named_where_the_patch_embedding_is_missing(tmp_path):
    state = {"encoder.layer.0.attention.attention.query.weight": torch.ones(2, 2)}
    state["encoder.layer.0.intermediate.dense.weight"] = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"nearest is Hugging Face ViT.*: no embeddings.patch_emb"):
        load_weights(saved(tmp_path, state))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_read_as_float32_and_told(tmp_path, dtype):
    state = tensors(192, 2)
    weights = load_weights(saved(tmp_path, {n: t.to(dtype) for n, t in state.items()}))
    assert {tensor.dtype for tensor in weights.state.values()} == {torch.float32}
    assert weights.report.changed == [f"{str(dtype)[6:]} tensors as float32"]
    quantised = {**state, "blocks.0.attn.qkv.weight": torch.ones(576, 192, dtype=torch.int8)}
    with pytest.raises(ValueError, match=r"attn.qkv.weight: expected floats, got torch.int8"):
        load_weights(saved(tmp_path, quantised))


def test_a_report_lists_every_kind(tmp_path):
    state = {f"teacher.backbone.{n}": t.half() for n, t in tensors(192, 2).items()}
    lines = load_weights(saved(tmp_path, state | {"teacher.head.0.weight": torch.ones(1)})).report
    kinds = "weights layout loaded network changed resized missing unexpected assumed note"
    assert " ".join(line.split()[0] for line in lines.lines()) == kinds
    count = sum(tensor.numel() for tensor in tensors(192, 2).values())
    assert f"{len(state)} tensors, {count:,} parameters" in lines.lines()[2]
