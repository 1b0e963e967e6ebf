"""Checkpoints: one folder per saved step, tensors in safetensors and the rest in JSON; no pickle.

    checkpoints/step_00001200/  model.safetensors  optimizer.safetensors  [average.safetensors]
                                state.json
    checkpoints/latest          the name of the newest complete folder

A folder is written under a temporary name and renamed when complete, so a crash leaves the older
ones and `latest` intact.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastequi.optim import WeightAverage

_RNG = "rng_state"


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    average: WeightAverage | None = None,
    keep: int = 3,
) -> Path:
    """Saves one step and removes all but the `keep` newest.

    Args:
        folder: the run's `checkpoints/`.
        state: what else a resumed run needs, in JSON types (the data cursor among it).

    Returns:
        The folder of this step.
    """
    name = f"step_{step:08d}"
    temporary, final = folder / f".{name}.tmp", folder / name
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(_owned(model.state_dict()), temporary / "model.safetensors")
    save_file(_pack_optimizer(model, optimizer), temporary / "optimizer.safetensors")
    if average is not None:
        save_file(_owned(average.state_dict()), temporary / "average.safetensors")
    full = {**state, "step": step, "average_updates": average.updates if average else 0}
    (temporary / "state.json").write_text(json.dumps(full, indent=1))
    for file in temporary.iterdir():
        _sync(file)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _replace_text(folder / "latest", name)
    for old in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(old)
    return final


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's `checkpoints/`, or None."""
    pointer = folder / "latest"
    if not pointer.is_file():
        return None
    found = folder / pointer.read_text().strip()
    if not (found / "state.json").is_file():
        raise FileNotFoundError(f"{pointer} names {found.name}, which is missing or incomplete")
    return found


def load(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: WeightAverage | None = None,
) -> dict[str, Any]:
    """Loads a step's weights (strictly), optimiser, average and generators in place.

    Returns:
        What :func:`save` was given as `state`, with "step".
    """
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    state = json.loads((checkpoint / "state.json").read_text())
    if optimizer is not None:
        _unpack_optimizer(model, optimizer, load_file(checkpoint / "optimizer.safetensors"))
    if average is not None:
        for name, value in load_file(checkpoint / "average.safetensors").items():
            average.average[name].copy_(value)
        average.updates = state["average_updates"]
    return state


def load_averaged(checkpoint: Path, model: nn.Module) -> None:
    """Loads the weights that evaluation should use: a step's average if it has one (strictly)."""
    average = checkpoint / "average.safetensors"
    model.load_state_dict(
        load_file(average if average.is_file() else checkpoint / "model.safetensors")
    )


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _pack_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors under `<field>.<parameter name>`, and the generators' states."""
    packed = {
        f"{field}.{name}": value
        for name, param in model.named_parameters()
        for field, value in optimizer.state.get(param, {}).items()
    }
    packed[f"{_RNG}.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        packed[f"{_RNG}.cuda"] = torch.cuda.get_rng_state()
    return _owned(packed)


def _unpack_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, packed: dict[str, Tensor]
) -> None:
    torch.set_rng_state(packed.pop(f"{_RNG}.cpu"))
    cuda = packed.pop(f"{_RNG}.cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    params = dict(model.named_parameters())
    for key, value in packed.items():
        field, name = key.split(".", 1)
        if name not in params:
            raise KeyError(f"optimizer state of {name!r}: the model has no such parameter")
        param = params[name]
        if value.shape == param.shape:  # the fused update walks memory: moments lie as weights do
            value = torch.empty_like(param).copy_(value)
        optimizer.state[param][field] = value.to(param.device)


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    _sync(temporary)
    temporary.replace(path)
